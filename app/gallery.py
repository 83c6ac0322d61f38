"""The example photos that the page offers, and the strip of buttons that picks one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from app import markup, text

FOLDER = Path(__file__).resolve().parent / "examples"
THUMBNAIL = 96
"""Pixels, twice what is shown, for sharp screens."""
ON_CLICK = """element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-example]');
  if (chosen) trigger('select', {index: Number(chosen.dataset.example)});
});"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A photo that the page offers."""

    path: Path
    label: str
    """What is on it, in a word or two."""
    alt: str
    """What is on it, in a sentence."""


def read_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    """The photos that `examples.json` lists, in its order."""
    listed = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["photos"]
    return tuple(
        Example(path=folder / photo["file"], label=photo["label"], alt=photo["alt"])
        for photo in listed
    )


def strip(examples: Sequence[Example]) -> str:
    """A labelled row of buttons, one a photo; `ON_CLICK` makes a click an event with its index."""
    buttons = "".join(
        f'<button type="button" data-example="{index}" title="{escape(example.label)}">'
        f"{_thumbnail(example)}</button>"
        for index, example in enumerate(examples)
    )
    return f'<p>{escape(text.EXAMPLES)}</p><div class="nb-strip">{buttons}</div>'


def _thumbnail(example: Example) -> str:
    with Image.open(example.path) as image:
        return markup.picture(image.convert("RGB").resize((THUMBNAIL, THUMBNAIL)), example.alt)
