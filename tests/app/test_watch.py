"""Calls tell how they ended: by Gradio's own functions, and by hand for every ending."""

from __future__ import annotations

import gradio as gr
import pytest

from app.errors import NoAnswerError, UserError
from app.journal import Call, Journal
from app.watch import outcome_of, watch


def chained(cause: Exception) -> gr.Error:
    shown = gr.Error("words")
    shown.__cause__ = cause
    return shown


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (None, "answered", None),
        (chained(UserError("x")), "refused", "UserError"),
        (chained(NoAnswerError({"a": "x"})), "failed", "NoAnswerError"),
        (chained(ZeroDivisionError()), "failed", "ZeroDivisionError"),
        (ValueError(), "failed", "ValueError"),
        (GeneratorExit(), "left", "nothing"),
    ],
)
def test_an_ending_is_named_by_what_really_happened(
    error: BaseException | None, outcome: str, reason: str | None
) -> None:
    assert outcome_of(error) == (outcome, None if reason == "nothing" else reason)


def test_functions_of_a_page_are_counted_while_they_run_and_told_when_they_end() -> None:
    told: list[Call] = []
    running = []
    journal = Journal()
    journal.listeners.append(told.append)

    def double(value: float) -> float:
        running.append(journal.running)
        return 2 * value

    def broken(value: float) -> float:
        raise gr.Error("words") from UserError("words")

    def steps(value: float):  # type: ignore[no-untyped-def]
        running.append(journal.running)
        yield 1
        yield 2

    with gr.Blocks() as page:
        gr.api(double, api_name="double")
        gr.api(broken, api_name="broken")
        box = gr.Number()
        box.change(steps, box, box, api_visibility="private")
    watch(page, journal)
    functions = {fn.fn.__name__: fn.fn for fn in page.fns.values() if fn.fn is not None}
    assert functions["double"](21) == 42
    with pytest.raises(gr.Error):
        functions["broken"](1)
    assert list(functions["steps"](1)) == [1, 2]
    abandoned = functions["steps"](1)
    next(abandoned)
    abandoned.close()
    assert [(call.name, call.outcome, call.reason) for call in told] == [
        ("double", "answered", None),
        ("broken", "refused", "UserError"),
        ("page:steps", "answered", None),
        ("page:steps", "left", None),
    ]
    assert all(0 <= call.seconds < 5 for call in told)
    assert running == [1, 1, 1]
    assert journal.running == 0
