"""Burden over many photos: exact replacement, nothing but a cut, and the five controls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor, nn

from nbcore.burden import BurdenReport, MeteredViT
from nbcore.compact import compact, kept_units
from nbcore.config import Merge
from nbcore.measure import mean_over_sites, measure_burden
from nbcore.preprocessing import as_input
from nbcore.vit import Tokens, with_merge
from tests.nbcore.controls import CONTROLS, permuted_units, scaled_stream
from tests.nbcore.tiny import AVERAGED, metered, paired, randomise, tiny

IMAGES = torch.randint(
    256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
)
NAMES = ("burden", "burden_null", "selection", "stream", "takeover", "residual", "cost")
OCCUPANCY = ("occupancy", "occupancy_dense")
"""Defined for the MLPs only, every second site."""


def survivors(keep_less: list[int], total: int = 40) -> Tensor:
    keep = torch.ones(total, dtype=torch.bool)
    keep[keep_less] = False
    return keep


def pruned_from(dense: MeteredViT, keep: Tensor) -> tuple[MeteredViT, list[Tensor]]:
    """The cut model with the dense model's means, and the survivors by site."""
    kept = kept_units(dense.model, keep)
    means = [mean[units].clone() for mean, units in zip(dense.means, kept, strict=True)]
    return MeteredViT(compact(dense.model, keep), means).requires_grad_(False), kept


