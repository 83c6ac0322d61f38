"""An example that every visitor begins with: computed once, and only while its models stand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import UserError
from app.first_view import Beforehand, default_choices, first_view
from app.gallery import read_examples
from app.service import Service
from app.settings import Settings
from app.takeaway import numbers
from app.visit import RESULTS, Visit
from tests.app.serving import Served, serve


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture
def service(tiny_checkpoints: Path) -> Service:
    return Service.from_settings(Settings(checkpoints=tiny_checkpoints, device="cpu", threads=1))


def test_first_view_is_the_default_comparison_of_an_example(service: Service) -> None:
    found = first_view(service, read_examples())
    assert found is not None
    assert all(found.parts[name] for name in RESULTS)
    image = service.load_image(read_examples()[0].path)
    state = Visit()
    found.hand_to(state)
    said = numbers(service, state)["predictions"]
    for key, cell in service.predict(image).items():
        assert [top["prob"] for top in said[key]["top"]] == [top.prob for top in cell.top]
    # Each page goes on by itself.
    assert state.choices == found.visit.choices
    assert state.choices is not found.visit.choices


def test_it_falls_with_any_of_its_models(service: Service) -> None:
    found = first_view(service, read_examples())
    assert found is not None
    assert found.stands(service)
    service.registry.refuse(service.default_variants()[-1], "its start-up check failed")
    assert not found.stands(service)


def test_models_that_cannot_are_no_reason_not_to_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("planted")

    monkeypatch.setattr(service, "predict", fail)
    assert first_view(service, read_examples()) is None
    beforehand = Beforehand(service, read_examples())
    beforehand.start()
    assert beforehand.wait(30) is None
    assert not beforehand.pending


def test_who_comes_early_waits_for_the_same_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, answer, asked = threading.Event(), service.predict, []

    def held(*args: Any, **kwargs: Any) -> Any:
        go.wait(30)
        asked.append(1)
        return answer(*args, **kwargs)

    monkeypatch.setattr(service, "predict", held)
    beforehand, told = Beforehand(service, read_examples()), []
    beforehand.listeners.append(told.append)
    beforehand.start()
    assert beforehand.pending
    assert beforehand.wait(0) is None
    go.set()
    found = beforehand.wait(60)
    assert told == [found]
    assert asked == [1]


def test_it_stands_in_the_page_itself(served: Served) -> None:
    page = httpx.get(served.url).text
    default = default_choices(served.service).variants[0]
    image = served.service.load_image(read_examples()[0].path)
    top = served.service.predict(image, [default])[default].top[0]
    assert f"{100 * top.prob:.1f}\\u202f%" in page or f"{100 * top.prob:.1f}\u202f%" in page
    assert "nb-map" in page
