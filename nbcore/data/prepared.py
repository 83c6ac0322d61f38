"""Data sets that are decoded once and then read from disk: imagenette, cifar10, mnist."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nbcore.data.archives import download as fetch
from nbcore.data.archives import open_cifar10, open_mnist
from nbcore.data.base import DATASETS, Dataset, View
from nbcore.data.cache import cached_sizes, is_current, read_cache, write_cache
from nbcore.data.imagenette import open_imagenette
from nbcore.data.source import Source
from nbcore.data.splits import assemble

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set that is decoded once and then read from disk."""

    name: str
    img_size: int
    """Side at which the images are stored unless told otherwise."""
    resizable: bool
    """True for photos, which may be prepared at another size than `img_size`."""
    torchvision_name: str
    """The class of torchvision.datasets that can download it."""
    open_source: Callable[[Path], Source]

    def command(self, data_dir: Path | None) -> str:
        """The command that prepares it."""
        return f"python -m nbcore data {self.name} --source DIR --data {data_dir or 'DIR'}"

    def __call__(self, data_dir: Path | None, view: View) -> Dataset:
        sizes = cached_sizes(data_dir / self.name) if data_dir else []
        if not data_dir or not sizes:
            where = f"in {data_dir}" if data_dir else "without a data folder"
            raise ValueError(
                f"no prepared {self.name} {where}; run `{self.command(data_dir)}` "
                "(--download instead of --source DIR fetches it), then give the same --data"
            )
        view = replace(view, img_size=view.img_size or self.img_size)
        stored = view.img_size if view.img_size in sizes and view.crop_pct == 1 else sizes[-1]
        splits, classes = read_cache(data_dir / self.name / str(stored))
        num_resized = sum(arrays.num_resized for arrays in splits.values())
        if num_resized and (stored, 1) != (view.img_size, view.crop_pct):
            logger.warning(
                "%s: %d photos were cropped to %d px when they were prepared and are now resized "
                "to %d px with crop_pct %s, so they differ from what the page shows",
                self.name, num_resized, stored, view.img_size, view.crop_pct,
            )  # fmt: skip
        return assemble(self.name, classes, splits["train"], splits["test"], view)


def prepare(
    name: str,
    source_dir: Path | None,
    data_dir: Path,
    *,
    download: bool = False,
    img_size: int | None = None,
    workers: int | None = None,
) -> Path:
    """Decodes a data set into data_dir/NAME/SIZE, unless that was done from the same source before.

    Args:
        name: "imagenette", "cifar10" or "mnist".
        source_dir: The archives or image folder, or with `download` the folder to download to
            (None: data_dir/downloads).
        data_dir: Where to write; `load_dataset` takes the same.
        download: Fetch the data through torchvision first.
        img_size: Stored side of imagenette's photos; None means 224.
        workers: Decoding processes; None means one per core, at most 16.

    Returns:
        The folder written.

    Raises:
        ValueError: If the data set needs no preparation, or its source is missing or damaged.
    """
    loader = DATASETS[name]
    if not isinstance(loader, Prepared):
        raise ValueError(
            f"{name} needs no preparation: `shapes` is generated, and `folder` reads the image "
            "folder given as --data"
        )
    View(img_size=img_size, workers=workers)  # raises if one is out of range
    if download:
        source_dir = fetch(loader.torchvision_name, source_dir or data_dir / "downloads")
    if source_dir is None:
        raise ValueError(f"no source for {name}; run `{loader.command(data_dir)}`")
    if not source_dir.is_dir():
        raise ValueError(f"the source {source_dir} is no folder; run `{loader.command(data_dir)}`")
    if img_size not in (None, loader.img_size) and not loader.resizable:
        raise ValueError(
            f"{name} is stored at its own {loader.img_size} px; choose {img_size} px when loading"
        )
    size = img_size or loader.img_size
    folder = data_dir / name / str(size)
    source = loader.open_source(source_dir)
    if is_current(folder, source.checksum):
        logger.info("%s is prepared already in %s", name, folder)
        return folder
    splits = source.decode(size, workers)
    write_cache(folder, splits, classes=source.classes, source=source.checksum)
    logger.info("%s is prepared in %s", name, folder)
    return folder


DATASETS.register("imagenette")(
    Prepared(
        name="imagenette",
        img_size=224,
        resizable=True,
        torchvision_name="Imagenette",
        open_source=open_imagenette,
    )
)
DATASETS.register("cifar10")(
    Prepared(
        name="cifar10",
        img_size=32,
        resizable=False,
        torchvision_name="CIFAR10",
        open_source=open_cifar10,
    )
)
DATASETS.register("mnist")(
    Prepared(
        name="mnist",
        img_size=28,
        resizable=False,
        torchvision_name="MNIST",
        open_source=open_mnist,
    )
)
