"""Forks: the dense models that arms start from and are compared with, kept between runs.

Two files a seed, which appear whole or not at all: the weights of `dense`, where every arm starts,
in half precision as a shipped variant's; and the loads of `dense_plus`, the same model trained on
as long as the arms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from nbcore.burden import MeteredViT, PooledLoads
from nbcore.checkpoint import write_atomically
from nbcore.config import Arch
from nbcore.macs import macs_of
from nbcore.measure import pooled_loads
from nbcore.study.grid import Arm, StudyConfig, references
from nbcore.vit import PrunableViT, build_model


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A dense model with what later arms compare themselves with."""

    metered: MeteredViT
    loads: PooledLoads
    """Of all its units, on the photos on which burden is measured."""
    top1: float
    """On the test photos."""

    @property
    def macs(self) -> int:
        return whole_macs(self.metered.model)


def whole_macs(model: PrunableViT) -> int:
    """MACs of a model as it stands."""
    return macs_of(model).total([site.num_units for site in model.sites])


def fork_path(work: Path, study: StudyConfig, arm: Arm) -> Path:
    """Where the file of a `dense` or `dense_plus` arm lies; changed settings give another name."""
    return work / "forks" / f"{arm.pruner}-seed{arm.seed}-{study.fingerprint(arm)}.safetensors"


def write_fork(path: Path, metered: MeteredViT, top1: float) -> None:
    """Save a dense model, its weights rounded to half precision already, with its calibration
    means and test accuracy."""
    weights = {name for name, _ in metered.named_parameters()}
    state = {
        name: (tensor.half() if name in weights else tensor).contiguous().cpu()
        for name, tensor in metered.state_dict().items()
    }
    write_atomically(path, save(state, metadata={"top1": json.dumps(top1)}))


def write_loads(path: Path, loads: PooledLoads, top1: float) -> None:
    """Save the loads of a `dense_plus` model with its test accuracy."""
    state = {f"power_{site}": power.cpu() for site, power in enumerate(loads.power)}
    state["stream"] = loads.stream.cpu()
    write_atomically(path, save(state, metadata={"top1": json.dumps(top1)}))


def read_loads(path: Path, device: torch.device) -> PooledLoads:
    """Loads of a `dense_plus` model.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    fork_top1(path)
    state = load_file(path, device=str(device))
    power = tuple(state[f"power_{site}"] for site in range(len(state) - 1))
    return PooledLoads(power=power, stream=state["stream"])


def read_fork(path: Path, arch: Arch, measured: Tensor, batch_size: int) -> Fork:
    """Load a dense model and measure its loads.

    Args:
        path: From `fork_path`.
        arch: Of the dense model.
        measured: Photos on which burden is measured, uint8 [n, 3, S, S], on the device to use.
        batch_size: Photos per forward pass.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    top1 = fork_top1(path)
    model = build_model(arch)
    state = load_file(path)
    metered = MeteredViT(model, [state[f"unit_mean_{site}"] for site in range(len(model.sites))])
    metered.load_state_dict(state)
    metered = metered.to(measured.device).eval().requires_grad_(False)
    loads = pooled_loads(metered, measured, batch_size=batch_size)
    return Fork(metered=metered, loads=loads, top1=top1)


def restore_forks(out: Path, work: Path) -> None:
    """Copy forks that lie beside the results, where the work folder lacks them: with these a study
    goes on elsewhere."""
    for kept in sorted((out / "forks").glob("*.safetensors")):
        path = work / "forks" / kept.name
        if not path.exists():
            write_atomically(path, kept.read_bytes())


def fork_top1(path: Path) -> float:
    """Test accuracy that was saved with a fork.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return float(json.loads(file.metadata()["top1"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"the fork {path} cannot be read: {error}") from error


def check_forks(work: Path, study: StudyConfig, done: dict[Arm, float], waiting: list[Arm]) -> None:
    """See that arms that wait can start from the very models that finished arms started from.

    Args:
        work: Work folder of the study.
        study: The study.
        done: Finished arms with their test top-1.
        waiting: Arms to be run.

    Raises:
        ValueError: If a fork that is needed is missing or is not the one in the table.
    """
    for seed in sorted({arm.seed for arm in waiting}):
        for arm in references(seed):
            if arm not in done or not any(arm in other.needs() for other in waiting):
                continue
            path = fork_path(work, study, arm)
            remedy = (
                f"restore {path} (see --work; one in `forks` beside runs.csv is found too), or "
                f"remove all rows of seed {seed} from runs.csv to do that seed again"
            )
            try:
                top1 = fork_top1(path)
            except ValueError as error:
                raise ValueError(
                    f"{arm.key} is in runs.csv, but arms that wait cannot start from it: {error}; "
                    f"{remedy}"
                ) from error
            if abs(top1 - done[arm]) > 1e-9:
                raise ValueError(
                    f"{path} has top-1 {top1}, runs.csv says {done[arm]} for {arm.key}: arms of "
                    f"one seed must share one fork; {remedy}"
                )
