"""Handing work over in closed form, the socket that mitigations plug into, and composition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from nbcore.config import Merge
from nbcore.mitigation import MITIGATIONS, Mitigation, StepOutputs, create_mitigation
from nbcore.mitigation.base import Composition
from nbcore.mitigation.handoff import Handoff, contribution_statistics, handoff_matrix
from nbcore.vit import PrunableViT
from tests.nbcore.runs import assert_same_bits, shapes, train_pruned, weights_of
from tests.nbcore.tiny import close, pictures, tiny

TINY_RIDGE = 1e-13


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_matrix_by_hand() -> None:
    # S = {0, 1} uncorrelated with variances 4 and 1, P = {2} with covariances 2 and 3:
    # T = [2 / 4, 3 / 1]; a relative ridge of 0.4 adds 0.4 * 2.5 = 1: T = [2 / 5, 3 / 2].
    covariance = torch.tensor([[4.0, 0, 2], [0, 1, 3], [2, 3, 20]], dtype=torch.float64)
    lost, kept = torch.tensor([2]), torch.tensor([0, 1])
    for ridge, expected in ((1e-13, [[0.5, 3.0]]), (0.4, [[0.4, 1.5]])):
        found = handoff_matrix(covariance, lost, kept, ridge)
        close(found, torch.tensor(expected, dtype=torch.float64))


def test_matrix_of_an_exact_linear_function_is_that_function() -> None:
    survivors, mix = normal(200, 5), normal(5, 3, seed=1)
    values = torch.cat([survivors, survivors @ mix + 7], 1)
    order = torch.tensor([6, 0, 3, 7, 1, 4, 2, 5])  # columns in any order
    covariance = torch.cov(values.T[order])
    lost, kept = torch.tensor([0, 3, 7]), torch.tensor([1, 2, 4, 5, 6])
    found = handoff_matrix(covariance, lost, kept, TINY_RIDGE)
    close(found, mix.T[order[lost] - 5][:, order[kept]], 1e-8)


def test_matrix_of_dead_survivors_is_zero() -> None:
    covariance = torch.diag(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    found = handoff_matrix(covariance, torch.tensor([2]), torch.tensor([0, 1]), 1e-2)
    assert found.tolist() == [[0.0, 0.0]]


def test_statistics_are_those_of_all_images_and_tokens() -> None:
    model, images = tiny(), pictures(5)
    rows: dict[int, Tensor] = {}

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: object) -> None:
        if contribution.ndim == 4:
            contribution = torch.cat(contribution.unbind(1), -1)
        rows[site] = contribution.reshape(-1, contribution.shape[-1])

    model.train()
    means, covariances = contribution_statistics(model, images.split(2))
    assert model.training
    with torch.no_grad():
        model.eval()(images, tap=tap)
    for site in range(4):
        close(means[site], rows[site].mean(0), 1e-10)
        close(covariances[site], torch.cov(rows[site].T, correction=0), 1e-10)


@torch.no_grad()
def repeat_neurons(model: PrunableViT) -> None:
    """Neurons 1 and 2 of the first MLP do as neuron 0, and neuron 3 is a constant."""
    fc1 = model.vit.blocks[0].mlp.fc1
    fc1.weight[1:3], fc1.bias[1:3] = fc1.weight[0], fc1.bias[0]
    fc1.weight[3] = 0


@torch.no_grad()
def repeat_head(model: PrunableViT) -> None:
    """Head 1 of the first attention does as head 0, and head 2 gives a constant."""
    attn, d = model.vit.blocks[0].attn, model.arch.head_dim
    weight, bias = attn.qkv.weight.unflatten(0, (3, -1, d)), attn.qkv.bias.unflatten(0, (3, -1, d))
    weight[:, 1], bias[:, 1] = weight[:, 0], bias[:, 0]
    weight[2, 2] = 0


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    ("site", "repeat", "lost"), [(1, repeat_neurons, [1, 2, 3]), (0, repeat_head, [1, 2])]
)
def test_units_that_others_determine_leave_without_a_trace(
    site: int, repeat: Callable[[PrunableViT], None], lost: list[int], bias: bool
) -> None:
    model, images = tiny(), pictures(6)
    repeat(model)
    block = model.vit.blocks[0]
    layer = block.mlp.fc2 if site else block.attn.proj
    if not bias:
        layer.bias = None
        lost = lost[:-1]  # a constant needs the bias
    spec = model.sites[site]
    keep = torch.ones(model.num_units, dtype=torch.bool)
    keep[[spec.start + unit for unit in lost]] = False
    with torch.no_grad():
        before = model(images)
        handoff = Handoff(ridge=TINY_RIDGE)
        handoff.attach(model, lambda: images.split(4))
        handoff.on_keep_changing()
        kept = keep[spec.units].nonzero()[:, 0]
        handoff.on_keep_changed(site, torch.tensor(lost), torch.tensor([]), kept)
        model.set_keep(keep)
        close(model(images), before, 1e-8)
        cut = tiny()
        repeat(cut)
        cut.set_keep(keep)
        assert (cut(images) - before).abs().max() > 1e-2


def test_handoff_is_the_best_linear_replacement_of_the_site_output() -> None:
    # No other change of the survivors' columns and bias brings the output closer (least squares).
    model, images = tiny(), pictures(8)
    keep = torch.ones(16, dtype=torch.bool)
    keep[[2, 5, 11]] = False
    contributions: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: object) -> None:
        if site == 1:
            contributions.append(contribution.flatten(0, 1))

    fc2 = model.vit.blocks[0].mlp.fc2
    with torch.no_grad():
        model(images, tap=tap)
        h = contributions[0]
        wanted = h @ fc2.weight.T + fc2.bias
        design = torch.cat([h[:, keep], torch.ones(len(h), 1).double()], 1)
        best = torch.linalg.lstsq(design, wanted).solution
        handoff = Handoff(ridge=TINY_RIDGE)
        handoff.attach(model, lambda: [images])
        handoff.on_keep_changing()
        lost, kept = (~keep).nonzero()[:, 0], keep.nonzero()[:, 0]
        handoff.on_keep_changed(1, lost, torch.tensor([]), kept)
    close(torch.cat([fc2.weight[:, keep], fc2.bias[:, None]], 1).T, best, 1e-7)


def test_handoff_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="lets units return"):
        Handoff().on_keep_changed(0, torch.tensor([0]), torch.tensor([1]), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="ridge > 0, got 0"):
        Handoff(ridge=0)


@dataclass
class Recorder(Mitigation):
    """Writes down what the trainer tells, and what it finds in the model at that moment."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def attach(self, model: PrunableViT, batches: Callable[[], Any]) -> None:
        self.model, self.old = model, torch.ones(model.num_units, dtype=torch.bool)
        self.events.append(("attach",))

    def on_keep_changing(self) -> None:
        self.changed: list[int] = []
        self.events.append(("changing",))

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        units = self.model.sites[site].units
        whole = all(
            parameter.detach().index_select(dim, torch.isin(owner, lost).nonzero()[:, 0]).any()
            for parameter, dim, owner in self.model.unit_parameters(site)
        )
        self.events.append(("changed", site, lost.tolist(), regained.tolist(), kept.tolist()))
        assert whole, "weights of units that leave now are gone already"
        assert torch.equal(self.model.keep[units].bool(), self.old[units])

    def loss_term(self, outputs: StepOutputs) -> None:
        self.pictures.append(outputs.images.clone())

    def after_step(self, step: int) -> None:
        self.old = self.model.keep.bool().clone()
        self.events.append(("step", step, self.old))


