"""Steps of one visitor's page, run by hand against a real tiny service."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app import visit
from app.errors import NoAnswerError, UserError
from app.gallery import digest
from app.latency import Stopwatch
from app.markup import picture
from app.service import Service
from app.sites import layer_and_kind, site_words
from app.visit import Choices, Visit
from tests.app.folders import ids_by_mitigation
from tests.app.serving import example_path, serve


@pytest.fixture(scope="module")
def service(tiny_checkpoints: Path) -> Service:
    return serve(tiny_checkpoints).service


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> list[str]:
    """Dense and two pruned variants."""
    found = ids_by_mitigation(tiny_checkpoints)
    return [found["dense"], found["none"], found["handoff"]]


@pytest.fixture
def choices(ids: list[str]) -> Callable[..., Choices]:
    def make(**changed: Any) -> Choices:
        values: dict[str, Any] = {
            "variants": ids,
            "method": "saliency",
            "target": "base",
            "before": False,
            "quantity": "burden",
            "layer": 1,
            "kind": "attn",
        }
        return Choices(**(values | changed))

    return make


def photo() -> Image.Image:
    return Image.open(example_path()).convert("RGB")


def test_predictions_come_first_and_attributions_last(
    service: Service, choices: Callable[..., Choices]
) -> None:
    places, *steps = visit.compare(service, Visit(), photo, choices())
    assert set(visit.RESULTS) <= set(places)
    filled = [name for parts in steps for name in parts]
    order = [name for name in filled if name in visit.RESULTS]
    assert order == [
        *("predictions", "short", "costs"),
        *("chart", "short", "maps", "sheets"),
        *("ablation", "attribution"),
    ]
    assert "nb-skeleton" not in str(steps)
    assert {*filled[-2:]} == {"status", "standing"}


def test_the_photo_is_gone_once_it_was_cut(
    service: Service, choices: Callable[..., Choices]
) -> None:
    loaded: list[weakref.ref[Image.Image]] = []

    def load() -> Image.Image:
        image = photo()
        loaded.append(weakref.ref(image))
        return image

    state = Visit()
    steps = visit.compare(service, state, load, choices())
    next(steps)
    gc.collect()
    assert loaded[0]() is None
    list(steps)
    assert state.image is not None
    assert np.array_equal(state.image, service.crop(photo(), choices().variants))
    assert digest(state.image) == digest(photo())


def test_status_counts_up_to_done(service: Service, choices: Callable[..., Choices]) -> None:
    said = [p["status"] for p in visit.compare(service, Visit(), photo, choices()) if "status" in p]
    assert [f"Step {k} of 3" in words for k, words in enumerate(said[:-1], 1)] == [True] * 3
    assert "Done in" in said[-1]


def test_the_newer_comparison_stops_the_older(
    service: Service, choices: Callable[..., Choices]
) -> None:
    state = Visit()
    older = visit.compare(service, state, photo, choices())
    next(older)
    newer = list(visit.compare(service, state, photo, choices(method="input_x_gradient")))
    assert list(older) == []
    assert "Done in" in newer[-1]["status"]


def test_the_newer_attribution_replaces_one_that_is_under_way(
    service: Service, choices: Callable[..., Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Visit()
    list(visit.compare(service, state, photo, choices()))
    answer, newer = service.attribute, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(service, "attribute", answer)
        newer.extend(visit.attributions(service, state))
        return answer(*args, **kwargs)

    monkeypatch.setattr(service, "attribute", interrupted)
    assert list(visit.attributions(service, state)) == []
    assert len(newer) == 1


@pytest.mark.parametrize("name", ["burden", "ablate", "attribute", "burden_pictures"])
def test_a_newer_photo_may_come_at_any_moment(
    service: Service,
    choices: Callable[..., Choices],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    state, answer = Visit(), getattr(service, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(service, name, answer)
        # The newer one has taken the photo away and not yet brought its own.
        state.ticket("all")
        state.image = state.burdens = state.attributions = None
        return answer(*args, **kwargs)

    monkeypatch.setattr(service, name, interrupted)
    steps = list(visit.compare(service, state, photo, choices()))
    assert "Done in" not in str(steps[-1].get("status"))


def test_a_failing_method_leaves_the_rest_of_the_page(
    service: Service,
    choices: Callable[..., Choices],
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NoAnswerError(dict.fromkeys(ids, "planted <sentence>"))

    monkeypatch.setattr(service, "attribute", fail)
    page: dict[str, Any] = {}
    for parts in visit.compare(service, Visit(), photo, choices()):
        page |= parts
    assert page["attribution"].count("planted &lt;sentence&gt;") == len(ids)
    assert "nb-skeleton" not in page["attribution"]
    assert all(page[name] for name in ("predictions", "chart", "maps", "costs"))
    assert "Done in" in page["status"]


def test_a_refused_photo_clears_the_page_and_says_why(
    service: Service, choices: Callable[..., Choices]
) -> None:
    state = Visit()
    list(visit.compare(service, state, photo, choices()))

    def refuse() -> Image.Image:
        raise UserError("This <file> is no picture")

    steps = visit.compare(service, state, refuse, choices())
    shown = next(steps)
    assert "This &lt;file&gt; is no picture" in shown["status"]
    assert [shown[name] for name in visit.RESULTS] == [""] * len(visit.RESULTS)
    # There is nothing to take along, and the browser may not be able to show that file.
    assert (shown["take"], shown["image"]) == ("", None)
    with pytest.raises(UserError, match="This <file> is no picture"):
        next(steps)
    # Nothing of the photo before can come back through the other controls.
    assert [*visit.burdens(service, state), *visit.site_maps(service, state)] == []
    assert list(visit.attributions(service, state)) == []


def test_a_wrong_choice_leaves_what_is_shown_of_this_photo(
    service: Service, choices: Callable[..., Choices], ids: list[str]
) -> None:
    state = Visit()
    list(visit.compare(service, state, photo, choices()))
    answers, chosen = state.predictions, state.choices
    steps = visit.compare(service, state, photo, choices(variants=ids[:1]))
    assert set(next(steps)) == {"status", "standing"}
    with pytest.raises(UserError, match="1 chosen"):
        next(steps)
    assert (state.predictions, state.choices) == (answers, chosen)
    assert state.predictions is not None
    # Of another photo it would be the wrong answer.
    steps = visit.compare(service, state, lambda: photo().rotate(90), choices(variants=ids[:1]))
    shown = next(steps)
    assert {shown[name] for name in (*visit.RESULTS, "take")} == {""}
    assert "image" not in shown
    assert state.predictions is None


def test_a_layer_that_the_models_lack_becomes_their_last(
    service: Service, choices: Callable[..., Choices]
) -> None:
    state = Visit(site_chosen=True)
    steps = list(visit.compare(service, state, photo, choices(layer=12, kind="mlp")))
    last = len(state.infos[0].site_names) // 2
    assert [parts["layer"] for parts in steps if "layer" in parts] == [last]
    page = {name: value for parts in steps for name, value in parts.items()}
    assert f"layer {last}, MLP" in page["maps"]


def test_the_true_class_of_a_photo_of_flips_is_told_from_the_start(
    service: Service, choices: Callable[..., Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(state: Visit) -> list[bool]:
        steps = visit.compare(service, state, photo, choices())
        return ["Really: a &lt;star&gt;," in p["predictions"] for p in steps if "predictions" in p]

    assert told(Visit()) == [False, False]
    monkeypatch.setattr(visit.flip_photo, "truth_of", lambda *_: "a <star>")
    assert told(Visit()) == [True, True]


@pytest.mark.parametrize(
    ("take", "words"),
    [(1, "two to four models; 1 chosen"), (5, "two to four models; 5 chosen")],
)
def test_two_to_four_models_are_compared(
    service: Service, choices: Callable[..., Choices], ids: list[str], take: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        list(visit.compare(service, Visit(), photo, choices(variants=(ids * 2)[:take])))


def test_an_unknown_model_is_answered_with_the_known_ones(
    service: Service, choices: Callable[..., Choices], ids: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"unknown model 'x'; available: {ids[0]}, "):
        list(visit.compare(service, Visit(), photo, choices(variants=["x", ids[0]])))


def test_the_most_burdened_site_is_shown_until_one_is_chosen(
    service: Service, choices: Callable[..., Choices]
) -> None:
    state = Visit()
    steps = list(visit.compare(service, state, photo, choices()))
    update = next(parts for parts in steps if "layer" in parts)
    assert state.burdens is not None
    worst = max(
        (value, site)
        for found in state.burdens.values()
        for site, value in zip(found.site_names, found.values, strict=True)
        if value is not None
    )[1]
    assert (update["layer"], update["kind"]) == layer_and_kind(worst)
    assert site_words(worst) in next(parts["maps"] for parts in steps[1:] if parts.get("maps"))

    state.site_chosen = True
    again = list(visit.compare(service, state, photo, choices(layer=1, kind="mlp")))
    assert not any("layer" in parts for parts in again)
    assert "layer 1, MLP" in next(parts["maps"] for parts in again[1:] if parts.get("maps"))


def test_before_retraining_shows_the_dense_model_cut_live(
    service: Service, choices: Callable[..., Choices], ids: list[str]
) -> None:
    state = Visit(site_chosen=True)
    steps = list(visit.compare(service, state, photo, choices(before=True)))
    page = {name: value for parts in steps for name, value in parts.items()}
    cut = service.predict(photo(), ids, before_retraining=True)
    trained = service.predict(photo(), ids)
    prob = f"{100 * cut[ids[1]].top[0].prob:.1f}\u202f%"
    assert cut[ids[1]].top[0].prob != trained[ids[1]].top[0].prob
    assert prob in page["predictions"].split('class="nb-cell"')[2]
    burdens = service.burden(photo(), ids)
    null = burdens[ids[1]].null_values
    assert null is not None
    column = page["maps"].split('class="nb-cell"')[2]
    assert f"layer 1, attention: <b>{null[0]:.2f}×</b>" in column
    drawn = service.burden_pictures(photo(), burdens, "blocks.0.attn", "null")[ids[1]]
    assert picture(drawn, "").split('alt="')[0] in column
    assert "neither smaller nor faster" in page["costs"]


def test_whole_layers_need_no_part(service: Service, choices: Callable[..., Choices]) -> None:
    state = Visit(site_chosen=True)
    steps = list(visit.compare(service, state, photo, choices(quantity="residual", layer=2)))
    page = {name: value for parts in steps for name, value in parts.items()}
    assert "layer 2: <b>" in page["maps"]
    # The dense model differs from itself nowhere.
    assert "layer 2: <b>0.000</b>" in page["maps"].split('class="nb-cell"')[1]


def test_time_is_measured_once_for_all_models_that_may_stand_side_by_side(
    service: Service, choices: Callable[..., Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    stopwatch = Stopwatch(service.predictor)
    measure = stopwatch.measure

    def listen(models: Any, **options: Any) -> Any:
        asked.append([model.id for model in models])
        return measure(models, **options)

    monkeypatch.setattr(service, "stopwatch", stopwatch)
    monkeypatch.setattr(stopwatch, "measure", listen)
    state = Visit()
    list(visit.compare(service, state, photo, choices()))
    (parts,) = visit.timed(service, state)
    every = [info.id for info in service.variants()]
    assert asked == [every]
    assert "of its time" in parts["costs"] or "did not become less time" in parts["costs"]
    assert list(visit.timed(service, state)) == []
    # Whoever compares other models finds their times already there.
    other = Visit()
    list(visit.compare(service, other, photo, choices(variants=every[:2])))
    assert set(other.latencies) == set(every[:2])
    assert list(visit.timed(service, other)) == []
    assert asked == [every]


def test_a_time_that_comes_late_is_not_shown_with_another_comparison(
    service: Service, choices: Callable[..., Choices], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "stopwatch", Stopwatch(service.predictor))
    state = Visit()
    list(visit.compare(service, state, photo, choices()))

    def meanwhile(*_: Any, **__: Any) -> dict[str, Any]:
        state.ticket("all")
        return {}

    monkeypatch.setattr(service, "latencies", meanwhile)
    assert list(visit.timed(service, state)) == []


@pytest.mark.parametrize("running", [True, False])
def test_models_are_timed_after_the_start_up_checks(
    service: Service,
    choices: Callable[..., Choices],
    monkeypatch: pytest.MonkeyPatch,
    running: bool,
) -> None:
    order: list[str] = []
    state = Visit()
    list(visit.compare(service, state, photo, choices()))
    state.latencies = {}
    checks = SimpleNamespace(running=running, wait=lambda _: order.append("checks"))
    monkeypatch.setattr(service, "parity", checks)
    monkeypatch.setattr(service, "latencies", lambda _: order.append("times"))
    monkeypatch.setattr(service, "status", lambda: None)
    monkeypatch.setattr(visit.markup, "standing", lambda _: "")
    assert [set(parts) for parts in visit.timed(service, state)] == [{"costs", "standing"}]
    assert order == (["checks", "times"] if running else ["times"])
