"""What mitigations steer by: loads against the meter of the burden, homeostasis and quotas by
hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.config import Merge
from nbcore.mitigation.burden_quota import BurdenQuota, quota_weights
from nbcore.mitigation.homeostasis import Homeostasis, scaling, unit_loads
from nbcore.mitigation.loads import measure_loads
from nbcore.pruning import Quota
from nbcore.pruning.magnitude import MagnitudePruner
from nbcore.vit import PrunableViT, Tokens, with_merge
from tests.nbcore.mitigated import train_mitigated
from tests.nbcore.runs import dense_model
from tests.nbcore.tiny import AVERAGED, close, pictures, tiny


def exact_means(model: PrunableViT, images: Tensor) -> list[Tensor]:
    """Mean contribution over images and patches, merged tokens by their size, in double."""
    found: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        own = contribution[..., model.num_prefix_tokens :, :]
        if tokens.group is not None:
            spread = tokens.group[:, None, :, None] if own.ndim == 4 else tokens.group[..., None]
            shape = (*own.shape[:-2], tokens.group.shape[1], own.shape[-1])
            own = torch.gather(own, -2, spread.expand(shape))
        found.append(own.mean((0, -2)))

    model(images, tap=tap)
    return found


@pytest.mark.parametrize(
    "model",
    [tiny(), tiny(init_values=0.1), tiny(merge=Merge(block=1, r=5)), tiny(**AVERAGED)],
    ids=["prefix", "layerscale", "merged", "averaged"],
)
@torch.no_grad()
def test_loads_are_those_of_the_burden(model: PrunableViT) -> None:
    images = pictures(6)
    keep = torch.ones(model.num_units)
    keep[[2, 9]] = torch.tensor([0.0, 0.5])
    model.set_keep(keep)
    found = measure_loads(model.train(), images.split(4))
    assert model.training
    metered = MeteredViT(model.eval(), exact_means(model, images))
    _, unit_load, _, stream, *_ = metered(images)
    sizes = [site.num_units for site in model.sites]
    for site, load in enumerate(unit_load.split(sizes, 1)):
        power = (load * stream[:, site, None]).pow(2).mean(0)
        close(found.power[site], power, 1e-10)
        close(found.stream[site], stream[:, site].pow(2).mean(), 1e-10)


def test_scaling_by_hand() -> None:
    # eta = 1/2: (4 / 1)^(1/2) = 2 -> 1.25; (1.21 / 1)^(1/2) = 1.1; equal: 1; (1 / 16)^(1/2) = 1/4
    # -> 0.8; without load or without set-point: 1.
    loads = torch.tensor([1.0, 1, 3, 16, 0, 2, 0])
    points = torch.tensor([4.0, 1.21, 3, 1, 2, 0, 0])
    wanted = torch.tensor([1.25, 1.1, 1, 0.8, 1, 1, 1])
    close(scaling(loads, points, 0.5), wanted, 1e-6)


@torch.no_grad()
def test_overloaded_unit_is_pulled_back_and_others_are_let_be() -> None:
    model, images = tiny(), pictures(6)
    homeostasis = Homeostasis(eta=0.25, every=3)
    homeostasis.attach(model, lambda: [images])
    fc2 = model.vit.blocks[0].mlp.fc2
    fc2.weight[:, 5] *= 2  # twice the load: 2^(-1/4) = 0.8409
    fc2.weight[:, 6] *= 8  # 8^(-1/4) = 0.59, clipped to 0.8
    fc2.weight[:, 7:9] *= 8  # one gone, one half open
    keep = torch.ones(model.num_units)
    keep[model.sites[1].start + 7], keep[model.sites[1].start + 8] = 0, 0.5
    model.set_keep(keep)
    before = fc2.weight.clone()
    homeostasis.after_step(1)
    homeostasis.after_step(2)
    close(fc2.weight, before, 0)
    homeostasis.after_step(3)
    wanted = torch.ones(16, dtype=torch.float64)
    wanted[5], wanted[6] = 2**-0.25, 0.8
    close(fc2.weight, wanted * before, 1e-10)


@torch.no_grad()
def test_learned_gates_are_part_of_the_load() -> None:
    model, images = tiny(), pictures(6)
    gates = torch.ones(1, model.num_units)
    gates[0, model.sites[1].start + 5] = 0.5  # half the load: 2^(1/4)
    homeostasis = Homeostasis(eta=0.25, every=1)
    homeostasis.watch(lambda: gates)
    homeostasis.attach(model, lambda: [images])
    fc2 = model.vit.blocks[0].mlp.fc2
    before = fc2.weight.clone()
    homeostasis.after_step(1)
    wanted = torch.ones(16, dtype=torch.float64)
    wanted[5] = 2**0.25
    close(fc2.weight, wanted * before, 1e-10)


@torch.no_grad()
def test_heads_are_pulled_back_as_a_whole() -> None:
    model, images = tiny(), pictures(6)
    homeostasis = Homeostasis(eta=0.5, every=1)
    homeostasis.attach(model, lambda: [images])
    weight = model.vit.blocks[0].attn.proj.weight
    d = model.arch.head_dim
    weight[:, d : 2 * d] *= 1.21  # 1.21^(-1/2) = 1 / 1.1
    before = weight.clone()
    homeostasis.after_step(1)
    wanted = torch.ones(4, dtype=torch.float64)
    wanted[1] = 1 / 1.1
    close(weight, wanted.repeat_interleave(d) * before, 1e-10)


@torch.no_grad()
def test_set_points_are_those_of_the_model_without_merging() -> None:
    model, images = tiny(), pictures(6)
    homeostasis = Homeostasis()
    homeostasis.attach(with_merge(model, Merge(block=1, r=5)), lambda: [images])
    close(homeostasis.set_points, unit_loads(measure_loads(model, [images])), 1e-12)


def test_homeostasis_holds_loads_down_in_training() -> None:
    # The same training, only that columns are pulled strongly every other step.
    def distance(mitigation: str | Homeostasis) -> float:
        result, _ = train_mitigated(mitigation)
        images = pictures(32).float()
        loads = unit_loads(measure_loads(result.model, [images]))[result.keep]
        start = unit_loads(measure_loads(dense_model(), [images]))[result.keep]
        return (loads / start).log().abs().mean().item()

    assert distance(Homeostasis(eta=1.0, every=2)) < 0.7 * distance("none")


def test_quota_by_hand() -> None:
    # Heads: burdens 1 and 3, mean 2, deviation 1: z = -1 and 1. Neurons: 2 and 2, z = 0.
    sites = tiny().sites
    burden = torch.tensor([1.0, 2, 3, 2])
    e = math.exp(0.5)
    close(quota_weights(burden, sites, 0.5), torch.tensor([e, 1, 1 / e, 1]), 1e-6)
    close(quota_weights(burden, sites, 0.0), torch.ones(4))


def test_burdens_that_differ_by_noise_count_as_equal() -> None:
    # Deviation 0.001 where 0.01 is the least that counts: z = -0.1 and 0.1.
    burden = torch.tensor([1.0, 1, 1.002, 1], dtype=torch.float64)
    found = quota_weights(burden, tiny().sites, 1.0)
    wanted = [math.exp(0.1), 1, math.exp(-0.1), 1]
    close(found, torch.tensor(wanted, dtype=torch.float64), 1e-9)


@torch.no_grad()
def test_quota_is_that_of_the_burden_of_present_survivors() -> None:
    model, images = tiny(depth=3), pictures(6)
    mitigation = BurdenQuota(gamma=0.5)
    mitigation.attach(model, lambda: [images])
    quota = mitigation.quota()
    close(quota(), torch.ones(6, dtype=torch.float64), 1e-9)
    fork = measure_loads(model, [images])
    keep = torch.ones(model.num_units)
    kept = [torch.arange(site.num_units) for site in model.sites]
    kept[3], kept[5] = torch.arange(1, 6), torch.arange(10, 16)
    for site in (3, 5):
        keep[model.sites[site].units] = 0
        keep[model.sites[site].start + kept[site]] = 1
    model.set_keep(keep)
    model.vit.blocks[2].mlp.fc2.weight *= 2
    now = measure_loads(model, [images])
    # What is gone counts on neither side, however large it was.
    burden = [
        math.sqrt(now.power[s].sum() / now.stream[s] / (fork.power[s][k].sum() / fork.stream[s]))
        for s, k in enumerate(kept)
    ]
    assert burden[5] > 1.9
    found = quota()
    for own in (burden[0::2], burden[1::2]):
        mean = sum(own) / 3
        deviation = math.sqrt(sum((b - mean) ** 2 for b in own) / 3)
        wanted = [math.exp(-0.5 * (b - mean) / max(deviation, 0.01)) for b in own]
        part = found[0::2] if own == burden[0::2] else found[1::2]
        close(part, torch.tensor(wanted, dtype=torch.float64), 1e-9)


def test_quota_reaches_the_host_and_decides() -> None:
    given: list[Quota] = []

    class Host(MagnitudePruner):
        def set_quota(self, quota: Quota) -> None:
            given.append(quota)
            super().set_quota(quota)

    mitigation = BurdenQuota(gamma=1.0)
    result, budget = train_mitigated(mitigation, pruner=Host)
    assert given == [mitigation.quota()]
    plain, _ = train_mitigated("none", pruner=Host)
    assert len(given) == 1
    assert not torch.equal(result.keep, plain.keep)
    counts = [int(result.keep[site.units].sum()) for site in result.model.sites]
    assert budget.macs.total(counts) <= budget.macs_ratio * budget.dense_macs


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Homeostasis(eta=0), r"eta in \(0, 1\] and every >= 1, got 0 and 100"),
        (lambda: Homeostasis(every=0), r"eta in \(0, 1\] and every >= 1, got 0.1 and 0"),
        (lambda: BurdenQuota(gamma=-1), "gamma >= 0, got -1"),
    ],
)
def test_impossible_options_are_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]