def test_socket_is_told_of_every_site_before_its_weights_are_zeroed() -> None:
    recorder = Recorder()
    result, budget = train_pruned(shapes(img_size=32), mitigation=recorder)
    assert recorder.events[0] == ("attach",)
    keep, step = torch.ones(result.model.num_units, dtype=torch.bool), 1
    pending: dict[int, tuple[list[int], list[int], list[int]]] = {}
    for name, *values in recorder.events[1:]:
        if name == "changing":
            assert pending == {}
            assert step in budget.steps
        elif name == "changed":
            assert values[0] > max(pending, default=-1)
            pending[values[0]] = (values[1], values[2], values[3])
        else:
            assert values[0] == step
            for index, site in enumerate(result.model.sites):
                old, new = keep[site.units], values[1][site.units]
                lost, kept = (old & ~new).nonzero()[:, 0], new.nonzero()[:, 0]
                told = (lost.tolist(), [], kept.tolist()) if len(lost) else None
                assert pending.get(index) == told
            keep, step, pending = values[1], step + 1, {}
    assert torch.equal(keep, result.keep)
    assert not keep.all()


class Bystander:
    """What the trainer calls, and nothing else: a training without a mitigation's path."""

    wants_blocks = regrows = False
    fade_steps = 0

    def quota(self) -> None: ...
    def attach(self, model: object, batches: object) -> None: ...
    def on_keep_changing(self) -> None: ...
    def on_keep_changed(self, *_: object) -> None: ...
    def loss_term(self, outputs: object) -> None: ...
    def after_step(self, step: int) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}


