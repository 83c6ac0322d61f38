"""Provenance as a tree: dense -> host -> mitigation, drawn by the style sheet from nested lists."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app import text_models as text
from app.amounts import percent
from app.markup import term
from app.records import Record
from app.styles import PLAIN, Styles, host_words, mitigation_words


def family(records: Sequence[Record], *, dataset: str) -> str:
    """The tree of one dataset's models; those whose base is not served stand apart."""
    styles, ids = Styles(records), {r.id for r in records}
    roots = [r for r in records if r.variant.base is None]
    trees = "".join(
        f"<li>{_leaf(root, text.DENSE, '', styles)}"
        f"{_hosts([r for r in records if r.variant.base == root.id], styles)}</li>"
        for root in roots
    )
    orphans = [r for r in records if r.variant.base is not None and r.variant.base not in ids]
    if orphans:
        trees += f"<li>{_node(text.ORPHANS)}{_hosts(orphans, styles)}</li>"
    alt = escape(text.FAMILY_ALT.format(dataset=dataset))
    return f'<ul class="nb-tree" aria-label="{alt}">{trees}</ul>'


def _hosts(children: Sequence[Record], styles: Styles) -> str:
    groups: dict[str | None, list[Record]] = {}
    for record in children:
        groups.setdefault(record.variant.pruner, []).append(record)
    items = "".join(
        f"<li>{_node(_named(_host(host), text.HOSTS.get(host or '')))}"
        f"{_leaves(members, styles)}</li>"
        for host, members in groups.items()
    )
    return f"<ul>{items}</ul>" if items else ""


def _leaves(members: Sequence[Record], styles: Styles) -> str:
    places = {name: place for place, name in enumerate(styles.mitigations)}
    ordered = sorted(
        members,
        key=lambda r: (-round(r.variant.macs_ratio, 2), places[r.variant.mitigation or PLAIN]),
    )
    items = []
    for record in ordered:
        name = record.variant.mitigation
        words = text.LEAF.format(
            ratio=percent(record.variant.macs_ratio, 0), mitigation=mitigation_words(name)
        )
        items.append(f"<li>{_leaf(record, words, _meaning(name), styles)}</li>")
    return f"<ul>{''.join(items)}</ul>"


def _meaning(mitigation: str | None) -> str:
    """What each part of a mitigation does; nothing where a part is unknown."""
    parts = [text.MITIGATIONS.get(part) for part in (mitigation or "").split("+")]
    return "; ".join(part for part in parts if part) if all(parts) else ""


def _host(name: str | None) -> str:
    return text.NO_PRUNER if name is None else host_words(name)


def _named(words: str, meaning: str | None) -> str:
    return term(words, meaning) if meaning else escape(words)


def _node(content: str) -> str:
    return f'<span class="nb-node">{content}</span>'


def _leaf(record: Record, words: str, meaning: str, styles: Styles) -> str:
    right = "" if record.top1 is None else f"<b>{percent(record.top1)}</b>"
    swatch = f'<i class="nb-swatch {styles.of(record)}"></i>'
    named = _named(words, meaning)
    return f'<span class="nb-node" data-variant="{escape(record.id)}">{swatch}{named}{right}</span>'
