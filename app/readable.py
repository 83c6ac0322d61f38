"""A map whose patches can be read: by pointer, by touch, or by keyboard with the arrow keys.

`assets/page.js` reads what stands here and shows one line for the patch in question.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from app import text

SCRIPT = Path(__file__).resolve().parent / "assets" / "page.js"


def readable(
    picture: str,
    values: np.ndarray,
    write: Callable[[float], str],
    *,
    name: str,
    groups: np.ndarray | None = None,
) -> str:
    """A picture with the value of each of its patches.

    Args:
        picture: `<img>` of the map, every patch as large as every other.
        values: [rows, columns].
        write: A value as the page writes it.
        name: What the map shows, in a word or two, such as "layer 4, MLP".
        groups: Which merged token carries each patch [rows, columns].
    """
    merged = ""
    if groups is not None:
        sizes = np.bincount(groups.ravel())[groups]
        listed = ",".join(str(token) for token in groups.ravel())
        counted = ",".join(str(size) for size in sizes.ravel())
        merged = f' data-tokens="{listed}" data-sizes="{counted}"'
    written = "|".join(write(float(value)) for value in values.ravel())
    return (
        f'<figure class="nb-map" tabindex="0" aria-label="{escape(name)}: '
        f'{escape(text.MAP_KEYS)}" data-name="{escape(name)}" data-columns="{values.shape[1]}" '
        f'data-rows="{values.shape[0]}" data-values="{escape(written)}"{merged}>{picture}'
        '<i class="nb-spot" hidden></i></figure>'
    )


def script() -> str:
    """What makes these maps answer, for the head of the page."""
    words = json.dumps({"patch": text.PATCH, "merged": text.PATCH_MERGED})
    return f"<script>{SCRIPT.read_text(encoding='utf-8').replace('NB_WORDS', words)}</script>"