def squares(model: MeteredViT, site: int, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean a² of a site's units and mean rho² over the images."""
    _, unit_load, _, stream, *_ = model(as_input(IMAGES).double(), gate)
    rho = stream[:, site].pow(2)
    own = unit_load[:, model.model.sites[site].units].pow(2) * rho[:, None]
    return own.mean(0), rho.mean()


@pytest.mark.parametrize("scale", [False, True])
def test_survivors_that_replace_the_removed_output_take_all_of_it_over(scale: bool) -> None:
    dense = metered(tiny(init_values=0.5 if scale else None))
    first, last = dense.model.vit.blocks
    # Head 1 of block 0 and neuron 5 of block 1 do what head 0 and neuron 2 do.
    for third in (0, 32, 64):
        for tensor in (first.attn.qkv.weight, first.attn.qkv.bias):
            tensor[third + 8 : third + 16] = tensor[third : third + 8].clone()
    for tensor in (last.mlp.fc1.weight, last.mlp.fc1.bias):
        tensor[5] = tensor[2].clone()
    dense.means[0][1] = dense.means[0][0].clone()
    dense.means[3][5] = dense.means[3][2].clone()
    pruned, kept = pruned_from(dense, survivors([1, 24 + 5]))
    small = pruned.model.vit.blocks
    small[0].attn.proj.weight[:, :8] += first.attn.proj.weight[:, 8:16]
    small[1].mlp.fc2.weight[:, 2] += last.mlp.fc2.weight[:, 5]
    report = measure_burden(dense, pruned, kept, IMAGES, batch_size=2)
    assert report.sites == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
    assert report.takeover[1] is None
    assert report.takeover[2] is None
    assert [report.takeover[0], report.takeover[3]] == pytest.approx([1, 1], abs=1e-9)
    assert report.residual == pytest.approx([0] * 4, abs=1e-18)
    assert report.stream == pytest.approx([1] * 4, abs=1e-9)
    # Neuron 2 now writes the sum of both columns; the others write what they wrote.
    power, _ = squares(dense, 3)
    own = dense.model.write_weight(3)
    own = own - own.mean(0)
    grown = (own[:, 2] + own[:, 5]).pow(2).sum() / own[:, 2].pow(2).sum()
    before = power.sum() - power[5]
    burden = ((before + (grown - 1) * power[2]) / before).sqrt().item()
    assert report.burden[3] == pytest.approx(burden, rel=1e-9)
    assert report.cost[3] == pytest.approx(0.25 * max(0, burden**2 - 1), abs=1e-9)
    assert report.burden[1:3] == pytest.approx([1, 1], abs=1e-9)


def test_a_cut_without_training_takes_nothing_over() -> None:
    dense = metered(tiny())
    pruned, kept = pruned_from(dense, survivors([3, 7, 21, 30]))
    report = measure_burden(dense, pruned, kept, IMAGES)
    # The first site still reads what it read, so its survivors write what they wrote.
    assert report.takeover[0] == pytest.approx(0, abs=1e-12)
    assert report.burden[0] == pytest.approx(1, abs=1e-9)
    assert report.residual[0] > 1e-3
    # What adaptation put on the survivors is burden over its null; here there was none.
    assert report.burden == pytest.approx(report.burden_null, rel=1e-9)
    assert report.residual[0] == report.residual[1]


def test_burden_selection_and_stream_from_the_loads() -> None:
    """Numerators and rho² are pooled separately over images, whatever the batches."""
    dense = metered(tiny())
    keep = survivors([0, 4, 5, 6, 22, 25, 39])
    pruned, kept = pruned_from(dense, keep)
    randomise(pruned.model, 3)
    report = measure_burden(dense, pruned, kept, IMAGES, batch_size=2)
    for site, units in enumerate(kept):
        before, rho = squares(dense, site)
        after, rho_after = squares(pruned, site)
        cut, rho_cut = squares(dense, site, keep[None].double())
        reference = before[units].sum() / rho
        found = [report.burden[site], report.burden_null[site], report.selection[site]]
        wanted = [
            (after.sum() / rho_after / reference).sqrt(),
            (cut[units].sum() / rho_cut / reference).sqrt(),
            before[units].mean() / before.mean(),
        ]
        assert found == pytest.approx([float(w) for w in wanted], rel=1e-9)
        assert report.stream[site] == pytest.approx((rho_after / rho).sqrt().item(), rel=1e-9)
    again = measure_burden(dense, pruned, kept, IMAGES, batch_size=5)
    for name in NAMES:
        assert getattr(again, name) == pytest.approx(getattr(report, name), rel=1e-9)


def test_occupancy_is_that_of_the_survivors_contributions() -> None:
    dense = metered(tiny())
    pruned, kept = pruned_from(dense, survivors([0, 4, 5, 6, 22, 25, 39]))
    randomise(pruned.model, 3)
    report = measure_burden(dense, pruned, kept, IMAGES, batch_size=2)
    assert report.occupancy[::2] == report.occupancy_dense[::2] == (None, None)
    for twin, found, chosen in (
        (dense, report.occupancy_dense, kept),
        (pruned, report.occupancy, [torch.arange(len(units)) for units in kept]),
    ):
        for site in (1, 3):
            # Rows of patches: one unit's column is its activation times the norm of what it writes.
            weight = twin.model.write_weight(site)
            hidden: list[Tensor] = []

            def tap(
                index: int, stream: Tensor, own: Tensor, tokens: Tokens, site: int = site
            ) -> None:
                if index == site:
                    patches = own[:, twin.model.num_prefix_tokens :]  # noqa: B023
                    hidden.append(patches.flatten(0, 1))  # noqa: B023

            twin.model(as_input(IMAGES).double(), tap=tap)
            rows = (hidden[0] - twin.means[site]) * (weight - weight.mean(0)).norm(dim=0)
            eigenvalues = torch.linalg.eigvalsh(rows[:, chosen[site]].T @ rows[:, chosen[site]])
            wanted = eigenvalues.sum() ** 2 / (eigenvalues**2).sum() / len(chosen[site])
            assert found[site] == pytest.approx(wanted.item(), rel=1e-9)


def written(twin: MeteredViT, site: int, chosen: Tensor | None = None) -> Tensor:
    """What chosen units write on every patch, less the mean over the width [B, P, D]."""
    found: list[Tensor] = []

    def tap(index: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        if index != site:
            return
        picks = slice(None) if chosen is None else chosen
        weight, mean = twin.model.write_weight(site)[:, picks], twin.means[site][picks]
        if contribution.ndim == 4:
            out = torch.einsum("whd,bhtd->btw", weight, contribution[:, picks] - mean[:, None])
        else:
            out = (contribution[..., picks] - mean) @ weight.T
        found.append(patches_of(twin, out, tokens))

    twin.model(as_input(IMAGES).double(), tap=tap)
    return found[0] - found[0].mean(-1, keepdim=True)


def patches_of(twin: MeteredViT, values: Tensor, tokens: Tokens) -> Tensor:
    """Copies of each token for the patches it carries; prefix tokens left out."""
    values = values[:, twin.model.num_prefix_tokens :]
    if tokens.group is None:
        return values
    return torch.stack([one[group] for one, group in zip(values, tokens.group, strict=True)])


@pytest.mark.parametrize("merge", [None, Merge(block=1, r=6)])
def test_takeover_and_residual_patch_by_patch(merge: Merge | None) -> None:
    dense = metered(tiny(reg_tokens=1, init_values=0.5))
    keep = survivors([0, 4, 5, 6, 22, 25, 39])
    pruned, kept = pruned_from(dense, keep)
    randomise(pruned.model, 3)
    pruned = MeteredViT(with_merge(pruned.model, merge), pruned.means)
    report = measure_burden(dense, pruned, kept, IMAGES, batch_size=2)
    for site, units in enumerate(kept):
        total = dense.model.sites[site].num_units
        gone = torch.tensor([unit for unit in range(total) if unit not in units.tolist()])
        change = written(pruned, site) - written(dense, site, units)
        removed = written(dense, site, gone)
        share = (change * removed).sum() / (removed * removed).sum()
        assert report.takeover[site] == pytest.approx(share.item(), rel=1e-9)
    outputs: list[list[Tensor]] = []
    for twin in (dense, pruned):
        outputs.append([])

        def block_tap(_: int, x: Tensor, tokens: Tokens, twin: MeteredViT = twin) -> None:
            outputs[-1].append(patches_of(twin, x, tokens))

        twin.model(as_input(IMAGES).double(), block_tap=block_tap)
    for block, (before, after) in enumerate(zip(*outputs, strict=True)):
        # Both means over patches; the squares are pooled over images before the division.
        error = (before - after).var(-1, correction=0).mean(1)
        apart = (before - before.mean(1, keepdim=True)).var(-1, correction=0).mean(1)
        wanted = (error.sum() / apart.sum()).item()
        assert report.residual[2 * block : 2 * block + 2] == pytest.approx([wanted] * 2, rel=1e-9)


def test_nothing_removed_is_a_burden_of_one_also_where_equal_patches_merge() -> None:
    dense = metered(tiny(**AVERAGED))
    dense.model.vit.pos_embed.zero_()
    kept = kept_units(dense.model, survivors([]))
    images = paired(IMAGES)
    for merge in (None, Merge(block=1, r=5)):
        twin = MeteredViT(with_merge(dense.model, merge), dense.means)
        report = measure_burden(dense, twin, kept, images)
        assert report.takeover == (None,) * 4
        for name in ("burden", "burden_null", "selection", "stream"):
            assert getattr(report, name) == pytest.approx([1] * 4, abs=1e-9), name
        assert report.residual == pytest.approx([0] * 4, abs=1e-18)
        assert report.cost == pytest.approx([0] * 4, abs=1e-9)


@pytest.mark.parametrize("merge", [None, Merge(block=1, r=5)])
@pytest.mark.parametrize("control", CONTROLS)
def test_controls_move_no_number(
    control: Callable[[MeteredViT], Tensor], merge: Merge | None
) -> None:
    dense = metered(tiny(init_values=0.5))
    pruned, kept = pruned_from(dense, survivors([0, 4, 5, 6, 22, 25, 39]))
    randomise(pruned.model, 3)
    pruned = MeteredViT(with_merge(pruned.model, merge), pruned.means).requires_grad_(False)
    for module in (*dense.modules(), *pruned.modules()):
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    report = measure_burden(dense, pruned, kept, IMAGES)
    altered_pruned = copy.deepcopy(pruned)
    control(altered_pruned)
    altered_dense = copy.deepcopy(dense)
    source = control(altered_dense)
    if control is permuted_units:
        moved = [
            torch.isin(source[site.units] - site.start, units).nonzero()[:, 0]
            for site, units in zip(dense.model.sites, kept, strict=True)
        ]
    else:
        moved = kept
    both = measure_burden(altered_dense, altered_pruned, moved, IMAGES)
    for name in NAMES:
        assert getattr(both, name) == pytest.approx(getattr(report, name), rel=1e-8), name
    one = measure_burden(dense, altered_pruned, kept, IMAGES)
    for name in OCCUPANCY:
        for found in (both, one):
            wanted = getattr(report, name)[1::2]
            assert getattr(found, name)[1::2] == pytest.approx(wanted, rel=1e-8), name
    # A rescaled stream of the pruned model alone is another output, but no other burden.
    same = ("burden", "burden_null", "selection") if control is scaled_stream else NAMES
    for name in same:
        assert getattr(one, name) == pytest.approx(getattr(report, name), rel=1e-8), name


def test_measuring_needs_an_image() -> None:
    dense = metered(tiny())
    kept = kept_units(dense.model, survivors([]))
    with pytest.raises(ValueError, match="at least one image"):
        measure_burden(dense, dense, kept, IMAGES[:0])


def test_means_over_sites_weigh_the_macs_removed() -> None:
    model = tiny()
    kept = kept_units(model, survivors([0, 4, 5, 24]))
    # A head costs 4·17·32·8 + 2·17²·8 = 22032 MACs, a neuron 2·17·32 = 1088: weights 22032, 2·1088,
    # 0 and 1088.
    report = BurdenReport(
        sites=("a", "b", "c", "d"),
        burden=(2.0, 3.0, 100.0, 5.0),
        burden_null=(1.0,) * 4,
        selection=(1.0,) * 4,
        stream=(1.0,) * 4,
        takeover=(0.5, None, None, 0.2),
        residual=(0.0,) * 4,
        cost=(0.0,) * 4,
    )
    means = mean_over_sites(report, model, kept)
    assert means["burden"] == pytest.approx((2 * 22032 + 3 * 2176 + 5 * 1088) / 25296)
    assert means["takeover"] == pytest.approx((0.5 * 22032 + 0.2 * 1088) / 23120)
    assert means["stream"] == pytest.approx(1)
    nothing = mean_over_sites(
        replace(report, takeover=(None,) * 4), model, kept_units(model, survivors([]))
    )
    assert set(nothing.values()) == {None}
    assert set(nothing) == set(NAMES)
    assert len(astuple(report)) == 1 + len(NAMES) + len(OCCUPANCY)
