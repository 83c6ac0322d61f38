"""Flips as HTML: photos with what every model says of them, and the counts over all of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from app import text_flips as text
from app.amounts import percent, ratio
from app.flips import Cell, Chapter, Flips, Item, Share, Summary, Trio, applicable
from app.markup import table, term
from app.plot import Line, Mark, Scale, key, plot, rows
from nbcore.answers import kind_of

STYLES = {
    "dense": "nb-diamond nb-c0",
    "pruned": "nb-square nb-c2",
    "mitigated": "nb-circle nb-c1",
}
"""Shape and colour of a role, the same in every picture."""
LANES = {"dense": 0.24, "pruned": 0.0, "mitigated": -0.24}
"""Where a role's mark stands within the row of a class."""
FEW_PHOTOS = 10
"""Groups of fewer stand alone: a line through a single photo would draw the eye to chance."""
ON_CLICK = """element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-photo]');
  if (!chosen) return;
  window.scrollTo(0, 0);
  trigger('select', {index: Number(chosen.dataset.photo)});
});"""


def found(flips: Flips, *, num_photos: int, offset: int) -> str:
    """How many photos match, and which of them are shown."""
    words = text.FOUND.format(total=f"{flips.matching:,}", num_photos=f"{num_photos:,}")
    words += f" {text.FOUND_PACKED.format(packed=flips.packed)}" if flips.matching else ""
    if not flips.matching:
        words += f" {text.FOUND_NONE}"
    elif not flips.items:
        words += f" {text.FOUND_UNPACKED}"
    elif len(flips.items) < flips.total:
        last = offset + len(flips.items)
        words += f" {text.FOUND_PAGE.format(first=offset + 1, last=last, total=flips.total)}"
    return f'<p class="nb-found" role="status">{escape(words)}</p>'


def gallery(chapter: Chapter, trio: Trio, flips: Flips) -> str:
    """One tile a photo; `ON_CLICK` makes a click on a packed one an event with its position."""
    tiles = "".join(_tile(chapter, trio, item) for item in flips.items)
    return f'<ul class="nb-tiles">{tiles}</ul>'


def waiting(titles: Mapping[str, str], *, photos: int) -> dict[str, str]:
    """Parts before anything was read, as high as what will come, so that nothing jumps.

    Args:
        titles: Models that will be held against each other, by role.
        photos: On the first page.
    """
    words = (text.FOUND, text.FOUND_PACKED, text.FOUND_PAGE)
    line = " ".join(words).format(total=999, num_photos="9,999", packed=999, first=1, last=photos)
    small = {role: "" if role == "dense" else "<small>&nbsp;</small>" for role in titles}
    answers = "".join(
        f'<span class="nb-answer"><i></i><span><b>&nbsp;</b>{small[role]}</span></span>'
        for role in titles
    )
    tile = (
        '<div class="nb-blank-tile"><div class="nb-skeleton"></div><strong>&nbsp;</strong>'
        f'<span class="nb-answers">{answers}</span></div>'
    )
    return {
        "found": _unseen(f'<p class="nb-found">{escape(line)}</p>'),
        "names": _unseen(f'{_models(titles)}<p class="nb-legend-line">{escape(text.KL_NAME)}</p>'),
        "tiles": f'<div class="nb-tiles" aria-hidden="true">{tile * photos}</div>',
    }


def _unseen(body: str) -> str:
    return f'<div class="nb-unseen" aria-hidden="true">{body}</div>'


def _tile(chapter: Chapter, trio: Trio, item: Item) -> str:
    answers = "".join(
        _answer(role, item.answers[voice.info.id]) for role, voice in trio.voices.items()
    )
    body = (
        f"{_picture(chapter, item)}"
        f"<strong>{escape(text.TRUTH.format(truth=item.truth))}</strong>"
        f'<span class="nb-answers">{answers}</span>'
    )
    if not item.packed:
        hint = text.NOT_PACKED_HINT.format(name=item.name)
        return f'<li><div class="nb-tile" title="{escape(hint)}">{body}</div></li>'
    said = "; ".join(
        text.TILE_ANSWER.format(role=text.ROLES[role], answer=item.answers[v.info.id].class_name)
        for role, v in trio.voices.items()
    )
    label = text.TILE.format(truth=item.truth, answers=said)
    return (
        f'<li><button type="button" class="nb-tile" data-photo="{item.position}" '
        f'title="{escape(item.name)}" aria-label="{escape(label)}">{body}</button></li>'
    )


def _picture(chapter: Chapter, item: Item) -> str:
    data = chapter.photo(item.position)
    if data is None:
        return f'<span class="nb-unpacked">{escape(text.NOT_PACKED)}</span>'
    code = base64.b64encode(data).decode("ascii")
    alt = text.ALT.format(truth=item.truth)
    return (
        f'<img src="data:image/{kind_of(data)};base64,{code}" alt="{escape(alt)}" width="224" '
        f'height="224">'
    )


