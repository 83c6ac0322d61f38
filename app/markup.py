"""The service's answers as HTML: one function per part of the page, every column one variant.

Nothing here knows Gradio. All texts are escaped; pictures travel inside the page, so that no file
of a visitor is left behind on the server.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape

from PIL import Image

from app import text, text_models
from app.amounts import (
    MISSING,
    count,
    fine,
    megabytes,
    milliseconds,
    percent,
    points,
    signed,
    small,
)
from app.latency import Latency
from app.readable import readable
from app.service import AttributionMap, AttributionMethod, Prediction, Status, VariantInfo
from app.speeds import speeds, waiting


def picture(image: Image.Image, alt: str, *, lossless: bool = False) -> str:
    """`<img>` with the picture inside it.

    Args:
        image: RGB.
        alt: What a person who cannot see it should know.
        lossless: PNG, for scales and drawings; otherwise JPEG, a tenth of the bytes for a photo.
    """
    data = io.BytesIO()
    if lossless:
        image.save(data, "PNG")
    else:
        image.convert("RGB").save(data, "JPEG", quality=88)
    kind = "png" if lossless else "jpeg"
    code = base64.b64encode(data.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/{kind};base64,{code}" alt="{escape(alt)}" '
        f'width="{image.width}" height="{image.height}">'
    )


def legend(image: Image.Image | None, title: str) -> str:
    """The colour scale that all pictures of a row share."""
    if image is None:
        return ""
    drawn = picture(image, text.LEGEND_ALT.format(title=title), lossless=True)
    return f'<div class="nb-legend">{drawn}</div>'


def section(title: str, notes: Sequence[str], body: str, *, columns: int, name: str) -> str:
    """One part of the page: plain sentences, then what they explain; its heading is apart."""
    sentences = "".join(f'<p class="nb-note">{escape(note)}</p>' for note in notes if note)
    return (
        f'<section class="nb-section" id="nb-{name}" style="--n:{columns}" '
        f'aria-label="{escape(title)}">{sentences}{body}</section>'
    )


def grid(side: str, cells: Sequence[str], *, kind: str = "") -> str:
    """One row of columns after a side column that holds labels."""
    body = "".join(f'<div class="nb-cell">{cell}</div>' for cell in cells)
    return f'<div class="nb-grid {kind}"><div class="nb-side">{side}</div>{body}</div>'


def failure(reason: str) -> str:
    """A cell that could not be filled, and why."""
    return f'<p class="nb-failure">{escape(reason)}</p>'


def names(infos: Sequence[VariantInfo], *, before: bool) -> str:
    """Heading of the columns; it stays in view while the page scrolls."""
    cells = []
    for info in infos:
        tag = text.REFERENCE if info.base is None else text.BEFORE.lower() if before else ""
        cells.append(
            f"<strong>{term(info.title, meaning(info))}</strong>"
            f'<span class="nb-tag">{escape(tag)}</span>'
        )
    return f'<div style="--n:{len(infos)}">{grid("", cells)}</div>'


def meaning(info: VariantInfo) -> str:
    """What the words of a variant's title mean."""
    if info.base is None:
        return text.DENSE_MEANS
    host = text_models.HOSTS.get(info.pruner or "", "")
    parts = (info.mitigation or "").split("+")
    added = "; ".join(text_models.MITIGATIONS.get(part, part) for part in parts)
    return text.VARIANT_MEANS.format(
        ratio=percent(info.macs_ratio, 0), pruner=info.pruner, host=host, added=added, id=info.id
    )


def predictions(
    infos: Sequence[VariantInfo],
    cells: Mapping[str, Prediction],
    failures: Mapping[str, str],
    truth: str | None = None,
) -> str:
    """Top classes of every variant, one column each, and the photo's true class if known."""
    columns = [
        classes(info, cells[info.id])
        if info.id in cells
        else failure(failures.get(info.id, text.NO_ANSWER))
        for info in infos
    ]
    return section(
        text.PREDICTIONS,
        prediction_notes(truth),
        grid("", columns),
        columns=len(infos),
        name="predictions",
    )


def prediction_notes(truth: str | None) -> tuple[str, ...]:
    """What stands above the classes."""
    known = "" if truth is None else text.TRUTH.format(truth=truth)
    return (text.PREDICTIONS_SHOWS, known)


