"""Small trainings, alone or as one of several processes: `-m tests.nbcore.shared_training OUT`.

Every process leaves what it ended up with in OUT/<name>-<rank>.safetensors.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nbcore import pipeline
from nbcore.__main__ import main as command_line
from nbcore.config import ModelConfig, TeacherConfig
from nbcore.distributed import ALONE, Processes, join
from nbcore.mitigation import Mitigation, create_mitigation
from nbcore.pruning import PRUNERS
from nbcore.recipes import RECIPES
from nbcore.teacher import train_teacher
from nbcore.train import train
from tests.nbcore.runs import CPU, DENSE, GENTLE, MODEL, budget_for, dense_model, shapes, toy_child

# Without BatchNorm and stochastic depth, which differ between one process and several.
PLAIN = replace(MODEL, stem="patch", kwargs=dict(MODEL.kwargs) | {"drop_path_rate": 0.0})
CONFIG = replace(GENTLE, erasing=0.3, three_augment=True, record_every=3)
TEACHER = TeacherConfig(
    name="resnetv2_18", kwargs={"width_factor": 0.25}, train=replace(CONFIG, epochs=((32, 1),))
)
ARMS: dict[str, tuple[str | None, str, ModelConfig]] = {
    "dense": (None, "none", PLAIN),
    "taylor": ("taylor", "handoff", PLAIN),
    "vit_slim": ("vit_slim", "none", PLAIN),
    "wdpruning": ("wdpruning", "distillation", PLAIN),
    "conv": ("movement", "homeostasis", MODEL),
    "random-depth": (None, "none", MODEL),
}
"""Name -> host, mitigation, model."""


def trained(
    name: str,
    processes: Processes = ALONE,
    *,
    state_path: Path | None = None,
    mitigation: Mitigation | None = None,
) -> dict[str, Tensor]:
    """What the training of an arm ends up with."""
    host, default, kind = ARMS[name]
    data = shapes(img_size=32)
    model = dense_model(model=kind)
    pruner = None
    if host is not None:
        budget = budget_for(model, CONFIG, data)
        pruner = PRUNERS[host](model, budget, torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"homeostasis": {"every": 3}} if default == "homeostasis" else {}
    result = train(
        model,
        data,
        CONFIG,
        seed=0,
        device=CPU,
        mitigation=mitigation or create_mitigation(default, options),
        pruner=pruner,
        state_path=state_path,
        title=None,
        processes=processes,
    )
    losses = torch.tensor([record["loss"] for record in result.history])
    tensors = result.model.state_dict() | {"keep": result.keep, "losses": losses}
    return {key: value.contiguous() for key, value in tensors.items()}


class Stopping(Mitigation):
    """Breaks a training off in the third epoch."""

    def after_step(self, step: int) -> None:
        if step == 2 * len(shapes(img_size=32).train.names) // CONFIG.batch_size + 1:
            raise KeyboardInterrupt


def main(out: Path) -> None:
    processes, _ = join("cpu")

    def leave(name: str, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, out / f"{name}-{processes.rank}.safetensors")

    for name in ARMS:
        leave(name, trained(name, processes))
    for name in ("dense", "random-depth"):
        with contextlib.suppress(KeyboardInterrupt):
            trained(name, processes, state_path=out / f"{name}.pt", mitigation=Stopping())
    leave("resumed", trained("random-depth", processes, state_path=out / "random-depth.pt"))
    teacher = train_teacher(TEACHER, shapes(img_size=32), seed=0, device=CPU, processes=processes)
    leave("teacher", {k: v.contiguous() for k, v in teacher.state_dict().items()})
    pipeline.load_dataset = shapes
    RECIPES.register("toy")(lambda: (DENSE, toy_child()))
    assert command_line(["run", "toy", "--out", str(out / "checkpoints"), "--device", "cpu"]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
