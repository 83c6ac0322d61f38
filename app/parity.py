"""ONNX against torch on a few photos at the start: what is explained is what is served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from app.errors import UserError
from app.inference import Answer, Predictor
from app.registry import Model, ModelRegistry
from nbcore.checkpoint import CheckpointError
from nbcore.preprocessing import preprocess, to_array

MAX_DIFFERENCE = {"fp32": 1e-3, "tf32": 0.05, "fp16": 0.05, "int8": 1.0}
"""Of a logit, by the precision of predictions. Export accepts 1e-5 on a CPU; a GPU's other order of
sums needs some more. What rounding does to the accuracy is measured, see `nbcore bench precision`;
here only a graph that answers something else is to be found."""

logger = logging.getLogger(__name__)


class ParityCheck:
    """Compares every served variant once and refuses those that differ."""

    def __init__(self, registry: ModelRegistry, predictor: Predictor) -> None:
        self._registry = registry
        self._predictor = predictor
        self._found: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    @property
    def running(self) -> bool:
        """Started and not over."""
        return self._thread is not None and not self.done

    def found(self) -> dict[str, float | None]:
        """Largest |ONNX - torch| of a logit by variant, None while pending."""
        return {model.id: self._found.get(model.id) for model in self._registry.models()}

    def start(self, photos: Sequence[Image.Image] = (), first: Sequence[str] = ()) -> None:
        """Check in a background thread; a second call does nothing.

        Args:
            photos: Any RGB photos; generated ones if there are none.
            first: Ids to begin with, because visitors are likely to ask for them.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(tuple(photos), tuple(first)), name="parity", daemon=True
            )
            self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether all checks are done, after at most `timeout` seconds."""
        return self._done.wait(timeout)

    def _run(self, photos: Sequence[Image.Image], first: Sequence[str]) -> None:
        try:
            for model in sorted(self._registry.models(), key=lambda m: m.id not in first):
                self._check(model, photos or generated_photos())
        finally:
            self._done.set()

    def _check(self, model: Model, photos: Sequence[Image.Image]) -> None:
        try:
            difference = largest_difference(self._predictor, model, photos)
        except Exception as error:
            # One variant's failure must not leave the others unchecked.
            logger.warning("%s: its start-up check failed", model.id, exc_info=error)
            known = isinstance(error, UserError | CheckpointError | RuntimeError)
            said = str(error) if known else repr(error)
            self._registry.refuse(
                model.id, f"variant {model.id}: its start-up check failed: {said}"
            )
            return
        self._found[model.id] = difference
        logger.info("%s: ONNX and torch logits differ by at most %.1e", model.id, difference)
        accepted = MAX_DIFFERENCE[self._predictor.serving.precision]
        if not difference <= accepted:
            self._registry.refuse(
                model.id,
                f"variant {model.id}: ONNX and torch logits differ by {difference:.1e}, at most "
                f"{accepted:.0e} is accepted; re-run `python -m nbcore export {model.id}`",
            )


def largest_difference(predictor: Predictor, model: Model, photos: Sequence[Image.Image]) -> float:
    """Largest |ONNX - torch| of a logit over photos, given equal matches of merged tokens, of both
    sessions of a model."""
    variant = model.variant
    predictor.warm(model)
    worst = 0.0
    for photo in photos:
        image = to_array(preprocess(photo, variant.img_size, variant.preprocessing.crop_pct))
        for output in (predictor.answer(model, image), predictor.run(model, image)):
            worst = max(worst, difference_on(model, image, output, predictor.torch_device))
    return worst


def difference_on(
    model: Model, image: np.ndarray, output: Answer, device: str, gate: np.ndarray | None = None
) -> float:
    """Largest |ONNX - torch| of a logit on one photo, given equal matches of merged tokens.

    Args:
        model: Whose torch twin is run.
        image: RGB in [0, 1], float32 [3, S, S].
        output: What the model's ONNX file gave for it.
        device: "cpu" or "cuda", where the twin runs.
        gate: Factors on contributions [U] with which the output was made.
    """

    def on_device(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values)[None].to(device)

    with model.twin(device) as twin, torch.no_grad():
        logits = twin.model(on_device(image), on_device(gate), on_device(output.group))[0].cpu()
    return float(np.abs(logits.numpy() - output.logits).max())


def generated_photos(side: int = 256) -> tuple[Image.Image, ...]:
    """Three pictures with soft, coarse and fine structure, the same every time."""
    rng = np.random.default_rng(0)
    return tuple(
        Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for cells in (4, 16, 256)
    )
