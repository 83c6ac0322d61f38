"""The socket that mitigations plug into, composition and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nbcore.config import Merge, PruneConfig
from nbcore.mitigation import (
    MITIGATIONS,
    Mitigation,
    StepOutputs,
    check_combination,
    create_mitigation,
)
from nbcore.mitigation.base import Composition, Gate
from nbcore.pipeline import run_variant
from nbcore.pruning import PRUNERS, Quota
from nbcore.pruning.magnitude import MagnitudePruner
from nbcore.vit import PrunableViT
from tests.nbcore.mitigated import mitigation_named, train_mitigated
from tests.nbcore.runs import (
    CPU,
    assert_same_bits,
    shapes,
    toy_child,
    train_pruned,
    weights_of,
)


@dataclass
class Recorder(Mitigation):
    """Writes down what the trainer tells, and what it finds in the model at that moment."""

    events: list[tuple[Any, ...]] = field(default_factory=list)

    def attach(self, model: PrunableViT, batches: Callable[[], Any]) -> None:
        self.model, self.old = model, torch.ones(model.num_units, dtype=torch.bool)
        self.events.append(("attach",))

    def on_keep_changing(self, gate: Tensor | None) -> None:
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


def test_socket_is_told_the_learned_gates_of_the_host() -> None:
    told: list[Tensor | None] = []

    class Listener(Mitigation):
        def watch(self, gate: Gate) -> None:
            told.append(gate())

        def on_keep_changing(self, gate: Tensor | None) -> None:
            told.append(gate)

    class Gated(MagnitudePruner):
        def gate(self) -> Tensor:
            return torch.full((1, self.model.num_units), 0.5)

    train_mitigated(Composition([Listener()]), pruner=Gated)
    assert len(told) == 5, "before the first step, and at four removals"
    assert all(gate is not None and bool((gate == 0.5).all()) for gate in told)
    told.clear()
    train_mitigated(Listener())
    assert told
    assert told == [None] * len(told)


class Bystander:
    """What the trainer calls, and nothing else: a training without a mitigation's path."""

    wants_blocks = regrows = False
    fade_steps = margin = 0

    def check_host(self, host: object) -> None: ...
    def quota(self) -> None: ...
    def watch(self, gate: object) -> None: ...
    def attach(self, model: object, batches: object) -> None: ...
    def on_keep_changing(self, gate: object) -> None: ...
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


class Spectator(Mitigation):
    """Keeps the pictures that the model saw."""

    def __init__(self) -> None:
        self.pictures: list[Tensor] = []

    def loss_term(self, outputs: StepOutputs) -> None:
        self.pictures.append(outputs.images.clone())


def test_mitigations_see_the_same_pictures_in_the_same_order() -> None:
    seen = {}
    for name in MITIGATIONS:
        spectator = Spectator()
        train_mitigated(Composition([mitigation_named(name), spectator]))
        seen[name] = spectator.pictures
    assert len(seen["none"]) == 16
    for pictures in seen.values():
        assert all(map(torch.equal, pictures, seen["none"]))


NO_QUOTA = {"s2vite", "vit_slim", "wdpruning", "weights"}
NO_UNITS = {"weights"}
NO_RETURNS = {"random"}


@pytest.mark.parametrize("host", PRUNERS)
def test_every_mitigation_goes_with_every_host_or_is_refused_with_the_reason(host: str) -> None:
    refused = set()
    if host in NO_UNITS:
        refused |= {"handoff", "homeostasis"}
    if host in NO_QUOTA:
        refused.add("burden_quota")
    if host in NO_RETURNS:
        refused |= {"persistent_dynamic", "published"}
    without = {*refused, "none"}
    without |= {"published"} if host in NO_RETURNS else {"persistent_dynamic", "token_merging"}
    without |= {"handoff"} if host == "vit_slim" else set()  # see the next test
    everything = "+".join(name for name in MITIGATIONS if name not in without)
    check_combination(host, everything)
    result, budget = train_mitigated(everything, pruner=host)
    if host not in NO_UNITS:
        counts = [int(result.keep[site.units].sum()) for site in result.model.sites]
        assert budget.macs.total(counts) <= budget.macs_ratio * budget.dense_macs
    for name in refused:
        text = f"cannot be combined with a host that .*{host}.*it works with .*taylor"
        with pytest.raises(ValueError, match=text):
            check_combination(host, f"{name}+distillation")
        with pytest.raises(ValueError, match=text):
            train_mitigated(f"{name}+distillation", pruner=host)


