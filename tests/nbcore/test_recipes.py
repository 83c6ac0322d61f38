"""Recipes compare like with like: one dense model, arms that differ in the mitigation alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace

import pytest
import torch

from nbcore.config import RunConfig
from nbcore.macs import macs_of
from nbcore.mitigation import create_mitigation
from nbcore.pruning import PRUNERS, allocate
from nbcore.recipes import BEST, RECIPES, arm_of, pruned
from nbcore.study.grid import Arm
from nbcore.study.studies import STUDIES
from nbcore.vit import create_dense, with_merge

NUM_CLASSES = {"shapes": 6, "imagenette": 10, "cifar10": 10, "mnist": 10, "folder": 7}


def arms(configs: tuple[RunConfig, ...]) -> dict[tuple, list[RunConfig]]:
    """Pruned runs by base, host and budget."""
    found = defaultdict(list)
    for config in configs:
        if config.prune:
            found[config.base, config.prune.pruner, config.prune.macs_ratio].append(config)
    return found


@pytest.mark.parametrize("name", list(RECIPES))
def test_ids_follow_the_naming_rule_and_bases_come_first(name: str) -> None:
    configs, seen = RECIPES[name](), set()
    for config in configs:
        if config.prune is None:
            assert config.id.endswith("-dense")
        else:
            assert config.base in seen
            stem, prune = str(config.base).removesuffix("-dense"), config.prune
            percent = {0.5: "50", 0.25: "25"}[prune.macs_ratio]
            assert config.id == f"{stem}-{prune.pruner}-m{percent}-{prune.mitigation}"
        assert config.id not in seen
        assert config.id.startswith(config.data.dataset)
        seen.add(config.id)


def test_ids_are_unique_over_all_recipes() -> None:
    ids = [config.id for name in RECIPES for config in RECIPES[name]()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", list(RECIPES))
def test_arms_of_one_budget_differ_in_the_mitigation_alone(name: str) -> None:
    groups = arms(RECIPES[name]())
    assert groups
    for group in groups.values():
        second, third = ("published", BEST)
        if name == "shapes-quick":
            second, third = ("token_merging", "handoff")
        assert [c.prune.mitigation for c in group if c.prune] == ["none", second, third]
        same = []
        for config in group:
            assert config.prune is not None
            plain = replace(config.prune, mitigation="none", mitigation_options={})
            same.append(replace(config, id="x", prune=plain))
        assert same[1:] == same[:-1]


@pytest.mark.parametrize("name", list(RECIPES))
def test_arms_of_all_budgets_train_alike_on_the_data_of_their_base(name: str) -> None:
    dense, *rest = RECIPES[name]()
    assert len({repr(asdict(config.train)) for config in rest}) == 1
    for config in rest:
        assert (config.data, config.model, config.seed) == (dense.data, dense.model, dense.seed)
        assert config.train.epochs[-1][0] == dense.train.epochs[-1][0] == dense.data.img_size


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_budget_can_be_met(name: str) -> None:
    dense, *rest = RECIPES[name]()
    num_classes = NUM_CLASSES[dense.data.dataset]
    model = create_dense(dense.model, img_size=dense.data.img_size, num_classes=num_classes)
    whole = macs_of(model).total([site.num_units for site in model.sites])
    alive = torch.ones(model.num_units, dtype=torch.bool)
    scores = torch.rand(model.num_units, generator=torch.Generator().manual_seed(0))
    for config in rest:
        prune = config.prune
        assert prune is not None
        assert prune.pruner in PRUNERS
        mitigation = create_mitigation(prune.mitigation, prune.mitigation_options)
        merging = with_merge(model, mitigation.merge())
        macs = macs_of(merging)
        keep = allocate(scores, alive, model.sites, macs, int(prune.macs_ratio * whole))
        spent = macs.total([int(keep[site.units].sum()) for site in model.sites]) / whole
        assert prune.macs_ratio - 0.01 < spent <= prune.macs_ratio
        # Every stage must be able to place its photos on the grid and merge at least one token.
        for side, _ in config.train.epochs:
            patches = (side // model.patch_size) ** 2
            assert side % model.patch_size == 0
            merge = mitigation.merge()
            assert merge is None or merge.r * patches // (model.grid[0] * model.grid[1]) >= 1


def test_forks_are_named_by_what_is_done_to_them() -> None:
    dense, plain, *_ = RECIPES["shapes-quick"]()
    assert plain.prune is not None
    prune = replace(plain.prune, macs_ratio=0.05, pruner="random", mitigation="handoff+x")
    fork = pruned(dense, plain.train, prune)
    assert (fork.id, fork.base) == ("shapes-vit-mini-random-m05-handoff+x", dense.id)


@pytest.mark.parametrize("name", list(RECIPES))
def test_docstring_tells_the_command(name: str) -> None:
    assert f"python -m nbcore run {name}" in (RECIPES[name].__doc__ or "")


@pytest.mark.parametrize("name", ["cifar10-four-layer", "mnist-four-layer"])
def test_shipped_four_layer_variants_are_trained_as_the_arms_of_the_study(name: str) -> None:
    study, (dense, *arms_) = STUDIES[name](), RECIPES[name]()
    assert study.dense == dense.train
    for config in arms_:
        assert config.prune is not None
        arm = Arm(
            pruner="taylor", mitigation=config.prune.mitigation, target_macs_ratio=0.25, seed=0
        )
        assert study.arm_config(arm) == config.train
        same = replace(study.prune_config(arm), mitigation=config.prune.mitigation)
        assert same == config.prune


@pytest.mark.parametrize("name", ["imagenette-vit-tiny", "cifar10-four-layer"])
def test_arms_of_ones_own_have_settings_of_the_recipe(name: str) -> None:
    runs = RECIPES[name]()
    shipped = next(c.prune for c in runs if c.prune and c.prune.mitigation == "published")
    own = arm_of(runs, pruner="movement", mitigation="published", macs_ratio=0.3).prune
    assert own is not None
    assert own.mitigation_options == shipped.mitigation_options
    assert set(own.mitigation_options) == {"token_merging", "persistent_dynamic"}
    for config in runs[1:]:  # what has the name of a shipped variant is trained as it was
        of = config.prune
        assert of is not None
        asked = {"pruner": of.pruner, "mitigation": of.mitigation, "macs_ratio": of.macs_ratio}
        assert arm_of(runs, **asked) == config
