"""The Study tab: verdicts, every run of a choice, the report's figures, and the tables behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from app import study_view
from app import text_study as text
from app.amounts import percent
from app.arguments import in_plain_words
from app.arm_plot import arm_plot, host_words
from app.arms import ORDER, TEST_COLUMNS, Choice, measures_of
from app.controls import html
from app.errors import UserError
from app.service import Service
from app.studies import Study
from app.styles import mitigation_words
from app.tabs import HIDDEN, Connect, Tab

ALL = "*"
"""Value of a menu's entry for everything; no host or mitigation has this name."""
PICKS = ("host", "budget", "mitigation")
COLUMNS = {"host": "pruner", "budget": "target_macs_ratio", "mitigation": "mitigation"}
FILLED = ("verdicts", "facts", "figures", "runs", "report")


def lay_out(service: Service) -> Connect:
    """Place the tab's components; nothing is read before somebody opens it."""
    names = service.study_names()
    _heading(text.STUDY, text.STUDY_SHOWS if names else text.NO_STUDIES, "study")
    parts: dict[str, Any] = {}
    with gr.Column(visible=bool(names)):
        parts["study"] = gr.Radio(
            list(names),
            value=names[0] if names else None,
            label=text.CHOOSE,
            elem_id="nb-study",
        )
        parts["facts"] = html("", "facts")
        _heading(text.VERDICTS, "", "verdicts")
        parts["verdicts"] = html("", "verdicts")
        _heading(text.ARMS, text.ARMS_SHOWS, "arms")
        with gr.Row(elem_classes="nb-options"):
            for name, label in (
                ("measure", text.MEASURE),
                ("host", text.HOST),
                ("budget", text.BUDGET),
                ("mitigation", text.MITIGATION),
            ):
                parts[name] = gr.Dropdown(
                    [], label=label, elem_id=f"nb-arm-{name}", min_width=180, scale=1
                )
        parts["arms"] = html("", "arms")
        parts["figures"] = html("", "figures", js=study_view.OPEN_FIGURES)
        with gr.Accordion(text.RUNS, open=False, elem_id="nb-runs"):
            html(f'<p class="nb-note">{escape(text.RUNS_SHOWS)}</p>', "runs-note")
            parts["runs"] = gr.Dataframe(
                interactive=False, show_search="filter", elem_id="nb-runs-table", max_height=420
            )
        with gr.Accordion(text.REPORT, open=False, elem_id="nb-report"):
            parts["report"] = gr.Markdown("", elem_id="nb-report-text")
    view = _View(service)
    return lambda compare, tab: _connect(view, parts, tab)


TAB = Tab(id="study", title=text.STUDY, lay_out=lay_out)


def _heading(title: str, shows: str, name: str) -> None:
    note = f'<p class="nb-note">{escape(shows)}</p>' if shows else ""
    html(f"<h2>{escape(title)}</h2>{note}", f"{name}-title")


def _connect(view: _View, parts: Mapping[str, Any], tab: gr.Tab) -> None:
    study = parts["study"]
    asked = [tab.select, study.input]
    menus = [parts[name] for name in ("measure", *PICKS)]
    gr.on(asked, in_plain_words(view.fill), study, [parts[name] for name in FILLED], **HIDDEN)
    gr.on(
        asked,
        in_plain_words(view.menus),
        [study, *menus],
        [*menus, parts["arms"]],
        **HIDDEN,
    )
    gr.on(
        [menu.input for menu in menus],
        in_plain_words(view.arms),
        [study, *menus],
        parts["arms"],
        **HIDDEN,
    )


class _View:
    """What the events of the tab show."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def fill(self, name: str | None) -> tuple[Any, ...]:
        """All parts that no menu changes."""
        if name is None:
            raise UserError(text.NO_STUDIES)
        study = self.service.study(name)
        return (
            study_view.verdicts(study),
            study_view.facts(study),
            study_view.figures(study),
            runs_table(study),
            study_view.report_words(study),
        )

    def menus(self, name: str | None, *chosen: str | None) -> tuple[Any, ...]:
        """The menus of a study, what was chosen before kept where it is still there."""
        if name is None:
            raise UserError(text.NO_STUDIES)
        study = self.service.study(name)
        menus = menus_of(study)
        values = [
            value if value in [known for _, known in choices] else first
            for (choices, first), value in zip(menus, chosen, strict=True)
        ]
        updates = [
            gr.update(choices=choices, value=value)
            for (choices, _), value in zip(menus, values, strict=True)
        ]
        return *updates, arm_plot(study, choice_of(*values))

    def arms(self, name: str, *chosen: str) -> str:
        """The rows of a choice."""
        return arm_plot(self.service.study(name), choice_of(*chosen))


def choice_of(measure: str, *picks: str) -> Choice:
    """What the menus say."""
    host, budget, mitigation = (None if pick == ALL else pick for pick in picks)
    return Choice(measure=measure, host=host, budget=budget, mitigation=mitigation)


def menus_of(study: Study) -> list[tuple[list[tuple[str, str]], str]]:
    """Entries and first value of each menu: measure, host, budget, mitigation."""
    measures = [(text.MEASURES[name][0], name) for name in measures_of(study)]
    words = {
        "host": host_words,
        "budget": lambda value: percent(float(value), 0),
        "mitigation": mitigation_words,
    }
    menus: list[tuple[list[tuple[str, str]], str]] = [(measures, measures[0][1])]
    pruned = [row for row in study.runs if row["pruner"] not in ORDER] or list(study.runs)
    firsts = (
        {
            "host": pruned[0]["pruner"],
            # The smallest budget shows most.
            "budget": min(
                (r["target_macs_ratio"] for r in pruned if r["pruner"] == pruned[0]["pruner"]),
                key=float,
            ),
            "mitigation": ALL,
        }
        if pruned
        else dict.fromkeys(PICKS, ALL)
    )
    # The summary is in the order of the grid, runs are in that in which they were finished.
    ordered = [*study.summary, *study.runs]
    for name in PICKS:
        found = list(dict.fromkeys(row[COLUMNS[name]] for row in ordered))
        if name == "budget":
            found.sort(key=float, reverse=True)
        entries = [(text.ALL, ALL), *((words[name](value), value) for value in found)]
        menus.append((entries, firsts[name]))
    return menus


def runs_table(study: Study) -> dict[str, Sequence[Any]]:
    """`runs.csv` under the headings of the page; no test figure where the report shows none."""
    hidden = () if study.summary else TEST_COLUMNS
    columns = [name for name in text.RUN_COLUMNS if name not in hidden]
    return {
        "headers": [text.RUN_COLUMNS[name] for name in columns],
        "data": [[_cell(row.get(name, "")) for name in columns] for row in study.runs],
    }


def _cell(words: str) -> Any:
    """A number where the table has one, so that it sorts as one."""
    try:
        value = float(words)
    except ValueError:
        return words
    return int(value) if value.is_integer() and "." not in words else value
