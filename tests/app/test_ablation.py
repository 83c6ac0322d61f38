"""Units turned off at will: which ones by hand, and what the cut model says by torch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app import visit
from app.ablation import Ablation, gate_of
from app.burden import measure_cut, survivors
from app.errors import UserError
from app.service import Service
from app.visit import Choices, Visit
from nbcore.preprocessing import preprocess, to_array
from tests.app.folders import ids_by_mitigation
from tests.app.serving import example_path, serve


@pytest.fixture(scope="module")
def service(tiny_checkpoints: Path) -> Service:
    return serve(tiny_checkpoints).service


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> dict[str, str]:
    return ids_by_mitigation(tiny_checkpoints)


def photo() -> Image.Image:
    return Image.open(example_path()).convert("RGB")


def dense(service: Service, ids: dict[str, str]) -> Any:
    return service.registry[ids["dense"]]


def test_share_and_order_decide_by_hand(service: Service, ids: dict[str, str]) -> None:
    model = dense(service, ids)
    first, second = model.variant.sites[:2]
    loads = np.zeros(model.variant.num_units, np.float32)
    loads[: first.total] = [3, 1, 2, 4]
    assert first.total == 4

    def off(**changed: Any) -> list[int]:
        gate = gate_of(model, loads, Ablation(**({"kinds": ("attn",), "layers": (1,)} | changed)))
        return np.flatnonzero(gate == 0).tolist()

    # Half of four heads: loads 1 and 2 are the smallest, 3 and 4 the largest.
    assert off(share=0.5) == [1, 2]
    assert off(share=0.5, order="largest") == [0, 3]
    assert off(share=0.25) == [1]
    assert off(share=0.0) == []
    assert off(share=1.0) == [0, 1, 2, 3]
    # The MLP of layer 1 stands behind its heads; loads of zero go in order of place.
    neurons = off(kinds=("mlp",), share=2 / second.total)
    assert neurons == [first.total, first.total + 1]
    everywhere = gate_of(model, loads, Ablation(share=1.0))
    assert not everywhere.any()


def test_a_variants_removals_go_first_and_at_its_share_are_its_own(
    service: Service, ids: dict[str, str]
) -> None:
    model, variant = dense(service, ids), service.registry[ids["none"]]
    loads = np.random.default_rng(0).random(model.variant.num_units).astype(np.float32)
    start = 0
    for site, whole in zip(variant.variant.sites, model.variant.sites, strict=True):
        layer, kind = int(site.name.split(".")[1]) + 1, site.name.split(".")[2]
        for share, number in ((1 - len(site.kept) / site.total, len(site.kept)), (1.0, 0)):
            asked = Ablation(layers=(layer,), kinds=(kind,), share=share, order=variant.id)
            left = gate_of(model, loads, asked, variant)[start : start + whole.total]
            assert np.flatnonzero(left).tolist() == (list(site.kept) if number else [])
        start += whole.total


def test_answer_is_that_of_the_gated_torch_model(service: Service, ids: dict[str, str]) -> None:
    model, asked = dense(service, ids), Ablation(layers=(2,), share=0.5)
    found = service.ablate(photo(), [ids["none"], ids["dense"]], asked, top_k=6)
    variant = model.variant
    crop = to_array(preprocess(photo(), variant.img_size, variant.preprocessing.crop_pct))
    loads = service.predictor.run(model, crop).unit_load
    gate = torch.from_numpy(gate_of(model, loads, asked))[None]
    with model.twin() as twin, torch.no_grad():
        cut = twin.model(torch.from_numpy(crop)[None], gate)[0].double().softmax(0)
        whole = twin.model(torch.from_numpy(crop)[None])[0].double().softmax(0)
    for top in found.prediction.top:
        index = variant.classes.index(top.class_name)
        assert top.prob == pytest.approx(float(cut[index]), abs=1e-5)
        assert top.change == pytest.approx(float(cut[index] - whole[index]), abs=1e-5)
    kl = float((whole * (whole.log() - cut.log())).sum())
    assert found.prediction.kl_to_base == pytest.approx(kl, abs=1e-5)
    assert (found.removed, found.total) == (int((gate == 0).sum()), variant.num_units)


def test_burden_of_a_variants_own_cut_is_its_null(service: Service, ids: dict[str, str]) -> None:
    variant = service.registry[ids["none"]]
    null = service.burden(photo(), [ids["none"]])[ids["none"]].null_values
    assert null is not None
    model = dense(service, ids)
    side, share = model.variant.img_size, model.variant.preprocessing.crop_pct
    pixels = to_array(preprocess(photo(), side, share))
    whole = service.predictor.run(model, pixels)
    maps, _ = measure_cut(service.predictor, model, pixels, survivors(variant, model), whole)
    assert maps.values == pytest.approx(null, rel=1e-6)


def test_nothing_off_changes_nothing_and_everything_off_has_no_ratio(
    service: Service, ids: dict[str, str]
) -> None:
    none = service.ablate(photo(), [ids["dense"]], Ablation(share=0.0))
    assert none.burdens.values == pytest.approx([1.0] * len(none.burdens.values), rel=1e-6)
    assert none.prediction.kl_to_base == pytest.approx(0, abs=1e-6)
    everything = service.ablate(photo(), [ids["dense"]], Ablation(share=1.0))
    assert set(everything.burdens.values) == {None}
    assert everything.burdens.maps is not None
    assert not everything.burdens.maps.any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"share": 1.5}, "between 0 and 1, got 1.5"),
        ({"layers": (9,)}, "no layer 9; its layers are 1 to 3"),
        ({"kinds": ("conv",)}, "attn and mlp, not 'conv'"),
        ({"order": "nope"}, "unknown variant 'nope'"),
    ],
)
def test_what_cannot_be_cut_says_what_can(
    service: Service, ids: dict[str, str], changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        service.ablate(photo(), [ids["dense"]], Ablation(**changed))


def test_page_shows_the_cut_beside_the_sentence(service: Service, ids: dict[str, str]) -> None:
    state = Visit()
    choices = Choices(
        variants=[ids["dense"], ids["none"]],
        method="saliency",
        target="base",
        before=False,
        quantity="burden",
        layer=1,
        kind="mlp",
    )
    list(visit.compare(service, state, photo, choices))
    state.ablation = Ablation(share=0.25, kinds=("mlp",))
    shown = next(visit.ablated(service, state))["ablation"]
    total = sum(site.total for site in dense(service, ids).variant.sites)
    neurons = [site.total for site in dense(service, ids).variant.sites if site.kind == "neurons"]
    assert f"{sum(round(n / 4) for n in neurons)} of {total} units are off" in shown
    state.ablation = Ablation(order="nope")
    assert "unknown variant" in next(visit.ablated(service, state))["ablation"]
