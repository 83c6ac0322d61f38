"""The Flips tab: photos on which models differ, and what that adds up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from app import flips_view
from app import text_flips as text
from app.arguments import in_plain_words
from app.controls import html
from app.errors import UserError
from app.flip_photo import open_packed
from app.flips import PATTERNS, Chapter, Pattern, Query, Trio, applicable, find, orders, summarize
from app.markup import problem
from app.service import Service
from app.tabs import HIDDEN, Compare, Connect, Tab

PAGE = 24
"""Photos shown at once."""
WHO = ("dataset", "pruned", "mitigated")
WHICH = (
    *("pattern", "class_name", "of", "sort", "min_confidence", "max_confidence"),
    *("min_burden", "max_burden", "packed"),
)
SHOWN = ("found", "tiles", "previous", "next", "page")
OPENED = (*WHO[1:], "class_name", "refused", "credit")
RETOLD = ("pattern", "of", "min_burden", "max_burden", "names", "summary")
BURDEN_STEP = 0.05
# Menus are filled when the tab is opened; a server that forgot that session still takes its values.
EVENT = HIDDEN | {"preprocess": False}
NONE = ""
"""Value of the menu entry that stands for no mitigated model, or for any class."""


def lay_out(service: Service) -> Connect:
    """Place the tab's components; nothing is read before somebody opens it."""
    skip = f'<a class="nb-skip" href="#nb-flips-found-block">{escape(text.TO_PHOTOS)}</a>'
    html(f'<p class="nb-note">{escape(text.LEAD)} {skip}</p>', "flips-lead")
    with gr.Row(elem_classes="nb-two"):
        with gr.Column(elem_classes="nb-left-column", scale=0, min_width=300):
            parts = _controls(service)
        with gr.Column(elem_classes="nb-right-column", scale=1, min_width=280):
            parts |= _results(flips_view.waiting(_expected(service), photos=PAGE))
    for name in ("summary", "credit", "refused"):
        parts[name] = html("", f"flips-{name}")
    return lambda compare, tab: _Wiring(service, parts).connect(compare, tab)


def _controls(service: Service) -> dict[str, Any]:
    datasets = service.flips.datasets()
    parts: dict[str, Any] = {
        "dataset": gr.Radio(
            list(datasets),
            value=service.flips.default_dataset(),
            label=text.DATASET,
            visible=len(datasets) > 1,
            elem_id="nb-flips-dataset",
        )
    }
    for name, label, info in (
        ("pruned", text.PRUNED, text.PRUNED_HINT),
        ("mitigated", text.MITIGATED, text.MITIGATED_HINT),
    ):
        parts[name] = gr.Dropdown([], label=label, info=info, elem_id=f"nb-flips-{name}")
    # Named before they are counted, so that what stands below does not move then.
    several = "mitigated" in _expected(service)
    entries = sorted((PATTERNS[name] for name in PATTERNS), key=lambda entry: entry.place)
    parts["pattern"] = gr.Radio(
        [
            (_pattern_words(entry, text.NOT_COUNTED), entry.name)
            for entry in entries
            if several or not entry.needs_mitigated
        ],
        label=text.PATTERN,
        info=text.PATTERN_HINT,
        interactive=False,
        elem_id="nb-flips-pattern",
    )
    parts["class_name"] = gr.Dropdown([], label=text.CLASS, elem_id="nb-flips-class")
    parts["sort"] = gr.Dropdown(
        [(entry.title, entry.name) for entry in orders()],
        value=orders()[0].name,
        label=text.SORT,
        elem_id="nb-flips-sort",
    )
    with gr.Accordion(text.NARROW, open=False, elem_id="nb-flips-narrow"):
        parts["of"] = gr.Radio(
            [(words, role) for role, words in text.ROLES.items()],
            value="pruned",
            label=text.OF,
            info=text.OF_HINT,
            elem_id="nb-flips-of",
        )
        for name, label, value in (
            ("min_confidence", text.MIN_CONFIDENCE, 0.0),
            ("max_confidence", text.MAX_CONFIDENCE, 1.0),
        ):
            parts[name] = gr.Slider(
                0, 1, value=value, step=0.01, label=label, elem_id=f"nb-flips-{name}"
            )
        for name, label, info in (
            ("min_burden", text.MIN_BURDEN, text.BURDEN_HINT),
            ("max_burden", text.MAX_BURDEN, ""),
        ):
            parts[name] = gr.Slider(
                0, 4, value=0, step=BURDEN_STEP, label=label, info=info, elem_id=f"nb-flips-{name}"
            )
    parts["packed"] = gr.Checkbox(True, label=text.PACKED, elem_id="nb-flips-packed")
    return parts