def _answer(role: str, cell: Cell) -> str:
    sign, words = ("✓", text.RIGHT) if cell.right else ("✗", text.WRONG)
    more = [] if role == "dense" else [text.KL.format(kl=f"{cell.kl_to_base:.2f}")]
    if cell.burden is not None:
        more.append(text.BURDEN.format(burden=ratio(cell.burden)))
    small = f"<small>{escape(', '.join(more))}</small>" if more else ""
    return (
        f'<span class="nb-answer {"nb-right" if cell.right else "nb-wrong"}">'
        f'<i class="nb-swatch {STYLES[role]}" title="{escape(text.ROLES[role])}"></i>'
        f'<span><b role="img" aria-label="{words}">{sign}</b> {escape(cell.class_name)} '
        f"{percent(cell.prob, 0)}{small}</span></span>"
    )


def legend(trio: Trio) -> str:
    """Which mark is which model, and what the small numbers of a tile mean."""
    meanings = ((text.KL_NAME, text.KL_HINT), (text.BURDEN_NAME, text.BURDEN_HINT))
    terms = "".join(f"<span>{term(words, meaning)}</span>" for words, meaning in meanings)
    return f'{models(trio)}<p class="nb-legend-line">{terms}</p>'


def models(trio: Trio) -> str:
    """Which mark is which model."""
    return _models({role: voice.info.title for role, voice in trio.voices.items()})


def _models(titles: Mapping[str, str]) -> str:
    entries = [
        (STYLES[role], f"{text.ROLES[role]}: {title}" if role != "dense" else "dense")
        for role, title in titles.items()
    ]
    return key(entries)


def credit(chapter: Chapter) -> str:
    """Where the photos come from, under which terms, and what packing did to them."""
    pack = chapter.photos
    if pack is None or not len(pack.positions):
        return ""
    words = text.PACKED_ABOUT if pack.largest_change > 0.0005 else text.EXACT_ABOUT
    about = words.format(count=len(pack.positions), points=f"{100 * pack.largest_change:.1f}")
    source = text.CREDIT.format(source=pack.source, licence=pack.licence)
    return f'<p class="nb-note">{escape(about)}</p><p class="nb-note">{escape(source)}</p>'


def refused(reasons: Mapping[str, str]) -> str:
    """Which variants' answers are stale, and what renews them."""
    if not reasons:
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons.values())
    return f'<div class="nb-standing">{escape(text.REFUSED)}<ul>{items}</ul></div>'


def summary(trio: Trio, counted: Summary) -> str:
    """All counts over the whole test split."""
    title = text.SUMMARY.format(num_photos=f"{counted.num_photos:,}")
    body = (
        _part(text.COUNTS, "", _counts(trio, counted)),
        _part(text.RELIABILITY, text.RELIABILITY_SHOWS, reliability(counted)),
        _part(text.ACCURACY, text.ACCURACY_SHOWS, accuracy(counted), kind="nb-wide"),
        *(
            _part(
                text.CONFUSION.format(title=f"{text.ROLES[role]} ({trio.voice(role).info.title})"),
                text.CONFUSION_SHOWS,
                confusion(matrix, list(counted.by_class)),
            )
            for role, matrix in counted.confusion.items()
        ),
    )
    return (
        f'<section class="nb-section nb-summary" aria-label="{escape(title)}">'
        f'<h2>{escape(title)}</h2><p class="nb-note">{escape(text.SUMMARY_SHOWS)}</p>'
        f'{models(trio)}<div class="nb-parts">{"".join(body)}</div></section>'
    )


def _part(title: str, shows: str, body: str, *, kind: str = "") -> str:
    note = f'<p class="nb-note">{escape(shows)}</p>' if shows else ""
    return f'<div class="nb-part {kind}"><h3>{escape(title)}</h3>{note}{body}</div>'


def _counts(trio: Trio, counted: Summary) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in text.COUNTS_COLUMNS)
    body = "".join(
        f'<tr data-pattern="{entry.name}"><th scope="row">{escape(entry.title)}</th>'
        f"<td>{counted.counts[entry.name]:,}</td>"
        f"<td>{percent(counted.counts[entry.name] / counted.num_photos)}</td></tr>"
        for entry in applicable(trio)
    )
    return table("", heads, body)


