"""Compaction: the smaller model gives what the masked one gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.compact import compact, kept_units
from nbcore.config import Merge
from nbcore.macs import macs_of
from nbcore.vit import PrunableViT
from tests.nbcore.tiny import AVERAGED, close, metered, pictures, tiny

MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "averaged": AVERAGED,
    "LayerScale": {"init_values": 0.5, "reg_tokens": 2},
    "no biases": {"qkv_bias": False, "proj_bias": False, "qk_norm": True},
    "map pooling": {"name": "vit_base_patch16_siglip_224"},
    "merging": {"merge": Merge(block=1, r=6), **AVERAGED},
    "merging, class token, LayerScale": {"merge": Merge(block=1, r=8), "init_values": 0.5},
    "convolutional stem": {"stem": "conv", **AVERAGED},
}


def random_keep(model: PrunableViT, seed: int, share: float) -> Tensor:
    """A mask that leaves at least one unit to every site."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(model.num_units, generator=generator) < share
    for site in model.sites:
        keep[site.start + int(torch.randint(site.num_units, (), generator=generator))] = True
    return keep


@pytest.mark.parametrize("kwargs", MODELS.values(), ids=MODELS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_masked_equals_compact(kwargs: dict[str, Any], seed: int, share: float) -> None:
    model = tiny(**kwargs)
    keep = random_keep(model, seed, share)
    model.set_keep(keep)
    small = compact(model, keep)
    close(small(pictures()), model(pictures()))
    assert not small.masked
    assert [site.num_units for site in small.sites] == [
        int(keep[site.units].sum()) for site in model.sites
    ]


@pytest.mark.parametrize("kwargs", MODELS.values(), ids=MODELS)
def test_loads_of_survivors_are_those_of_the_masked_model(kwargs: dict[str, Any]) -> None:
    model = tiny(**kwargs)
    keep = random_keep(model, 3, 0.5)
    twin = metered(model)
    kept = kept_units(model, keep)
    small = MeteredViT(
        compact(model, keep),
        [mean[units] for mean, units in zip(twin.means, kept, strict=True)],
    )
    found = small(pictures())
    wanted = twin(pictures(), keep[None].double(), keep[None].double())
    close(found[0], wanted[0])
    close(found[1], wanted[1][:, keep])
    close(found[2], wanted[2])
    close(found[3], wanted[3])


def test_compaction_leaves_the_model_as_it_was() -> None:
    model = tiny(stem="conv", **AVERAGED)
    before, state = model(pictures()), {k: v.clone() for k, v in model.state_dict().items()}
    small = compact(model, random_keep(model, 0, 0.5))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    close(model(pictures()), before, 0)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_is_removed_is_removed() -> None:
    model = tiny()
    keep = torch.zeros(model.num_units, dtype=torch.bool)
    # Head 2 and neurons 0, 5 of block 0; heads 0, 3 and neuron 15 of block 1.
    keep[[2, 4, 9, 20, 23, 39]] = True
    small = compact(model, keep)
    assert (small.arch.num_heads, small.arch.hidden_features) == ((1, 2), (2, 1))
    one, two = model.vit.blocks, small.vit.blocks
    assert torch.equal(two[0].attn.proj.weight, one[0].attn.proj.weight[:, 16:24])
    assert torch.equal(two[0].mlp.fc2.weight, one[0].mlp.fc2.weight[:, [0, 5]])
    assert torch.equal(two[1].mlp.fc1.bias, one[1].mlp.fc1.bias[[15]])
    # q, k and v of heads 0 and 3: rows 0-7 and 24-31 of each third.
    rows = [third * 32 + row for third in range(3) for row in (*range(8), *range(24, 32))]
    assert torch.equal(two[1].attn.qkv.weight, one[1].attn.qkv.weight[rows])
    # Per head 4·32·8 weights and 3·8 biases, per neuron 2·32 weights and a bias.
    gone = 5 * (4 * 256 + 24) + 29 * 65
    count = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    assert count[0] - count[1] == gone
    cost = macs_of(model)
    assert cost.total([1, 2, 2, 1]) == macs_of(small).total([1, 2, 2, 1])


def test_a_site_without_survivors_is_refused() -> None:
    model = tiny()
    keep = torch.ones(model.num_units, dtype=torch.bool)
    keep[20:24] = False
    with pytest.raises(ValueError, match=r"blocks.1.attn would keep none of its 4 heads"):
        compact(model, keep)