def classes(info: VariantInfo, cell: Prediction) -> str:
    """The most likely classes of one model, and what that means beside dense."""
    rows = "".join(
        f'<li style="--p:{top.prob:.4f}"><span class="nb-name">{escape(top.class_name)}</span>'
        f'<span class="nb-prob">{percent(top.prob)}</span>'
        f'<span class="nb-change">{points(top.change) if info.base else ""}</span></li>'
        for top in cell.top
    )
    other = cell.base_class not in (None, cell.top[0].class_name)
    said = f'<p class="nb-said{" nb-other" if other else ""}">{escape(sentence(info, cell))}</p>'
    distance = ""
    if info.base and cell.kl_to_base is not None:
        words = text.KL.format(kl=cell.kl_to_base)
        distance = f'<p class="nb-tag">{term(words, text.KL_HINT)}</p>'
    return f'<ol class="nb-classes">{rows}</ol>{said}{distance}'


def sentence(info: VariantInfo, cell: Prediction) -> str:
    """What a variant says beside what its dense base says."""
    own, base = cell.top[0].class_name, cell.base_class
    if info.base is None or base is None:
        return text.SAYS_ALONE.format(title=info.title, own=own)
    words = text.SAYS_SAME if own == base else text.SAYS_OTHER
    return words.format(title=info.title, own=own, base=base)


def term(words: str, meaning: str) -> str:
    """Words that say what they mean to whoever rests on them, by mouse or by keyboard."""
    return (
        f'<span class="nb-term" tabindex="0">{escape(words)}'
        f'<span class="nb-tip" role="tooltip">{escape(meaning)}</span></span>'
    )


def attributions(
    infos: Sequence[VariantInfo],
    cells: Mapping[str, AttributionMap] | None,
    failures: Mapping[str, str],
    *,
    crop: Image.Image,
    method: AttributionMethod,
    scales: Sequence[Image.Image] = (),
) -> str:
    """Every variant's map, its difference from dense, and how far to trust it.

    Args:
        infos: The columns.
        cells: Maps by variant; None while they are computed, which leaves their places empty.
        failures: Why others have none.
        crop: What all models saw.
        method: That drew the maps.
        scales: Colour bars of maps and of differences.
    """

    def row(fill: Callable[[VariantInfo, AttributionMap], str], *, waits: str) -> list[str]:
        if cells is None:
            return [waits] * len(infos)
        return [fill(info, cells[info.id]) if info.id in cells else "" for info in infos]

    def bar(index: int, title: str) -> str:
        if cells is None:
            return '<div class="nb-legend nb-blank" aria-hidden="true"></div>'
        return legend(scales[index] if index < len(scales) else None, title)

    empty = '<div class="nb-skeleton" aria-hidden="true"></div>'
    maps = row(lambda info, cell: _attribution(info, cell, method), waits=f"{empty}<p>&nbsp;</p>")
    if cells is not None:
        for index, info in enumerate(infos):
            if info.id not in cells:
                maps[index] = failure(failures.get(info.id, text.NO_MAP))
    side = f"{picture(crop, text.CROP_ALT, lossless=True)}<p>{escape(text.ATTRIBUTION_CROP)}</p>"
    if cells is None:
        notes = {info.id: method.note for info in infos if info.merges}
    else:
        notes = {key: cell.note for key, cell in cells.items()}
    differences = row(lambda info, cell: _difference(info, cell, cells or {}, method), waits=empty)
    body = (
        grid(side, maps, kind="nb-pictures"),
        _notes(infos, notes),
        bar(0, method.title),
        grid(_heading(text.DIFFERENCE, text.DIFFERENCE_HINT), differences, kind="nb-pictures"),
        bar(1, text.DIFFERENCE_SCALE),
        _trust(infos, cells or {}),
        _meanings(),
    )
    cost = text.METHOD_COST.format(cost=method.cost)
    return section(
        text.ATTRIBUTION,
        (f"{method.shows} {method.sign} {cost} {text.ATTRIBUTION_SAME_SCALE}",),
        "".join(body),
        columns=len(infos),
        name="attribution",
    )


def _heading(title: str, hint: str) -> str:
    return f"<h3>{escape(title)}</h3><p>{escape(hint)}</p>"


def _attribution(info: VariantInfo, cell: AttributionMap, method: AttributionMethod) -> str:
    alt = text.ATTRIBUTION_ALT.format(title=info.title, method=method.title, target=cell.target)
    shown = failure(text.NO_MAP)
    if cell.picture:
        drawn, name = picture(cell.picture, alt), f"{method.title}, {info.title}"
        shown = readable(drawn, cell.values, fine, name=name, groups=cell.groups)
    return f"{shown}<p>{escape(text.TARGET_IS.format(target=cell.target))}</p>"


def _notes(infos: Sequence[VariantInfo], notes: Mapping[str, str | None]) -> str:
    """What must be known of some columns, each sentence once and across the whole width."""
    titles: dict[str, list[str]] = {}
    for info in infos:
        if note := notes.get(info.id):
            titles.setdefault(note, []).append(info.title)
    return "".join(
        f'<p class="nb-note nb-indent"><b>{escape("; ".join(columns))}</b>: {escape(note)}</p>'
        for note, columns in titles.items()
    )


