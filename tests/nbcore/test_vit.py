"""The model: timm's own outputs, gates as weights, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from nbcore.config import Arch, Merge, ModelConfig
from nbcore.vit import (
    PrunableViT,
    Tokens,
    build_model,
    create_dense,
    fold_batchnorm,
    sites_of,
    with_merge,
)
from tests.nbcore.tiny import AVERAGED, SHAPE, close, pictures, randomise, tiny

ALIKE: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", AVERAGED),
    ("vit_tiny_patch16_224", {"qk_norm": True, "qkv_bias": False, "proj_bias": False}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    ("vit_tiny_patch16_224", {"global_pool": "max"}),
    ("vit_tiny_patch16_224", {"stem": "conv"}),
    ("vit_small_patch14_reg4_dinov2", {}),
    ("vit_base_patch16_clip_quickgelu_224", {}),
    ("vit_base_patch16_siglip_224", {}),
    ("vit_little_patch16_reg4_gap_256", {}),
    ("deit3_small_patch16_224", {}),
    ("test_vit3", {}),
]


@pytest.mark.parametrize(("name", "kwargs"), ALIKE)
def test_the_forward_pass_is_timms(name: str, kwargs: dict[str, Any]) -> None:
    model = tiny(name, **kwargs)
    images = pictures(3)
    close(model(images), model.vit((images - model.mean) / model.std))


def test_pictures_smaller_than_the_grid_resample_positions_as_timm_does() -> None:
    model = tiny(**AVERAGED)
    dynamic = timm.create_model(
        model.arch.name, **SHAPE, **AVERAGED, img_size=32, num_classes=5, dynamic_img_size=True
    )
    dynamic.double().eval().load_state_dict(model.vit.state_dict())
    images = pictures(2, side=24)
    close(model(images), dynamic((images - model.mean) / model.std))


def test_smaller_pictures_are_refused_with_prefix_tokens() -> None:
    with pytest.raises(ValueError, match="without prefix tokens"):
        tiny()(pictures(1, side=24))


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("resnet18", {}, "cannot be built as a VisionTransformer"),
        ("deit_tiny_distilled_patch16_224", SHAPE, "VisionTransformerDistilled"),
        ("eva02_tiny_patch14_224", SHAPE, "it is a Eva"),
        ("vit_relpos_small_patch16_224", SHAPE, "VisionTransformerRelPos"),
        ("vit_tinny_patch16_224", {}, "timm has no model 'vit_tinny_patch16_224'; close names"),
        ("vit_tiny_patch16_224.nosuch", SHAPE, "Invalid pretrained tag"),
        ("vit_giant_patch14_dinov2", SHAPE, "its MLP is GluMlp"),
        ("vit_pwee_patch16_reg1_gap_256", SHAPE, "ParallelScalingBlock"),
        ("vit_dwee_patch16_reg1_gap_256", SHAPE, "DiffAttention"),
        ("vit_base_patch16_rpn_224", SHAPE, "ResPostBlock"),
        ("vit_tiny_r_s16_p8_224", {"depth": 2}, "HybridEmbed"),
        ("vit_tiny_patch16_224", SHAPE | {"scale_mlp_norm": True}, "normalises across units"),
        ("vit_tiny_patch16_224", SHAPE | {"scale_attn_norm": True}, "normalises across units"),
        ("vit_tiny_patch16_224", SHAPE | {"dynamic_img_size": True}, "fixed grid"),
        ("vit_tiny_patch16_224", SHAPE | {"patch_size": (8, 16)}, "is not square"),
        ("vit_tiny_patch16_224", SHAPE | {"patch_size": 12}, "multiple of the patch size 12"),
        ("vit_tiny_patch16_224", SHAPE | {"in_chans": 1}, "1 channels"),
        ("vit_tiny_patch16_224", SHAPE | {"patch_drop_rate": 0.2}, "patch_drop_rate"),
        ("vit_tiny_patch16_224", SHAPE | {"class_token": False}, "class_token"),
        ("vit_tiny_patch16_224", SHAPE | {"embed_dim": 30}, "dim should be divisible by num_heads"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_a_reason(
    name: str, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        create_dense(ModelConfig(name=name, kwargs=kwargs), img_size=32, num_classes=5)


def test_an_unknown_stem_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown stem 'mlp'; available: conv, patch"):
        tiny(stem="mlp")


@pytest.mark.parametrize("kwargs", [{"patch_size": 12}, {"patch_size": 8, "embed_dim": 30}])
def test_a_convolutional_stem_states_the_sizes_it_takes(kwargs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="power of two"):
        create_dense(
            ModelConfig(name="vit_tiny_patch16_224", stem="conv", kwargs={"num_heads": 2} | kwargs),
            img_size=48,
            num_classes=5,
        )


def test_folding_batchnorm_changes_no_output_and_leaves_none() -> None:
    model = tiny(stem="conv")
    before = model(pictures())
    first, norm = model.vit.patch_embed.stages[0], model.vit.patch_embed.stages[1]
    # One channel by hand: w' = w g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps).
    gain = norm.weight[1] / (norm.running_var[1] + norm.eps).sqrt()
    weight, bias = first.weight[1] * gain, norm.bias[1] - norm.running_mean[1] * gain
    fold_batchnorm(model)
    close(model(pictures()), before)
    close(model.vit.patch_embed.stages[0].weight[1], weight)
    close(model.vit.patch_embed.stages[0].bias[1], bias)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_sites_lie_one_after_the_other() -> None:
    arch = Arch(name="any", num_heads=(3, 1), hidden_features=(8, 5), head_dim=4)
    spans = [(site.name, site.kind, site.units) for site in sites_of(arch)]
    assert spans == [
        ("blocks.0.attn", "heads", slice(0, 3)),
        ("blocks.0.mlp", "neurons", slice(3, 11)),
        ("blocks.1.attn", "heads", slice(11, 12)),
        ("blocks.1.mlp", "neurons", slice(12, 17)),
    ]


@torch.no_grad()
def scale_writes(model: PrunableViT, gate: Tensor) -> None:
    """Multiply the write columns of every unit by its gate."""
    for index, block in enumerate(model.vit.blocks):
        heads = gate[model.sites[2 * index].units].repeat_interleave(model.arch.head_dim)
        block.attn.proj.weight.mul_(heads)
        block.mlp.fc2.weight.mul_(gate[model.sites[2 * index + 1].units])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), merged=st.booleans())
def test_a_gate_equals_scaled_write_weights(seed: int, merged: bool) -> None:
    merge = Merge(block=1, r=5) if merged else None
    generator = torch.Generator().manual_seed(seed)
    gate = torch.randn(40, generator=generator, dtype=torch.float64)
    gate *= torch.rand(40, generator=generator) > 0.4
    model, scaled = tiny(merge=merge), tiny(merge=merge)
    scale_writes(scaled, gate)
    found = model(pictures(), gate[None])
    close(found, scaled(pictures()))
    model.set_keep(gate != 0)
    close(model(pictures(), gate[None]), found, 0)


def test_gates_can_differ_by_image() -> None:
    model, images = tiny(), pictures(3)
    generator = torch.Generator().manual_seed(0)
    gates = torch.rand(3, model.num_units, generator=generator, dtype=torch.float64)
    alone = [model(images[i : i + 1], gates[i : i + 1]) for i in range(3)]
    close(model(images, gates), torch.cat(alone))


def test_a_mask_equals_gates_of_zero_and_one() -> None:
    model = tiny()
    keep = torch.arange(model.num_units) % 3 != 0
    wanted = model(pictures(), keep[None].double())
    gate = torch.linspace(0.5, 1.5, model.num_units, dtype=torch.float64)[None]
    both = model(pictures(), gate * keep)
    model.set_keep(keep)
    close(model(pictures()), wanted, 0)
    # A gate of one's own multiplies the mask, unless it is to replace it.
    close(model(pictures(), gate), both, 0)
    close(model(pictures(), keep[None].double(), replace_mask=True), wanted, 0)
    assert (model(pictures(), gate, replace_mask=True) - both).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"shape \(40,\), got \(39,\)"):
        model.set_keep(keep[:-1])


@pytest.mark.parametrize("site", range(4))
def test_a_silent_unit_is_all_that_its_parameters_touch(site: int) -> None:
    model = tiny(init_values=0.5)
    unit = model.sites[site].num_units - 1
    gate = torch.ones(1, model.num_units, dtype=torch.float64)
    gate[0, model.sites[site].start + unit] = 0
    before = model(pictures(), gate)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, dim, owner in model.unit_parameters(site):
            own = (owner == unit).nonzero()[:, 0]
            shape = parameter.index_select(dim, own).shape
            other = 9 * torch.randn(shape, generator=generator, dtype=torch.float64)
            parameter.index_copy_(dim, own, other)
    close(model(pictures(), gate), before, 0)
    assert not torch.allclose(model(pictures()), before)


def test_a_gate_before_proj_silences_the_value_bias() -> None:
    model = tiny()
    gate = torch.ones(1, model.num_units, dtype=torch.float64)
    gate[0, 2] = 0
    before, open_before = model(pictures(), gate), model(pictures())
    values = model.vit.blocks[0].attn.qkv.bias.data[2 * 32 :]
    values[2 * 8 : 3 * 8] += 10.0
    close(model(pictures(), gate), before, 0)
    assert (model(pictures()) - open_before).abs().max() > 0.01


@pytest.mark.parametrize(
    "kwargs", [{}, {"init_values": 0.5}, {"proj_bias": False, "reg_tokens": 2}]
)
def test_what_a_sublayer_adds_is_its_units_through_their_write_weights(
    kwargs: dict[str, Any],
) -> None:
    """x + W·contribution + bias of the last sublayer is the block's output."""
    model = tiny(merge=Merge(block=1, r=4), **kwargs)
    streams: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    outputs: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        streams[site] = stream
        equation = "whd,bhnd->bnw" if contribution.ndim == 4 else "wm,bnm->bnw"
        written[site] = torch.einsum(equation, model.write_weight(site), contribution)

    model(pictures(), tap=tap, block_tap=lambda _, x, __: outputs.append(x))
    for index, block in enumerate(model.vit.blocks):
        for site, layer, scale in (
            (2 * index, block.attn.proj, block.ls1),
            (2 * index + 1, block.mlp.fc2, block.ls2),
        ):
            after = streams[site + 1] if site % 2 == 0 else outputs[index]
            bias = 0 if layer.bias is None else scale(layer.bias)
            close(streams[site] + written[site] + bias, after)


