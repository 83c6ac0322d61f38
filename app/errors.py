"""UserError: text for the person at the screen."""

from __future__ import annotations

from collections.abc import Mapping


class UserError(Exception):
    """Something a visitor can mend; the page and the API show its text as it stands."""


class NoAnswerError(UserError):
    """Nothing that was asked for could be computed, though the request is in order."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__(" ".join(failures.values()))
        self.failures = dict(failures)
        """Why, by variant."""
