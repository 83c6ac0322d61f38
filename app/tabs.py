"""What a tab is, and what the tabs after Compare may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.api import COMPUTE
from app.service import Service

COMPARE = "compare"
"""Id of the first tab."""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of every event of the page: none is part of the API."""


def work(concurrency: int) -> dict[str, Any]:
    """Options of an event that runs models: it waits in one line with the API's comparisons."""
    return HIDDEN | {
        "preprocess": False,
        "concurrency_limit": concurrency,
        "concurrency_id": COMPUTE,
        "trigger_mode": "multiple",
    }


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The first tab, as others reach it."""

    tabs: gr.Tabs
    """As an output, `gr.Tabs(selected=COMPARE)` brings Compare to the front."""
    image: gr.Image
    """As an output, takes the path of a photo in a folder that the server may show."""
    open_after: Callable[[Any, gr.State], None]
    """Once the given event went well, brings Compare to the front and compares what the state
    holds: the path of such a photo, and ids of variants."""
    compare_after: Callable[[Any], None]
    """Compares what is in `image` once the given event is over."""
    work: dict[str, Any]
    """Options of an event that runs models."""


Connect = Callable[[Compare, gr.Tab], None]
"""Attaches the events of a tab, given Compare and the tab itself. It runs last, so that no event
takes the name of an endpoint."""


@dataclass(frozen=True, kw_only=True)
class Tab:
    """A tab after Compare."""

    id: str
    title: str
    lay_out: Callable[[Service], Connect]
    """Places the tab's components inside the `gr.Tab` that is open."""