def test_a_model_is_rebuilt_with_widths_that_differ_by_block() -> None:
    arch = Arch(
        name="vit_tiny_patch16_224",
        kwargs=SHAPE | {"img_size": 32, "num_classes": 5},
        num_heads=(1, 3),
        hidden_features=(7, 16),
        head_dim=8,
    )
    model = build_model(arch).double().eval()
    randomise(model, 0)
    # 2 blocks of 3·32·8·heads + 3·8·heads + 8·heads·32 + 32 and 2·32·neurons + neurons + 32.
    blocks = sum(1048 * heads + 32 + 65 * neurons + 32 for heads, neurons in ((1, 7), (3, 16)))
    assert (
        sum(p.numel() for n, p in model.vit.blocks.named_parameters() if "norm" not in n) == blocks
    )
    close(model(pictures()), model.vit((pictures() - model.mean) / model.std))
    with pytest.raises(ValueError, match="has 2 blocks, arch lists 3"):
        build_model(
            Arch(
                name=arch.name,
                kwargs=arch.kwargs,
                num_heads=(1, 3, 1),
                hidden_features=(7, 16, 1),
                head_dim=8,
            )
        )


def test_another_merging_step_keeps_mask_and_mode() -> None:
    model = tiny(merge=Merge(block=1, r=4))
    keep = torch.arange(model.num_units) % 2 == 0
    model.set_keep(keep)
    same = with_merge(model, model.merge)
    close(same(pictures()), model(pictures()), 0)
    assert not same.training


