"""The cost model against hand counts and against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import attention_pool
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nbcore.compact import compact
from nbcore.config import Merge
from nbcore.macs import MacsModel, macs_of
from nbcore.vit import PrunableViT, fold_batchnorm
from tests.nbcore.tiny import AVERAGED, pictures, tiny


def analytic(model: PrunableViT) -> int:
    return macs_of(model).total([site.num_units for site in model.sites])


def counted(model: PrunableViT) -> float:
    """MACs of one picture by torch's counter, which counts two operations each.

    It knows no cost of the CPU's fused attention, so attention runs as its two products; norms,
    activations, softmax and gathers cost nothing there either.
    """
    model.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pictures(1))
    return counter.get_total_flops() / 2


def test_a_dense_model_by_hand() -> None:
    # 32 px in patches of 8: 16 patches and a class token, N = 17; D = 32, d = 8, four heads, 16
    # neurons, 5 classes.
    model = tiny()
    cost = macs_of(model)
    stem = 16 * 32 * (3 * 8 * 8)
    head = 17 * 32 * 3 * 8 + 17 * 8 * 32 + 2 * 17 * 17 * 8
    neuron = 17 * 32 + 17 * 32
    assert cost == MacsModel(fixed=stem + 32 * 5, per_unit=(head, neuron, head, neuron))
    assert cost.total([4, 16, 4, 16]) == stem + 160 + 8 * head + 32 * neuron
    assert cost.total([1, 2, 3, 4]) == stem + 160 + 4 * head + 6 * neuron


def test_a_merged_model_by_hand() -> None:
    cost = macs_of(tiny(merge=Merge(block=1, r=6), **AVERAGED))
    # 16 patches before block 1, ten tokens from there on.
    heads = [4 * n * 32 * 8 + 2 * n * n * 8 for n in (16, 10)]
    neurons = [2 * n * 32 for n in (16, 10)]
    assert cost.per_unit == (heads[0], neurons[0], heads[1], neurons[1])
    # Eight even against eight odd positions; ten means over 16 patches.
    merging = 8 * 8 * 32 + 10 * 16 * 32
    assert cost.fixed == 16 * 32 * 192 + merging + 160


def test_a_convolutional_stem_by_hand() -> None:
    model = tiny(stem="conv", **AVERAGED)
    # 32 px: 3 -> 8 at 16 px, 8 -> 16 at 8 px, 16 -> 32 at 4 px, all 3x3; then 1x1 at 4 px.
    stem = 256 * 3 * 8 * 9 + 64 * 8 * 16 * 9 + 16 * 16 * 32 * 9 + 16 * 32 * 32
    assert macs_of(model).fixed == stem + 160
    fold_batchnorm(model)
    assert macs_of(model).fixed == stem + 160


MODELS: list[dict[str, Any]] = [
    {},
    AVERAGED,
    {"stem": "conv"},
    {"reg_tokens": 4, "init_values": 0.5, "qk_norm": True, "qkv_bias": False},
    {"class_token": False, "global_pool": "map"},
    {"global_pool": "map", "pool_include_prefix": True},
]
if hasattr(attention_pool, "AttentionPoolPrr"):
    MODELS.append({"global_pool": "prr"})


@pytest.mark.parametrize("kwargs", MODELS)
def test_the_counter_of_torch_agrees(kwargs: dict[str, Any]) -> None:
    model = tiny(**kwargs)
    assert analytic(model) == counted(model)
    keep = torch.arange(model.num_units) % 3 == 0
    small = compact(model, keep)
    assert analytic(small) == counted(small)
    cost = macs_of(model).total([int(keep[site.units].sum()) for site in model.sites])
    assert cost == analytic(small) < analytic(model)


@pytest.mark.parametrize("r", [1, 8])
def test_the_counter_of_torch_agrees_on_merging(r: int) -> None:
    by_token = tiny(merge=Merge(block=1, r=r))
    assert analytic(by_token) == counted(by_token)
    averaged = tiny(merge=Merge(block=1, r=r), **AVERAGED)
    # A weighted mean is run as a product; means are not counted, as in models without merging.
    assert analytic(averaged) == counted(averaged) - (16 - r) * 32
