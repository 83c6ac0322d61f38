"""Attributions add up to what they promise, and leave nothing behind on the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app.attribution import ATTRIBUTIONS, PixelAttribution, attribute, to_patches
from app.inference import Predictor
from app.path_integral import MAX_STEPS, integrate
from app.registry import Model, ModelRegistry
from tests.app.folders import ids_by_mitigation

METHODS = ["input_x_gradient", "integrated_gradients", "saliency"]


@pytest.fixture(scope="module")
def registry(tiny_checkpoints: Path) -> ModelRegistry:
    return ModelRegistry(tiny_checkpoints)


@pytest.fixture(scope="module")
def models(registry: ModelRegistry, tiny_checkpoints: Path) -> dict[str, Model]:
    return {k: registry[v] for k, v in ids_by_mitigation(tiny_checkpoints).items()}


def photo(model: Model, seed: int = 0) -> np.ndarray:
    """Soft noise, so that models have something to bend over."""
    side = model.variant.img_size
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].numpy()


def group_of(model: Model, image: np.ndarray) -> np.ndarray | None:
    return Predictor("cpu", threads=1).run(model, image).group


def logit_of(
    model: Model, image: np.ndarray, target: int, group: np.ndarray | None = None
) -> float:
    match = None if group is None else torch.from_numpy(group)[None]
    with model.twin() as twin, torch.no_grad():
        return twin.model(torch.from_numpy(image)[None], group=match)[0, target].item()


def test_the_menu_is_the_registry() -> None:
    assert list(ATTRIBUTIONS) == METHODS
    assert [ATTRIBUTIONS[name].name for name in METHODS] == METHODS


@pytest.mark.parametrize("mitigation", ["dense", "none", "token_merging", "handoff"])
def test_integrated_gradients_add_up_to_the_change_of_the_logit(
    models: dict[str, Model], mitigation: str
) -> None:
    model = models[mitigation]
    image = photo(model)
    group = group_of(model, image)
    entry = ATTRIBUTIONS["integrated_gradients"]
    patches, found = attribute(model, image, entry, 1, "cpu", group=group)
    flat = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape).astype(np.float32)
    change = logit_of(model, image, 1, group) - logit_of(model, flat, 1, group)
    assert found.completeness_error is not None
    miss = abs(float(patches.sum()) - change) / abs(change)
    assert miss == pytest.approx(found.completeness_error, abs=1e-4)
    assert found.completeness_error <= 0.01 or found.steps == MAX_STEPS


def test_the_photos_own_match_is_held_fixed(models: dict[str, Model]) -> None:
    model = models["token_merging"]
    image = photo(model)
    group = group_of(model, image)
    assert group is not None
    # Any other match gives other gradients, so an attribution that ignores its match shows here.
    other = np.roll(group, 1)
    entry = ATTRIBUTIONS["saliency"]
    own, _ = attribute(model, image, entry, 0, "cpu", group=group)
    free, _ = attribute(model, image, entry, 0, "cpu")
    shifted, _ = attribute(model, image, entry, 0, "cpu", group=other)
    np.testing.assert_allclose(own, free, rtol=1e-4, atol=1e-7)
    assert np.abs(own - shifted).max() > 1e-3 * own.max()


def test_saliency_and_input_x_gradient_are_the_gradient(models: dict[str, Model]) -> None:
    model = models["none"]
    image, patch = photo(model), model.variant.patch_size
    x = torch.from_numpy(image)[None].requires_grad_()
    with model.twin() as twin:
        (gradient,) = torch.autograd.grad(twin.model(x)[0, 2], x)
    steep, _ = attribute(model, image, ATTRIBUTIONS["saliency"], 2, "cpu")
    product, _ = attribute(model, image, ATTRIBUTIONS["input_x_gradient"], 2, "cpu")
    grad = gradient[0].double().numpy()
    rows, columns = model.variant.grid
    for r in range(rows):
        for c in range(columns):
            cut = np.s_[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            assert steep[r, c] == pytest.approx(np.sqrt((grad[cut] ** 2).sum()), rel=1e-5)
            assert product[r, c] == pytest.approx(
                (grad[cut] * image[cut]).sum(), rel=1e-4, abs=1e-7
            )


def test_gates_attribute_the_cut_model(models: dict[str, Model]) -> None:
    model = models["dense"]
    image = photo(model)
    gate = np.ones(model.variant.num_units, np.float32)
    gate[::3] = 0
    found, _ = attribute(model, image, ATTRIBUTIONS["saliency"], 0, "cpu", unit_gate=gate)
    x = torch.from_numpy(image)[None].requires_grad_()
    with model.twin() as twin:
        (gradient,) = torch.autograd.grad(twin.model(x, torch.from_numpy(gate)[None])[0, 0], x)
    wanted = to_patches(gradient.double(), model.variant.patch_size, signed=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_patches_by_hand() -> None:
    # One channel of 1s on a 2 x 4 picture with patches of 2 pixels, one of its pixels -3.
    values = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    values[0, 1] = 1.0
    values[0, 1, 0, 2] = -3.0
    assert to_patches(values, 2, signed=True).tolist() == [[4.0, 0.0]]
    # sqrt(4 * 1) and sqrt(9 + 3 * 1)
    assert to_patches(values, 2, signed=False).tolist() == [[2.0, 12.0**0.5]]


REFERENCE, IMAGE = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0)


@pytest.mark.parametrize(
    ("logit", "wanted"),
    [
        # F = 5 x: 5 * 2 each; F = x^3: 8 each; both within the first 20 gradients.
        (lambda x: (5 * x).sum((1, 2, 3)), 10.0),
        (lambda x: x.pow(3).sum((1, 2, 3)), 8.0),
    ],
)
def test_path_integral_by_hand(logit: Callable[[Tensor], Tensor], wanted: float) -> None:
    found = integrate(logit, REFERENCE, IMAGE)
    assert torch.allclose(found.values, torch.full_like(found.values, wanted), rtol=1e-5)
    assert found.steps == 20
    assert found.change == pytest.approx(12 * wanted, rel=1e-5)
    assert found.miss == pytest.approx(0.0, abs=1e-3)


def test_steps_go_where_the_logit_bends() -> None:
    # A step of 120 near 0.3 of the way: 20 equal gradients see little of it.
    def logit(x: Tensor) -> Tensor:
        return (120 * torch.sigmoid(400 * (x.mean((1, 2, 3)) - 0.6123))).float()

    found = integrate(logit, REFERENCE, IMAGE)
    assert 20 < found.steps <= MAX_STEPS
    assert found.values.sum().item() == pytest.approx(120.0, rel=0.01)
    assert found.change == pytest.approx(120.0, rel=1e-4)


def test_what_is_not_reached_is_said() -> None:
    def logit(x: Tensor) -> Tensor:
        return torch.sin(5e4 * x.mean((1, 2, 3)).double()).float()

    found = integrate(logit, REFERENCE, IMAGE)
    change = (logit(IMAGE) - logit(REFERENCE)).item()
    assert found.steps == MAX_STEPS
    assert found.change == pytest.approx(change, abs=1e-2)
    assert abs(found.miss) == pytest.approx(abs(found.values.sum().item() - change), rel=1e-2)
    assert abs(found.miss) > 0.01 * abs(change)


def test_a_photo_of_one_colour_has_nothing_to_explain(models: dict[str, Model]) -> None:
    model = models["dense"]
    side = model.variant.img_size
    entry = ATTRIBUTIONS["integrated_gradients"]
    patches, found = attribute(model, np.full((3, side, side), 0.5, np.float32), entry, 0, "cpu")
    assert np.abs(patches).max() == 0.0
    assert found.completeness_error == 0.0


def traces(model: Model) -> list[object]:
    """All that a method could leave on a torch model."""
    with model.twin() as twin:
        hooks = [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
            for m in twin.modules()
        ]
        weights = [(p.requires_grad, p.grad is None, p.sum().item()) for p in twin.parameters()]
    return [hooks, weights]


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_on_the_model(models: dict[str, Model], name: str) -> None:
    model = models["none"]
    before = traces(model)
    attribute(model, photo(model), ATTRIBUTIONS[name], 0, "cpu")
    assert traces(model) == before
    assert all(hooks[:3] == (0, 0, 0) for hooks in before[0])  # type: ignore[attr-defined]
    assert not any(requires for requires, *_ in before[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_a_failing_model_leaves_nothing_and_frees_the_lock(
    models: dict[str, Model], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["handoff"]
    before = traces(model)

    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("planted")

    with model.twin() as twin:
        monkeypatch.setattr(twin.model.vit.norm, "forward", fail)
    with pytest.raises(RuntimeError, match="planted"):
        attribute(model, photo(model), ATTRIBUTIONS[name], 0, "cpu")
    monkeypatch.undo()
    assert traces(model) == before
    assert model._lock.acquire(blocking=False)
    model._lock.release()


def test_a_target_out_of_range_leaves_nothing(models: dict[str, Model]) -> None:
    model = models["handoff"]
    before = traces(model)
    with pytest.raises(IndexError):
        attribute(model, photo(model), ATTRIBUTIONS["saliency"], 99, "cpu")
    assert traces(model) == before


def test_gradients_do_not_need_the_callers_mode(models: dict[str, Model]) -> None:
    model = models["dense"]
    entry = ATTRIBUTIONS["saliency"]
    wanted, _ = attribute(model, photo(model), entry, 0, "cpu")
    with torch.no_grad():
        found, _ = attribute(model, photo(model), entry, 0, "cpu")
    assert np.array_equal(found, wanted)


def test_a_pixel_attribution_needs_no_extras() -> None:
    plain = PixelAttribution(values=torch.zeros(1))
    assert (plain.completeness_error, plain.steps) == (None, None)
