"""The example photos that the page offers, and the strip of buttons that picks one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from app import markup, text
from app.images import load_image, strips

FOLDER = Path(__file__).resolve().parent / "examples"
PHOTO = "photo"
"""Says in the `info` of a crop what the digest of its photo is."""
THUMBNAIL = 96
"""Pixels, twice what is shown, for sharp screens."""
ON_CLICK = """element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-example]');
  if (chosen) trigger('select', {name: chosen.dataset.example});
});"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A photo that the page offers."""

    path: Path
    dataset: str
    """Whose models know what is on it."""
    label: str
    """What is on it, in a word or two."""
    alt: str
    """What is on it, in a sentence."""

    @property
    def name(self) -> str:
        """What a link calls it."""
        return self.path.stem


def read_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    """The photos that `examples.json` lists, in its order."""
    listed = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["photos"]
    return tuple(
        Example(
            path=folder / photo["file"],
            dataset=photo["dataset"],
            label=photo["label"],
            alt=photo["alt"],
        )
        for photo in listed
    )


def of_dataset(examples: Sequence[Example], dataset: str) -> tuple[Example, ...]:
    """Those made for the models of a data set, or all if there are none such."""
    return tuple(e for e in examples if e.dataset == dataset) or tuple(examples)


def find(image: Image.Image) -> Example | None:
    """The example that a photo is, None for a visitor's own.

    Args:
        image: From `load_image` or `reduced`.
    """
    return _by_digest().get(digest(image))


def digest(image: Image.Image) -> bytes:
    """Equal for equal pixels of the photo, be it whole or `reduced`."""
    if PHOTO in image.info:
        return bytes(image.info[PHOTO])
    found = hashlib.sha256(repr(image.size).encode())
    for _, strip in strips(image):
        found.update(strip.tobytes())
    return found.digest()


def reduced(photo: Image.Image, crop: Image.Image) -> Image.Image:
    """The crop, which from now on bears the digest of its photo, so that it can be kept in its
    stead."""
    crop.info[PHOTO] = digest(photo)
    return crop


@functools.cache
def _by_digest() -> Mapping[bytes, Example]:
    return {digest(load_image(example.path)): example for example in read_examples()}


def strip(examples: Sequence[Example]) -> str:
    """A labelled row of buttons, one a photo; `ON_CLICK` makes a click an event with its name."""
    buttons = "".join(
        f'<button type="button" data-example="{escape(example.name)}" '
        f'title="{escape(example.label)}">{_thumbnail(example)}</button>'
        for example in examples
    )
    return f'<p>{escape(text.EXAMPLES)}</p><div class="nb-strip">{buttons}</div>'


def _thumbnail(example: Example) -> str:
    with Image.open(example.path) as image:
        return markup.picture(image.convert("RGB").resize((THUMBNAIL, THUMBNAIL)), example.alt)