CONFIG = ModelConfig(name="vit_tiny_patch16_224", kwargs=SHAPE)


def loaded(path: Path, num_classes: int = 5) -> PrunableViT:
    config = ModelConfig(name=CONFIG.name, kwargs=CONFIG.kwargs, weights=str(path))
    return create_dense(config, img_size=32, num_classes=num_classes).eval()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("w.safetensors", None),
        ("w.pth", None),
        ("w.pth", "state_dict"),
        ("w.pt", "model"),
    ],
)
def test_local_weights_are_loaded(name: str, wrap: str | None, tmp_path: Path) -> None:
    state = {k: v.float() for k, v in tiny().vit.state_dict().items()}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrap is None else {wrap: state}, path)
    found = loaded(path).vit.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert len(found) == len(state)


def test_a_classifier_for_other_classes_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {k: v.float() for k, v in tiny().vit.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING, "nbcore"):
        model = loaded(tmp_path / "w.safetensors", num_classes=3)
    assert "w.safetensors: its classifier was left out" in caplog.text
    assert torch.equal(model.vit.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])
    assert model(pictures().float()).shape == (2, 3)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = {k: v.float() for k, v in tiny().vit.state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_file(state | {"blocks.0.mlp.fc1.weight": torch.zeros(17, 32)}, path)
    with pytest.raises(
        ValueError, match=r"other shapes \['blocks.0.mlp.fc1.weight'\] \(1 in all\)"
    ):
        loaded(path)
    del state["norm.weight"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"missing \['norm.weight'\] \(1 in all\)"):
        loaded(path)


class Unwanted:
    """Something that only pickle code could bring back."""


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no.pth does not exist"):
        loaded(tmp_path / "no.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
    torch.save({"model": Unwanted()}, tmp_path / "code.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name in ("broken.pth", "broken.safetensors", "code.pth", "list.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            loaded(tmp_path / name)


def test_a_model_with_another_merge_stays_on_its_device() -> None:
    model = create_dense(
        ModelConfig(name="vit_tiny_patch16_224", kwargs=SHAPE | AVERAGED),
        img_size=32,
        num_classes=3,
    ).to("meta")
    other = with_merge(model, Merge(block=1, r=2))
    assert {t.device.type for t in (*other.parameters(), *other.buffers())} == {"meta"}
