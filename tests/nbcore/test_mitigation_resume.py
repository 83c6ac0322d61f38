"""Every mitigation: a stopped training goes on to the same bits, and the order of names in a
composition is of no account."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from nbcore.mitigation import MITIGATIONS, Mitigation
from nbcore.mitigation.base import Composition
from nbcore.train import TrainResult
from tests.nbcore.mitigated import mitigation_named, train_mitigated
from tests.nbcore.runs import assert_same_bits, weights_of

COMPOSITIONS = (
    "distillation+reconstruction",
    "handoff+persistent_dynamic",
    "published+handoff+burden_quota+homeostasis+distillation",
)


class StoppedError(Exception):
    """The power went."""


class Stopping(Mitigation):
    """Stops a training at a step; at step 0, never."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def after_step(self, step: int) -> None:
        if step == self.at:
            raise StoppedError


@cache
def whole_training(name: str) -> TrainResult:
    return train_mitigated(name)[0]


# States are written after steps 4, 8, 12 and 16; units leave after 5, 6, 7 and 9, and where they
# may, return until 12: stops before, between and after the changes, the last two while gates open.
@pytest.mark.parametrize("at", [5, 11, 14])
@pytest.mark.parametrize("name", [*MITIGATIONS, *COMPOSITIONS])
def test_stopped_training_goes_on_to_the_same_bits(name: str, at: int, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        train_mitigated(Composition([mitigation_named(name), Stopping(at)]), state_path=path)
    torch.manual_seed(99)  # another process
    resumed = Composition([mitigation_named(name), Stopping()])
    again, _ = train_mitigated(resumed, state_path=path)
    whole = whole_training(name)
    assert_same_bits(weights_of(again), weights_of(whole))
    assert again.history == whole.history
    assert not whole.keep.all()


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_order_of_parts_changes_no_bit(name: str) -> None:
    backwards = "+".join(reversed(name.split("+")))
    one, two = whole_training(name), train_mitigated(backwards)[0]
    assert_same_bits(weights_of(one), weights_of(two))
    assert one.history == two.history


@pytest.mark.parametrize("name", sorted(set(MITIGATIONS) - {"none"}))
def test_every_mitigation_acts(name: str) -> None:
    assert whole_training(name).history != whole_training("none").history
