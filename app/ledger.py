"""All models in one table that can be sorted, and below each row where that model comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from app import text_models as text
from app.amounts import MISSING, count, megabytes, percent, ratio
from app.records import Record
from nbcore.checkpoint import METRICS

SHORT_HASH = 8
# Sorts whole rows with what is told below them; what has no value stays last. What a heading means
# is moved to where it can be read, as a table that scrolls would cut it.
ON_CLICK = """const stay = (event) => {
  const tip = event.target.closest('.nb-sort')?.querySelector('.nb-tip');
  if (!tip) return;
  tip.style.translate = '';
  const [words, frame] = [tip, tip.closest('.nb-scroll')].map((e) => e.getBoundingClientRect());
  const right = Math.max(0, frame.left - words.left);
  const left = Math.max(0, words.right - frame.right);
  tip.style.translate = `${right - left}px`;
};
element.addEventListener('pointerover', stay);
element.addEventListener('focusin', stay);
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const table = button.closest('table');
  if (button.hasAttribute('aria-expanded')) {
    const open = button.getAttribute('aria-expanded') !== 'true';
    button.setAttribute('aria-expanded', String(open));
    button.closest('tbody').querySelector('.nb-more').hidden = !open;
    return;
  }
  const head = button.closest('th');
  const column = [...head.parentNode.children].indexOf(head);
  const number = head.hasAttribute('data-number');
  const first = number ? 'descending' : 'ascending';
  const other = number ? 'ascending' : 'descending';
  const order = head.getAttribute('aria-sort') === first ? other : first;
  head.parentNode.querySelectorAll('th').forEach((th) => th.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', order);
  const sign = order === 'ascending' ? 1 : -1;
  const value = (body) => body.rows[0].cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    return sign * (number ? Number(x) - Number(y) : x.localeCompare(y));
  };
  [...table.tBodies].sort(compare).forEach((body) => table.append(body));
});"""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column holds of a record."""

    value: Callable[[Record], Any]
    words: Callable[[Any], str]
    number: bool = True


def _metric(name: str) -> Callable[[Record], Any]:
    return lambda record: record.variant.metrics.get(name)


def _plain_share(value: float) -> str:
    """-0.004 is written as 0.00: a sign before nothing would say something."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212")


def _field(name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.variant, name)


COLUMNS: Mapping[str, Column] = {
    "top1": Column(value=_metric("top1"), words=percent),
    "macs": Column(value=_field("macs"), words=count),
    "macs_ratio": Column(value=_field("macs_ratio"), words=percent),
    "num_params": Column(value=_field("num_params"), words=count),
    "size_bytes": Column(
        value=lambda record: record.variant.files["onnx"].size_bytes, words=megabytes
    ),
    "zeros": Column(value=lambda record: record.zero_share, words=lambda v: percent(v, 2)),
    "burden": Column(value=_metric("burden"), words=ratio),
    "burden_null": Column(value=_metric("burden_null"), words=ratio),
    "takeover": Column(value=_metric("takeover"), words=_plain_share),
    "selection": Column(value=_metric("selection"), words=ratio),
    "residual": Column(value=_metric("residual"), words=_plain_share),
    "seed": Column(value=lambda record: record.variant.provenance.seed, words=str),
    "commit": Column(
        value=lambda record: record.variant.provenance.commit[:7], words=str, number=False
    ),
    "sha256": Column(
        value=lambda record: record.variant.files["onnx"].sha256[:SHORT_HASH],
        words=str,
        number=False,
    ),
}


def ledger(records: Sequence[Record]) -> str:
    """The table; `ON_CLICK` sorts it and opens what is told below a row."""
    heads = f'<th scope="col">{_sorter(text.MODEL, "")}</th>' + "".join(
        f'<th scope="col"{" data-number" if COLUMNS[name].number else ""}>'
        f"{_sorter(label, meaning)}</th>"
        for name, (label, meaning) in text.COLUMNS.items()
    )
    bodies = "".join(_row(record) for record in records)
    return (
        f'<div class="nb-scroll" tabindex="0" role="region" aria-label="{escape(text.LEDGER)}">'
        f'<table class="nb-ledger"><thead><tr>{heads}</tr></thead>{bodies}</table></div>'
    )


def _sorter(label: str, meaning: str) -> str:
    tip = f'<span class="nb-tip" aria-hidden="true">{escape(meaning)}</span>' if meaning else ""
    said = f"{text.SORT_BY.format(label=label)}. {meaning}".strip()
    return (
        f'<button type="button" class="nb-sort" aria-label="{escape(said)}">'
        f"{escape(label)}{tip}</button>"
    )


def _row(record: Record) -> str:
    title = escape(record.info.title)
    cells = "".join(_cell(record, name, column) for name, column in COLUMNS.items())
    said = escape(text.DETAILS.format(title=record.info.title))
    return (
        f'<tbody data-variant="{escape(record.id)}"><tr><th scope="row" data-value="{title}">'
        f'<button type="button" class="nb-open" aria-expanded="false" title="{said}">{title}'
        f"</button></th>{cells}</tr>"
        f'<tr class="nb-more" hidden><td colspan="{len(COLUMNS) + 1}">{_facts(record)}</td></tr>'
        "</tbody>"
    )


def _cell(record: Record, name: str, column: Column) -> str:
    value = column.value(record)
    words = MISSING if value is None else column.words(value)
    extra = ""
    if name == "top1" and record.top1_range:
        low, high = record.top1_range
        extra = f"<small>{percent(low)} – {percent(high)}</small>"
    shown = "" if value is None else value
    return f'<td data-column="{name}" data-value="{escape(str(shown))}">{escape(words)}{extra}</td>'


def _facts(record: Record) -> str:
    variant, made = record.variant, record.variant.provenance
    exported = made.export
    merge = variant.merge
    values = {
        "id": variant.id,
        "base": variant.base,
        "pruner": variant.pruner,
        "mitigation": variant.mitigation,
        "merge": merge and text.MERGE.format(r=merge.r, layer=merge.block + 1),
        "command": made.command,
        "seed": made.seed,
        "commit": made.commit,
        "device": made.device,
        "versions": _versions(made.versions),
        "export_command": exported and exported.command,
        "export_commit": exported and exported.commit,
        "export_device": exported and exported.device,
        "export_versions": exported and _versions(exported.versions),
    }
    told = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(str(values[name]))}</dd>"
        for name, label in text.FACTS.items()
        if values[name] is not None
    )
    body = f"<dl>{told}</dl>{_metrics(variant.metrics)}{_files(record)}"
    return f'<div class="nb-told">{body}</div>'


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _metrics(values: Mapping[str, Any]) -> str:
    known = {metric.name: metric for metric in METRICS}
    rows = ""
    for name, value in values.items():
        metric = known.get(name)
        better = text.BETTER[metric.better] if metric else ""
        unit = ", ".join(part for part in (metric.unit if metric else "", better) if part)
        rows += (
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(_plain(value))}</td>'
            f"<td>{escape(unit)}</td></tr>"
        )
    return f"<table><caption>{escape(text.METRIC)}</caption><tbody>{rows}</tbody></table>"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(item) for item in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _files(record: Record) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(kind)}</th><td>{entry.size_bytes:,}</td>'
        f"<td><code>{escape(entry.sha256)}</code></td></tr>"
        for kind, entry in record.variant.files.items()
    )
    return f"<table><caption>{escape(text.FILES)}</caption><tbody>{rows}</tbody></table>"
