"""A teacher resumes to the same bits, folds exactly, and its answers reach the dense model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nbcore import fit, pipeline
from nbcore.config import RunConfig, TeacherConfig, TrainConfig
from nbcore.mitigation.distillation import Distillation
from nbcore.teacher import TeacherNet, train_teacher
from nbcore.vit import PrunableViT
from tests.nbcore.runs import CPU, DENSE, shapes, toy_child

TRAIN = TrainConfig(
    epochs=((16, 1), (24, 2)), batch_size=32, lr=1e-2, ema_decay=0.9, save_every=1, eval_every=1
)
CONFIG = TeacherConfig(name="resnet10t", train=TRAIN)


def test_stopped_teacher_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = shapes(img_size=32), tmp_path / "runs" / "teacher.pt"
    whole = train_teacher(CONFIG, data, seed=1, device=CPU)
    calls = 0
    real = F.cross_entropy

    def failing(*args: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # two steps an epoch: in the second epoch
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", failing)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(CONFIG, data, seed=1, device=CPU, state_path=path)
    torch.manual_seed(99)  # another process
    again = train_teacher(CONFIG, data, seed=1, device=CPU, state_path=path)
    read = train_teacher(CONFIG, data, seed=1, device=CPU, state_path=path)
    x = torch.rand(3, 3, 24, 24)
    assert torch.equal(again(x), whole(x))
    assert torch.equal(read(x), whole(x))


def test_folding_changes_no_answer_and_freezes() -> None:
    torch.manual_seed(0)
    teacher = TeacherNet("resnet10t", {}, 6, max_side=24).train()
    for _ in range(3):
        teacher(torch.rand(8, 3, 24, 24))
    folded = teacher.folded()
    assert teacher.training  # the original trains on
    teacher.eval()
    x = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(folded(x), teacher(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())


def test_large_images_are_shrunk_to_the_side_it_knows() -> None:
    teacher = TeacherNet("resnet10t", {}, 6, max_side=24).eval()
    large = torch.rand(2, 3, 48, 48)
    small = F.interpolate(large, size=24, mode="bilinear", antialias=True)
    assert torch.equal(teacher(large), teacher(small))


def test_dense_run_learns_from_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Distillation] = []
    real = fit.train

    def watched(*args: object, mitigation: Distillation, **options: object) -> object:
        seen.append(mitigation)
        return real(*args, mitigation=mitigation, **options)

    monkeypatch.setattr(fit, "train", watched)
    monkeypatch.setattr(pipeline, "load_dataset", shapes)
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None)
    config = replace(DENSE, teacher=replace(CONFIG, weight=3.0, temperature=1.5))
    assert pipeline.run_variant(config, tmp_path / "out", None, CPU, command="test") == "trained"
    (mitigation,) = seen
    assert (mitigation.weight, mitigation.temperature) == (3.0, 1.5)
    assert not isinstance(mitigation.teacher, PrunableViT)
    assert not list(tmp_path.rglob("*.pt"))  # neither state nor teacher is left


def test_teachers_are_for_dense_runs_only() -> None:
    with pytest.raises(ValueError, match="a teacher is for dense runs"):
        replace(toy_child(), teacher=CONFIG)


@pytest.mark.parametrize("changes", [{"weight": 0.0}, {"temperature": -1.0}])
def test_impossible_teachers_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be > 0"):
        replace(CONFIG, **changes)
    assert isinstance(replace(DENSE, teacher=CONFIG), RunConfig)
