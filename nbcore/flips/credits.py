"""Where the photos of a data set come from and under which terms: only photos of data sets named
here are packed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Credit:
    """What has to be said beside a photo."""

    source: str
    licence: str


CREDITS: dict[str, Credit] = {
    "imagenette": Credit(
        source="Imagenette v2 by fast.ai, validation split, "
        "https://github.com/fastai/imagenette; a subset of ImageNet (ILSVRC 2012)",
        licence="The Imagenette repository is published under Apache-2.0; copyright in the photos "
        "stays with the photographers, from whose pages ImageNet collected them for research.",
    ),
    "cifar10": Credit(
        source="CIFAR-10 by A. Krizhevsky, V. Nair and G. Hinton (2009), test split, "
        "https://www.cs.toronto.edu/~kriz/cifar.html; a subset of 80 Million Tiny Images",
        licence="Its authors state no licence and ask to be cited (Learning Multiple Layers of "
        "Features from Tiny Images, 2009); copyright in the photos stays with their authors.",
    ),
    "mnist": Credit(
        source="MNIST by Y. LeCun, C. Cortes and C. Burges, test split",
        licence="CC BY-SA 3.0",
    ),
    "shapes": Credit(
        source="Drawn by nbcore/data/shapes.py",
        licence="Apache-2.0, as this repository",
    ),
}
"""By data set."""

MARKED = frozenset(
    {
        "val/n01440764/n01440764_1951.JPEG",
        "val/n01440764/n01440764_5081.JPEG",
        "val/n02102040/n02102040_3660.JPEG",
        "val/n03000684/n03000684_15621.JPEG",
        "val/n03000684/n03000684_3161.JPEG",
        "val/n03000684/n03000684_3780.JPEG",
        "val/n03028079/n03028079_7752.JPEG",
        "val/n03394916/n03394916_28421.JPEG",
        "val/n03425413/n03425413_24522.JPEG",
        "val/n03445777/n03445777_10042.JPEG",
        "val/n03445777/n03445777_14531.JPEG",
        "val/n03445777/n03445777_15510.JPEG",
        "val/n03445777/n03445777_16331.JPEG",
        "val/n03445777/n03445777_5222.JPEG",
        "val/n03445777/n03445777_9292.JPEG",
        "val/n03888257/n03888257_42.JPEG",
    }
)
"""Photos, by name, that bear the mark of a photographer, an agency or a label; never packed.
All that were packed were looked at."""
