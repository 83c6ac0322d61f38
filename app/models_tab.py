"""The Models tab: where each model comes from, what it costs, what it kept, how its loads rose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from app import ledger
from app import text_models as text
from app.arguments import in_plain_words
from app.benches import Setting
from app.controls import html
from app.errors import UserError
from app.family import family
from app.kept_units import kept_units
from app.load_history import load_history
from app.records import Record
from app.service import Service
from app.tabs import HIDDEN, Compare, Connect, Tab
from app.tradeoff import against_macs, against_time, against_time_there, setting_words

FILLED = ("family", "ledger", "macs", "kept")
PER = ((text.PER_UNIT, "unit"), (text.PER_SITE, "site"))


def lay_out(service: Service) -> Connect:
    """Place the tab's components; nothing is drawn before somebody opens it."""
    view = _View(service)
    parts = {"dataset": _datasets(service)}
    for name, title, shows in (
        ("family", text.FAMILY, text.FAMILY_SHOWS),
        ("ledger", text.LEDGER, text.LEDGER_SHOWS),
    ):
        _heading(title, shows, name)
        parts[name] = html(WAITING, name, js=ledger.ON_CLICK if name == "ledger" else None)
    _heading(text.TRADE, text.TRADE_SHOWS, "trade")
    with gr.Row(elem_classes="nb-panels"):
        with gr.Column(min_width=320):
            parts["macs"] = html(WAITING, "macs")
        with gr.Column(min_width=320):
            parts["time"] = html(WAITING, "time")
            parts["again"] = gr.Button(text.MEASURE_AGAIN, size="sm", elem_id="nb-again")
    parts |= _benches(view)
    _heading(text.KEPT, text.KEPT_SHOWS, "kept")
    parts["kept"] = html(WAITING, "kept")
    _heading(text.TIMELINE, text.TIMELINE_SHOWS, "history")
    with gr.Row(elem_classes="nb-options"):
        parts["model"] = gr.Dropdown(
            [], label=text.TIMELINE_MODEL, elem_id="nb-history-model", scale=1, min_width=260
        )
        parts["per"] = gr.Radio(
            PER, value="unit", label=text.TIMELINE_PER, elem_id="nb-history-per", scale=2
        )
    parts["history"] = html(WAITING, "history")
    return lambda compare, tab: _connect(view, parts, compare, tab)


WAITING = '<div class="nb-skeleton" aria-hidden="true"></div>'
TAB = Tab(id="models", title=text.MODELS, lay_out=lay_out)


def _heading(title: str, shows: str, name: str) -> None:
    html(f'<h2>{escape(title)}</h2><p class="nb-note">{escape(shows)}</p>', f"{name}-title")


def _datasets(service: Service) -> gr.Radio:
    infos = service.variants()
    compared = [info.dataset for info in infos if info.is_default]
    # First the data set whose models Compare shows.
    names = list(dict.fromkeys([*compared, *(info.dataset for info in infos)]))
    return gr.Radio(
        names,
        value=names[0] if names else None,
        label=text.DATASET,
        visible=len(names) > 1,
        elem_id="nb-models-dataset",
    )


def _benches(view: _View) -> dict[str, Any]:
    """What was measured on other machines; not there where nothing was."""
    benches = view.service.benches()
    shown = bool(benches)
    with gr.Row(elem_classes="nb-options", visible=shown):
        bench = gr.Dropdown(
            [(one.device, one.name) for one in benches],
            value=benches[0].name if shown else None,
            label=text.BENCH,
            elem_id="nb-bench",
            min_width=260,
        )
        choices = view.settings(bench.value)
        setting = gr.Dropdown(
            choices,
            value=choices[0][1] if choices else None,
            label=text.SETTING,
            elem_id="nb-setting",
            scale=2,
            min_width=260,
        )
    return {"bench": bench, "setting": setting, "there": html("", "there")}


