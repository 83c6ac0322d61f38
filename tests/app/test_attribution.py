"""Attributions add up to what they promise, and leave nothing behind on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app import path_integral
from app.attribution import ATTRIBUTIONS, Found, attribute
from app.gradients import to_patches
from app.inference import Predictor
from app.path_integral import MAX_STEPS, integrate
from app.question import Question
from app.registry import Model, ModelRegistry
from app.removal import MAX_PASSES, squares_of
from app.token_maps import (
    _outputs_of,
    attention_of,
    rollout,
    weighted_channels,
    with_residual,
)
from tests.app.folders import ids_by_mitigation

METHODS = [
    "attention_rollout",
    "grad_cam",
    "gradient_shap",
    "input_x_gradient",
    "integrated_gradients",
    "occlusion",
    "saliency",
    "smoothgrad",
]
ON_THE_TWIN = [name for name in METHODS if name != "occlusion"]


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


PREDICTOR = Predictor("cpu", threads=1)


def ask(
    model: Model, image: np.ndarray, name: str, target: int, **more: np.ndarray | None
) -> Found:
    return attribute(model, PREDICTOR, image, ATTRIBUTIONS[name], target, **more)


def group_of(model: Model, image: np.ndarray) -> np.ndarray | None:
    return PREDICTOR.run(model, image).group


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
    found = ask(model, image, "integrated_gradients", 1, group=group)
    flat = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape).astype(np.float32)
    change = logit_of(model, image, 1, group) - logit_of(model, flat, 1, group)
    assert found.completeness_error is not None
    miss = abs(float(found.patches.sum()) - change) / abs(change)
    assert miss == pytest.approx(found.completeness_error, abs=1e-4)
    assert found.completeness_error <= 0.01 or found.steps == MAX_STEPS


def test_the_photos_own_match_is_held_fixed(models: dict[str, Model]) -> None:
    model = models["token_merging"]
    image = photo(model)
    group = group_of(model, image)
    assert group is not None
    # Any other match gives other gradients, so an attribution that ignores its match shows here.
    other = np.roll(group, 1)
    own = ask(model, image, "saliency", 0, group=group).patches
    free = ask(model, image, "saliency", 0).patches
    shifted = ask(model, image, "saliency", 0, group=other).patches
    np.testing.assert_allclose(own, free, rtol=1e-4, atol=1e-7)
    assert np.abs(own - shifted).max() > 1e-3 * own.max()


def test_saliency_and_input_x_gradient_are_the_gradient(models: dict[str, Model]) -> None:
    model = models["none"]
    image, patch = photo(model), model.variant.patch_size
    x = torch.from_numpy(image)[None].requires_grad_()
    with model.twin() as twin:
        (gradient,) = torch.autograd.grad(twin.model(x)[0, 2], x)
    steep = ask(model, image, "saliency", 2).patches
    product = ask(model, image, "input_x_gradient", 2).patches
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
    found = ask(model, image, "saliency", 0, unit_gate=gate).patches
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
    # Four segments of five, neighbours sharing one: 17.
    assert found.steps == 17
    assert found.change == pytest.approx(12 * wanted, rel=1e-5)
    assert found.miss == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("bend", "wanted"), [(4, [65]), (4000, [65, 36])])
def test_a_gpu_takes_most_steps_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, bend: float, wanted: list[int]
) -> None:
    monkeypatch.setattr(path_integral, "CPU_BATCH", path_integral.GPU_BATCH)
    passes: list[int] = []

    def logit(x: Tensor) -> Tensor:
        passes.append(len(x))
        return (120 * torch.sigmoid(bend * (x.mean((1, 2, 3)) - 0.6123))).float()

    found = integrate(logit, REFERENCE, IMAGE)
    assert passes == wanted
    assert found.steps == sum(passes)


def test_no_step_is_taken_where_there_is_no_way() -> None:
    def logit(x: Tensor) -> Tensor:
        raise AssertionError

    found = integrate(logit, IMAGE + 1e-4, IMAGE)
    assert (found.steps, found.miss, found.change) == (0, 0.0, 0.0)
    assert torch.equal(found.values, torch.zeros_like(IMAGE).double())


def test_steps_go_where_the_logit_bends() -> None:
    # A step of 120 near 0.3 of the way: 17 equal gradients see little of it.
    def logit(x: Tensor) -> Tensor:
        return (120 * torch.sigmoid(400 * (x.mean((1, 2, 3)) - 0.6123))).float()

    found = integrate(logit, REFERENCE, IMAGE)
    assert 17 < found.steps <= MAX_STEPS
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


def test_halves_use_the_gradients_of_the_whole() -> None:
    asked: list[float] = []

    def logit(x: Tensor) -> Tensor:
        asked.extend(x[:, 0, 0, 0].tolist())
        return (120 * torch.sigmoid(40 * (x.mean((1, 2, 3)) - 0.6123))).float()

    found = integrate(logit, REFERENCE, IMAGE)
    # Each halving adds the four points between the five that are known.
    assert found.steps == len(asked) == len(set(asked)) > 17
    assert (found.steps - 17) % 4 == 0


def test_integrated_gradients_are_captums(models: dict[str, Model]) -> None:
    from captum.attr import IntegratedGradients

    model = models["none"]
    image = photo(model)
    found = ask(model, image, "integrated_gradients", 1)
    x = torch.from_numpy(image)[None]
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    with model.twin() as twin:
        values = IntegratedGradients(lambda images: twin.model(images)[:, 1]).attribute(
            x, flat, n_steps=400, internal_batch_size=16
        )
    wanted = to_patches(values, model.variant.patch_size, signed=True)
    assert np.linalg.norm(found.patches - wanted) <= 0.06 * np.linalg.norm(wanted)


def test_a_photo_of_one_colour_has_nothing_to_explain(models: dict[str, Model]) -> None:
    model = models["dense"]
    side = model.variant.img_size
    found = ask(model, np.full((3, side, side), 0.5, np.float32), "integrated_gradients", 0)
    assert np.abs(found.patches).max() == 0.0
    assert found.completeness_error == 0.0
    assert found.steps == 0


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
    ask(model, photo(model), name, 0)
    assert traces(model) == before
    assert all(hooks[:3] == (0, 0, 0) for hooks in before[0])  # type: ignore[attr-defined]
    assert not any(requires for requires, *_ in before[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ON_THE_TWIN)
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
        ask(model, photo(model), name, 0)
    monkeypatch.undo()
    assert traces(model) == before
    assert model._lock.acquire(blocking=False)
    model._lock.release()


@pytest.mark.parametrize("name", [n for n in METHODS if n != "attention_rollout"])
def test_a_target_out_of_range_leaves_nothing(models: dict[str, Model], name: str) -> None:
    model = models["handoff"]
    before = traces(model)
    with pytest.raises(IndexError):
        ask(model, photo(model), name, 99)
    assert traces(model) == before


def test_gradients_do_not_need_the_callers_mode(models: dict[str, Model]) -> None:
    model = models["dense"]
    wanted = ask(model, photo(model), "saliency", 0).patches
    with torch.no_grad():
        found = ask(model, photo(model), "saliency", 0).patches
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", ["gradient_shap", "smoothgrad"])
def test_random_methods_give_the_same_map_every_time(models: dict[str, Model], name: str) -> None:
    model = models["none"]
    torch.manual_seed(1)
    one = ask(model, photo(model), name, 0).patches
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = ask(model, photo(model), name, 0).patches
    assert np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def linear(weights: Tensor) -> Callable[..., Question]:
    """A question about a toy whose logit is the sum of weights times pixels."""

    class Toy(torch.nn.Module):
        def forward(self, images: Tensor, gate: object = None, group: object = None) -> Tensor:
            return torch.stack([torch.zeros(len(images)), (images * weights).sum((1, 2, 3))], 1)

    def question(image: np.ndarray, patch_size: int) -> Question:
        return Question(
            image=image,
            target=1,
            patch_size=patch_size,
            served=lambda images: Toy()(torch.from_numpy(images)).numpy(),
            model=Toy(),  # type: ignore[arg-type]
            device="cpu",
            gate=None,
            group=None,
        )

    return question


def test_methods_on_a_linear_model_by_hand() -> None:
    # Two patches of 2 x 2 pixels, side by side twice: weights 1 left, -2 right; pixels as below.
    weights = torch.ones(3, 4, 4)
    weights[:, :, 2:] = -2.0
    image = np.zeros((3, 4, 4), np.float32)
    image[:, :2, :2], image[:, :2, 2:] = 0.5, 0.25
    image[:, 2, 0] = 1.0
    ask_toy = linear(weights)(image, 2)
    # Sums over a patch: 12 values of 0.5 * 1, 12 of 0.25 * -2, three of 1 * 1, none.
    product = ATTRIBUTIONS["input_x_gradient"].compute(ask_toy).patches
    assert product.tolist() == [[6.0, -6.0], [3.0, 0.0]]
    # The gradient is the weights wherever it is taken: sqrt(12 * 1), sqrt(12 * 4).
    for name in ("saliency", "smoothgrad"):
        found = ATTRIBUTIONS[name].compute(ask_toy).patches
        np.testing.assert_allclose(found, [[12**0.5, 48**0.5]] * 2, rtol=1e-6)
    # Along a path a linear model gives weight times change: against the mean colour m of the photo
    # left patches get 12 * (their mean - m), right ones -24 * (their mean - m).
    mean = (12 * 0.5 + 12 * 0.25 + 3 * 1.0) / 48
    wanted = [[6 - 12 * mean, -6 + 24 * mean], [3 - 12 * mean, 24 * mean]]
    found = ATTRIBUTIONS["integrated_gradients"].compute(ask_toy)
    np.testing.assert_allclose(found.patches, wanted, rtol=1e-5)
    # Random references: the sum is exact, since no sampling of the gradient is left to err.
    shap = ATTRIBUTIONS["gradient_shap"].compute(ask_toy)
    assert shap.completeness_error == pytest.approx(0.0, abs=1e-5)
    colours = np.array([[6, -6], [3, 0]]) - shap.patches
    np.testing.assert_allclose(colours[:, 1], -2 * colours[:, 0], rtol=1e-5)
    # A patch painted in its own mean colour loses nothing where weights are equal within it ...
    np.testing.assert_allclose(ATTRIBUTIONS["occlusion"].compute(ask_toy).patches, 0.0, atol=1e-5)
    # ... and its detail where they are not: weight 1 on one of the four pixels of each channel
    # sees 1 instead of the mean 0.5 = (1 + 1 + 0 + 0) / 4, three times.
    corner = torch.zeros(3, 4, 4)
    corner[:, 2, 0] = 1.0
    image[:, 2, :2], image[:, 3, :2] = 1.0, 0.0
    lost = ATTRIBUTIONS["occlusion"].compute(linear(corner)(image, 2))
    np.testing.assert_allclose(lost.patches, [[0.0, 0.0], [1.5, 0.0]], atol=1e-6)
    assert lost.steps == 5


def test_occlusion_is_what_the_served_file_loses(models: dict[str, Model]) -> None:
    model = models["token_merging"]
    image, patch = photo(model), model.variant.patch_size
    found = ask(model, image, "occlusion", 1, group=group_of(model, image))
    covered = image.copy()
    place = np.s_[:, patch : 2 * patch, 2 * patch : 3 * patch]
    covered[place] = image[place].mean((1, 2), keepdims=True)
    wanted = PREDICTOR.run(model, image).logits[1] - PREDICTOR.run(model, covered).logits[1]
    assert found.patches[1, 2] == pytest.approx(wanted, abs=1e-5)
    assert found.steps == found.patches.size + 1


def test_rounding_is_no_loss() -> None:
    # Logits of a photo and of its four copies: losses of 4.8e-7, -9e-6, 0 and 2e-5.
    logits = np.array([1.0, 1.0 - 4.8e-7, 1.0 + 9e-6, 1.0, 1.0 - 2e-5])
    toy = linear(torch.zeros(3, 4, 4))(np.zeros((3, 4, 4), np.float32), 2)
    question = replace(toy, target=0, served=lambda images: logits[:, None])
    found = ATTRIBUTIONS["occlusion"].compute(question).patches
    assert (found != 0).tolist() == [[False, False], [False, True]]
    assert found[1, 1] == pytest.approx(2e-5)
    logits[4] = 1.0
    assert np.ptp(ATTRIBUTIONS["occlusion"].compute(question).patches) == 0


def test_fine_grids_are_occluded_in_squares() -> None:
    # 3 x 4 patches, at most 4 passes: squares of 2 x 2, the last row cut short.
    assert squares_of(3, 4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    assert squares_of(2, 2, 4).tolist() == [[0, 1], [2, 3]]
    assert squares_of(64, 64, MAX_PASSES - 1).max() < MAX_PASSES - 1


@pytest.mark.parametrize("mitigation", ["dense", "token_merging"])
def test_attention_is_what_the_heads_used(models: dict[str, Model], mitigation: str) -> None:
    # Attention times values must be the very head outputs that the model hands to its taps.
    model = models[mitigation]
    image = torch.from_numpy(photo(model))[None]
    with model.twin() as twin, torch.no_grad():
        written: list[Tensor] = []
        twin.model(image, tap=lambda site, _x, z, _t: None if site % 2 else written.append(z))
        attention, merged = attention_of(twin.model, image, None, None)
        values = []
        with _outputs_of([block.attn.qkv for block in twin.model.vit.blocks]) as outputs:
            twin.model(image)
        for block, qkv in zip(twin.model.vit.blocks, outputs, strict=True):
            shape = (3, block.attn.num_heads, block.attn.head_dim)
            values.append(qkv.unflatten(-1, shape).permute(2, 0, 3, 1, 4)[2])
    for found, value, z in zip(attention, values, written, strict=True):
        torch.testing.assert_close(found @ value, z, rtol=1e-4, atol=1e-5)
    assert (merged[-1].group is not None) == (mitigation == "token_merging")


@pytest.mark.parametrize("mitigation", ["dense", "token_merging"])
def test_rollout_shares_add_up_to_one(models: dict[str, Model], mitigation: str) -> None:
    model = models[mitigation]
    image = photo(model)
    found = ask(model, image, "attention_rollout", 0, group=group_of(model, image)).patches
    assert found.sum() == pytest.approx(1.0, abs=1e-6)
    assert found.min() > 0


def test_rollout_by_hand() -> None:
    # Half of each row stays with the token, half goes by attention.
    first = with_residual(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert first.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    second = with_residual(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert second.tolist() == [[1.0, 0.0], [0.25, 0.75]]
    # Row 0: 1 * first row; row 1: a quarter and three quarters of equal rows.
    assert rollout([first, second]).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert rollout([second, first]).tolist() == [[0.625, 0.375], [0.625, 0.375]]
    # Three patches of which the first two become one token, then attention over two tokens.
    merge = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert rollout([torch.eye(3), merge, second]).tolist() == [
        [0.5, 0.5, 0.0],
        [0.125, 0.125, 0.75],
    ]


def test_heads_that_are_off_do_not_vote(models: dict[str, Model]) -> None:
    model = models["dense"]
    image = photo(model)
    gate = np.ones(model.variant.num_units, np.float32)
    off = ask(model, image, "attention_rollout", 0, unit_gate=gate).patches
    np.testing.assert_allclose(off, ask(model, image, "attention_rollout", 0).patches)
    # Without any head in any block every patch keeps what it had.
    with model.twin() as twin:
        for site in twin.model.sites[::2]:
            gate[site.units] = 0
    still = ask(model, image, "attention_rollout", 0, unit_gate=gate).patches
    np.testing.assert_allclose(still, 1 / still.size)


def test_grad_cam_by_hand() -> None:
    # Channel weights are mean gradients: (1 + 3) / 2 = 2 and (-1 - 1) / 2 = -1.
    features = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
    gradients = torch.tensor([[[1.0, 3.0], [-1.0, -1.0]]])
    # 2 * 1 - 3 < 0 is cut off; 2 * 2 - 1 = 3.
    assert weighted_channels(features, gradients).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("mitigation", ["dense", "token_merging"])
def test_grad_cam_weighs_channels_by_what_they_do_to_the_logit(
    models: dict[str, Model], mitigation: str
) -> None:
    # Adding c to a channel at all patches changes the logit by c * P * (its mean gradient), which
    # holds merged or not; so weights are told by finite differences, without any autograd.
    model = models[mitigation]
    image = photo(model)
    group = group_of(model, image)
    found = ask(model, image, "grad_cam", 1, group=group).patches
    match = None if group is None else torch.from_numpy(group)[None]
    with model.twin() as twin, torch.no_grad():
        layer = twin.model.double().vit.blocks[-1].norm1
        pixels = torch.from_numpy(image)[None].double()
        with _outputs_of([layer]) as outputs:
            twin.model(pixels, None, match)
        tokens = outputs[0][0]
        weights = torch.zeros(tokens.shape[1], dtype=torch.float64)
        for channel in range(len(weights)):
            logits = []
            for sign in (1, -1):

                def push(
                    _m: object, _i: object, out: Tensor, c: int = channel, s: int = sign
                ) -> Tensor:
                    return out + 1e-5 * s * torch.nn.functional.one_hot(
                        torch.tensor(c), out.shape[-1]
                    )

                handle = layer.register_forward_hook(push)
                logits.append(twin.model(pixels, None, match)[0, 1])
                handle.remove()
            weights[channel] = (logits[0] - logits[1]) / 2e-5 / found.size
        twin.model.float()
    cam = (tokens @ weights).relu()
    wanted = cam if match is None else cam[match[0]]
    assert found.max() > 0
    np.testing.assert_allclose(found.ravel(), wanted.numpy(), rtol=1e-3, atol=1e-5 * found.max())
