"""A study as HTML: what was run, verdicts, trials and the report's figures."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app import text_study as text
from app.amounts import percent
from app.markup import term
from app.studies import Figure, Study, Topic

MEASURED = ("val_loss", "val_top1")
CODE = re.compile(r"`([^`]*)`")
EMPHASIS = re.compile(r"\*([^*]+)\*")
# A browser opens no picture that lies in its own address, so that gets one of this page.
OPEN_FIGURES = """const address = (event) => {
  const link = event.target.closest('.nb-figures a');
  if (!link || link.href.startsWith('blob:')) return;
  const code = link.querySelector('img').src.split(',')[1];
  const bytes = Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0));
  link.href = URL.createObjectURL(new Blob([bytes], {type: 'image/png'}));
};
['pointerover', 'focusin', 'click'].forEach((name) => element.addEventListener(name, address));"""
TABLES = re.compile(r"^\|.*\n(?:\|.*(?:\n|$))+", re.MULTILINE)
PICTURES = re.compile(r"!\[[^\]]*\]\([^)]*\)\n*")


def verdicts(study: Study) -> str:
    """Every claim with its verdict and the numbers behind it; trials in a study that chooses."""
    if not study.topics:
        words = text.NO_CLAIMS if study.trials else text.NO_VERDICTS
        return f'<p class="nb-note">{escape(words)}</p>{_trials(study.trials)}'
    found = Counter(claim.verdict for topic in study.topics for claim in topic.claims)
    chips = "".join(
        f'<li class="{_kind(verdict)}" title="{escape(meaning)}">{_sign(verdict)} '
        f"{escape(text.COUNT.format(count=found[verdict], verdict=verdict))}</li>"
        for verdict, meaning in text.MEANINGS.items()
    )
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>' for head in (text.CLAIM, text.VERDICT, text.NUMBERS)
    )
    bodies = "".join(_topic(topic) for topic in study.topics)
    words = "".join(f"<span>{term(word, meaning)}</span>" for word, meaning in text.TERMS.items())
    return (
        f'<ul class="nb-chips">{chips}</ul>'
        f'<p class="nb-legend-line">{escape(text.WORDS)} {words}</p>'
        f'<table class="nb-verdicts"><thead><tr>{heads}</tr>'
        f"</thead>{bodies}</table>{_details(text.RULE, f'<p>{_prose(study.rule)}</p>')}"
    )


def _topic(topic: Topic) -> str:
    rows = "".join(
        f"<tr><td>{_prose(claim.sentence)}</td>"
        f'<td class="nb-verdict {_kind(claim.verdict)}">{_sign(claim.verdict)} '
        f"{escape(claim.verdict)}</td><td>{_prose(claim.numbers)}</td></tr>"
        for claim in topic.claims
    )
    return (
        f'<tbody><tr><th scope="rowgroup" colspan="3">{escape(topic.title)}</th></tr>{rows}</tbody>'
    )


def _sign(verdict: str) -> str:
    return f'<i aria-hidden="true">{escape(text.SIGNS.get(verdict, ""))}</i>'


def _kind(verdict: str) -> str:
    return f"nb-{verdict.replace(' ', '-')}" if verdict in text.SIGNS else ""


def _prose(words: str) -> str:
    """Text of the report: `names` as code, *words* stressed, all else as it is."""
    return EMPHASIS.sub(r"<em>\1</em>", CODE.sub(r"<code>\1</code>", escape(words)))


def _details(title: str, body: str) -> str:
    return f'<details class="nb-details"><summary>{escape(title)}</summary>{body}</details>'


def _trials(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col">{escape(words)}</th>' for words in text.TRIAL_COLUMNS.values()
    )
    body = "".join(
        f"<tr{' class=nb-chosen' if row['chosen'] else ''}>"
        + "".join(f"<td>{escape(_trial(row, key))}</td>" for key in text.TRIAL_COLUMNS)
        + "</tr>"
        for row in rows
    )
    return (
        f'<h3>{escape(text.TRIALS)}</h3><p class="nb-note">{escape(text.TRIALS_SHOWS)}</p>'
        f'<div class="nb-scroll" tabindex="0" role="region" aria-label="{escape(text.TRIALS)}">'
        f'<table class="nb-verdicts"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _trial(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if key == "chosen":
        return text.CHOSEN if value else ""
    if key not in MEASURED:
        return str(value)
    words = percent(value, 2) if key == "val_top1" else f"{value:.4f}"
    return words if row.get("complete", True) else text.NOT_COMPARED.format(value=words)


def facts(study: Study) -> str:
    """What was run, on what, by which command."""
    items = "".join(f"<li>{_prose(fact)}</li>" for fact in study.facts)
    return _details(text.FACTS, f"<ul>{items}</ul>") if items else ""


def figures(study: Study) -> str:
    """The report's figures with their captions; `OPEN_FIGURES` lets a click open them alone."""
    shown = "".join(_figure(figure) for figure in study.figures)
    title = f"<h2>{escape(text.FIGURES)}</h2>"
    return f'{title}<div class="nb-figures">{shown}</div>' if shown else ""


def _figure(figure: Figure) -> str:
    code = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    name = figure.path.stem.replace("_", " ")
    alt = text.FIGURE_ALT.format(name=name, caption=figure.caption)
    return (
        f'<figure><a href="#nb-figures-block" target="_blank" title="{escape(text.FULL_SIZE)}">'
        f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}"></a>'
        f"<figcaption>{_prose(figure.caption)}</figcaption></figure>"
    )


def report_words(study: Study) -> str:
    """The report without its pictures, which are shown apart; tables scroll in their own boxes."""
    box = f'<div class="nb-scroll" tabindex="0" role="region" aria-label="{escape(text.TABLE)}">'
    return TABLES.sub(rf"{box}\n\n\g<0>\n\n</div>\n", PICTURES.sub("", study.report))
