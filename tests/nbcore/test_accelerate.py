"""Several processes train what one does: shares, draws, and a run under `accelerate launch`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from nbcore import train as train_module
from nbcore.__main__ import main
from nbcore.augment import PartDraws, augment, mix
from nbcore.checkpoint import read_manifest
from nbcore.config import TrainConfig
from nbcore.distributed import ALONE, Processes, join
from tests.nbcore.runs import CPU, DENSE, assert_same_bits
from tests.nbcore.shared_training import ARMS, trained
from tests.sources import ROOT

ALIKE = ("dense", "taylor", "vit_slim", "wdpruning")


@given(count=st.integers(2, 5), half=st.integers(1, 4))
def test_shares_are_a_partition_in_mirrored_pairs(count: int, half: int) -> None:
    batch = 2 * count * half
    shares = [Processes(rank=rank, count=count).share(batch, CPU) for rank in range(count)]
    assert sorted(torch.cat(shares).tolist()) == list(range(batch))
    for share in shares:
        assert (share + share.flip(0) == batch - 1).all()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert ALONE.share(7, CPU) is None
    with pytest.raises(ValueError, match="must be a multiple of 4 for 2 processes, got 6"):
        Processes(count=2).share(6, CPU)


@pytest.mark.parametrize("seed", range(6))
def test_processes_see_the_pictures_that_one_would_see(seed: int) -> None:
    config = TrainConfig(epochs=((24, 1),), erasing=0.7, three_augment=True)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    targets = torch.rand(12, 5)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    whole = augment(images, 24, config, seeded())
    mixed, soft = mix(whole, targets, config, seeded())
    for rank in range(3):
        rows = Processes(rank=rank, count=3).share(12, CPU)
        assert rows is not None
        draws = PartDraws(generator=seeded(), batch_size=12, rows=rows)
        part = augment(images[rows], 24, config, draws)
        assert torch.equal(part, whole[rows])
        part, part_soft = mix(part, targets[rows], config, seeded())
        assert torch.equal(part, mixed[rows])
        assert torch.equal(part_soft, soft[rows])


@dataclass(frozen=True, kw_only=True)
class Told(Processes):
    """The second of two processes, told what the first has."""

    count: int = 2
    rank: int = 1
    first: dict[str, Any] = field(default_factory=dict)

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([self.first["keep"][None], tensor])

    def of_first(self, compute: Any) -> Any:
        return self.first


class Host:
    """A host that chose for itself."""

    def __init__(self, keep: Tensor) -> None:
        self.keep = keep

    def after_step(self, step: int) -> Tensor:
        return self.keep

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keep = state["keep"]


def test_where_processes_choose_differently_the_first_decides() -> None:
    first = torch.tensor([True, True, False])
    host = Host(torch.tensor([True, False, True]))
    state = SimpleNamespace(step=1, processes=Told(first={"keep": first}))
    assert torch.equal(train_module._choose(host, state), first)  # type: ignore[arg-type]
    assert torch.equal(host.keep, first)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes on this machine's CPU leave."""
    out = tmp_path_factory.mktemp("together")
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "tests.nbcore.shared_training", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *launch], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (out / "printed").write_text(done.stdout)
    return out


def left(together: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(together / f"{name}-{rank}.safetensors")


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Equal but for rounding: the order of a sum over images is another."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ARMS, "resumed", "teacher"])
def test_processes_end_with_the_same_bits(name: str, together: Path) -> None:
    assert_same_bits(left(together, name, 1), left(together, name, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_end_where_one_does(name: str, together: Path) -> None:
    found, wanted = left(together, name), trained(name)
    assert_alike(found, wanted)
    assert torch.equal(found["keep"], wanted["keep"])


@pytest.mark.slow
def test_batch_statistics_and_random_depth_differ_within_noise(together: Path) -> None:
    found, wanted = left(together, "conv"), trained("conv")
    torch.testing.assert_close(found["losses"], wanted["losses"], rtol=0.0, atol=0.1)
    assert found["keep"].sum() == wanted["keep"].sum()


@pytest.mark.slow
def test_a_resumed_training_of_two_equals_an_uninterrupted_one(together: Path) -> None:
    assert_same_bits(left(together, "resumed"), left(together, "random-depth"))


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(
    together: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = trained("dense", state_path=together / "dense.pt")
    assert "1 processes go on with what 2 began" in caplog.text
    assert_alike(found, trained("dense"))


@pytest.mark.slow
def test_a_run_of_two_processes_is_written_once(together: Path) -> None:
    assert (together / "printed").read_text().split("\n") == [
        "toy-dense: exported",
        "toy-taylor-m50-none: exported",
        "",
    ]
    manifest = read_manifest(together / "checkpoints")
    assert not manifest.refused
    assert manifest[DENSE.id].provenance.command == (
        "accelerate launch --num_processes 2 -m nbcore run toy --only toy-dense --seed 0 --data DIR"
    )


def test_join_without_a_launcher_is_alone() -> None:
    assert join("cuda:1") == (ALONE, None)


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 names one device for 2 processes"):
        join("cuda:1")


def test_only_run_is_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["list"]) == 2
    assert "several processes can share `run` only, not `list`" in capsys.readouterr().err
