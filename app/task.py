"""One photo as the models of one comparison take it, and how each of them is run on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from app.burden import survivors
from app.crops import CROPS
from app.errors import NoAnswerError, UserError
from app.inference import Answer, Predictor
from app.registry import Model, ModelRegistry

T = TypeVar("T")
COMPARABLE = ("dataset", "classes", "img_size", "preprocessing")

logger = logging.getLogger(__name__)


class Cells(dict[str, T], Generic[T]):
    """Results by variant id in the order asked, and why other variants have none."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__()
        self.failures = dict(failures)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What ran in place of a variant."""

    model: Model
    gate: np.ndarray | None
    """Factors on its contributions [U]; None means ones."""
    output: Answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One photo, cut for the models of one comparison."""

    registry: ModelRegistry
    predictor: Predictor
    models: tuple[Model, ...]
    failures: Mapping[str, str]
    """Why variants that were asked for are not among `models`."""
    crop: Image.Image
    pixels: np.ndarray
    """float32 [3, S, S] in [0, 1]."""
    raw: np.ndarray
    """The same as uint8, a quarter to copy to a GPU."""
    _known: dict[str, Future[Answer]] = field(default_factory=dict, repr=False)
    """What was asked before: every variant is held against the same dense answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(
        cls,
        registry: ModelRegistry,
        predictor: Predictor,
        image: Image.Image,
        ids: Sequence[str],
    ) -> Task:
        """Find the models, which must take the same crop and know the same classes.

        Raises:
            UserError: If an id is unknown, none is left, or they cannot be compared.
        """
        ids, refused = tuple(dict.fromkeys(ids)), registry.refused
        failures = {key: f"{key} is not served: {refused[key]}" for key in ids if key in refused}
        models = tuple(registry[key] for key in ids if key not in failures)
        if not models:
            raise UserError(" ".join(failures.values()) or "Choose at least one variant.")
        first = models[0].variant
        for other in (model.variant for model in models):
            for what in COMPARABLE:
                if getattr(first, what) != getattr(other, what):
                    raise UserError(
                        f"{first.id} and {other.id} cannot be compared: they differ in {what}; "
                        "choose variants of one dataset and image size"
                    )
        crop, pixels, raw = CROPS.of(image, first.img_size, first.preprocessing.crop_pct)
        return cls(
            registry=registry,
            predictor=predictor,
            models=models,
            failures=failures,
            crop=crop,
            pixels=pixels,
            raw=raw,
        )

    def run(self, model: Model, *, before_retraining: bool = False) -> Run:
        """Run a variant, or its dense base cut live to the same units.

        Raises:
            UserError: If there is no base to cut, or the model fails.
        """
        base = self.registry.base_of(model)
        if not before_retraining or base is model:
            return Run(model=model, gate=None, output=self._answer(model))
        if base is None:
            problem = self.registry.base_problem(model)
            raise UserError(f"{model.id} cannot be shown before retraining: {problem}")
        gate = survivors(model, base)
        return Run(model=base, gate=gate, output=self.predictor.answer(base, self.pixels, gate))

    def dense(self, model: Model) -> Answer | None:
        """What a variant's dense base says, None without a usable one."""
        base = self.registry.base_of(model)
        return None if base is None else self._answer(base)

    def each(self, compute: Callable[[Model], T]) -> Cells[T]:
        """Compute one cell per model; a failing one fails alone.

        A GPU takes all of them at the same time. A CPU takes one after the other, each with all its
        cores, which is as fast and fills the first column sooner.

        Raises:
            NoAnswerError: If all fail.
        """

        def one(model: Model) -> T | _Failure:
            try:
                return compute(model)
            except UserError as error:
                return _Failure(str(error))
            except Exception:
                logger.exception("%s failed", model.id)
                return _Failure(f"{model.id} failed; the server's log says why.")

        if self.predictor.torch_device == "cpu":
            found = [one(model) for model in self.models]
        else:
            with ThreadPoolExecutor(len(self.models)) as pool:
                found = list(pool.map(one, self.models))
        cells: Cells[T] = Cells(self.failures)
        for model, cell in zip(self.models, found, strict=True):
            if isinstance(cell, _Failure):
                cells.failures[model.id] = str(cell)
            else:
                cells[model.id] = cell
        if not cells:
            raise NoAnswerError(cells.failures)
        return cells

    def _answer(self, model: Model) -> Answer:
        """What a model says, asked once; whoever asks meanwhile waits for it."""
        with self._lock:
            first = model.id not in self._known
            future = self._known.setdefault(model.id, Future())
        if first:
            try:
                future.set_result(self.predictor.answer(model, self.raw))
            except Exception as error:
                future.set_exception(error)
        return future.result()


class _Failure(str):
    """Why a model has no cell."""