def test_none_gives_the_bits_of_a_training_without_mitigation() -> None:
    data = shapes(img_size=32)
    bare, _ = train_pruned(data, mitigation=Bystander())  # type: ignore[arg-type]
    none, _ = train_pruned(data, mitigation="none")
    assert_same_bits(weights_of(none), weights_of(bare))
    assert none.history == bare.history
    other, _ = train_pruned(data, mitigation="handoff")
    assert other.history != bare.history


def test_mitigations_see_the_same_pictures_in_the_same_order() -> None:
    seen = {}
    for name, merge in (("none", None), ("handoff", None), ("token_merging", Merge(block=1, r=4))):
        recorder = Recorder()
        mitigation = Composition([create_mitigation(name, {}), recorder])
        train_pruned(shapes(img_size=32), mitigation=mitigation, merge=merge)
        seen[name] = recorder.pictures
    assert len(seen["none"]) == 16
    for name in ("handoff", "token_merging"):
        assert all(map(torch.equal, seen[name], seen["none"]))


def test_composition_calls_its_parts_in_order_and_adds_their_terms() -> None:
    calls: list[str] = []

    class Part(Mitigation):
        def __init__(self, name: str, term: float | None) -> None:
            self.name, self.term = name, term

        def on_keep_changed(self, *_: object) -> None:
            calls.append(self.name)

        def loss_term(self, outputs: StepOutputs) -> Tensor | None:
            return None if self.term is None else torch.tensor(self.term)

        def state_dict(self) -> dict[str, Any]:
            return {"name": self.name}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.name = state["name"]

    pair = Composition([Part("b", 0.5), Part("a", None), Part("c", 2.0)])
    none = torch.tensor([])
    pair.on_keep_changed(0, none, none, none)
    assert calls == ["b", "a", "c"]
    assert pair.loss_term(StepOutputs(images=none, logits=none)) == 2.5
    assert Composition([Part("a", None)]).loss_term(StepOutputs(images=none, logits=none)) is None
    pair.load_state_dict({"0": {"name": "x"}, "1": {"name": "y"}, "2": {"name": "z"}})
    assert pair.state_dict() == {"0": {"name": "x"}, "1": {"name": "y"}, "2": {"name": "z"}}


def test_names_joined_by_plus_become_parts_with_their_options() -> None:
    options = {"token_merging": {"block": 2, "r": 5}, "handoff": {"ridge": 0.5}}
    built = create_mitigation("token_merging+handoff", options)
    assert isinstance(built, Composition)
    assert built.merge() == Merge(block=2, r=5)
    assert built.parts[1].ridge == 0.5  # type: ignore[attr-defined]
    assert create_mitigation("none+handoff", {}).merge() is None


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("nothing", {}, "unknown mitigation 'nothing'; available: handoff, none, token_merging"),
        ("handoff+", {}, "unknown mitigation ''"),
        ("handoff+none+handoff", {}, r"'handoff\+none\+handoff' names a part twice"),
        ("none", {"handoff": {}}, r"options for \['handoff'\], which it does not use"),
    ],
)
def test_wrong_name_or_option_is_refused(name: str, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        create_mitigation(name, options)


def test_only_one_part_may_merge_tokens() -> None:
    pair = Composition([MITIGATIONS["token_merging"](), MITIGATIONS["token_merging"]()])
    with pytest.raises(ValueError, match="only one mitigation of a composition may merge"):
        pair.merge()