def _difference(
    info: VariantInfo,
    cell: AttributionMap,
    cells: Mapping[str, AttributionMap],
    method: AttributionMethod,
) -> str:
    if cell.difference_picture is not None:
        alt = text.DIFFERENCE_ALT.format(title=info.title, method=method.title, target=cell.target)
        drawn, name = picture(cell.difference_picture, alt), f"{text.DIFFERENCE}, {info.title}"
        assert cell.difference is not None
        return readable(drawn, cell.difference, fine, name=name, groups=cell.groups)
    why = "base" if info.base is None else "class" if info.base in cells else "missing"
    return f'<p class="nb-none">{escape(text.NO_DIFFERENCE[why])}</p>'


def _trust(infos: Sequence[VariantInfo], cells: Mapping[str, AttributionMap]) -> str:
    """A line for each fact, a column for each variant."""
    facts = {key: _facts(cell) for key, cell in cells.items()}
    rows = "".join(
        f'<tr data-fact="{name}"><th scope="row">{term(*words)}</th>'
        + "".join(f"<td>{escape(facts.get(info.id, {}).get(name, MISSING))}</td>" for info in infos)
        + "</tr>"
        for name, words in text.TRUST_ROWS.items()
    )
    heads = "".join(f'<th scope="col">{escape(info.title)}</th>' for info in infos)
    title = _heading(text.TRUST, text.TRUST_HINT)
    return f'<div class="nb-trust">{title}{table("", heads, rows)}</div>'


def _facts(cell: AttributionMap) -> dict[str, str]:
    def share(value: float | None) -> str:
        return MISSING if value is None else percent(value)

    scores, served = cell.removal, cell.served
    return {
        "rank_correlation": signed(cell.rank_correlation),
        "top_overlap": share(cell.top_overlap),
        "completeness_error": share(cell.completeness_error),
        "deletion": signed(scores.deletion if scores else None),
        "insertion": signed(scores.insertion if scores else None),
        "steps": MISSING if cell.steps is None else str(cell.steps),
        "parity": small(served.difference),
        "provider": text.SHORT_PROVIDERS.get(served.provider, served.provider),
        "sha256": served.sha256[:8],
    }


def _meanings() -> str:
    """The explanations once more, for those who cannot rest a pointer on anything."""
    rows = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(meaning)}</dd>"
        for label, meaning in text.TRUST_ROWS.values()
    )
    return (
        f'<details class="nb-details"><summary>{escape(text.TRUST_ABOUT)}</summary>'
        f"<dl>{rows}</dl></details>"
    )


def methods(entries: Sequence[AttributionMethod]) -> str:
    """All methods of the menu: what they show, what their signs mean, what they cost."""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in text.METHOD_COLUMNS)
    rows = "".join(
        f'<tr><th scope="row">{escape(entry.title)}</th>'
        + "".join(f"<td>{escape(getattr(entry, key))}</td>" for key in text.METHOD_COLUMNS)
        + "</tr>"
        for entry in entries
    )
    return (
        f'<details class="nb-details nb-methods"><summary>{escape(text.METHODS_ABOUT)}</summary>'
        f"{table('', heads, rows)}</details>"
    )


def costs(
    infos: Sequence[VariantInfo],
    cells: Mapping[str, Prediction],
    *,
    before: bool,
    zeros: Mapping[str, float | None] | None = None,
    times: Mapping[str, Latency] | None = None,
) -> str:
    """Accuracy, size and time of every variant as a table with right-aligned numbers.

    Args:
        infos: The columns.
        cells: What each model says.
        before: The dense model is run, cut live.
        zeros: Share of weights that are exactly zero, by variant.
        times: What one photo takes here, by variant; None while that is being measured.
    """
    shown = times or {}
    facts = {
        info.id: _facts_of_cost(info, cells.get(info.id), infos)
        | {"zeros": _or_missing(percent, (zeros or {}).get(info.id), 2)}
        | {"time": _time(shown.get(info.id), waits=times is None)}
        for info in infos
    }
    rows = "".join(
        f'<tr data-cost="{key}"><th scope="row">{escape(label)}<small>{escape(hint)}</small></th>'
        + "".join(f"<td>{facts[info.id][key]}</td>" for info in infos)
        + "</tr>"
        for key, (label, hint) in text.COST_ROWS.items()
    )
    heads = "".join(f'<th scope="col">{escape(info.title)}</th>' for info in infos)
    notes = (text.COST_SHOWS, text.COST_BEFORE if before else "")
    below = waiting(infos) if times is None else speeds(infos, times)
    body = table("", heads, rows) + below
    return section(text.COST, notes, body, columns=len(infos), name="costs")


