"""Distillation and reconstruction: their losses by hand, and a teacher that stays what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcore.burden import MeteredViT, calibrate
from nbcore.config import Merge
from nbcore.measure import measure_burden
from nbcore.mitigation import Mitigation, StepOutputs, create_mitigation
from nbcore.mitigation.base import Composition, Taught
from nbcore.mitigation.distillation import Distillation, softened_kl
from nbcore.mitigation.reconstruction import Reconstruction, mean_residual
from nbcore.mitigation.teacher import Teacher
from nbcore.vit import PrunableViT, Tokens, unmerge, with_merge
from tests.nbcore.mitigated import train_mitigated
from tests.nbcore.runs import dense_model
from tests.nbcore.tiny import close, pictures, tiny

LN3 = math.log(3)


def outputs_of(model: PrunableViT, images: Tensor) -> StepOutputs:
    """As the training loop gives them: patches only, un-merged."""
    blocks: list[Tensor] = []

    def block_tap(index: int, output: Tensor, tokens: Tokens) -> None:
        blocks.append(unmerge(output[:, model.num_prefix_tokens :], tokens))

    logits = model(images, block_tap=block_tap)
    return StepOutputs(images=images, logits=logits, blocks=tuple(blocks))


def test_softened_divergence_by_hand() -> None:
    # T = 2 halves logits. Teacher (2 ln 3, 0) -> (3/4, 1/4), student (0, 0) -> (1/2, 1/2):
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2); in the second row both agree; T² = 4, mean of two rows.
    teacher, student = torch.tensor([[2 * LN3, 0], [1.0, 7]]), torch.tensor([[0.0, 0], [1, 7]])
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert softened_kl(student, teacher, 2.0).item() == pytest.approx(wanted, rel=1e-6)
    # The other way round it would be 1/2 ln(2/3) + 1/2 ln 2, another number.
    assert 4 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2 != pytest.approx(wanted, rel=1e-2)
    # A constant added to all logits of an image changes nothing.
    assert softened_kl(student + 3, teacher - 5, 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_term_is_half_the_divergence_at_temperature_two_from_the_fork() -> None:
    model, images = dense_model().eval(), pictures(3).float()
    distillation = create_mitigation("distillation", {})
    distillation.attach(model, lambda: [])
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    found = distillation.loss_term(StepOutputs(images=images, logits=logits))
    wanted = 0.5 * softened_kl(logits, model(images), 2.0)
    assert found is not None
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_residual_by_hand() -> None:
    # One image, two tokens, width 2. C takes the mean over the width away.
    # Dense (4, 0), (0, 0) -> (2, -2), (0, 0); minus their mean (1, -1): squares 2 and 2, mean 2.
    # Pruned (4, 2), (9, 9): errors (0, -2), (-9, -9) -> (1, -1), (0, 0): squares 2 and 0, mean 1.
    # R = 1 / 2; the second block is met exactly: mean 1 / 4.
    dense = torch.tensor([[[4.0, 0], [0, 0]]])
    pruned = torch.tensor([[[4.0, 2], [9, 9]]])
    close(mean_residual([dense], [pruned]), torch.tensor(0.5))
    close(mean_residual([dense, dense], [pruned, dense]), torch.tensor(0.25))


def test_loss_is_the_residual_that_the_burden_report_shows() -> None:
    dense, other = tiny(), tiny(seed=3)
    photos = (pictures(8) * 255).to(torch.uint8)
    metered = [MeteredViT(m, calibrate(m, [photos / 255])).double() for m in (dense, other)]
    everything = [torch.arange(site.num_units) for site in dense.sites]
    report = measure_burden(*metered, everything, photos)
    reconstruction = Reconstruction(weight=3.0)
    reconstruction.attach(dense, lambda: [])
    found = reconstruction.loss_term(outputs_of(other, photos.float().double() / 255))
    wanted = 3 * (report.residual[0] + report.residual[2]) / 2
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    last = Reconstruction(weight=1.0, last=1)
    last.attach(dense, lambda: [])
    found = last.loss_term(outputs_of(other, photos.float().double() / 255))
    assert found.item() == pytest.approx(report.residual[2], rel=1e-5)


@pytest.mark.parametrize("name", ["distillation", "reconstruction"])
def test_model_at_the_fork_has_nothing_to_learn_unless_its_tokens_are_merged(name: str) -> None:
    model, images = tiny(), pictures(4)
    for merge in (None, Merge(block=1, r=4)):
        student, mitigation = with_merge(model, merge), create_mitigation(name, {})
        mitigation.attach(student, lambda: [])
        term = mitigation.loss_term(outputs_of(student, images))
        assert term is not None
        assert (abs(term.item()) < 1e-6) == (merge is None)


@dataclass
class Onlooker(Mitigation):
    """Keeps the weights at the fork and looks at a teacher after every step."""

    watched: Teacher
    seen: list[bool] = field(default_factory=list)

    def attach(self, model: PrunableViT, batches: object) -> None:
        self.model = model
        self.before = {name: value.clone() for name, value in model.state_dict().items()}

    def after_step(self, step: int) -> None:
        copy = self.watched._fork
        assert copy is not None
        own = {value.data_ptr() for value in self.model.state_dict().values()}
        self.seen.append(
            all(torch.equal(value, self.before[name]) for name, value in copy.state_dict().items())
            and all(p.grad is None and not p.requires_grad for p in copy.parameters())
            and not own & {value.data_ptr() for value in copy.state_dict().values()}
            and not copy.training
            and copy.merge is None
        )


@pytest.mark.parametrize("name", ["distillation", "reconstruction"])
def test_teacher_stays_what_it_was_and_shares_nothing(name: str) -> None:
    mitigation = create_mitigation(name, {})
    assert isinstance(mitigation, Taught)
    onlooker = Onlooker(mitigation.teacher)
    result, _ = train_mitigated(Composition([mitigation, onlooker]))
    assert onlooker.seen == [True] * 16
    weights, fork = result.model.state_dict(), onlooker.before
    assert not any(torch.equal(weights[key], fork[key]) for key in fork if "fc1.weight" in key)


def test_teacher_of_a_composition_answers_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    compute = Teacher._compute

    def counting(self: Teacher, images: Tensor) -> object:
        asked.append(images)
        return compute(self, images)

    monkeypatch.setattr(Teacher, "_compute", counting)
    train_mitigated("reconstruction+distillation+handoff")
    assert len(asked) == 16


def test_composition_adds_what_its_parts_add_alone() -> None:
    fork, model, images = tiny(), tiny(seed=1), pictures(4)
    terms = {}
    for name in ("distillation", "reconstruction", "distillation+reconstruction"):
        mitigation = create_mitigation(name, {})
        mitigation.attach(fork, lambda: [])
        term = mitigation.loss_term(outputs_of(model, images))
        assert term is not None
        terms[name] = term.item()
    both = terms.pop("distillation+reconstruction")
    assert both == pytest.approx(sum(terms.values()), rel=1e-6)


def test_teacher_answers_each_batch_anew_and_forgets_it() -> None:
    model = tiny()
    teacher = Teacher()
    teacher.attach(model)
    for images in (pictures(2), pictures(2, seed=5)):
        close(teacher(images).logits, model(images))
        assert teacher(images) is teacher(images)
    assert not teacher(images).logits.requires_grad
    distillation = Distillation()
    distillation.attach(model, lambda: [])
    distillation.loss_term(StepOutputs(images=images, logits=model(images)))
    distillation.after_step(1)
    assert distillation.teacher._outputs is None


def test_teacher_of_a_masked_model_is_that_masked_model() -> None:
    model, images = tiny(), pictures(2)
    keep = torch.ones(model.num_units)
    keep[[1, 7, 30]] = 0
    model.set_keep(keep)
    teacher = Teacher()
    teacher.attach(model)
    close(teacher(images).logits, model(images))


def test_saved_teacher_replaces_the_one_that_was_attached() -> None:
    saved, images = Distillation(), pictures(2).float()
    saved.attach(dense_model(1).eval(), lambda: [])
    loaded = Distillation()
    loaded.attach(dense_model(2).eval(), lambda: [])
    loaded.load_state_dict(saved.state_dict())
    close(loaded.teacher(images).logits, saved.teacher(images).logits, 0)


class Constant(nn.Module):
    """Always sure of the class 0 of six."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([9.0, 0, 0, 0, 0, 0]))

    def forward(self, images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        return self.logits.expand(len(images), -1)


def test_given_teacher_is_used_as_it_is() -> None:
    teacher = Constant().eval()
    distillation = Distillation(teacher=teacher, weight=2.0, temperature=1.0)
    distillation.attach(dense_model(), lambda: [])
    outputs = StepOutputs(images=torch.rand(4, 3, 32, 32), logits=torch.zeros(4, 6))
    wanted = F.kl_div(torch.full((6,), -math.log(6)), teacher.logits.softmax(0), reduction="sum")
    assert distillation.loss_term(outputs).item() == pytest.approx(2 * wanted.item(), rel=1e-5)
    assert distillation.state_dict() == {"teacher": {}}
    plain, _ = train_mitigated("none")
    taught, _ = train_mitigated(distillation)
    assert taught.history != plain.history
    assert teacher.logits.grad is None


def test_given_teacher_is_not_shared_with_parts_that_look_at_the_fork() -> None:
    pair = Composition([Distillation(teacher=Constant().eval()), Reconstruction()])
    pair.attach(tiny(), lambda: [])
    given, fork = (part.teacher for part in pair.parts if isinstance(part, Taught))
    assert isinstance(given.given, Constant)
    assert len(fork(pictures(1)).blocks) == 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Distillation(weight=0), "weight > 0 and temperature > 0, got 0 and 2.0"),
        (lambda: Distillation(temperature=-1), "weight > 0 and temperature > 0, got 0.5 and -1"),
        (lambda: Distillation(teacher=Constant()), r"call teacher.eval\(\) first"),
        (lambda: Reconstruction(weight=0), "reconstruction needs weight > 0, got 0"),
        (lambda: Reconstruction(last=0), "last >= 1 or None for all blocks, got 0"),
        (lambda: Reconstruction(last=3).attach(tiny(), lambda: []), "last 3 blocks: there are 2"),
    ],
)
def test_impossible_options_are_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]
