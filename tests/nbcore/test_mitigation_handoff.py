"""Handing work over in closed form, and back when units return."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nbcore.masking import Masking
from nbcore.mitigation.handoff import Handoff, contribution_statistics, handoff_matrix
from nbcore.mitigation.ledger import Ledger
from nbcore.vit import PrunableViT
from tests.nbcore.tiny import close, pictures, tiny

TINY_RIDGE = 1e-12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_matrix_by_hand() -> None:
    # S = {0, 1} uncorrelated with variances 4 and 1, P = {2} with covariances 2 and 3:
    # T = [2 / 4, 3 / 1]; a relative ridge of 0.4 adds 0.4 * 2.5 = 1: T = [2 / 5, 3 / 2].
    covariance = torch.tensor([[4.0, 0, 2], [0, 1, 3], [2, 3, 20]], dtype=torch.float64)
    lost, kept = torch.tensor([2]), torch.tensor([0, 1])
    for ridge, expected in ((1e-13, [[0.5, 3.0]]), (0.4, [[0.4, 1.5]])):
        found = handoff_matrix(covariance, lost, kept, ridge)
        close(found, torch.tensor(expected, dtype=torch.float64))


def test_matrix_of_an_exact_linear_function_is_that_function() -> None:
    survivors, mix = normal(200, 5), normal(5, 3, seed=1)
    values = torch.cat([survivors, survivors @ mix + 7], 1)
    order = torch.tensor([6, 0, 3, 7, 1, 4, 2, 5])  # columns in any order
    covariance = torch.cov(values.T[order])
    lost, kept = torch.tensor([0, 3, 7]), torch.tensor([1, 2, 4, 5, 6])
    found = handoff_matrix(covariance, lost, kept, TINY_RIDGE)
    close(found, mix.T[order[lost] - 5][:, order[kept]], 1e-8)


def test_matrix_of_dead_survivors_is_zero() -> None:
    covariance = torch.diag(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    found = handoff_matrix(covariance, torch.tensor([2]), torch.tensor([0, 1]), 1e-2)
    assert found.tolist() == [[0.0, 0.0]]


def test_statistics_are_those_of_all_images_and_tokens() -> None:
    model, images = tiny(), pictures(5)
    rows: dict[int, Tensor] = {}

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: object) -> None:
        if contribution.ndim == 4:
            contribution = torch.cat(contribution.unbind(1), -1)
        rows[site] = contribution.reshape(-1, contribution.shape[-1])

    model.train()
    means, covariances = contribution_statistics(model, images.split(2))
    assert model.training
    with torch.no_grad():
        model.eval()(images, tap=tap)
    for site in range(4):
        close(means[site], rows[site].mean(0), 1e-10)
        close(covariances[site], torch.cov(rows[site].T, correction=0), 1e-10)


def test_ridge_that_rounding_swallows_is_refused_with_advice() -> None:
    covariance = torch.ones(3, 3, dtype=torch.float64) - 1e-9 * torch.eye(3)
    with pytest.raises(ValueError, match="not positive with ridge=1e-12; choose a larger one"):
        handoff_matrix(covariance, torch.tensor([2]), torch.tensor([0, 1]), 1e-12)


@pytest.mark.parametrize("unit", [0, 2])
def test_diverged_training_is_named_whether_survivors_or_lost_are_not_finite(unit: int) -> None:
    covariance = torch.eye(3, dtype=torch.float64)
    covariance[unit, unit] = torch.nan
    with pytest.raises(ValueError, match="not finite, so training has diverged; choose a smaller"):
        handoff_matrix(covariance, torch.tensor([2]), torch.tensor([0, 1]), 1e-2)


@torch.no_grad()
def repeat_neurons(model: PrunableViT) -> None:
    """Neurons 1 and 2 of the first MLP do as neuron 0, and neuron 3 is a constant."""
    fc1 = model.vit.blocks[0].mlp.fc1
    fc1.weight[1:3], fc1.bias[1:3] = fc1.weight[0], fc1.bias[0]
    fc1.weight[3] = 0


@torch.no_grad()
def repeat_head(model: PrunableViT) -> None:
    """Head 1 of the first attention does as head 0, and head 2 gives a constant."""
    attn, d = model.vit.blocks[0].attn, model.arch.head_dim
    weight, bias = attn.qkv.weight.unflatten(0, (3, -1, d)), attn.qkv.bias.unflatten(0, (3, -1, d))
    weight[:, 1], bias[:, 1] = weight[:, 0], bias[:, 0]
    weight[2, 2] = 0


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    ("site", "repeat", "lost"), [(1, repeat_neurons, [1, 2, 3]), (0, repeat_head, [1, 2])]
)
def test_units_that_others_determine_leave_without_a_trace(
    site: int, repeat: Callable[[PrunableViT], None], lost: list[int], bias: bool
) -> None:
    model, images = tiny(), pictures(6)
    repeat(model)
    block = model.vit.blocks[0]
    layer = block.mlp.fc2 if site else block.attn.proj
    if not bias:
        layer.bias = None
        lost = lost[:-1]  # a constant needs the bias
    spec = model.sites[site]
    keep = torch.ones(model.num_units, dtype=torch.bool)
    keep[[spec.start + unit for unit in lost]] = False
    with torch.no_grad():
        before = model(images)
        handoff = Handoff(ridge=TINY_RIDGE)
        handoff.attach(model, lambda: images.split(4))
        handoff.on_keep_changing(None)
        kept = keep[spec.units].nonzero()[:, 0]
        handoff.on_keep_changed(site, torch.tensor(lost), torch.tensor([]), kept)
        model.set_keep(keep)
        close(model(images), before, 1e-8)
        cut = tiny()
        repeat(cut)
        cut.set_keep(keep)
        assert (cut(images) - before).abs().max() > 1e-2


def test_handoff_is_the_best_linear_replacement_of_the_site_output() -> None:
    # No other change of the survivors' columns and bias brings the output closer (least squares).
    model, images = tiny(), pictures(8)
    keep = torch.ones(16, dtype=torch.bool)
    keep[[2, 5, 11]] = False
    contributions: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: object) -> None:
        if site == 1:
            contributions.append(contribution.flatten(0, 1))

    fc2 = model.vit.blocks[0].mlp.fc2
    with torch.no_grad():
        model(images, tap=tap)
        h = contributions[0]
        wanted = h @ fc2.weight.T + fc2.bias
        design = torch.cat([h[:, keep], torch.ones(len(h), 1).double()], 1)
        best = torch.linalg.lstsq(design, wanted).solution
        handoff = Handoff(ridge=TINY_RIDGE)
        handoff.attach(model, lambda: [images])
        handoff.on_keep_changing(None)
        lost, kept = (~keep).nonzero()[:, 0], keep.nonzero()[:, 0]
        handoff.on_keep_changed(1, lost, torch.tensor([]), kept)
    close(torch.cat([fc2.weight[:, keep], fc2.bias[:, None]], 1).T, best, 1e-7)


def test_statistics_see_the_gates_of_host_and_mask() -> None:
    # A gate g makes every contribution of its unit g times as large: C -> diag(g) C diag(g).
    model, images = tiny(), pictures(4)
    means, covariances = contribution_statistics(model, [images])
    learned, keep = torch.ones(1, model.num_units), torch.ones(model.num_units)
    learned[0, model.sites[1].start + 3], keep[model.sites[1].start + 5] = 0.5, 0.25
    model.set_keep(keep)
    gated_means, gated = contribution_statistics(model, [images], learned)
    factor = torch.ones(16, dtype=torch.float64)
    factor[3], factor[5] = 0.5, 0.25
    close(gated[1], factor[:, None] * covariances[1] * factor, 1e-10)
    close(gated_means[1], factor * means[1], 1e-10)


def ledger_of(weights: list[float], fade_steps: int = 0) -> Ledger:
    """A layer of one output without bias in its columns."""
    layer = nn.Linear(len(weights), 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.bias.zero_()
    return Ledger(layer, fade_steps=fade_steps)


def give(ledger: Ledger, lost: int, gifts: dict[int, float], constant: float) -> None:
    kept = torch.tensor(list(gifts))
    values = torch.tensor([list(gifts.values())], dtype=torch.float64)
    ledger.hand_over(torch.tensor([lost]), kept, values, torch.tensor([constant]))


def written(ledger: Ledger) -> list[float]:
    return [*ledger.layer.weight[0].tolist(), ledger.layer.bias.item()]


def test_share_that_went_from_hand_to_hand_comes_back_by_hand() -> None:
    ledger = ledger_of([1.0, 2, 4])
    give(ledger, 0, {1: 0.5, 2: 0.25}, 3.0)  # W = 1
    assert written(ledger) == [1, 2.5, 4.25, 3]
    give(ledger, 1, {2: 2.0}, 1.0)  # W = 2.5, of which 0.5 was the first unit's
    assert written(ledger) == [1, 2.5, 9.25, 5.5]
    # 0.25 + 0.5 * 2 from column 2, 0.5 from column 1 at rest, 3 + 0.5 * 1 from the bias.
    ledger.hand_back(torch.tensor([0]))
    # As if unit 1 alone had left, with its own 2: 4 + 2 * 2, and 2 * 1.
    assert written(ledger) == [1, 2, 8, 2]
    ledger.hand_back(torch.tensor([1]))
    assert written(ledger) == [1, 2, 4, 0]


def test_share_is_paid_in_equal_parts_while_the_gate_opens_by_hand() -> None:
    ledger = ledger_of([8.0, 0, 1], fade_steps=4)
    give(ledger, 0, {1: 1.0}, 2.0)
    ledger.hand_back(torch.tensor([0]))
    paid = []
    for _ in range(6):
        ledger.pay()
        paid.append(written(ledger)[1::2])
    # A quarter of 8 and of 16 in each step.
    assert paid == [[6, 12], [4, 8], [2, 4], [0, 0], [0, 0], [0, 0]]


def test_debtor_that_leaves_passes_its_debt_on_and_rests_without_it() -> None:
    ledger = ledger_of([8.0, 0, 1], fade_steps=4)
    give(ledger, 0, {1: 1.0}, 0.0)
    ledger.hand_back(torch.tensor([0]))
    ledger.pay()
    ledger.pay()
    assert written(ledger) == [8, 4, 1, 0]
    give(ledger, 1, {2: 0.5}, 0.0)  # column 2 gets 2, which it owes
    ledger.settle(torch.tensor([0, 2]))
    assert written(ledger) == [8, 0, 3, 0]
    ledger.pay()
    ledger.pay()
    assert written(ledger) == [8, 0, 1, 0]


ORDERS = [
    [([2], []), ([], [2])],
    [([2, 5], []), ([], [2, 5])],
    [([2], []), ([5, 11], []), ([], [2]), ([], [11, 5])],
    [([2], []), ([5, 11], []), ([], [5]), ([], [2]), ([], [11])],
    [([2], []), ([5], []), ([11], []), ([], [2, 5, 11])],
    [([2], []), ([5], [2]), ([2], [5]), ([], [2])],
]


@pytest.mark.parametrize("heads", [False, True], ids=["neurons", "heads"])
@pytest.mark.parametrize("changes", ORDERS)
def test_who_leaves_and_returns_leaves_no_trace(
    changes: list[tuple[list[int], list[int]]], heads: bool
) -> None:
    model, images = tiny(num_heads=16, embed_dim=64) if heads else tiny(), pictures(6)
    site = 0 if heads else 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handoff = Handoff()
    handoff.attach(model, lambda: [images])
    keep, moved = torch.ones(model.num_units, dtype=torch.bool), []
    units = keep[model.sites[site].units]
    for lost, regained in changes:
        handoff.on_keep_changing(None)
        units[lost], units[regained] = False, True
        handoff.on_keep_changed(
            site,
            torch.tensor(lost, dtype=torch.int64),
            torch.tensor(regained, dtype=torch.int64),
            units.nonzero()[:, 0],
        )
        model.set_keep(keep)
        handoff.after_step(1)
        moved.append(max((v - before[n]).abs().max() for n, v in model.state_dict().items()))
    assert moved[0] > 1e-3
    assert moved[-1] < 1e-12


def test_units_that_others_determine_leave_and_return_without_a_trace_at_any_moment() -> None:
    # Neurons 1 and 2 do as neuron 0, which leaves after it was given a share and returns with its
    # giver; neuron 1 leaves again before its gate is open. What is missing behind the gates is
    # always done by the others, so the output never moves.
    model, images, fade = tiny(), pictures(6), 4
    repeat_neurons(model)
    handoff = Handoff(ridge=TINY_RIDGE)
    handoff.fade_steps = fade
    handoff.attach(model, lambda: [images])
    masking = Masking(model, dormant=True, fade_steps=fade)
    optimizer = torch.optim.AdamW(model.parameters())
    start = model.sites[1].start
    changes = {1: ([1, 3], []), 3: ([0], []), 5: ([], [0, 1]), 8: ([1], []), 10: ([], [1, 3])}
    with torch.no_grad():
        wanted = model(images)
        strengths = set()
        for step in range(1, 18):
            masking.after_optimizer_step()
            if step in changes:
                lost, regained = (torch.tensor(u, dtype=torch.int64) for u in changes[step])
                keep = masking.keep.clone()
                keep[start + lost], keep[start + regained] = False, True
                handoff.on_keep_changing(None)
                kept = keep[model.sites[1].units].nonzero()[:, 0]
                handoff.on_keep_changed(1, lost, regained, kept)
                masking.change(keep, optimizer)
            handoff.after_step(step)
            strengths.add(model.keep[start + 1].item())
            close(model(images), wanted, 1e-7)
    assert strengths == {0, 0.25, 0.5, 0.75, 1}
    assert not handoff.ledgers[1].debts


def test_units_that_fade_in_are_given_nothing() -> None:
    model, images = tiny(), pictures(6)
    handoff = Handoff()
    handoff.attach(model, lambda: [images])
    keep = torch.ones(model.num_units)
    keep[model.sites[1].start + 4] = 0.5
    model.set_keep(keep)
    before = model.vit.blocks[0].mlp.fc2.weight.detach().clone()
    handoff.on_keep_changing(None)
    kept = torch.tensor([unit for unit in range(16) if unit != 2])
    handoff.on_keep_changed(1, torch.tensor([2]), torch.tensor([], dtype=torch.int64), kept)
    change = (model.vit.blocks[0].mlp.fc2.weight - before).detach().abs().amax(0)
    assert (change == 0).nonzero()[:, 0].tolist() == [2, 4]


def test_site_without_open_survivors_keeps_its_mean() -> None:
    # Nobody can take the work; the bias takes what is the same for all tokens.
    model, images = tiny(), pictures(6)
    model.set_keep(torch.full((model.num_units,), 0.5))
    handoff = Handoff()
    handoff.attach(model, lambda: [images])
    handoff.on_keep_changing(None)
    fc2 = model.vit.blocks[0].mlp.fc2
    weight, bias = fc2.weight.detach().clone(), fc2.bias.detach().clone()
    none = torch.tensor([], dtype=torch.int64)
    handoff.on_keep_changed(1, torch.tensor([2]), none, torch.arange(3, 16))
    close(fc2.weight.detach(), weight)
    close(fc2.bias.detach() - bias, weight[:, 2] * handoff.means[1][2])


def test_ridge_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="ridge > 0, got 0"):
        Handoff(ridge=0)
