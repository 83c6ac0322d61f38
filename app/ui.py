"""The page: controls on the left, a column for each model on the right, what a touch does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from app import gallery, markup, text, visit
from app.api import COMPUTE, Endpoints, in_plain_words, uploaded_path
from app.controls import answer_controls, html, question_controls, target_choices
from app.errors import UserError
from app.service import AttributionMethod, Service
from app.visit import Choices, Parts, Visit

VISIT_SECONDS = 3600
CHOICES = ("variants", "method", "target", "before", "quantity", "layer", "kind")
SITE = ("layer", "kind")
Steps = Callable[[Service, Visit], Iterator[Parts]]
PICK_LAYER = """element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-layer]');
  if (chosen) trigger('select', {layer: Number(chosen.dataset.layer)});
});"""

# The answer replaces the section, and with it this mark.
DIM_MAPS = """() => {
  const section = document.querySelector('#nb-attribution');
  if (section) { section.classList.add('nb-busy'); section.setAttribute('aria-busy', 'true'); }
}"""


def build_page(service: Service, *, concurrency: int) -> gr.Blocks:
    """The page and, on it, the API.

    Args:
        service: Answers every question.
        concurrency: Models at work at the same time, for the page and the API together.
    """
    with gr.Blocks(
        title=text.TITLE,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(VISIT_SECONDS, VISIT_SECONDS),
    ) as page:
        with gr.Column(elem_id="nb-page"):
            asked = question_controls(service, gallery.read_examples())
            parts = _layout(asked | answer_controls(service), service.attribution_methods())
        parts["visit"] = gr.State(Visit(), time_to_live=VISIT_SECONDS)
        # First, so that no event of the page takes the name of an endpoint.
        Endpoints(service).publish(concurrency=concurrency)
        _Wiring(service, parts).connect(page, concurrency=concurrency)
    return page


def _layout(parts: dict[str, Any], methods: Sequence[AttributionMethod]) -> dict[str, Any]:
    html(f"<h1>{escape(text.TITLE)}</h1><p>{escape(text.LEAD)}</p>", "head")
    with gr.Row(elem_id="nb-main"):
        with gr.Column(elem_id="nb-controls", scale=0, min_width=300):
            for name in ("image", "examples", "variants", "before", "compare"):
                parts[name].render()
            parts["status"] = html(markup.invitation(), "status")
        with gr.Column(elem_id="nb-results", scale=1, min_width=280):
            parts |= _results(parts, methods)
    parts["standing"] = html("", "standing")
    html(_about(), "about")
    return parts


def _results(widgets: dict[str, Any], methods: Sequence[AttributionMethod]) -> dict[str, Any]:
    def heading(title: str, name: str) -> None:
        html(f"<h2>{escape(title)}</h2>", f"{name}-title")

    parts = {"names": html("", "names")}
    heading(text.PREDICTIONS, "predictions")
    parts["predictions"] = html("", "predictions")
    heading(text.ATTRIBUTION, "attribution")
    with gr.Row(elem_classes="nb-options"):
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
    heading(text.COST, "costs")
    parts["costs"] = html("", "costs")
    return parts


def _about() -> str:
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.ABOUT_TEXT)
    return (
        f'<details class="nb-details"><summary>{escape(text.ABOUT)}</summary>{paragraphs}</details>'
    )


class _Wiring:
    """What happens when a visitor touches something."""

    def __init__(self, service: Service, parts: dict[str, Any]) -> None:
        self.service = service
        self.parts = parts
        self.examples = gallery.read_examples()

    def connect(self, page: gr.Blocks, *, concurrency: int) -> None:
        """Attach every event; none of them is part of the API."""
        parts = self.parts
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        work = hidden | {
            "preprocess": False,
            "concurrency_limit": concurrency,
            "concurrency_id": COMPUTE,
            "trigger_mode": "multiple",
        }
        everything = self.named("visit", "image", *CHOICES)
        choices = self.named("visit", *CHOICES[1:])
        start = in_plain_words(self.compare)
        everywhere = self.named("standing", "status", *visit.RESULTS, *SITE)
        touched = [parts["compare"].click, parts["image"].upload, parts["before"].input]
        gr.on([page.load, *touched], start, everything, everywhere, **work)
        picked = parts["examples"].select(
            in_plain_words(self.pick_example), None, parts["image"], **hidden
        )
        picked.then(start, everything, everywhere, **work)
        # The events below name only what they fill: Gradio empties a `gr.HTML` that is among the
        # outputs of two events in a row without getting a value.
        looks = [parts["method"].input, parts["target"].input]
        attribution = self.named("attribution")
        gr.on(looks, None, js=DIM_MAPS, **hidden)
        gr.on(looks, self.again(visit.attributions), choices, attribution, **work)
        burden = self.named("chart", "maps", "sheets", *SITE)
        gr.on(parts["quantity"].input, self.again(visit.burdens), choices, burden, **work)
        sites = [parts["layer"].input, parts["kind"].input]
        again = self.again(visit.site_maps, picks=True)
        gr.on(sites, again, choices, self.named("maps"), **work)
        maps = self.named("maps", "layer")
        parts["chart"].select(in_plain_words(self.pick_layer), parts["visit"], maps, **work)

        gr.on(
            parts["variants"].input,
            in_plain_words(self.fit_classes),
            self.named("variants", "target"),
            parts["target"],
            queue=False,
            **hidden,
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

    def again(self, steps: Steps, *, picks: bool = False) -> Callable[..., Any]:
        """One part anew for the photo that is shown; `picks` where the visitor chose a layer."""

        def run(state: Visit, *values: Any) -> Iterator[dict[Any, Any]]:
            if state.choices is None:
                return
            for name, value in zip(CHOICES[1:], values, strict=True):
                setattr(state.choices, name, value)
            state.site_chosen |= picks
            yield from self.updates(steps(self.service, state))

        return in_plain_words(run)

    def fit_classes(self, variants: list[str], target: str) -> Any:
        """The classes of the models that are chosen now."""
        choices = target_choices(self.service.variants(), variants)
        kept = target if target in [value for _, value in choices] else "base"
        return gr.update(choices=choices, value=kept)

    def pick_layer(self, state: Visit, event: gr.EventData) -> Iterator[dict[Any, Any]]:
        """The layer whose row in the chart was clicked."""
        if state.choices is None:
            return
        state.choices.layer, state.site_chosen = int(event.layer), True
        for parts in visit.site_maps(self.service, state):
            yield from self.updates(iter([parts | {"layer": state.choices.layer}]))

    def pick_example(self, event: gr.EventData) -> str:
        """The example photo that was clicked."""
        if not 0 <= event.index < len(self.examples):
            raise UserError(text.ERROR_NO_PHOTO)
        return str(self.examples[event.index].path)

    def updates(self, steps: Iterator[Parts]) -> Iterator[dict[Any, Any]]:
        """Parts by name -> values by component."""
        for step in steps:
            yield {self.parts[name]: value for name, value in step.items()}
