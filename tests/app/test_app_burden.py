"""Burden of a photo: hand counts, and the same numbers by another road."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.burden import measure, survivors
from app.errors import UserError
from app.inference import Output, Predictor
from app.quantities import QUANTITIES, Runs
from app.registry import Model, ModelRegistry
from nbcore.burden import MeteredViT
from tests.app.folders import ids_by_mitigation

PRUNED = ["none", "token_merging", "handoff"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("cpu", threads=1)


@pytest.fixture(scope="module")
def models(tiny_checkpoints: Path) -> dict[str, Model]:
    registry = ModelRegistry(tiny_checkpoints)
    return {k: registry[v] for k, v in ids_by_mitigation(tiny_checkpoints).items()}


@pytest.fixture(scope="module")
def image(models: dict[str, Model]) -> np.ndarray:
    side = models["dense"].variant.img_size
    return np.random.default_rng(3).random((3, side, side), dtype=np.float32)


def output(unit_load: list[float], token_load: list[list[float]]) -> Output:
    return Output(
        logits=np.zeros(2, np.float32),
        unit_load=np.array(unit_load, np.float32),
        token_load=np.array(token_load, np.float32),
        stream=np.ones(2, np.float32),
        group=None,
        provider="",
        latency_ms=0.0,
    )


def test_burden_by_hand() -> None:
    # Two sites that keep 1 and 2 units, three patches.
    model: Any = SimpleNamespace(
        variant=SimpleNamespace(sites=[SimpleNamespace(kept=(0,)), SimpleNamespace(kept=(1, 2))])
    )
    past = output([2.0, 3.0, 4.0], [[2.0, 2.0, 0.0], [5.0, 5.0, 10.0]])
    own = output([1.0, 6.0, 8.0], [[8.0, 2.0, 0.0], [5.0, 0.01, 40.0]])
    cut = output([2.0, 0.0, 0.0], [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    runs = Runs(
        model=model,
        image=np.zeros(0),
        device="cpu",
        own=own,
        base=model,
        mask=None,
        dense=past,
        past=past,
        cut=cut,
    )
    trained, null = QUANTITIES["burden"].measure(runs)
    assert trained is not None
    assert null is not None
    # Site loads: sqrt(sum of squares) = 2, 5 in dense; 1, 10 in the variant; 2, 0 in the cut.
    assert trained.values.tolist() == pytest.approx([1 / 2, 10 / 5])
    assert null.values.tolist() == [1.0, 0.0]
    # log2: 8/2 = 4 -> 2; equal -> 0; both empty, floored at 1 % of 2 -> 0.
    # Second site, floor 1 % of 5 = 0.05: 1 -> 0; 0.05 / 5 = 1/100; 40/10 = 4 -> 2.
    wanted = [[2.0, 0.0, 0.0], [0.0, math.log2(1 / 100), 2.0]]
    np.testing.assert_allclose(trained.maps, wanted, atol=1e-6)
    # 2 over the floor 0.02 of an empty patch: log2(100).
    np.testing.assert_allclose(null.maps[0], [0.0, 0.0, math.log2(100)], atol=1e-6)


def test_dense_against_itself_is_exactly_one(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    dense = models["dense"]
    found = measure(predictor, dense, dense, image)
    count = len(dense.variant.sites)
    assert found.is_dense
    assert found.values == found.selection == found.stream == (1.0,) * count
    assert found.maps is not None
    assert not found.maps.any()
    assert (found.null_values, found.null_maps, found.null_stream) == (None, None, None)
    # Dense cut to all of its units is dense.
    assert found.shown("null") is found.maps
    still = measure(predictor, dense, dense, image, "residual")
    assert still.values == (0.0,) * (count // 2)
    assert still.maps is not None
    assert not still.maps.any()


@pytest.mark.parametrize("mitigation", PRUNED)
def test_burden_is_the_quotient_of_loads(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray, mitigation: str
) -> None:
    model, dense = models[mitigation], models["dense"]
    found = measure(predictor, model, dense, image)
    own, past = predictor.run(model, image), predictor.run(dense, image)
    start_own = start_dense = 0
    for index, site in enumerate(model.variant.sites):
        mine = own.unit_load[start_own : start_own + len(site.kept)]
        theirs = past.unit_load[[start_dense + unit for unit in site.kept]]
        everyone = past.unit_load[start_dense : start_dense + site.total]
        load = math.sqrt((mine**2).sum())
        assert found.loads[index] == pytest.approx(load, rel=1e-5)
        assert found.values[index] == pytest.approx(load / math.sqrt((theirs**2).sum()), rel=1e-5)
        assert found.selection is not None
        selection = (theirs**2).mean() / (everyone**2).mean()
        assert found.selection[index] == pytest.approx(selection, rel=1e-5)
        assert found.stream is not None
        assert found.stream[index] == pytest.approx(
            own.stream[index] / past.stream[index], rel=1e-5
        )
        start_own += len(site.kept)
        start_dense += site.total


@pytest.mark.parametrize("mitigation", PRUNED)
def test_maps_and_sites_are_one_sum(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray, mitigation: str
) -> None:
    """A site's squared load is the mean over patches of its squared token loads."""
    found = measure(predictor, models[mitigation], models["dense"], image, "load")
    for maps, values in ((found.maps, found.values), (found.null_maps, found.null_values)):
        assert maps is not None
        assert values is not None
        np.testing.assert_allclose((maps**2).mean((1, 2)) ** 0.5, values, rtol=1e-4)
    assert found.values == pytest.approx(found.loads)


