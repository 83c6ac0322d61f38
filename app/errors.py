"""UserError: text for the person at the screen."""

from __future__ import annotations


class UserError(Exception):
    """Something a visitor can mend; the page and the API show its text as it stands."""
