"""Burden: hand counts on a toy layer, one sum three ways, and the five controls of METHODS §3."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcore.burden import (
    MeteredViT,
    PooledLoads,
    burden_map,
    calibrate,
    centred_gram,
    cost,
    occupancy,
    pooled_site_loads,
    residual,
    selection_factor,
    squared_contributions,
    stream_power,
    sum_to_sites,
    takeover,
)
from nbcore.config import Merge
from nbcore.vit import Site, Tokens
from tests.nbcore.controls import CONTROLS, scaled_stream
from tests.nbcore.tiny import AVERAGED, close, metered, pictures, tiny

# Two tokens, two neurons, width 2. W2 has the columns (2, 0) and (0, 4); without their means they
# are (1, -1) and (-2, 2), squared lengths 2 and 8.
WRITE = torch.tensor([[2.0, 0], [0, 4]]).double()
MEAN = torch.tensor([2.0, 1]).double()
# h - mu is (-1, 2) and (1, 1), so a² is (1·2, 4·8) = (2, 32) and (1·2, 1·8) = (2, 8).
HIDDEN = torch.tensor([[[1.0, 3], [3, 2]]]).double()
# Without their means the tokens are (-1, 1) and (2, -2).
STREAM = torch.tensor([[[1.0, 3], [5, 1]]]).double()


class ToyLayer(nn.Module):
    """Stands for a model of one MLP: calls the tap with what it was given."""

    def __init__(self, stream: Tensor, hidden: Tensor, tokens: Tokens, num_prefix_tokens: int):
        super().__init__()
        self.stream, self.hidden, self.tokens = stream, hidden, tokens
        self.num_prefix_tokens = num_prefix_tokens
        self.sites = (Site(name="toy.mlp", block=0, kind="neurons", num_units=2, start=0),)

    def write_weight(self, site: int) -> Tensor:
        return WRITE

    def forward(self, image: Tensor, gate: Tensor | None, group: Tensor | None, tap: Any) -> Tensor:
        tap(0, self.stream, self.hidden, self.tokens)
        return torch.zeros(1, 2)


def toy_loads(
    tokens: Tokens | None = None, prefix: int = 0, keep: Tensor | None = None
) -> tuple[Tensor, ...]:
    stray = torch.full((1, prefix, 2), 1e6).double()
    layer = ToyLayer(
        torch.cat([stray, STREAM], 1), torch.cat([stray, HIDDEN], 1), tokens or Tokens(), prefix
    )
    return MeteredViT(layer, [MEAN])(torch.zeros(1), None, keep)


@pytest.mark.parametrize("prefix", [0, 3])
def test_loads_of_a_toy_layer_by_hand(prefix: int) -> None:
    _, unit_load, token_load, stream = toy_loads(prefix=prefix)
    # The mean token is (0.5, -0.5); deviations (-1.5, 1.5) and (1.5, -1.5) have square 4.5 each, so
    # rho² = 4.5, whatever prefix tokens carry.
    close(stream, torch.tensor([[4.5]]).double().sqrt())
    # Means over tokens: neuron 0 (2 + 2) / 2 = 2, neuron 1 (32 + 8) / 2 = 20.
    close(unit_load, (torch.tensor([[2.0, 20]]).double() / 4.5).sqrt())
    # Sums over neurons: 34 and 10.
    close(token_load, (torch.tensor([[[34.0, 10]]]).double() / 4.5).sqrt())


def test_merged_tokens_of_a_toy_layer_weigh_their_patches() -> None:
    tokens = Tokens(sizes=torch.tensor([[1.0, 3]]).double(), group=torch.tensor([[1, 0, 1, 1]]))
    _, unit_load, token_load, stream, group = toy_loads(tokens)
    # Mean token (-1, 1)/4 + 3 (2, -2)/4 = (1.25, -1.25); squared deviations 2·2.25² = 10.125 and
    # 2·0.75² = 1.125; rho² = (10.125 + 3·1.125) / 4 = 3.375.
    close(stream, torch.tensor([[3.375]]).double().sqrt())
    # (2 + 3·2) / 4 = 2 and (32 + 3·8) / 4 = 14.
    close(unit_load, (torch.tensor([[2.0, 14]]).double() / 3.375).sqrt())
    # Patch 1 is token 0 with 34, the others token 1 with 10.
    close(token_load, (torch.tensor([[[10.0, 34, 10, 10]]]).double() / 3.375).sqrt())
    assert group.tolist() == [[1, 0, 1, 1]]


def test_kept_units_alone_are_summed_over_tokens() -> None:
    _, unit_load, token_load, _ = toy_loads(keep=torch.tensor([[0.0, 1]]))
    close(unit_load, toy_loads()[1], 0)
    # Neuron 1 alone: 32 and 8.
    close(token_load, (torch.tensor([[[32.0, 8]]]).double() / 4.5).sqrt())


def test_a_heads_contribution_by_hand() -> None:
    # W_O writes z to both axes as it is: C z = ((z0 - z1)/2, (z1 - z0)/2), square (z0 - z1)² / 2.
    gram = centred_gram(torch.eye(2).double().reshape(2, 1, 2))
    close(gram, torch.tensor([[[0.5, -0.5], [-0.5, 0.5]]]).double())
    heads = torch.tensor([[[[3.0, 1], [0, 5]]]]).double()
    mean = torch.tensor([[1.0, 1]]).double()
    # z - mu is (2, 0) and (-1, 4): 4/2 and 25/2.
    close(squared_contributions(heads, mean, gram), torch.tensor([[[2.0], [12.5]]]).double())


VARIATIONS: dict[str, dict[str, Any]] = {
    "class token": {},
    "averaged": AVERAGED,
    "registers and LayerScale": {"reg_tokens": 2, "init_values": 0.5, "qk_norm": True},
    "merged": {"merge": Merge(block=1, r=6), **AVERAGED},
    "merged, class token, LayerScale": {"merge": Merge(block=1, r=5), "init_values": 0.5},
}


@pytest.mark.parametrize("kwargs", VARIATIONS.values(), ids=VARIATIONS)
def test_units_tokens_and_sites_are_one_sum(kwargs: dict[str, Any]) -> None:
    model = metered(tiny(**kwargs))
    _, unit_load, token_load, _, *_ = model(pictures(3))
    by_unit = sum_to_sites(unit_load, [site.num_units for site in model.model.sites])
    # Patches of one token repeat its load, so their plain mean is the mean by size.
    close(token_load.pow(2).mean(-1).sqrt(), by_unit)


@pytest.mark.parametrize("kwargs", VARIATIONS.values(), ids=VARIATIONS)
def test_loads_are_norms_of_what_is_written(kwargs: dict[str, Any]) -> None:
    """load² of one unit = mean over patches of ||C W (h - mu)||² over that of the stream."""
    twin = metered(tiny(**kwargs))
    model, prefix = twin.model, twin.model.num_prefix_tokens
    wanted: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        mean, weight = twin.means[site], model.write_weight(site)
        if contribution.ndim == 4:
            z = contribution[:, :, prefix:] - mean[:, None]
            written = torch.einsum("whd,bhtd->bthw", weight, z)
        else:
            written = (contribution[:, prefix:] - mean)[..., None] * weight.T
        x = stream[:, prefix:]
        if tokens.group is not None:
            # Copies instead of weights.
            picks = tokens.group
            written = torch.stack([w[g] for w, g in zip(written, picks, strict=True)])
            x = torch.stack([w[g] for w, g in zip(x, picks, strict=True)])
        written = written - written.mean(-1, keepdim=True)
        x = x - x.mean(-1, keepdim=True)
        x = x - x.mean(1, keepdim=True)
        rho = x.pow(2).sum(-1).mean(1)
        wanted.append((written.pow(2).sum(-1).mean(1) / rho[:, None]).sqrt())

    model(pictures(2), tap=tap)
    close(twin(pictures(2))[1], torch.cat(wanted, 1))


def controlled(
    kwargs: dict[str, Any], control: Callable[[MeteredViT], Tensor]
) -> tuple[MeteredViT, MeteredViT, Tensor]:
    """A model, its altered twin, and the twin's units in terms of the model's."""
    plain = metered(tiny(**kwargs))
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        source = control(twin)
    return plain, twin, source


@pytest.mark.parametrize("kwargs", VARIATIONS.values(), ids=VARIATIONS)
@pytest.mark.parametrize("control", CONTROLS)
def test_controls_move_no_load(
    control: Callable[[MeteredViT], Tensor], kwargs: dict[str, Any]
) -> None:
    plain, twin, source = controlled(kwargs, control)
    found, again = plain(pictures(3)), twin(pictures(3))
    close(again[0], found[0], 1e-9)
    # Merging models find the same match by themselves.
    assert [one.tolist() for one in again[4:]] == [one.tolist() for one in found[4:]]
    torch.testing.assert_close(again[1], found[1][:, source], rtol=1e-9, atol=0)
    torch.testing.assert_close(again[2], found[2], rtol=1e-9, atol=0)
    factor = 5.3 if control is scaled_stream else 1.0
    torch.testing.assert_close(again[3], found[3] * factor, rtol=1e-9, atol=0)
    changed = [
        not torch.equal(one, other)
        for one, other in zip(plain.parameters(), twin.parameters(), strict=True)
    ]
    assert any(changed)


def test_gates_scale_a_units_deviation_from_its_mean() -> None:
    """A gate of zero leaves the mean: |0 - mu| ||C w|| for every token."""
    twin = metered(tiny())
    gate = torch.ones(1, twin.model.num_units).double()
    gate[0, 6] = 0
    _, unit_load, _, stream = twin(pictures(1), gate)
    site = twin.model.sites[1]
    column = twin.model.write_weight(1)[:, 6 - site.start]
    length = (column - column.mean()).norm() * twin.means[1][6 - site.start].abs()
    close(unit_load[0, 6], length / stream[0, 1])


def test_gates_and_kept_units_can_differ_by_image() -> None:
    twin, images = metered(tiny(merge=Merge(block=1, r=5))), pictures(3)
    generator = torch.Generator().manual_seed(4)
    gates, keep = torch.rand(2, 3, twin.model.num_units, generator=generator).double().unbind(0)
    together = twin(images, gates, keep)
    for i in range(3):
        one = slice(i, i + 1)
        alone = twin(images[one], gates[one], keep[one])
        for found, wanted in zip(together, alone, strict=True):
            close(found[one], wanted)


def test_one_mean_per_site_is_needed() -> None:
    with pytest.raises(ValueError, match=r"one mean per site \(4\), got 1"):
        MeteredViT(tiny(), [torch.zeros(4, 8)])


@pytest.mark.parametrize("kwargs", VARIATIONS.values(), ids=VARIATIONS)
def test_calibration_is_the_mean_over_images_and_patches(kwargs: dict[str, Any]) -> None:
    model = tiny(**kwargs).train()
    prefix = model.num_prefix_tokens
    rows: list[list[Tensor]] = [[] for _ in model.sites]

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        own = contribution[..., prefix:, :]
        own = own.transpose(1, 2) if own.ndim == 4 else own
        if tokens.group is not None:
            own = torch.stack([o[g] for o, g in zip(own, tokens.group, strict=True)])
        rows[site].append(own.flatten(0, 1))

    images = pictures(5)
    found = calibrate(model, images.split(2))
    assert not model.training
    model(images, tap=tap)
    for mean, row in zip(found, rows, strict=True):
        assert mean.dtype == torch.float32
        close(mean, row[0].mean(0).float(), 1e-6)


def test_calibration_needs_an_image() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        calibrate(tiny(), [])


def test_pooled_loads_and_selection_by_hand() -> None:
    loads = PooledLoads(
        power=(torch.tensor([1.0, 2, 9]), torch.tensor([4.0, 4])), stream=torch.tensor([3.0, 2])
    )
    kept = [torch.tensor([0, 2]), torch.tensor([1])]
    # sqrt(12 / 3) = 2 and sqrt(8 / 2) = 2; of the survivors sqrt(10 / 3) and sqrt(4 / 2).
    close(pooled_site_loads(loads), torch.tensor([2.0, 2]), 1e-6)
    close(pooled_site_loads(loads, kept), torch.tensor([math.sqrt(10 / 3), math.sqrt(2)]), 1e-6)
    # Mean of 1 and 9 over the mean of 1, 2, 9: 5 / 4; equal units: 1.
    close(selection_factor(loads, kept), torch.tensor([1.25, 1]), 1e-6)


def test_site_loads_by_hand() -> None:
    # 3² + 4² = 5², 6² + 8² + 0² = 10².
    load = torch.tensor([[3.0, 4, 6, 8, 0]])
    close(sum_to_sites(load, [2, 3]), torch.tensor([[5.0, 10]]))


def test_takeover_by_hand() -> None:
    removed = torch.tensor([[[3.0, 4], [0, 0]]])
    # <(3, 4), (3, 4)> / 25 = 1; a tenth of it is 0.1; at a right angle nothing.
    for change, share in (([3.0, 4], 1), ([0.3, 0.4], 0.1), ([-4.0, 3], 0), ([-3.0, -4], -1)):
        top, bottom = takeover(torch.tensor([[change, [7.0, 7]]]), removed)
        assert (top / bottom).item() == pytest.approx(share)


def test_residual_by_hand() -> None:
    dense = torch.tensor([[[1.0, 3], [5, 1]]])
    error, power = residual(dense, torch.tensor([[[1.0, 1], [7, 3]]]))
    # Errors (0, 2) and (-2, -2); without their means (-1, 1) and (0, 0). rho² = 4.5 as above.
    assert error.tolist() == [[2, 0]]
    assert power.tolist() == [4.5]
    close(stream_power(dense, torch.tensor([[0.5, 0.5]])), power)


def test_cost_by_hand() -> None:
    # 0.3 + 0.25 (2² - 1) = 1.05; below a burden of one only the residual counts.
    found = cost(torch.tensor([0.3, 0.3]), torch.tensor([2.0, 0.5]))
    close(found, torch.tensor([1.05, 0.3]), 1e-6)


def test_the_burden_map_floors_empty_patches() -> None:
    # Site load 8, so the floor is 0.08.
    pruned = torch.tensor([[[4.0, 0.0, 0.16, 0.001]]])
    dense = torch.tensor([[[1.0, 0.32, 0.01, 0.002]]])
    # log2 4, log2 0.08/0.32, log2 0.16/0.08, log2 0.08/0.08.
    found = burden_map(pruned, dense, torch.tensor([[8.0]]))
    close(found, torch.tensor([[[2.0, -2, 1, 0]]]), 1e-6)


@pytest.mark.parametrize(
    ("covariance", "expected"),
    [
        ([[2.0, 0.0], [0.0, 2.0]], 1.0),  # (2 + 2)² / (4 + 4) / 2
        ([[1.0, 1.0], [1.0, 1.0]], 0.5),  # (1 + 1)² / 4 / 2: both say the same
        ([[3.0, 0.0], [0.0, 1.0]], 0.8),  # 16 / 10 / 2
    ],
)
def test_occupancy_by_hand(covariance: list[list[float]], expected: float) -> None:
    spread = torch.tensor(covariance, dtype=torch.float64)
    assert occupancy(spread).item() == pytest.approx(expected)
    assert occupancy(7 * spread).item() == pytest.approx(expected)
