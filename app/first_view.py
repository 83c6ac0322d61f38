"""What a page shows before anything is touched: an example, compared once as the app starts, and
until then as it was compared when the models were shipped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from app import gallery, markup, shipped_view, text, visit
from app.errors import UserError
from app.service import Service
from app.visit import Choices, Parts, Visit

logger = logging.getLogger(__name__)
NOTHING, SHIPPED, OWN = "nothing", "shipped", "own"
"""Where the answer on a page comes from."""


@dataclass(frozen=True, kw_only=True)
class FirstView:
    """An answer that every visitor begins with."""

    visit: Visit
    parts: Parts
    """HTML by the name of a part of the page; values of the controls that the answer moved."""
    origin: str
    """`SHIPPED` or `OWN`."""

    def stands(self, service: Service) -> bool:
        """Whether all of its models are still served."""
        return not {info.id for info in self.visit.infos} & set(service.refused())

    def hand_to(self, visitor: Visit) -> None:
        """Let a page go on from here as if it had asked itself."""
        ours = self.visit
        assert ours.choices is not None
        visitor.image, visitor.infos, visitor.choices = (
            ours.image,
            ours.infos,
            replace(ours.choices),
        )
        visitor.predictions, visitor.attributions = ours.predictions, ours.attributions
        visitor.burdens, visitor.ablated = ours.burdens, ours.ablated
        visitor.shipped = self.origin == SHIPPED


def default_choices(service: Service) -> Choices:
    """What the controls say at first."""
    return Choices(
        variants=service.default_variants(),
        method=service.attribution_methods()[0].name,
        target="base",
        before=False,
        quantity="burden",
        layer=1,
        kind="mlp",
    )


def first_example(service: Service, examples: Sequence[gallery.Example]) -> gallery.Example:
    """The photo that is compared at first."""
    chosen = default_choices(service).variants
    known = [info.dataset for info in service.variants() if info.id in chosen]
    return gallery.of_dataset(examples, known[0] if known else "")[0]


def first_view(service: Service, examples: Sequence[gallery.Example]) -> FirstView | None:
    """Compare an example by default; None if the models cannot, and then the page says why."""
    try:
        return _compared(service, examples, OWN, text.FIRST_VIEW)
    except UserError as error:
        logger.warning("no first view: %s", error)
        return None


def shipped_first_view(service: Service, examples: Sequence[gallery.Example]) -> FirstView | None:
    """The default comparison as it lies in the checkpoint folder, drawn without running a model;
    None where there is none or it is not of these very models and this photo."""
    made_from = _made_from(service, examples)
    try:
        answers = shipped_view.read_answers(service.registry.folder, made_from)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("first view is computed anew: %s", error)
        return None
    recited = cast(Service, shipped_view.Recited(service, answers))
    try:
        return _compared(recited, examples, SHIPPED, text.FIRST_VIEW_SHIPPED)
    except Exception:
        # Written by another version of this program: no reason not to start.
        logger.exception("the first view in %s cannot be drawn", service.registry.folder)
        return None


def ship_first_view(service: Service, examples: Sequence[gallery.Example]) -> shipped_view.Written:
    """Compare the example and write the answers into the checkpoint folder.

    Raises:
        UserError: If a model fails.
    """
    made = _compared(service, examples, OWN, text.FIRST_VIEW).visit
    cells = (made.predictions, made.attributions, made.burdens)
    for failed in (cell.failures for cell in cells if cell is not None):
        if failed:
            raise UserError(" ".join(failed.values()))
    answers = shipped_view.Answers(
        predictions=made.predictions,
        attributions=made.attributions,
        burdens=made.burdens,
        ablated=made.ablated,
    )
    made_from = _made_from(service, examples)
    return shipped_view.write_answers(service.registry.folder, made_from, answers)


def _compared(
    service: Service, examples: Sequence[gallery.Example], origin: str, said: str
) -> FirstView:
    state, parts = Visit(), Parts()
    path = first_example(service, examples).path
    choices = default_choices(service)
    for step in visit.compare(service, state, lambda: service.load_image(path), choices):
        parts |= step
    return FirstView(visit=state, parts=parts | {"status": markup.done(said)}, origin=origin)


def _made_from(service: Service, examples: Sequence[gallery.Example]) -> shipped_view.MadeFrom:
    path = first_example(service, examples).path
    return shipped_view.made_from(service, default_choices(service), path)


class Beforehand:
    """Makes the first view in the background, so that the server answers meanwhile."""

    def __init__(self, service: Service, examples: Sequence[gallery.Example]) -> None:
        self._service, self._examples = service, examples
        self._found: FirstView | None = None
        self._done = threading.Event()
        self.shipped = shipped_first_view(service, examples)
        """What stands on the page until then."""
        self.listeners: list[Callable[[FirstView], None]] = []
        """Called with the first view as soon as it is there."""

    def start(self) -> None:
        """Begin; pages that are opened meanwhile wait for it instead of computing their own."""
        threading.Thread(target=self._run, name="first view", daemon=True).start()

    def wait(self, timeout: float | None = None) -> FirstView | None:
        """The first view; None where there can be none, or not within `timeout` seconds."""
        self._done.wait(timeout)
        return self._found

    @property
    def pending(self) -> bool:
        return not self._done.is_set()

    def _run(self) -> None:
        try:
            self._service.opened.wait()
            found = first_view(self._service, self._examples)
            if found is not None:
                for listener in self.listeners:
                    listener(found)
            self._found = found
        finally:
            self._done.set()
