"""Token merging: the match by hand and against a plain search, means, and identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbcore.config import Merge
from nbcore.vit import Tokens, match_tokens, merge_tokens, unmerge, with_merge
from tests.nbcore.tiny import AVERAGED, close, metered, paired, pictures, tiny

# Five tokens on the plane of (1, -1, 1, -1) / 2 and (1, 1, -1, -1) / 2, directions of mean 0. Even
# positions (set A) are a0 = (1, 0), a1 = (1, 1), a2 = (0, 1); odd ones (set B) b0 = (2, 0),
# b1 = (0, 3). Cosines: a0 is 1 with b0; a1 is 0.71 with both, so its partner is the lower b0; a2 is
# 1 with b1.
PLANE = torch.tensor([[[1.0, 0], [2, 0], [1, 1], [0, 3], [0, 1]]])
TOY = PLANE @ torch.tensor([[0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]])


@pytest.mark.parametrize(
    ("r", "group"),
    [
        # a0 and a2 tie at cosine 1, the lower goes: a0 joins b0. Tokens: a1, a2, b0, b1.
        (1, [2, 2, 0, 3, 1]),
        # a0 joins b0, a2 joins b1. Tokens: a1, b0, b1.
        (2, [1, 1, 0, 2, 2]),
        # a1 joins b0 as well. Tokens: b0, b1.
        (3, [0, 0, 0, 1, 1]),
    ],
)
def test_the_match_of_five_tokens_by_hand(r: int, group: list[int]) -> None:
    assert match_tokens(TOY, r).tolist() == [group]


def test_the_merge_of_five_tokens_by_hand() -> None:
    merged, tokens = merge_tokens(PLANE, match_tokens(TOY, 3), 2)
    # ((1, 0) + (2, 0) + (1, 1)) / 3 and ((0, 3) + (0, 1)) / 2.
    close(merged, torch.tensor([[[4 / 3, 1 / 3], [0, 2]]]), 1e-6)
    assert tokens.sizes is not None
    assert tokens.sizes.tolist() == [[3, 2]]
    assert unmerge(torch.tensor([[7.0, 9.0]]), tokens).tolist() == [[7, 7, 7, 9, 9]]


def test_constants_that_every_layernorm_removes_change_no_match() -> None:
    # Opposite constants would turn all cosines of raw tokens around.
    constants = torch.tensor([8.0, -8, 8, -8, 8])[None, :, None]
    assert match_tokens(TOY + constants, 2).tolist() == match_tokens(TOY, 2).tolist()
    # A token with nothing but a constant is like no other: cosine 0, below the three pairs above.
    blank = torch.cat([TOY, torch.full((1, 2, 4), 5.0)], 1)
    # a0, a1 and a2 join; the blank a3 stays. Tokens: a3, b0, b1, b2.
    assert match_tokens(blank, 3).tolist() == [[1, 1, 1, 2, 2, 3, 0]]


def test_equal_tokens_all_join_the_first() -> None:
    # Every cosine ties: a0 goes first, and every partner is b0.
    assert match_tokens(torch.ones(1, 6, 4), 2).tolist() == [[1, 1, 1, 2, 0, 3]]


@pytest.mark.parametrize(("count", "r"), [(5, 0), (5, 4), (4, 3), (6, -1)])
def test_a_pass_merges_at_most_the_even_positions(count: int, r: int) -> None:
    with pytest.raises(ValueError, match=f"can merge 1 to {(count + 1) // 2} of {count}.*r={r}"):
        match_tokens(torch.rand(1, count, 3), r)


def plain_match(patches: Tensor, r: int) -> list[int]:
    """The same match by loops over one picture's tokens [P, D]."""
    unit = torch.nn.functional.normalize(patches - patches.mean(-1, keepdim=True), dim=-1)
    a, b = range(0, len(unit), 2), range(1, len(unit), 2)
    partner = {i: max(b, key=lambda j: (float(unit[i] @ unit[j]), -j)) for i in a}
    order = sorted(a, key=lambda i: (-float(unit[i] @ unit[partner[i]]), i))
    joins = {i: partner[i] for i in order[:r]}
    names = [i for i in a if i not in joins] + list(b)
    return [names.index(joins.get(i, i)) for i in range(len(unit))]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 17), data=st.data(), seed=st.integers(0, 10**6))