def _expected(service: Service) -> dict[str, str]:
    """Titles of the models that will be held against each other first, by role."""
    titles = {info.id: info.title for info in service.variants()}
    chosen = [titles[name] for name in service.default_variants()]
    return dict(zip(text.ROLES, chosen, strict=False))


def _pattern_words(entry: Pattern, count: int | str) -> str:
    name = text.PATTERN_NAMES.get(entry.name, "")
    return text.PATTERN_COUNT.format(name=name, title=entry.title, count=count)


def _results(waiting: Mapping[str, str]) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "found": html(waiting["found"], "flips-found"),
        "names": html(waiting["names"], "flips-names"),
        "tiles": html(waiting["tiles"], "flips-tiles", js=flips_view.ON_CLICK),
        "page": gr.State(0),
        "opening": gr.State(None),
    }
    with gr.Row(elem_classes="nb-options"):
        for name, label in (("previous", text.PREVIOUS), ("next", text.NEXT)):
            parts[name] = gr.Button(label, size="sm", interactive=False, elem_id=f"nb-flips-{name}")
    return parts


class _Wiring:
    """What happens when a visitor touches something."""

    def __init__(self, service: Service, parts: Mapping[str, Any]) -> None:
        self.service = service
        self.parts = parts

    def connect(self, compare: Compare, tab: gr.Tab) -> None:
        """Attach every event of the tab."""
        parts = self.parts
        asked = self.named(*WHO, *WHICH)
        latest = EVENT | {"trigger_mode": "always_last"}
        gr.on(
            [tab.select, parts["dataset"].input],
            in_plain_words(self.open),
            asked,
            self.named(*OPENED, *RETOLD, *SHOWN),
            **EVENT,
        )
        gr.on(
            [parts["pruned"].input, parts["mitigated"].input],
            in_plain_words(self.retell),
            asked,
            self.named(*RETOLD, *SHOWN),
            **EVENT,
        )
        touched = [parts[name].input for name in WHICH]
        shown = self.named(*SHOWN)
        gr.on(touched, in_plain_words(self.first_page), asked, shown, **latest)
        for name, step in (("previous", -1), ("next", 1)):
            turned = in_plain_words(self.turned_by(step))
            parts[name].click(turned, [*asked, parts["page"]], shown, **EVENT)
        picked = parts["tiles"].select(
            in_plain_words(self.pick), self.named(*WHO), parts["opening"], **EVENT
        )
        compare.open_after(picked, parts["opening"])

    def named(self, *names: str) -> list[Any]:
        """Components by name."""
        return [self.parts[name] for name in names]

    def updates(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Values by name -> values by component."""
        return {self.parts[name]: value for name, value in values.items()}

    def open(self, dataset: str, pruned: str, mitigated: str, *which: Any) -> dict[Any, Any]:
        """Menus and all answers of a data set; what was chosen before stays where it can."""
        try:
            chapter = self.service.flips.chapter(dataset)
        except UserError as error:
            none = {"names": "", "summary": "", "credit": "", "refused": ""}
            none |= {"pattern": gr.update(choices=[], value=None)}
            return self.updates(none | _problem(error))
        infos = chapter.pruned()
        titles = [(info.title, info.id) for info in infos]
        chosen = [info.id for info in infos]
        if pruned not in chosen:
            plain, other = chapter.default_ids()
            pruned, mitigated = plain, other or NONE
        if mitigated not in chosen:
            mitigated = NONE
        asked = _asked(which)
        if asked["class_name"] not in chapter.classes:
            asked["class_name"] = NONE
        classes = [(text.ANY_CLASS, NONE), *((name, name) for name in chapter.classes)]
        menus = {
            "pruned": gr.update(choices=titles, value=pruned),
            "mitigated": gr.update(choices=[(text.NO_MITIGATED, NONE), *titles], value=mitigated),
            "class_name": gr.update(choices=classes, value=asked["class_name"]),
            "refused": flips_view.refused(chapter.refused),
            "credit": flips_view.credit(chapter),
        }
        return self.updates(menus | self._retold(chapter, pruned, mitigated, asked))

    def retell(self, dataset: str, pruned: str, mitigated: str, *which: Any) -> dict[Any, Any]:
        """Everything that depends on the models."""
        try:
            chapter = self.service.flips.chapter(dataset)
            return self.updates(self._retold(chapter, pruned, mitigated, _asked(which)))
        except UserError as error:
            return self.updates({"names": "", "summary": ""} | _problem(error))

    def _retold(
        self, chapter: Chapter, pruned: str, mitigated: str, asked: dict[str, Any]
    ) -> dict[str, Any]:
        trio = _trio(chapter, pruned, mitigated)
        counted = summarize(chapter, trio)
        entries = applicable(trio)
        if asked["pattern"] not in [entry.name for entry in entries]:
            asked["pattern"] = next(e.name for e in entries if counted.counts[e.name])
        if asked["of"] not in trio.voices:
            asked["of"] = "pruned"
        most = most_burden(trio)
        asked |= {"min_burden": None, "max_burden": None}
        choices = [(_pattern_words(e, counted.counts[e.name]), e.name) for e in entries]
        roles = [(text.ROLES[role], role) for role in trio.voices]
        return {
            "pattern": gr.update(choices=choices, value=asked["pattern"], interactive=True),
            "of": gr.update(choices=roles, value=asked["of"]),
            "min_burden": gr.update(maximum=most, value=0),
            "max_burden": gr.update(maximum=most, value=most),
            "names": flips_view.legend(trio),
            "summary": flips_view.summary(trio, counted),
        } | _shown(chapter, trio, asked, 0)

    def first_page(self, *values: Any) -> dict[Any, Any]:
        """Photos from the first on."""
        return self.page(values, 0)

    def turned_by(self, step: int) -> Any:
        """Photos some pages further."""

        def turned(*values: Any) -> dict[Any, Any]:
            return self.page(values[:-1], max(0, values[-1] + step))

        return turned

    def page(self, values: Sequence[Any], number: int) -> dict[Any, Any]:
        """One page of photos."""
        dataset, pruned, mitigated, *which = values
        try:
            chapter = self.service.flips.chapter(dataset)
            trio = _trio(chapter, pruned, mitigated)
            asked = _asked(which)
            most = most_burden(trio)
            # The ends of the slider stand for no limit, so that photos without a burden match.
            asked["min_burden"] = asked["min_burden"] or None
            if asked["max_burden"] is not None and asked["max_burden"] >= most:
                asked["max_burden"] = None
            return self.updates(_shown(chapter, trio, asked, number))
        except UserError as error:
            return self.updates(_problem(error))

    def pick(
        self, dataset: str, pruned: str, mitigated: str, event: gr.EventData
    ) -> tuple[str, list[str]]:
        """File of the photo that was clicked, and the models it is to be compared by."""
        chapter = self.service.flips.chapter(dataset)
        trio = _trio(chapter, pruned, mitigated)
        path = open_packed(self.service, chapter, int(event.index))
        if path is None:
            raise UserError(text.NOT_PACKED)
        return str(path), [voice.info.id for voice in trio.voices.values()]


def _asked(which: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(WHICH, which, strict=True))


def _trio(chapter: Chapter, pruned: str, mitigated: str) -> Trio:
    return chapter.trio(pruned, mitigated or None)


def most_burden(trio: Trio) -> float:
    """The end of the sliders: above every burden of these models."""
    burdens = [v.burden for v in trio.voices.values() if v.burden is not None]
    found = max((float(np.nanmax(b)) for b in burdens if np.isfinite(b).any()), default=1.0)
    # 87 steps are 4.3500000000000005.
    return round(float(np.ceil(found / BURDEN_STEP) * BURDEN_STEP), 2)


def _shown(chapter: Chapter, trio: Trio, asked: dict[str, Any], number: int) -> dict[str, Any]:
    query = Query(**(asked | {"class_name": asked["class_name"] or None}))
    flips = find(chapter, trio, query, limit=PAGE, offset=number * PAGE)
    return {
        "found": flips_view.found(flips, num_photos=len(chapter.names), offset=number * PAGE),
        "tiles": flips_view.gallery(chapter, trio, flips),
        "previous": gr.update(interactive=number > 0),
        "next": gr.update(interactive=(number + 1) * PAGE < flips.total),
        "page": number,
    }


def _problem(error: UserError) -> dict[str, Any]:
    off = gr.update(interactive=False)
    return {
        "found": problem(str(error)),
        "tiles": "",
        "previous": off,
        "next": off,
        "page": 0,
    }


TAB = Tab(id="flips", title=text.FLIPS, lay_out=lay_out)