def _connect(view: _View, parts: Mapping[str, Any], compare: Compare, tab: gr.Tab) -> None:
    dataset, model, per = parts["dataset"], parts["model"], parts["per"]
    asked = [tab.select, dataset.input]

    def on(events: Sequence[Any], answer: Callable[..., Any], *, of: Any, to: Any) -> None:
        gr.on(events, in_plain_words(answer), of, to, **HIDDEN)

    on(asked, view.fill, of=dataset, to=[parts[name] for name in FILLED])
    on(asked, view.choose, of=[dataset, model], to=model)
    on(asked, view.first_history, of=[dataset, model, per], to=parts["history"])
    on([model.input, per.input], view.history, of=[model, per], to=parts["history"])
    there = [dataset, parts["bench"], parts["setting"]]
    on([*asked, parts["setting"].input], view.there, of=there, to=parts["there"])
    on(
        [parts["bench"].input],
        view.pick_bench,
        of=there[:2],
        to=[parts["setting"], parts["there"]],
    )
    gr.on(asked, in_plain_words(view.measure), dataset, parts["time"], **compare.work)
    parts["again"].click(in_plain_words(view.measure_again), dataset, parts["time"], **compare.work)


class _View:
    """What the events of the tab show."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def records(self, dataset: str | None) -> list[Record]:
        """Models of one dataset."""
        found = self.service.records()
        return [r for r in found if dataset is None or r.variant.dataset == dataset]

    def fill(self, dataset: str | None) -> tuple[str, ...]:
        """All that is known without running a model."""
        records = self.records(dataset)
        return (
            family(records, dataset=dataset or ""),
            ledger.ledger(records),
            against_macs(records),
            kept_units(records),
        )

    def measure(self, dataset: str | None, *, again: bool = False) -> Iterator[str]:
        """Times of all models of a dataset, measured if they are not known."""
        records = self.records(dataset)
        ids = [r.id for r in records]
        if again or not set(ids) <= set(self.service.stopwatch.known()):
            yield f'<p class="nb-note" role="status">{escape(text.MEASURING)}</p>{WAITING}'
        yield against_time(records, self.service.latencies(ids, again=again))

    def measure_again(self, dataset: str | None) -> Iterator[str]:
        """Times anew."""
        yield from self.measure(dataset, again=True)

    def choose(self, dataset: str | None, model: str | None) -> Any:
        """The models whose training can be shown."""
        records = self.records(dataset)
        choices = [(r.info.title, r.id) for r in records]
        return gr.update(choices=choices, value=_chosen(records, model))

    def first_history(self, dataset: str | None, model: str | None, per: str) -> str:
        """The chosen model's training, or that of the first pruned one."""
        return self.history(_chosen(self.records(dataset), model), per)

    def history(self, model: str | None, per: str) -> str:
        """One model's training."""
        record = next((r for r in self.records(None) if r.id == model), None)
        if record is None:
            return f'<p class="nb-note">{escape(text.NO_HISTORY)}</p>'
        try:
            timeline = self.service.timeline(record.id)
        except UserError as error:
            return f'<p class="nb-failure">{escape(str(error))}</p>'
        return load_history(record, timeline, per_unit=per == "unit")

    def settings(self, bench: str | None) -> list[tuple[str, str]]:
        """Words and names of the settings of a bench."""
        found = next((one for one in self.service.benches() if one.name == bench), None)
        if found is None:
            return []
        return [
            (setting_words(found, s), _name(s))
            for s in sorted(found.timings, key=lambda s: (s.contender != "served", s.batch))
        ]

    def there(self, dataset: str | None, bench: str | None, setting: str | None) -> str:
        """Times as a bench file has them; nothing where there is no such file."""
        found = next((one for one in self.service.benches() if one.name == bench), None)
        if found is None:
            return ""
        chosen = next((s for s in found.timings if _name(s) == setting), None)
        return "" if chosen is None else against_time_there(self.records(dataset), found, chosen)

    def pick_bench(self, dataset: str | None, bench: str | None) -> tuple[Any, str]:
        """The settings of another bench, and its first one drawn."""
        choices = self.settings(bench)
        first = choices[0][1] if choices else None
        return gr.update(choices=choices, value=first), self.there(dataset, bench, first)


def _name(setting: Setting) -> str:
    return f"{setting.contender}/{setting.precision}/{setting.batch}/{setting.place}"


def _chosen(records: Sequence[Record], model: str | None) -> str | None:
    ids = [r.id for r in records]
    if model in ids:
        return model
    pruned = [r.id for r in records if r.variant.base is not None]
    return next(iter(pruned or ids), None)
