"""Arms of a study as rows: a dot for every seed, the mean and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app import text_study as text
from app.amounts import percent
from app.arms import ArmValues, Choice, arms
from app.plot import HUES, Mark, linear, plot, rows
from app.studies import Study
from app.styles import hues_of, mitigation_words

WEIGHTS = "weights"
"""The host that prunes single weights."""
MOST_ROWS = 60
SHARES = ("top1", "val_top1")
GUIDES = {
    "gain": (0.0, text.ZERO_GUIDE),
    "did": (0.0, text.ZERO_GUIDE),
    "recovered": (1.0, text.WHOLE_GUIDE),
    "excess": (1.0, text.ONE_GUIDE),
}


def arm_plot(study: Study, choice: Choice) -> str:
    """Draw the arms of a choice."""
    found = arms(study, choice)
    if not found:
        return f'<p class="nb-note">{escape(text.NOTHING)}</p>'
    shown, note = found[:MOST_ROWS], ""
    if len(found) > len(shown):
        note = text.TOO_MANY.format(shown=len(shown), count=len(found))
    guide, meaning = _guide(study, choice)
    names = [_name(arm, choice) for arm in shown]
    y = rows("", names)
    ends = [end for arm in shown for end in _ends(arm)] + ([] if guide is None else [guide])
    if choice.measure in SHARES:
        # Student's t knows nothing of the ends of a share.
        ends = [min(max(end, 0.0), 1.0) for end in ends]
    measure, axis = text.MEASURES[choice.measure]
    x = linear(axis, ends, lambda value: _tick(value, choice.measure))
    hues = hues_of(row["mitigation"].partition("@")[0] for row in study.runs)
    marks = [
        mark
        for place, (arm, name) in enumerate(zip(shown, names, strict=True))
        for mark in _marks(arm, name, -float(place), choice.measure, hues)
    ]
    told = "; ".join(mark.words for mark in marks if not mark.quiet)
    drawn = plot(
        x,
        y,
        alt=text.ARM_ALT.format(measure=measure, values=told),
        marks=marks,
        guide=guide,
        kind="nb-arms",
        style=f"--rows:{len(shown)}",
    )
    weights = any(arm.host == WEIGHTS for arm in shown)
    told_below = (
        meaning,
        text.MEASURE_NOTES.get(choice.measure, ""),
        text.WEIGHTS_NOTES.get(choice.measure, "") if weights else "",
        note,
    )
    notes = "".join(f'<p class="nb-note">{escape(words)}</p>' for words in told_below if words)
    return drawn + notes


def _guide(study: Study, choice: Choice) -> tuple[float | None, str]:
    if choice.measure in GUIDES:
        return GUIDES[choice.measure]
    if choice.measure in SHARES:
        plus = arms(study, Choice(measure=choice.measure, host="dense_plus", mitigation="none"))
        if plus:
            return plus[0].mean, text.DENSE_PLUS_GUIDE
    return None, ""


def _ends(arm: ArmValues) -> list[float]:
    return [*arm.values.values(), arm.mean, *(e for e in (arm.low, arm.high) if e is not None)]


def _name(arm: ArmValues, choice: Choice) -> str:
    """What tells an arm apart from the others of a choice."""
    parts = []
    if choice.mitigation is None:
        parts.append(mitigation_words(arm.mitigation))
    if choice.host is None:
        parts.append(host_words(arm.host))
    if choice.budget is None:
        parts.append(percent(float(arm.budget), 0))
    return ", ".join(parts) or mitigation_words(arm.mitigation)


def host_words(name: str) -> str:
    """A host of a study in the words of the page."""
    return text.HOSTS.get(name, name.replace("_", " "))


def _marks(
    arm: ArmValues, name: str, y: float, measure: str, hues: dict[str, str]
) -> Sequence[Mark]:
    hue = hues.get(arm.mitigation.partition("@")[0], HUES[0])
    interval = ""
    if arm.low is not None and arm.high is not None:
        interval = text.ARM_INTERVAL.format(
            low=value_words(arm.low, measure), high=value_words(arm.high, measure)
        )
    seeds = text.ONE_SEED if arm.seeds == 1 else text.ARM_SEEDS.format(count=arm.seeds)
    if arm.seeds < len(arm.values):
        seeds = text.ONE_MODEL.format(count=len(arm.values))
    words = text.ARM_MARK.format(
        arm=name, value=value_words(arm.mean, measure), interval=interval, seeds=seeds
    )
    dots = [
        Mark(
            x=value,
            y=y,
            style=f"nb-circle {hue}",
            quiet=True,
            words=text.SEED_MARK.format(arm=name, seed=seed, value=value_words(value, measure)),
        )
        for seed, value in arm.values.items()
    ]
    whole = None if arm.low is None or arm.high is None else (arm.low, arm.high)
    return [
        *dots,
        Mark(x=arm.mean, y=y, style=f"nb-tick-mark {hue}", x_range=whole, words=words),
    ]


def value_words(value: float, measure: str) -> str:
    """A value as hover texts write it."""
    if measure in SHARES:
        return percent(value, 2)
    if measure == "recovered":
        return percent(value, 0).replace("-", "\u2212")
    if measure == "excess":
        return f"{value:.2f}×"
    return f"{value:+.2f}".replace("-", "\u2212")


def _tick(value: float, measure: str) -> str:
    if measure in (*SHARES, "recovered"):
        # The axis says that it is per cent: on a phone there is no room to say so at every tick.
        return f"{100 * value:.4g}".replace("-", "\u2212")
    if measure == "excess":
        return f"{value:.3g}×"
    return f"{value:+.3g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0"