@pytest.mark.parametrize("returns", ["persistent_dynamic", "published"])
def test_work_is_not_given_away_where_gates_are_folded_and_units_return(returns: str) -> None:
    text = r"handoff cannot be combined with persistent_dynamic .*\(vit_slim\).*another host"
    for name in (f"handoff+{returns}", f"{returns}+distillation+handoff"):
        with pytest.raises(ValueError, match=text):
            check_combination("vit_slim", name)
        with pytest.raises(ValueError, match=text):
            train_mitigated(name, pruner="vit_slim")
    check_combination("vit_slim", "handoff+distillation")
    check_combination("vit_slim", f"{returns}+distillation")
    check_combination("taylor", f"handoff+{returns}")


def test_a_variant_that_cannot_be_combined_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbcore.pipeline.load_dataset", None)
    prune = PruneConfig(pruner="s2vite", macs_ratio=0.5, mitigation="burden_quota")
    with pytest.raises(ValueError, match=r"burden_quota cannot be combined .*\(.*s2vite.*\): "):
        run_variant(toy_child(prune=prune), tmp_path, None, CPU, command="")
    assert not any(tmp_path.iterdir())


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
    assert [getattr(part, "ridge", None) for part in built.parts] == [0.5, None]
    assert create_mitigation("none+handoff", {}).merge() is None


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("nothing", {}, "unknown mitigation 'nothing'; available: burden_quota, distillation,"),
        ("handoff+", {}, "unknown mitigation ''"),
        ("handoff+none+handoff", {}, r"'handoff\+none\+handoff' names a part twice"),
        ("none", {"handoff": {}}, r"options for \['handoff'\], which it does not use"),
        ("handoff", {"handoff": {"rigde": 1}}, r"'handoff' has no option \['rigde'\]; .* ridge"),
        ("none", {"none": {"rigde": 1}}, r"'none' has no option \['rigde'\]; it takes none"),
    ],
)
def test_wrong_name_or_option_is_refused(name: str, options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        create_mitigation(name, options)


def test_only_one_part_may_merge_tokens() -> None:
    pair = Composition([MITIGATIONS["token_merging"](), MITIGATIONS["token_merging"]()])
    with pytest.raises(ValueError, match="only one mitigation of a composition may merge"):
        pair.merge()


def test_only_one_part_may_share_out_removals() -> None:
    class Sharing(Mitigation):
        def quota(self) -> Quota:
            return lambda: torch.ones(4)

    assert Composition([Mitigation(), Sharing()]).quota() is not None
    assert Composition([Mitigation(), Mitigation()]).quota() is None
    with pytest.raises(ValueError, match="only one mitigation of a composition may share out"):
        Composition([Sharing(), Sharing()]).quota()


def test_composition_asks_for_what_any_part_asks_for() -> None:
    class Part(Mitigation):
        wants_blocks, regrows, fade_steps, margin = True, True, 7, 0.3

    other = Mitigation()
    pair = Composition([other, Part()])
    assert (pair.wants_blocks, pair.regrows, pair.fade_steps, pair.margin) == (True, True, 7, 0.3)
    assert other.fade_steps == 7, "handing back has to know how gates open"
    assert other.regrows, "and that there is something to be handed back"
    assert not Mitigation.regrows
    assert Mitigation.fade_steps == 0
