"""Names of sites and quantities in the words of the page."""

from __future__ import annotations

import re

from app import text

SITE = re.compile(r"blocks\.(\d+)(?:\.(\w+))?$")


def layer_and_kind(site: str) -> tuple[int, str]:
    """Layer counted from one, and attn, mlp or, for a whole block, nothing.

    "blocks.0.attn" gives (1, "attn"), "blocks.0" gives (1, "").

    Raises:
        ValueError: If the name has another form.
    """
    match = SITE.match(site)
    if match is None:
        raise ValueError(f"site {site!r} is not like blocks.0.attn or blocks.0")
    return int(match[1]) + 1, match[2] or ""


def site_words(site: str) -> str:
    """ "blocks.0.attn" gives "layer 1, attention"."""
    layer, kind = layer_and_kind(site)
    words = f"{text.LAYER.lower()} {layer}"
    return f"{words}, {text.SITE_KINDS.get(kind, kind)}" if kind else words


def quantity_words(name: str) -> str:
    """How the page calls a quantity: its own name where `text` knows no better."""
    return text.QUANTITIES.get(name, name)
