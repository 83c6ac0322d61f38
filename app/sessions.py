"""What Gradio keeps of its callers: the states that the page's functions set, and no answers.

By itself it copies the settings of every part of the page for each caller, each call of the API
included, and keeps the last 500 copies with all that those callers were answered. That serves
`gr.DeepLinkButton` alone, which this page does without, and takes longer than a prediction.
"""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder
from starlette.routing import Mount


class Session(SessionState):
    """The states of one open page."""

    def __init__(self, blocks: gr.Blocks) -> None:
        # Settings are copied of those blocks alone that are listed here.
        none: Any = SimpleNamespace(default_config=blocks.default_config, blocks={})
        super().__init__(none)

    def __getitem__(self, key: int) -> Any:
        # By itself Gradio notes the age of those states alone that a function returns, and drops no
        # other: not after its time, and not once the page is closed.
        block = self.blocks_config.blocks[key]
        if isinstance(block, gr.State):
            self._state_ttl[key] = block.time_to_live, datetime.now()
        return super().__getitem__(key)

    def _update_config(self, key: int) -> None:
        """Keep nothing."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Keep nothing."""


class Sessions(StateHolder):
    """The states of all open pages; a call of the API has its own only while it runs."""

    def __init__(self, page: gr.Blocks, app: FastAPI) -> None:
        """Take the place of what Gradio keeps.

        Args:
            page: What is served.
            app: What it is mounted in.
        """
        super().__init__()
        self.set_blocks(page)
        mounted = [route.app for route in app.routes if isinstance(route, Mount)]
        (server,) = [found for found in mounted if isinstance(found, App)]
        server.state_holder = self

    def __getitem__(self, session_id: str) -> SessionState:
        # A call that belongs to no page is its own session.
        if session_id in self.blocks._queue.event_ids_to_events:
            return Session(self.blocks)
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


def forget_stream(page: gr.Blocks, session_id: str) -> None:
    """Drop what Gradio keeps for ever of a call of the API whose answer was fetched."""
    queue = page._queue
    if not queue.pending_event_ids_session.get(session_id):
        queue.pending_event_ids_session.pop(session_id, None)
        queue.pending_messages_per_session.pop(session_id, None)
