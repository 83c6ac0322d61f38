"""Data sets by name, whole in memory as uint8 tensors: imagenette, cifar10, mnist, folder, shapes.

`prepare` decodes an archive or a folder of photos once (`python -m nbcore data`); `load_dataset`
reads what it left, carves the validation split from the training set and returns tensors that a
trainer moves to its device and augments there. A new data set is one file in this package and one
registration in `DATASETS`.
"""

from nbcore.data.base import DATASETS, Dataset, Split, View, load_dataset
from nbcore.data.folder import load_folder
from nbcore.data.prepared import Prepared, prepare
from nbcore.data.shapes import load_shapes
from nbcore.data.splits import spread
from nbcore.preprocessing import preprocess

__all__ = [
    "DATASETS",
    "Dataset",
    "Prepared",
    "Split",
    "View",
    "load_dataset",
    "load_folder",
    "load_shapes",
    "prepare",
    "preprocess",
    "spread",
]