def _facts_of_cost(
    info: VariantInfo, cell: Prediction | None, infos: Sequence[VariantInfo]
) -> dict[str, str]:
    base = next((other for other in infos if other.id == info.base), None)

    def sized(key: str, shown: Callable[[float], str]) -> str:
        share = getattr(info, key) / getattr(base, key) if base else None
        small = f"<small>{percent(share, 0)} {escape(text.OF_DENSE)}</small>" if share else ""
        return f"{shown(getattr(info, key))}{small}"

    return {
        "top1": _or_missing(percent, info.metrics.get("top1")),
        "num_params": sized("num_params", count),
        "macs": sized("macs", count),
        "size_bytes": sized("size_bytes", megabytes),
        "kl": _or_missing("{:.3f}".format, cell.kl_to_base if cell else None),
    }


def _or_missing(shown: Callable[..., str], value: float | None, *more: int) -> str:
    return MISSING if value is None else shown(value, *more)


def _time(found: Latency | None, *, waits: bool) -> str:
    """Median and interval."""
    if found is None:
        return f"{text.TIMING}<small>&nbsp;</small>" if waits else MISSING
    ms = found.ms
    spread = text.SPREAD.format(low=milliseconds(ms.low), high=milliseconds(ms.high))
    return f"{milliseconds(ms.median)}<small>{escape(spread)}</small>"


def table(caption: str, heads: str, rows: str) -> str:
    """A table whose first column holds row headings."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<table class="nb-table">{title}<thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def take(address: str, query: str, *, packed: bool) -> str:
    """Links to the files of a page and to the page itself.

    Args:
        address: Where the files lie.
        query: That restores the view.
        packed: Whether the photo is one that a link can name.
    """
    files = "".join(
        f'<a href="{escape(address)}/{name}" download="{name}" title="{escape(hint)}">'
        f"{escape(label)}</a>"
        for name, (label, hint) in text.TAKE_FILES.items()
    )
    link = (
        f'<a id="nb-link" href="{escape(query)}" title="{escape(text.TAKE_LINK_HINT)}">'
        f"{escape(text.TAKE_LINK)}</a>"
    )
    note = "" if packed else f"<p>{escape(text.TAKE_OWN)}</p>"
    return (
        f'<nav class="nb-take" aria-label="{escape(text.TAKE)}"><p>{escape(text.TAKE)}</p>'
        f"<div>{files}{link}</div>{note}</nav>"
    )


def progress(message: str, *, step: int, steps: int) -> str:
    """What is being computed, announced to screen readers."""
    where = escape(text.STEP_OF.format(step=step, steps=steps))
    return (
        f'<div class="nb-status" role="status" style="--p:{(step - 0.5) / steps:.3f}">'
        f"<span>{escape(message)}</span><span>{where}</span></div>"
    )


def invitation(message: str = text.INVITATION) -> str:
    """What to do next."""
    return _still(message, "nb-invitation", role="status")


def done(message: str) -> str:
    """The line that replaces the progress when all is there."""
    return _still(message, "nb-done", role="status")


def problem(message: str) -> str:
    """A sentence about what went wrong; it stays until the next try."""
    return _still(message, "nb-problem", role="alert")


def _still(message: str, kind: str, *, role: str) -> str:
    return (
        f'<div class="nb-status nb-still {kind}" role="{role}"><span>{escape(message)}</span></div>'
    )


def standing(status: Status) -> str:
    """Where things run, how far ONNX and PyTorch agree, and which variants are refused."""
    provider = text.PROVIDERS.get(status.provider, status.provider)
    device = text.DEVICES.get(status.device, status.device)
    found = [value for value in status.parity.values() if value is not None]
    parity = (
        text.PARITY.format(parity=f"{max(found):.0e}")
        if found and status.ready
        else text.PARITY_PENDING
    )
    refused = "".join(f"<li>{escape(reason)}</li>" for reason in status.refused.values())
    listed = f"<p>{escape(text.REFUSED)}</p><ul>{refused}</ul>" if refused else ""
    line = text.RUNS_ON.format(provider=provider, device=device)
    said = f"{line} {_precision(status)} {parity}"
    return f'<div class="nb-standing"><p>{escape(said)}</p>{listed}</div>'


def _precision(status: Status) -> str:
    """What is computed in, and what that costs; nothing of fp32."""
    if status.precision == "fp32":
        return ""
    found = list(status.effects.values())
    if not found:
        return text.PRECISION_UNKNOWN.format(precision=status.precision)
    changes, images = [one.change for one in found], sum(one.num_images for one in found)
    return text.PRECISION.format(
        precision=status.precision,
        images=f"{images:,}".replace(",", "\u202f"),
        low=points(min(changes)),
        high=points(max(changes)),
        same=percent(sum(one.same_class * one.num_images for one in found) / images),
    )
