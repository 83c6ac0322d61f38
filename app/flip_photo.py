"""A packed photo of Flips: as a file that the page may show, and by its name in a link."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from app import gallery, text
from app.errors import UserError
from app.flips import Chapter
from app.schema import flip_photo
from app.service import Service


def open_packed(service: Service, chapter: Chapter, position: int) -> Path | None:
    """A file of the photo, whose pixels have a name from now on; None if it is not packed."""
    path = flip_photo(chapter, position)
    if path is not None:
        name = f"{chapter.dataset}/{chapter.names[position]}"
        service.flips.opened[gallery.digest(service.load_image(path))] = name
    return path


def open_named(service: Service, name: str) -> Path:
    """A file of the photo that a link names.

    Raises:
        UserError: If no such photo is packed.
    """
    dataset, _, photo = name.partition("/")
    chapter = service.flips.chapter(dataset)
    if photo in chapter.names:
        path = open_packed(service, chapter, chapter.names.index(photo))
        if path is not None:
            return path
    raise UserError(text.ERROR_LINK_FLIP.format(flip=name))


def name_of(service: Service, image: Image.Image) -> str | None:
    """What a link calls a photo that was opened from Flips; None for any other."""
    return service.flips.opened.get(gallery.digest(image))


def truth_of(service: Service, image: Image.Image) -> str | None:
    """The class that its data set gives a photo that was opened from Flips; None for any other."""
    dataset, _, photo = (name_of(service, image) or "").partition("/")
    if not photo:
        return None
    chapter = service.flips.chapter(dataset)
    return str(chapter.classes[chapter.targets[chapter.names.index(photo)]])
