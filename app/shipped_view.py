"""The answers of the first view as one small file: made with the models, shown while a server that
has just been started computes its own.

The file says which models, photo and choices it was made from, by their hashes. Answers of any
others are refused, so a page never shows what its models did not say.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app import pictures
from app.ablation import Ablated, Ablation
from app.attribution import AttributionMap
from app.burden import BurdenMaps
from app.inference import Prediction, TopClass
from app.service import Service
from app.task import Cells
from app.trust import RemovalScores, Served
from app.visit import Choices
from nbcore.checkpoint import sha256_of, write_atomically

FILE = "first-view.npz"
FORMAT = 1
COMMAND = "python -m app first-view"
KINDS = {
    kind.__name__: kind
    for kind in (
        *(Ablated, Ablation, AttributionMap, BurdenMaps, Prediction, RemovalScores, Served),
        TopClass,
    )
}
"""Dataclasses that the file may hold."""
FAULTS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
MadeFrom = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the models said of the first photo."""

    predictions: Cells[Prediction] | None
    attributions: Cells[AttributionMap] | None
    burdens: Cells[BurdenMaps] | None
    ablated: Ablated | None


@dataclass(frozen=True, kw_only=True)
class Written:
    """The file."""

    path: Path
    size_bytes: int


def made_from(service: Service, choices: Choices, photo: Path) -> MadeFrom:
    """What the answers depend on: hashes of files and photo, and what was asked."""
    files = {
        key: {kind: service.registry[key].variant.files[kind].sha256 for kind in FILES}
        for key in choices.variants
    }
    asked = dataclasses.asdict(choices) | {"variants": list(choices.variants)}
    return {"format": FORMAT, "photo": sha256_of(photo), "choices": asked, "files": files}


FILES = ("onnx", "weights")


def write_answers(folder: Path, made_from: MadeFrom, answers: Answers) -> Written:
    """Write the file into a checkpoint folder."""
    arrays: dict[str, np.ndarray] = {}
    told = {field.name: _pack(getattr(answers, field.name), arrays) for field in FIELDS}
    words = json.dumps({"made_from": made_from, "answers": told}, allow_nan=False)
    data = io.BytesIO()
    # As a rule of this repository: no pickles, so text goes as bytes.
    arrays["meta"] = np.frombuffer(words.encode(), np.uint8)
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / FILE, data.getvalue())
    return Written(path=folder / FILE, size_bytes=len(data.getvalue()))


FIELDS = dataclasses.fields(Answers)


def read_answers(folder: Path, made_from: MadeFrom) -> Answers:
    """The answers in a checkpoint folder, if they are of these models, this photo and choices.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is unreadable or of others.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(bytes(arrays["meta"]))
            told = {name: _unpack(value, arrays) for name, value in meta["answers"].items()}
        answers, theirs = Answers(**told), meta["made_from"]
    except FAULTS as error:
        raise ValueError(f"{path} cannot be read ({error}); renew it by `{COMMAND}`") from error
    if theirs != made_from:
        changed = [key for key, value in made_from.items() if theirs.get(key) != value]
        raise ValueError(
            f"{path} was made from other {', '.join(changed)}; renew it by `{COMMAND}`"
        )
    return answers


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """As JSON, arrays set apart; pictures are left out, as they are drawn from the values."""
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _pack(getattr(value, field.name), arrays)
            for field in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, "fields": fields}
    if isinstance(value, Cells):
        cells = {key: _pack(cell, arrays) for key, cell in value.items()}
        return {"cells": cells, "failures": value.failures}
    if isinstance(value, tuple):
        return [_pack(item, arrays) for item in value]
    return None if isinstance(value, Image.Image) else value


def _unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_unpack(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "kind" in value:
        fields = {name: _unpack(field, arrays) for name, field in value["fields"].items()}
        return KINDS[value["kind"]](**fields)
    cells: Cells[Any] = Cells(value["failures"])
    cells.update({key: _unpack(cell, arrays) for key, cell in value["cells"].items()})
    return cells


class Recited:
    """A service that says what was written down, and leaves all else to the real one."""

    def __init__(self, service: Service, answers: Answers) -> None:
        self._service = service
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def predict(self, image: Image.Image, *_: Any, **__: Any) -> Any:
        return self._answers.predictions

    def attribute(self, image: Image.Image, variants: Any, *_: Any, **__: Any) -> Any:
        cells = self._answers.attributions
        return cells and pictures.with_pictures(self._service.crop(image, variants), cells)

    def burden(self, image: Image.Image, *_: Any, **__: Any) -> Any:
        return self._answers.burdens

    def ablate(self, image: Image.Image, *_: Any, **__: Any) -> Any:
        return self._answers.ablated
