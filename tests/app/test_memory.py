"""Examples are answered from memory, visitors' photos never."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import memory
from app.memory import RememberingService
from app.service import Service
from app.settings import Settings
from tests.app.serving import example_path


class Counted:
    """The service, and how often it really computed."""

    def __init__(self, service: RememberingService) -> None:
        self.service = service
        self.times = 0


@pytest.fixture
def counted(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    settings = Settings(checkpoints=tiny_checkpoints, device="cpu", threads=1)
    counted = Counted(RememberingService.from_settings(settings))
    answer = Service.attribute

    def count(*args: Any, **kwargs: Any) -> Any:
        counted.times += 1
        return answer(*args, **kwargs)

    monkeypatch.setattr(Service, "attribute", count)
    return counted


def example(service: Service) -> Image.Image:
    return service.load_image(example_path())


def test_the_same_question_about_an_example_is_computed_once(counted: Counted) -> None:
    service, photo = counted.service, example(counted.service)
    first = service.attribute(photo, None, "saliency")
    again = service.attribute(photo.copy(), service.default_variants(), "saliency", "base")
    assert counted.times == 1
    assert again is first
    fresh = Service.attribute(service, photo, None, "saliency")
    for key, cell in fresh.items():
        assert np.array_equal(cell.values, again[key].values)


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "input_x_gradient"},
        {"target": "own"},
        {"before_retraining": True},
        {"variants": 1},
    ],
)
def test_another_question_is_computed(counted: Counted, changed: dict[str, Any]) -> None:
    service, photo = counted.service, example(counted.service)
    asked: dict[str, Any] = {"method": "saliency", "target": "base"}
    service.attribute(photo, **asked)
    if "variants" in changed:
        changed = {"variants": service.default_variants()[:1]}
    service.attribute(photo, **(asked | changed))
    assert counted.times == 2


def test_a_photo_of_a_visitor_is_not_kept(counted: Counted) -> None:
    own = example(counted.service).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for _ in range(2):
        counted.service.attribute(own, None, "saliency")
    assert counted.times == 2


def test_a_variant_that_is_refused_meanwhile_is_not_shown_from_memory(counted: Counted) -> None:
    service, photo = counted.service, example(counted.service)
    last = service.default_variants()[-1]
    asked = service.default_variants()
    assert last in service.attribute(photo, asked, "saliency")
    service.registry.refuse(last, "its start-up check failed")
    found = service.attribute(photo, asked, "saliency")
    assert last not in found
    assert "its start-up check failed" in found.failures[last]


def test_memory_is_bounded(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SIZE", 1)
    service, photo = counted.service, example(counted.service)
    for method in ("saliency", "input_x_gradient", "saliency"):
        service.attribute(photo, None, method)
    assert counted.times == 3
