"""What a page shows before anything is touched: an example, compared once when the app starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
