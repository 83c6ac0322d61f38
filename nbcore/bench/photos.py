"""Image folders for timm's loader: what it reads are files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from nbcore.data import Split

JPEG_QUALITY = 90


def write_photos(split: Split, classes: tuple[str, ...], folder: Path) -> None:
    """Write a split as JPEG files `folder/<class>/<position>.jpg`.

    Args:
        split: Images [n, 3, H, W].
        classes: Class names by target.
        folder: Created.
    """
    # Numbered, so that the order of folders is that of the targets.
    names = [f"{i:03d}-{name.replace('/', '-')}" for i, name in enumerate(classes)]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)

    def write(position: int) -> None:
        picture = Image.fromarray(split.images[position].permute(1, 2, 0).numpy())
        path = folder / names[int(split.targets[position])] / f"{position:06d}.jpg"
        picture.save(path, quality=JPEG_QUALITY)

    # Pillow encodes without holding the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(split.targets))))


def made_up_photos(count: int, side: int) -> Split:
    """Smooth random pictures of two classes in turn: they compress and sample about like photos."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear").mul(255).byte()
    names = tuple(f"made-up/{i:06d}" for i in range(count))
    return Split(images=smooth, targets=torch.arange(count) % 2, names=names)
