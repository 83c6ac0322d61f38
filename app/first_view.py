"""What a page shows before anything is touched: an example, compared once as the app starts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app import gallery, markup, text, visit
from app.errors import UserError
from app.service import Service
from app.visit import Choices, Parts, Visit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FirstView:
    """An answer that every visitor begins with."""

    visit: Visit
    parts: Parts
    """HTML by the name of a part of the page; values of the controls that the answer moved."""

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
        visitor.burdens = ours.burdens


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


def first_view(service: Service, examples: Sequence[gallery.Example]) -> FirstView | None:
    """Compare an example by default; None if the models cannot, and then the page says why."""
    state, parts = Visit(), Parts()
    choices = default_choices(service)
    known = [info.dataset for info in service.variants() if info.id in choices.variants]
    path = gallery.of_dataset(examples, known[0] if known else "")[0].path
    try:
        for step in visit.compare(service, state, lambda: service.load_image(path), choices):
            parts |= step
    except UserError as error:
        logger.warning("no first view: %s", error)
        return None
    return FirstView(visit=state, parts=parts | {"status": markup.done(text.FIRST_VIEW)})


class Beforehand:
    """Makes the first view in the background, so that the server answers meanwhile."""

    def __init__(self, service: Service, examples: Sequence[gallery.Example]) -> None:
        self._service, self._examples = service, examples
        self._found: FirstView | None = None
        self._done = threading.Event()
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
            found = first_view(self._service, self._examples)
            if found is not None:
                for listener in self.listeners:
                    listener(found)
            self._found = found
        finally:
            self._done.set()