def masked_twin(dense: Model, mask: np.ndarray) -> MeteredViT:
    """A copy of the dense model in torch whose other units write nothing."""
    with dense.twin() as twin:
        masked = copy.deepcopy(twin)
    gone = torch.from_numpy(mask) == 0
    for site in masked.model.sites:
        block, off = masked.model.vit.blocks[site.block], gone[site.units]
        if site.kind == "heads":
            columns = off.repeat_interleave(block.attn.head_dim)
            block.attn.proj.weight[:, columns] = 0
        else:
            block.mlp.fc2.weight[:, off] = 0
    return masked


def test_the_null_is_dense_with_masked_weights(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    model, dense = models["none"], models["dense"]
    mask = survivors(model, dense)
    with torch.no_grad():
        x = torch.from_numpy(image)[None]
        masked = masked_twin(dense, mask)
        _, unit_load, token_load, stream = masked(x, None, torch.from_numpy(mask)[None])
        with dense.twin() as twin:
            _, past_units, past_tokens, past_stream = twin(x, None, torch.from_numpy(mask)[None])
    found = measure(predictor, model, dense, image)
    assert found.null_values is not None
    assert found.null_maps is not None
    start = 0
    for index, site in enumerate(model.variant.sites):
        kept = [start + unit for unit in site.kept]
        ratio = unit_load[0, kept].norm() / past_units[0, kept].norm()
        assert found.null_values[index] == pytest.approx(ratio.item(), rel=1e-4)
        shares = (token_load[0, index] / past_tokens[0, index]).log2()
        floor = 0.01 * past_units[0, kept].norm()
        clear = (token_load[0, index] > floor) & (past_tokens[0, index] > floor)
        got = torch.from_numpy(found.null_maps[index]).flatten()
        assert clear.any()
        np.testing.assert_allclose(got[clear], shares[clear], atol=1e-3)
        start += site.total
    wanted = (stream / past_stream)[0].tolist()
    assert found.null_stream == pytest.approx(wanted, rel=1e-4)


def streams(
    twin: MeteredViT, x: torch.Tensor, group: torch.Tensor | None = None
) -> list[np.ndarray]:
    """Stream behind every block, spread to the original patches by hand: depth x [P, D]."""
    found = []

    def tap(_index: int, stream: torch.Tensor, tokens: Any) -> None:
        rows = stream[0, twin.model.num_prefix_tokens :].numpy()
        found.append(rows if tokens.group is None else rows[tokens.group[0].numpy()])

    with torch.no_grad():
        twin.model(x, group=group, block_tap=tap)
    return found


@pytest.mark.parametrize("mitigation", ["none", "token_merging"])
def test_residual_is_the_relative_error_of_every_block(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray, mitigation: str
) -> None:
    model, dense = models[mitigation], models["dense"]
    found = measure(predictor, model, dense, image, "residual")
    x, group = torch.from_numpy(image)[None], predictor.run(model, image).group
    with dense.twin() as twin:
        before = streams(twin, x)
        null = streams(masked_twin(dense, survivors(model, dense)), x)
    with model.twin() as twin:
        after = streams(twin, x, None if group is None else torch.from_numpy(group)[None])
    assert found.site_names == tuple(f"blocks.{k}" for k in range(len(before)))
    assert (found.selection, found.stream, found.null_stream) == (None, None, None)
    for got, maps, outputs in (
        (found.values, found.maps, after),
        (found.null_values, found.null_maps, null),
    ):
        assert got is not None
        assert maps is not None
        for index, (y, changed) in enumerate(zip(before, outputs, strict=True)):
            # R_t = ||C (y_t - y'_t)||^2 / mean_t ||C (y_t - mean y)||^2, C removes the mean of D.
            error, spread = y - changed, y - y.mean(0)
            error, spread = (v - v.mean(1, keepdims=True) for v in (error, spread))
            wanted = (error**2).sum(1) / (spread**2).sum(1).mean()
            np.testing.assert_allclose(maps[index].ravel(), wanted, rtol=1e-3, atol=1e-6)
            assert got[index] == pytest.approx(wanted.mean(), rel=1e-3)


def test_without_a_base_loads_are_left_and_a_reason(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    model = models["handoff"]
    full = measure(predictor, model, models["dense"], image)
    for name in ("burden", "residual"):
        found = measure(predictor, model, None, image, name, reason="it is refused")
        assert set(found.values) == {None}
        assert found.reason == "it is refused"
        assert found.maps is found.null_maps is found.selection is found.stream is None
        assert found.loads == full.loads
    load = measure(predictor, model, None, image, "load", reason="it is refused")
    assert load.values == full.loads
    assert (load.reason, load.null_values) == (None, None)


def test_the_null_is_left_out_where_it_is_not_asked_for(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    asked = measure(predictor, models["none"], models["dense"], image)
    bare = measure(predictor, models["none"], models["dense"], image, live_null=False)
    assert bare.null_values is bare.null_maps is bare.null_stream is bare.shown("null") is None
    assert bare.values == asked.values


def test_merged_tokens_are_known_from_the_merging_block_on(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    model = models["token_merging"]
    merge = model.variant.merge
    assert merge is not None
    found = measure(predictor, model, models["dense"], image)
    for name, groups in zip(found.site_names, found.outlines("trained"), strict=True):
        assert (groups is not None) == (int(name.split(".")[1]) >= merge.block)
    groups = found.groups[-1]
    assert groups is not None
    assert len(np.unique(groups)) == groups.size - merge.r
    assert set(found.outlines("null")) == {None}
    # Patches that one token carries show one value.
    assert found.maps is not None
    load = measure(predictor, model, models["dense"], image, "load").maps
    assert load is not None
    for token in np.unique(groups):
        assert len(set(load[-1][groups == token].tolist())) == 1


def test_an_unknown_quantity_is_answered_with_those_there_are(
    models: dict[str, Model], predictor: Predictor, image: np.ndarray
) -> None:
    with pytest.raises(UserError, match="unknown quantity 'weight'; available: burden, load, resi"):
        measure(predictor, models["none"], models["dense"], image, "weight")


def test_a_load_of_zero_divides_nothing(models: dict[str, Model], image: np.ndarray) -> None:
    """A site that was silent in dense has no burden rather than an infinite one."""
    silent = models["dense"].variant.sites[0]

    class Silent(Predictor):
        def run(self, *args: Any, **kwargs: Any) -> Output:
            found = super().run(*args, **kwargs)
            unit_load = found.unit_load.copy()
            unit_load[: len(silent.kept)] = 0
            return Output(**{**vars(found), "unit_load": unit_load})

    found = measure(Silent("cpu", threads=1), models["dense"], models["dense"], image)
    assert found.values[0] is None
    assert found.selection is not None
    assert found.selection[0] is None
    assert found.values[2] == 1.0
