"""An example that every visitor begins with: computed once, and only while its models stand."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file

from app import shipped_view
from app.__main__ import BAD_USAGE, main
from app.errors import UserError
from app.first_view import (
    OWN,
    SHIPPED,
    Beforehand,
    FirstView,
    default_choices,
    first_view,
    ship_first_view,
    shipped_first_view,
)
from app.gallery import read_examples
from app.server import create_app
from app.service import Service
from app.settings import DEFAULT_CHECKPOINTS, Settings
from app.takeaway import numbers
from app.visit import RESULTS, Visit
from tests.app.folders import copy_of, edit_manifest, flip_byte
from tests.app.serving import Served, example_path, open_page, serve


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


@pytest.fixture
def shipping(tiny_checkpoints: Path, tmp_path: Path) -> Service:
    """A service whose checkpoint folder may be written to, with a first view shipped in it."""
    folder = copy_of(tiny_checkpoints, tmp_path)
    service = Service.from_settings(Settings(checkpoints=folder, device="cpu", threads=1))
    written = ship_first_view(service, read_examples())
    assert written.path.stat().st_size == written.size_bytes < 1e6
    return service


def refuse_to_run(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was run")


def test_a_shipped_first_view_is_the_computed_one_without_a_run(
    shipping: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = first_view(shipping, read_examples())
    assert computed is not None
    for name in ("run", "answer", "logits"):
        monkeypatch.setattr(shipping.predictor, name, refuse_to_run)
    found = shipped_first_view(shipping, read_examples())
    assert found is not None
    assert (found.origin, computed.origin) == (SHIPPED, OWN)
    # Whatever is drawn is the same, but for the line that says where it comes from.
    assert set(found.parts) == set(computed.parts)
    differing = {name for name in found.parts if found.parts[name] != computed.parts[name]}
    assert differing == {"status"}
    assert "when these models were published" in found.parts["status"]
    state, own = Visit(), Visit()
    found.hand_to(state)
    computed.hand_to(own)
    monkeypatch.undo()
    told, wanted = numbers(shipping, state), numbers(shipping, own)
    assert (told["shipped"], wanted["shipped"]) == (True, False)
    for name in ("attributions", "burdens", "ablation", "differences", "layers"):
        assert without_time(told[name]) == without_time(wanted[name])


def without_time(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_time(value) for key, value in tree.items() if key != "latency_ms"}
    return tree


@pytest.mark.parametrize("what", ["onnx", "weights"])
def test_a_first_view_of_other_files_is_never_shown(
    shipping: Service, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shipping.registry.folder
    dense = shipping.default_variants()[0]

    def edit(data: dict[str, Any]) -> None:
        entry = next(entry for entry in data["variants"] if entry["id"] == dense)
        entry["files"][what]["sha256"] = "0" * 64

    # As after a training that was shipped without renewing the first view.
    edit_manifest(folder, edit)
    shipping.registry[dense].variant.files[what].__dict__["sha256"] = "0" * 64
    beforehand = Beforehand(shipping, read_examples())
    assert beforehand.shipped is None
    assert "made from other files; renew it by `python -m app first-view`" in caplog.text
    beforehand.start()
    found = beforehand.wait(60)
    assert found is not None
    assert found.origin == OWN


def test_a_first_view_of_another_photo_or_of_other_choices_is_not_shown(
    shipping: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert shipped_first_view(shipping, read_examples()) is not None
    assert shipped_first_view(shipping, read_examples()[1:]) is None
    assert "made from other photo;" in caplog.text
    monkeypatch.setattr(shipping, "default_variants", lambda: shipping_ids(shipping)[-2:])
    assert shipped_first_view(shipping, read_examples()) is None
    assert "made from other choices, files;" in caplog.text


def shipping_ids(service: Service) -> tuple[str, ...]:
    return tuple(info.id for info in service.variants())


def test_a_damaged_first_view_is_no_reason_not_to_start(
    shipping: Service, caplog: pytest.LogCaptureFixture
) -> None:
    path = shipping.registry.folder / shipped_view.FILE
    flip_byte(path)
    assert shipped_first_view(shipping, read_examples()) is None
    path.write_bytes(b"")
    assert shipped_first_view(shipping, read_examples()) is None
    assert caplog.text.count("cannot be read") == 2
    path.unlink()
    assert shipped_first_view(shipping, read_examples()) is None


def test_one_command_renews_it(
    tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)
    assert main(["first-view", "--checkpoints", str(folder)]) == 0
    assert "first-view.npz" in capsys.readouterr().out
    service = Service.from_settings(Settings(checkpoints=folder, device="cpu", threads=1))
    assert shipped_first_view(service, read_examples()) is not None
    assert main(["first-view", "--checkpoints", str(tmp_path / "none")]) == BAD_USAGE


def test_the_very_first_page_holds_the_shipped_answer_and_later_ones_their_own(
    shipping: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = shipping.default_variants()[0]
    image = shipping.load_image(read_examples()[0].path)
    prob = f"{100 * shipping.predict(image, [dense])[dense].top[0].prob:.1f}"
    go, answer = threading.Event(), shipping.predict

    def held(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(60)
        return answer(*args, **kwargs)

    monkeypatch.setattr(shipping, "predict", held)
    app = create_app(shipping, shipping.settings)
    client = TestClient(app)
    page = client.get("/").text
    assert "when these models were published" in page
    assert f"{prob}\\u202f%" in page or f"{prob}\u202f%" in page
    go.set()
    assert app.state.first.wait(60) is not None
    page = client.get("/").text
    assert "when these models were published" not in page
    assert f"{prob}\\u202f%" in page or f"{prob}\u202f%" in page


def test_the_first_view_that_is_shipped_is_that_of_the_shipped_models() -> None:
    """Where this fails, run `python -m app first-view`."""
    settings = Settings(checkpoints=DEFAULT_CHECKPOINTS, device="cpu", threads=1)
    service = Service.from_settings(settings)
    found = shipped_first_view(service, read_examples())
    assert found is not None, "it was made from other models"
    shipped, choices = found.visit, found.visit.choices
    assert choices is not None
    assert shipped.image is not None
    for key, cell in service.predict(shipped.image, choices.variants).items():
        probs = [top.prob for top in (shipped.predictions or {})[key].top]
        assert probs == pytest.approx([top.prob for top in cell.top], abs=1e-5)
    for key, maps in service.burden(shipped.image, choices.variants).items():
        near((shipped.burdens or {})[key].maps, maps.maps)
    # Of one model, as each takes seconds.
    last = choices.variants[-1]
    dense = shipped.predictions[choices.variants[0]].top[0].class_name  # type: ignore[index]
    cells = service.attribute(shipped.image, [last], choices.method, dense)
    near((shipped.attributions or {})[last].values, cells[last].values)


def near(found: np.ndarray | None, wanted: np.ndarray | None) -> None:
    """Equal but for what other processors add up in another order."""
    assert found is not None
    assert wanted is not None
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()


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


def test_pages_that_wait_for_it_hold_no_place_of_the_models(
    tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, may_go_on, wait = serve(tiny_checkpoints), threading.Event(), Beforehand.wait
    waiting = threading.Semaphore(0)

    def held_up(first: Beforehand, timeout: float | None = None) -> FirstView | None:
        waiting.release()
        assert may_go_on.wait(60)
        return wait(first, timeout)

    monkeypatch.setattr(Beforehand, "wait", held_up)
    pages = served.service.settings.concurrency
    with ThreadPoolExecutor(pages) as pool:
        opened = [pool.submit(open_page, served) for _ in range(pages)]
        try:
            assert all(waiting.acquire(timeout=60) for _ in range(pages))
            client = Client(served.url, verbose=False, download_files=False)
            assert client.predict(handle_file(str(example_path())), api_name="/predict")
            assert not any(page.done() for page in opened)
        finally:
            may_go_on.set()
        assert all(page.result() for page in opened)
