"""Does burden predict damage, photo by photo: dense was right, the pruned model is wrong.

A photo on which dense was hardly sure is lost easily, whatever its layers carry. So the question is
what a photo's burden adds to dense's margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nbcore.answers import Answer, Answers, base_of
from nbcore.checkpoint import Manifest, Variant

FOLDS = 10
RESAMPLES = 1000
USEFUL = 0.01
"""The least that would matter."""
FEWEST = 20
"""Lost photos; with fewer nothing is decided."""
VERDICTS = {1: "predicts", 0: "undecided", -1: "does not predict"}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """How well lost photos are told from kept ones, as the area under the ROC curve: the share of
    pairs, one lost and one kept, in which the lost one is given the higher chance to be lost."""

    variant: str
    num_right: int
    """Photos on which dense is right."""
    num_lost: int
    """Those of them on which the variant is wrong."""
    margin: float
    """By dense's margin alone: its top logit minus the second."""
    burden: float
    """By burden alone."""
    gain: float
    """What burden adds to the margin."""
    low: float
    """95 % interval of the gain over photos."""
    high: float

    @property
    def verdict(self) -> int:
        """1: burden predicts damage beyond the margin; -1: by less than would matter; 0: neither is
        shown."""
        if self.num_lost < FEWEST:
            return 0
        if self.low > 0:
            return 1
        return -1 if self.high < USEFUL else 0


def burden_damage(answers: Answers, manifest: Manifest) -> list[Damage]:
    """Of every variant that was pruned without a mitigation, in the manifest's order."""
    found = []
    for variant in manifest.variants:
        base = base_of(manifest, variant)
        if variant.mitigation != "none" or base is None or base is variant:
            continue
        own, dense = (answers.answers.get(one.id) for one in (variant, base))
        if own is not None and dense is not None:
            one = _damage(variant, own, dense, answers.targets)
            found += [] if one is None else [one]
    return found


def _damage(variant: Variant, own: Answer, dense: Answer, targets: np.ndarray) -> Damage | None:
    """None where no photo or every photo was lost, or burden is not known.

    A logistic regression (statsmodels) of the loss on margin and log burden is held against one on
    the margin alone. Each photo's chance comes from fits that have not seen it, in ten folds. The
    interval is that of the paired bootstrap over photos (SciPy).
    """
    load = own.mean_burden()
    if load is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        burden = np.log(load)
    usable = (dense.predicted == targets) & np.isfinite(burden)
    lost = (own.predicted != targets)[usable]
    if not lost.any() or lost.all():
        return None
    ordered = np.sort(dense.logits[usable].astype(np.float64), 1)
    margin, burden = ordered[:, -1] - ordered[:, -2], burden[usable]
    plain, both = _chances(lost, margin), _chances(lost, margin, burden)

    def gain(which: np.ndarray) -> float:
        picked = lost[which]
        return _area(picked, both[which]) - _area(picked, plain[which])

    places = np.arange(len(lost))
    interval = stats.bootstrap(
        (places,),
        gain,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Damage(
        variant=variant.id,
        num_right=len(lost),
        num_lost=int(lost.sum()),
        margin=_area(lost, -margin),
        burden=_area(lost, burden),
        gain=gain(places),
        low=float(interval.low),
        high=float(interval.high),
    )


def _chances(lost: np.ndarray, *features: np.ndarray) -> np.ndarray:
    """Log odds of being lost, each by a fit without the photo's own fold."""
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools import add_constant

    columns = [(values - values.mean()) / (values.std() or 1.0) for values in features]
    design = add_constant(np.stack(columns, 1), has_constant="add")
    odds = np.empty(len(lost))
    # Lost ones are dealt out evenly, so that every fold has its share.
    fold = np.empty(len(lost), int)
    fold[np.argsort(lost, kind="stable")] = np.arange(len(lost)) % FOLDS
    for number in range(FOLDS):
        held = fold == number
        odds[held] = design[held] @ _fit(Logit(lost[~held].astype(float), design[~held]))
    return odds


def _fit(model: object) -> np.ndarray:
    return model.fit(disp=0).params  # type: ignore[attr-defined]


def _area(lost: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; a half where there is nothing to tell apart."""
    ones, zeros = scores[lost], scores[~lost]
    if not len(ones) or not len(zeros):
        return 0.5
    return float(stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)))


def damage_table(found: list[Damage]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| variant | dense right | lost | by margin | by burden | burden adds | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        yield (
            f"| `{one.variant}` | {one.num_right} | {one.num_lost} | {one.margin:.3f} | "
            f"{one.burden:.3f} | {one.gain:+.4f} [{one.low:+.4f}, {one.high:+.4f}] | "
            f"{VERDICTS[one.verdict]} |"
        )