def test_matches_cover_all_tokens_and_means_are_kept(
    count: int, data: st.DataObject, seed: int
) -> None:
    r = data.draw(st.integers(1, (count + 1) // 2))
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
    group = match_tokens(patches, r)
    assert group.tolist() == [plain_match(one, r) for one in patches]
    merged, tokens = merge_tokens(patches, group, count - r)
    sizes = tokens.sizes
    assert sizes is not None
    assert sizes.sum(1).tolist() == [count, count]
    assert sizes.min() >= 1
    close((sizes[..., None] * merged).sum(1) / count, patches.mean(1))
    spread = torch.stack([unmerge(merged[..., i], tokens) for i in range(5)], -1)
    close(merge_tokens(spread, group, count - r)[0], merged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_neither_match_nor_means(dtype: torch.dtype) -> None:
    patches = torch.randn(64, 64, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    group = match_tokens(patches, 20)
    assert torch.equal(group, match_tokens(patches.double(), 20))
    merged, _ = merge_tokens(patches, group, 44)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(match_tokens(patches, 20), group)
        again, tokens = merge_tokens(patches, group, 44)
    assert again.dtype == dtype
    assert torch.equal(again, merged)
    assert tokens.sizes is not None
    assert tokens.sizes.sum(1).tolist() == [64] * 64


def test_half_precision_tokens_are_matched_in_single() -> None:
    patches = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(match_tokens(patches, 20), match_tokens(patches.float(), 20))


def test_the_models_own_match_given_as_fixed_changes_nothing() -> None:
    model = tiny(merge=Merge(block=1, r=6), **AVERAGED)
    images = pictures(3)
    groups: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        if tokens.group is not None:
            groups.append(tokens.group)

    own = model(images, tap=tap)
    assert torch.equal(model(images, group=groups[0]), own)
    # A fixed match does not follow the picture: another picture keeps it.
    assert not torch.equal(groups[0][0], groups[0][1])
    other = model(images[1:2], group=groups[0][:1])
    assert (other - own[1:2]).abs().max() > 1e-3


@pytest.mark.parametrize("r", [3, 8])
@pytest.mark.parametrize(
    "kwargs",
    [
        AVERAGED,
        {"global_pool": "token"},
        {"global_pool": "avg", "reg_tokens": 2, "init_values": 0.5, "qk_norm": True},
    ],
)
def test_merging_equal_patches_changes_no_output(r: int, kwargs: dict[str, Any]) -> None:
    """log(size) in attention and size-weighted pooling stand for the copies that are gone."""
    plain = tiny(**kwargs)
    prefix = plain.num_prefix_tokens
    with torch.no_grad():
        plain.vit.pos_embed[:, prefix:] = 0
    merged = with_merge(plain, Merge(block=1, r=r)).eval()
    images = paired(pictures(3))
    means = metered(plain).means
    wanted = type(metered(plain))(plain, means)(images)
    found = type(metered(plain))(merged, means)(images)
    for one, other in zip(found[:4], wanted, strict=True):
        close(one, other, 1e-10)
    # r of the patches 0, 2, 4, ... share a token with their right neighbours.
    group = found[4]
    assert ((group[:, ::2] == group[:, 1::2]).sum(1) == r).all()
    assert (merged(pictures(3)) - plain(pictures(3))).abs().max() > 1e-3


def test_fewer_tokens_merge_in_proportion_at_smaller_sizes() -> None:
    model = tiny(merge=Merge(block=1, r=8), **AVERAGED)
    counts: list[int] = []
    model(pictures(1, side=24), block_tap=lambda _, x, __: counts.append(x.shape[1]))
    # 24 px are 9 patches; 8 of 16 in proportion are 9·8/16 = 4.5, rounded down.
    assert counts == [9, 5]


def test_a_merge_too_small_for_a_smaller_side_merges_nothing_there() -> None:
    # One of 16 patches at the full side; of the four at half of it, a quarter, rounded down.
    images = pictures(3, side=16)
    merging, plain = tiny(merge=Merge(block=1, r=1), **AVERAGED), tiny(**AVERAGED)
    with torch.no_grad():
        assert torch.equal(merging(images), plain(images))
        assert not torch.equal(merging(pictures(3)), plain(pictures(3)))


@pytest.mark.parametrize(
    ("merge", "kwargs", "reason"),
    [
        (Merge(block=2, r=1), {}, "below the depth 2, got 2"),
        (Merge(block=1, r=9), {}, r"at most 8 for a grid of \(4, 4\), got 9"),
        (Merge(block=1, r=1), {"class_token": False, "global_pool": "map"}, "got 'map'"),
        (Merge(block=1, r=1), {"global_pool": "avg", "pool_include_prefix": True}, "prefix"),
    ],
)
def test_merging_that_cannot_be_is_refused(
    merge: Merge, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny(merge=merge, **kwargs)