def accuracy(counted: Summary) -> str:
    """Accuracy of every model on every class with intervals: a picture, and its numbers."""
    groups = {**counted.by_class, text.ACCURACY_ALL: counted.accuracy}
    lowest = min(one.low for group in groups.values() for one in group.values())
    low = max(0.0, np.floor(lowest * 10) / 10)
    step = 0.05 if low >= 0.7 else 0.1 if low >= 0.5 else 0.25
    places = np.arange(np.ceil(low / step - 1e-9) * step, 1 + 1e-9, step).tolist()
    ticks = tuple((place, percent(place, 0)) for place in places)
    marks = [
        Mark(
            x=one.value,
            y=-row + LANES[role],
            words=_accuracy_words(name, role, one),
            style=STYLES[role],
            x_range=(one.low, one.high),
            quiet=True,
        )
        for row, (name, group) in enumerate(groups.items())
        for role, one in group.items()
    ]
    drawn = plot(
        Scale(title=text.ACCURACY_AXIS, low=low, high=1.0, ticks=ticks),
        rows("", list(groups)),
        alt=text.ACCURACY_ALT,
        marks=marks,
        kind="nb-accuracy",
    )
    return drawn + _numbers(groups)


def _accuracy_words(name: str, role: str, one: Share) -> str:
    return text.ACCURACY_MARK.format(
        name=name,
        role=text.ROLES[role],
        value=percent(one.value),
        low=percent(one.low),
        high=percent(one.high),
        right=one.right,
        total=one.total,
    )


def _numbers(groups: Mapping[str, Mapping[str, Share]]) -> str:
    roles = list(next(iter(groups.values())))
    heads = "".join(f'<th scope="col">{escape(text.ROLES[role])}</th>' for role in roles)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f"<td>{percent(group[role].value)}"
            f"<small>{percent(group[role].low)}–{percent(group[role].high)}</small></td>"
            for role in roles
        )
        + "</tr>"
        for name, group in groups.items()
    )
    return (
        f'<details class="nb-details"><summary>{escape(text.NUMBERS)}</summary>'
        f"{table(text.INTERVAL, heads, body)}</details>"
    )


def reliability(counted: Summary) -> str:
    """Accuracy against confidence."""
    ticks = tuple((v, percent(v, 0)) for v in (0.0, 0.25, 0.5, 0.75, 1.0))
    errors = [
        text.RELIABILITY_ERROR.format(role=text.ROLES[role], error=percent(one.error))
        for role, one in counted.reliability.items()
    ]
    marks = [
        Mark(
            x=one.confidence,
            y=one.right.value,
            words=text.RELIABILITY_MARK.format(
                role=text.ROLES[role],
                low=percent(one.low, 0),
                high=percent(one.high, 0),
                value=percent(one.right.value),
                ends=f"{percent(one.right.low, 0)} to {percent(one.right.high, 0)}",
                total=one.right.total,
            ),
            style=STYLES[role],
            y_range=(one.right.low, one.right.high),
        )
        for role, found in counted.reliability.items()
        for one in found.bins
    ]
    lines = [Line(points=[(0.0, 0.0), (1.0, 1.0)], style="nb-diagonal")] + [
        Line(
            points=[
                (one.confidence, one.right.value)
                for one in found.bins
                if one.right.total >= FEW_PHOTOS
            ],
            style=STYLES[role].split()[-1],
        )
        for role, found in counted.reliability.items()
    ]
    drawn = plot(
        Scale(title=text.RELIABILITY_X, low=0.0, high=1.0, ticks=ticks),
        Scale(title=text.RELIABILITY_Y, low=0.0, high=1.0, ticks=ticks),
        alt=text.RELIABILITY_ALT.format(errors="; ".join(errors)),
        marks=marks,
        lines=lines,
        kind="nb-reliability",
    )
    listed = "".join(f"<li>{escape(words)}</li>" for words in errors)
    return f'{drawn}<ul class="nb-errors">{listed}</ul>'


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Photos by dense's answer and another model's; flips are shaded by their number."""
    flips = matrix.sum() - np.trace(matrix)
    most = max(1, int((matrix - np.diag(np.diag(matrix))).max()))
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    body = ""
    for i, row in enumerate(classes):
        cells = ""
        for j, column in enumerate(classes):
            count = int(matrix[i, j])
            words = text.CONFUSION_CELL.format(row=row, column=column, count=count)
            shade = 0 if i == j else count / most
            kind = "nb-agree" if i == j else "nb-zero" if not count else ""
            cells += (
                f'<td class="{kind}" style="--s:{shade:.3f}" title="{escape(words)}">{count}</td>'
            )
        body += f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>'
    agree = text.CONFUSION_AGREE.format(
        share=percent(np.trace(matrix) / matrix.sum()), flips=f"{flips:,}"
    )
    return (
        f'<p class="nb-note">{escape(agree)}</p><div class="nb-scroll" tabindex="0">'
        f'<table class="nb-confusion"><thead><tr><td>{escape(text.CONFUSION_ROWS)}</td>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )
