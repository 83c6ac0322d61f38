"""The page: tabs; in the first, controls on the left, a column for each model on the right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app import flip_photo, flips_tab, gallery, markup, models_tab, study_tab, takeaway, text, visit
from app.ablation_view import orders
from app.api import Endpoints
from app.arguments import in_plain_words, uploaded_path
from app.catalog import default_ids
from app.controls import (
    answer_controls,
    dataset_of,
    for_quantity,
    html,
    last_layer,
    layer_choices,
    question_controls,
    target_choices,
    variant_choices,
)
from app.errors import UserError
from app.first_view import NOTHING, OWN, SHIPPED, Beforehand, FirstView, default_choices
from app.permalink import View, query_of, view_of
from app.quantities import QUANTITIES
from app.service import Ablation, AttributionMethod, Service
from app.tabs import COMPARE, HIDDEN, Compare, Tab, work
from app.takeaway import Takeaway
from app.visit import Choices, Parts, Visit

VISIT_SECONDS = 3600
CHOICES = ("variants", "method", "target", "before", "quantity", "layer", "kind")
SITE = ("layer", "kind")
CUT = ("cut_layers", "cut_kinds", "cut_share", "cut_order")
DATASET = ("dataset", "image", "examples", "variants", "target", "layer", *CUT)
"""Controls that another data set changes."""
OPENING = 16
"""Pages that are opened at the same time. They wait for what is computed for all, so they hold none
of the places in which models work, and leave some of Gradio's 40 threads to others."""
LINKED = 2
"""Of them, those whose link asks for a comparison of its own, at work at the same time."""
Steps = Callable[[Service, Visit], Iterator[Parts]]
PICK_LAYER = """element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-layer]');
  const kind = event.target.closest('[data-kind]')?.dataset.kind ?? null;
  if (chosen) trigger('select', {layer: Number(chosen.dataset.layer), kind});
});"""

TABS: tuple[Tab, ...] = (
    flips_tab.TAB,
    models_tab.TAB,
    study_tab.TAB,
)
"""After Compare, from left to right."""

# The answer replaces the section, and with it this mark.
DIM_MAPS = """() => {
  const section = document.querySelector('#nb-attribution');
  if (section) { section.classList.add('nb-busy'); section.setAttribute('aria-busy', 'true'); }
}"""
DIM_RESULTS = """() => document.querySelectorAll('#nb-main :is(.nb-section, .nb-short, .nb-sheets)')
  .forEach((part) => part.classList.add('nb-old'))"""
# What was refused leaves the results that are shown.
BRIGHTEN = """() => document.querySelectorAll('.nb-old')
  .forEach((part) => part.classList.remove('nb-old'))"""


def build_page(
    service: Service, files: Takeaway, first: Beforehand, *, concurrency: int
) -> gr.Blocks:
    """The page and, on it, the API.

    Args:
        service: Answers every question.
        files: Makes what a visitor takes along.
        first: Makes what a visitor sees first.
        concurrency: Comparisons at work at the same time, for the page and the API together.
    """
    examples = gallery.read_examples()
    with gr.Blocks(
        title=text.TITLE,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(VISIT_SECONDS, VISIT_SECONDS),
    ) as page:
        with gr.Column(elem_id="nb-page"):
            html(f"<h1>{escape(text.TITLE)}</h1><p>{escape(text.LEAD)}</p>", "head")
            with gr.Tabs(elem_id="nb-tabs") as tabs:
                with gr.Tab(text.COMPARE, id=COMPARE):
                    asked = question_controls(service, examples) | answer_controls(service)
                    parts = _layout(asked, service.attribution_methods())
                others = []
                for tab in TABS:
                    with gr.Tab(tab.title, id=tab.id) as opened:
                        others.append((tab.lay_out(service), opened))
        parts |= {"visit": gr.State(Visit(), time_to_live=VISIT_SECONDS), "tabs": tabs}
        parts["drawn"] = gr.Textbox(NOTHING, visible=False)
        # First, so that no event of the page takes the name of an endpoint.
        Endpoints(service).publish(concurrency=concurrency)
        compare = _Wiring(service, parts, files, first).connect(page, concurrency=concurrency)
        for connect, opened in others:
            connect(compare, opened)

    def put(found: FirstView) -> None:
        """Make the first view a part of the page itself, so that it needs no event."""
        for name, value in found.parts.items():
            parts[name].value = value
        parts["drawn"].value = found.origin
        page.config = page.get_config_file()

    if first.shipped is not None:
        put(first.shipped)
    first.listeners.append(put)
    return page


def _layout(parts: dict[str, Any], methods: Sequence[AttributionMethod]) -> dict[str, Any]:
    with gr.Row(elem_id="nb-main"):
        with gr.Column(elem_id="nb-controls", scale=0, min_width=300):
            # Each stands in a box of its size, since the browser builds it later than the rest.
            with gr.Column(elem_id="nb-photo-box"):
                parts["image"].render()
            parts["examples"].render()
            parts["short"] = html("", "short")
            for name in ("dataset", "variants", "before"):
                parts[name].render()
            # Stays in view, however far the page is scrolled.
            with gr.Column(elem_id="nb-go"):
                parts["compare"].render()
                parts["status"] = html(markup.invitation(), "status")
            parts["take"] = html("", "take")
        with gr.Column(elem_id="nb-results", scale=1, min_width=280):
            parts |= _results(parts, methods)
    parts["standing"] = html("", "standing")
    html(_about(), "about")
    return parts


def _results(widgets: dict[str, Any], methods: Sequence[AttributionMethod]) -> dict[str, Any]:
    def heading(title: str, name: str) -> None:
        html(f"<h2>{escape(title)}</h2>", f"{name}-title")

    # The names of the columns stay in view as far as there are such columns.
    with gr.Column(elem_id="nb-columns"):
        parts = {"names": html("", "names")}
        heading(text.PREDICTIONS, "predictions")
        parts["predictions"] = html("", "predictions")
        heading(text.ATTRIBUTION, "attribution")
        with gr.Row(elem_classes="nb-options", elem_id="nb-looks"):
            widgets["method"].render()
            widgets["target"].render()
        html(markup.methods(methods), "methods")
        parts["attribution"] = html("", "attribution")
        heading(text.BURDEN, "burden")
        with gr.Row(elem_classes="nb-options"):
            widgets["quantity"].render()
        parts["chart"] = html("", "chart", js=PICK_LAYER)
        with gr.Row(elem_classes="nb-options"):
            widgets["layer"].render()
            widgets["kind"].render()
        parts["maps"] = html("", "maps")
    with gr.Accordion(text.ALL_LAYERS, open=False, elem_id="nb-sheets"):
        parts["sheets"] = html("", "sheets")
    heading(text.CUT, "cut")
    with gr.Row(elem_classes="nb-options"):
        widgets["cut_layers"].render()
        widgets["cut_kinds"].render()
    with gr.Row(elem_classes="nb-options"):
        widgets["cut_share"].render()
        widgets["cut_order"].render()
    parts["ablation"] = html("", "ablation")
    heading(text.COST, "costs")
    parts["costs"] = html("", "costs")
    html(f'<p><a href="#nb-take-block">{escape(text.TAKE_BELOW)}</a></p>', "below")
    return parts


def _about() -> str:
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.ABOUT_TEXT)
    return (
        f'<details class="nb-details"><summary>{escape(text.ABOUT)}</summary>{paragraphs}</details>'
    )


def in_turn(steps: Iterator[Parts], places: threading.BoundedSemaphore) -> Iterator[Parts]:
    """The same steps, each of them in one of so many places; between them none is held."""
    while True:
        with places:
            found = next(steps, None)
        if found is None:
            return
        yield found


class _Wiring:
    """What happens when a visitor touches something."""

    def __init__(
        self, service: Service, parts: dict[str, Any], files: Takeaway, first: Beforehand
    ) -> None:
        self.service = service
        self.parts = parts
        self.files = files
        self.first = first
        self.linked = threading.BoundedSemaphore(LINKED)
        self.examples = gallery.read_examples()

    def connect(self, page: gr.Blocks, *, concurrency: int) -> Compare:
        """Attach every event of Compare.

        Returns:
            What the other tabs may ask of it.
        """
        parts, computed = self.parts, work(concurrency)
        everything = self.named("visit", "image", *CHOICES)
        start = in_plain_words(self.compare)
        everywhere = self.named("standing", "status", "take", *visit.RESULTS, *SITE)
        answered = [parts["image"], *everywhere]

        def compares(event: Any) -> None:
            event.failure(None, js=BRIGHTEN, **HIDDEN)

        touched = [parts["compare"].click, parts["image"].upload, parts["before"].input]
        begun = [*touched, parts["dataset"].input, parts["examples"].select]
        gr.on(begun, None, js=DIM_RESULTS, **HIDDEN)
        compares(gr.on(touched, start, everything, answered, **computed))
        restored = self.named("image", "examples", "dataset", *CHOICES[:-2], *CUT)
        opened = in_plain_words(self.opened)
        opening = {**computed, "concurrency_id": "open", "concurrency_limit": OPENING}
        page.load(opened, self.named("visit", "drawn"), [*restored, *everywhere], **opening)

        def compare_after(event: Any) -> None:
            compares(event.then(start, everything, answered, **computed))

        def open_after(event: Any, opening: gr.State) -> None:
            shown = self.named(*DATASET, "before", "tabs")
            wanted = [parts["visit"], opening]
            opens = in_plain_words(self.open_photo)
            event.success(None, js=DIM_RESULTS, **HIDDEN)
            compare_after(event.success(opens, wanted, shown, **HIDDEN))

        # Another data set means other models, classes and photos: its default comparison is made.
        compare_after(
            parts["dataset"].input(
                in_plain_words(self.change_dataset),
                self.named("visit", "dataset"),
                self.named(*DATASET),
                **HIDDEN,
            )
        )
        compare_after(
            parts["examples"].select(
                in_plain_words(self.pick_example), None, parts["image"], **HIDDEN
            )
        )
        self.connect_answers(computed)
        return Compare(
            tabs=parts["tabs"],
            image=parts["image"],
            open_after=open_after,
            compare_after=compare_after,
            work=computed,
        )

    def connect_answers(self, computed: Mapping[str, Any]) -> None:
        """Attach what asks anew for a part of the answer."""
        parts = self.parts
        choices = self.named("visit", *CHOICES[1:])
        quantity, kind = parts["quantity"], parts["kind"]
        quantity.input(in_plain_words(for_quantity), quantity, kind, queue=False, **HIDDEN)
        # The events below name only what they fill: Gradio empties a `gr.HTML` that is among the
        # outputs of two events in a row without getting a value.
        looks = [parts["method"].input, parts["target"].input]
        attribution = self.named("attribution", "take")
        gr.on(looks, None, js=DIM_MAPS, **HIDDEN)
        again = self.again("attribution", visit.attributions)
        gr.on(looks, again, choices, attribution, **computed)
        burden = self.named("chart", "short", "maps", "sheets", "take", *SITE)
        again = self.again("chart", visit.burdens)
        gr.on(parts["quantity"].input, again, choices, burden, **computed)
        sites = [parts["layer"].input, parts["kind"].input]
        again = self.again("maps", visit.site_maps, picks=True)
        gr.on(sites, again, choices, self.named("maps", "take"), **computed)
        gr.on(
            [parts[name].input for name in CUT],
            in_plain_words(self.cut),
            self.named("visit", *CUT),
            self.named("ablation", "take"),
            # While the slider moves, only its last place matters.
            **{**computed, "trigger_mode": "always_last"},
        )
        maps = self.named("maps", *SITE, "take")
        parts["chart"].select(in_plain_words(self.pick_layer), parts["visit"], maps, **computed)

        gr.on(
            parts["variants"].input,
            in_plain_words(self.choose_models),
            self.named("visit", "variants", "target"),
            self.named("target", "status"),
            queue=False,
            **HIDDEN,
        )

    def named(self, *names: str) -> list[Any]:
        """Components by name."""
        return [self.parts[name] for name in names]

    def compare(self, state: Visit, image: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        """Everything about the photo in the box."""

        def load() -> Image.Image:
            return self.service.load_image(uploaded_path(image))

        choices = Choices(**dict(zip(CHOICES, values, strict=True)))
        yield from self.updates(visit.compare(self.service, state, load, choices))
        yield from self.finished(state)

    def opened(self, state: Visit, drawn: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A page that was just opened: the first view, or what its address asks for."""
        standing = {"standing": markup.standing(self.service.status())}
        asked, refused, path = None, None, None
        try:
            asked = view_of(request.query_params, default_choices(self.service), self.menus())
            path = self.photo_of(asked)
            if asked is not None:
                self.check(asked.choices)
        except UserError as error:
            asked, path, refused = None, None, error
            said = text.LINK_REFUSED.format(problem=error)
            standing |= {"status": markup.problem(said)}
        if asked is None:
            yield from self.first_view(state, standing, drawn)
            if refused is not None or state.choices is not None:
                return
        view = asked or View(choices=default_choices(self.service))
        choices, state.ablation = view.choices, view.cut
        if path is None:
            dataset = dataset_of(self.service.variants(), choices.variants)
            path = gallery.of_dataset(self.examples, dataset)[0].path
        yield from self.updates(iter([standing | self.controls(choices, path, view.cut)]))

        def load() -> Image.Image:
            return self.service.load_image(path)

        state.site_chosen = asked is not None and "layer" in request.query_params
        compared = visit.compare(self.service, state, load, choices)
        yield from self.updates(in_turn(compared, self.linked))
        yield from self.finished(state)

    def first_view(self, state: Visit, standing: Parts, drawn: str) -> Iterator[dict[Any, Any]]:
        """What stands on every page from the start: as it was shipped, until this server's own
        answer is there. Nothing where neither is to be had.

        Args:
            state: Of the page.
            standing: Parts that are known at once.
            drawn: Origin of the answer that was sent with the page.
        """
        shipped = self.first.shipped
        if drawn == SHIPPED and shipped is not None and self.first.pending:
            shipped.hand_to(state)
            yield from self.updates(iter([standing, *self.offered(state)]))
        elif self.first.pending:
            # This page was sent before there was anything to show on it.
            working = markup.progress(text.WORKING_PREDICT, step=1, steps=visit.STEPS)
            yield from self.updates(iter([standing | {"status": working}]))
        own = self.first.wait()
        # Who has asked for something else meanwhile keeps what they asked for.
        touched = bool(state.newest) or state.site_chosen
        if own is not None and own.stands(self.service) and not touched:
            own.hand_to(state)
            yield from self.updates(iter([standing if drawn == OWN else own.parts | standing]))
        if state.choices is not None:
            yield from self.finished(state)

    def photo_of(self, view: View | None) -> Path | None:
        """The packed photo that a link names; None if it names none."""
        if view is None or (view.flip is None and view.example is None):
            return None
        if view.flip is not None:
            return flip_photo.open_named(self.service, view.flip)
        return next(example.path for example in self.examples if example.name == view.example)

    def check(self, choices: Choices) -> None:
        """Refuse what a link asks for where its models cannot answer."""
        infos = visit.chosen(self.service, choices.variants)
        self.service.crop(Image.new("RGB", (1, 1)), choices.variants)
        known = [value for _, value in target_choices(infos, choices.variants)]
        if choices.target not in known:
            raise UserError(
                text.ERROR_LINK_VALUE.format(
                    what="target", value=choices.target, known=", ".join(known)
                )
            )

    def controls(self, choices: Choices, path: Any, cut: Ablation | None = None) -> Parts:
        """Values of the controls that make these choices."""
        shown = {name: getattr(choices, name) for name in CHOICES}
        infos, cut = self.service.variants(), cut or Ablation()
        dataset = dataset_of(infos, choices.variants)
        classes = target_choices(infos, choices.variants)
        last = last_layer(infos, dataset)
        return shown | {
            "image": str(path),
            "examples": gallery.strip(gallery.of_dataset(self.examples, dataset)),
            "dataset": dataset,
            "variants": gr.update(
                choices=variant_choices(infos, dataset), value=list(choices.variants)
            ),
            "target": gr.update(choices=classes, value=choices.target),
            "layer": gr.update(maximum=last, value=min(choices.layer, last)),
            "kind": for_quantity(choices.quantity) | {"value": choices.kind},
            "cut_layers": gr.update(
                choices=layer_choices(infos, dataset), value=list(cut.layers or ())
            ),
            "cut_kinds": list(cut.kinds),
            "cut_share": round(100 * cut.share),
            "cut_order": gr.update(choices=orders(infos, dataset), value=cut.order),
        }

    def menus(self) -> dict[str, list[str]]:
        """What a link may name."""
        classes = {name for info in self.service.variants() for name in info.classes}
        return {
            "variants": [info.id for info in self.service.variants()],
            "example": [example.name for example in self.examples],
            "method": [method.name for method in self.service.attribution_methods()],
            "target": ["base", "own", *sorted(classes)],
            "quantity": list(QUANTITIES),
            "kind": list(text.SITE_KINDS),
            "cut_order": [*text.CUT_ORDERS, *(i.id for i in self.service.variants() if i.base)],
        }

    def offered(self, state: Visit) -> Iterator[Parts]:
        """Links to what is shown now."""
        if (view := takeaway.view(self.service, state)) is not None:
            packed = view.example is not None or view.flip is not None
            address = self.files.address(state)
            yield {"take": markup.take(address, query_of(view), packed=packed)}

    def finished(self, state: Visit) -> Iterator[dict[Any, Any]]:
        """What comes when all is answered: links, and the time that the models take."""
        yield from self.updates(self.offered(state))
        yield from self.updates(visit.timed(self.service, state))

    def again(self, part: str, steps: Steps, *, picks: bool = False) -> Callable[..., Any]:
        """One part anew for the photo that is shown; `picks` where the visitor chose a layer."""

        def run(state: Visit, *values: Any) -> Iterator[dict[Any, Any]]:
            if state.choices is None:
                yield from self.forgotten(part)
                return
            for name, value in zip(CHOICES[1:], values, strict=True):
                setattr(state.choices, name, value)
            state.site_chosen |= picks
            yield from self.updates(steps(self.service, state))
            yield from self.updates(self.offered(state))

        return in_plain_words(run)

    def forgotten(self, part: str) -> Iterator[dict[Any, Any]]:
        """What stands in the place of a part of a page that compares nothing, or no longer."""
        yield from self.updates(iter([{part: markup.failure(text.ERROR_FORGOTTEN)}]))

    def cut(
        self, state: Visit, layers: list[int], kinds: list[str], share: float, order: str
    ) -> Iterator[dict[Any, Any]]:
        """The dense model with other units turned off."""
        if state.choices is None:
            yield from self.forgotten("ablation")
            return
        state.ablation = Ablation(
            layers=tuple(layers) or None, kinds=tuple(kinds), share=share / 100, order=order
        )
        yield from self.updates(visit.ablated(self.service, state))
        yield from self.updates(self.offered(state))

    def choose_models(self, state: Visit, variants: list[str], target: str) -> tuple[Any, str]:
        """The classes of the models that are chosen now, and what to do to see these models."""
        choices = target_choices(self.service.variants(), variants)
        kept = target if target in [value for _, value in choices] else "base"
        said = text.PRESS_COMPARE
        try:
            infos = visit.chosen(self.service, variants)
            if state.image is not None and infos == state.infos:
                said = text.MODELS_SHOWN
        except UserError as error:
            said = str(error)
        return gr.update(choices=choices, value=kept), markup.invitation(said)

    def change_dataset(self, state: Visit, dataset: str) -> dict[Any, Any]:
        """The models, classes and examples of another data set."""
        state.ablation = Ablation()
        infos = self.service.variants()
        chosen = default_ids([info for info in infos if info.dataset == dataset])
        if not chosen:
            raise UserError(text.ERROR_COUNT.format(count=0))
        path = gallery.of_dataset(self.examples, dataset)[0].path
        values = self.controls(self.other(state, chosen), path)
        return {self.parts[name]: values[name] for name in DATASET}

    def open_photo(self, state: Visit, opening: tuple[str, Sequence[str]]) -> dict[Any, Any]:
        """A photo and models that another tab chose."""
        state.ablation = Ablation()
        path, chosen = opening
        values = self.controls(self.other(state, chosen), path)
        values |= {"tabs": gr.Tabs(selected=COMPARE)}
        return {self.parts[name]: values[name] for name in (*DATASET, "before", "tabs")}

    def other(self, state: Visit, chosen: Sequence[str]) -> Choices:
        """Choices for other models, in the same layer."""
        layer = 1 if state.choices is None else state.choices.layer
        return replace(default_choices(self.service), variants=chosen, layer=layer)

    def pick_layer(self, state: Visit, event: gr.EventData) -> Iterator[dict[Any, Any]]:
        """The layer whose row in the chart was clicked, and its part if that was on a mark."""
        if state.choices is None:
            yield from self.forgotten("maps")
            return
        state.choices.layer, state.site_chosen = int(event.layer), True
        if event.kind in text.SITE_KINDS:
            state.choices.kind = event.kind
        site = {"layer": state.choices.layer, "kind": state.choices.kind}
        for parts in visit.site_maps(self.service, state):
            yield from self.updates(iter([parts | site]))
        yield from self.updates(self.offered(state))

    def pick_example(self, event: gr.EventData) -> str:
        """The example photo that was clicked."""
        paths = [str(example.path) for example in self.examples if example.name == event.name]
        if not paths:
            raise UserError(text.ERROR_NO_PHOTO)
        return paths[0]

    def updates(self, steps: Iterator[Parts]) -> Iterator[dict[Any, Any]]:
        """Parts by name -> values by component."""
        for step in steps:
            yield {self.parts[name]: value for name, value in step.items()}
