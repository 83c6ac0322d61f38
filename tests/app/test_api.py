"""The documented calls through gradio_client and plain HTTP, held against the service itself."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import text
from app.arguments import in_plain_words, uploaded_path
from app.errors import UserError
from tests.app.folders import ids_by_mitigation
from tests.app.serving import Served, broken_files, example_path, serve

PHOTO = str(example_path())
FILE_MARK = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(served.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> dict[str, str]:
    return ids_by_mitigation(tiny_checkpoints)


def photo(served: Served) -> Image.Image:
    return served.service.load_image(PHOTO)


def call(url: str, name: str, data: list[Any]) -> tuple[str, Any]:
    """What the last server-sent event of a plain HTTP call says."""
    started = httpx.post(f"{url}/gradio_api/call/{name}", json={"data": data}, timeout=60)
    return answer_of(url, name, started)


def call_by_name(url: str, name: str, values: dict[str, Any]) -> tuple[str, Any]:
    """The same of a call that names its parameters."""
    started = httpx.post(f"{url}/gradio_api/call/v2/{name}", json=values, timeout=60)
    return answer_of(url, name, started)


def answer_of(url: str, name: str, started: httpx.Response) -> tuple[str, Any]:
    """The last event of a call that was begun."""
    event = started.raise_for_status().json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/{name}/{event}", timeout=60).text
    kind, body = answer.strip().split("\n\n")[-1].split("\n")
    return kind.removeprefix("event: "), json.loads(body.removeprefix("data: "))


def test_only_the_documented_calls_are_listed_with_their_types(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    signatures = {
        name: {p["parameter_name"]: p["python_type"]["type"] for p in entry["parameters"]}
        for name, entry in endpoints.items()
    }
    variants = "None | list[str]"
    assert signatures == {
        "/models": {},
        "/predict": {"image": "filepath", "variants": variants, "top_k": "int"},
        "/attribute": {"image": "filepath", "variants": variants, "method": "str", "target": "str"},
        "/burden": {"image": "filepath", "variants": variants, "quantity": "str"},
        "/compare": {"image": "filepath", "variants": variants, "method": "str", "target": "str"},
        "/flips": {
            "pattern": "str",
            "class_name": "None | str",
            "limit": "int",
            "offset": "int",
            "pruned": "None | str",
            "mitigated": "None | str",
            "dataset": "None | str",
            "of": "str",
            "sort": "str",
            "min_confidence": "float",
            "max_confidence": "float",
            "min_burden": "None | float",
            "max_burden": "None | float",
            "packed": "bool",
        },
    }
    returned = endpoints["/predict"]["returns"][0]["python_type"]["type"]
    assert "top: list[dict(class: str, prob: float, change: None | float)]" in returned
    assert all(entry["description"] for entry in endpoints.values())


def test_models_are_those_of_the_manifest(client: Client, tiny_checkpoints: Path) -> None:
    listed = json.loads((tiny_checkpoints / "manifest.json").read_text())["variants"]
    found = client.predict(api_name="/models")
    same = ("id", "dataset", "base", "mitigation", "macs", "num_params", "classes", "grid")
    assert [[m[key] for key in same] for m in found] == [[v[key] for key in same] for v in listed]
    assert [m["size_bytes"] for m in found] == [v["files"]["onnx"]["size_bytes"] for v in listed]


def test_predictions_are_those_of_the_service(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    found = client.predict(handle_file(PHOTO), api_name="/predict")
    expected = served.service.predict(photo(served))
    assert list(found) == list(expected) == [ids["dense"], ids["none"], ids["handoff"]]
    for key, cell in expected.items():
        assert found[key]["top"] == [
            {"class": c.class_name, "prob": c.prob, "change": c.change} for c in cell.top
        ]
        assert found[key]["kl_to_base"] == cell.kl_to_base
        assert found[key]["base_class"] == cell.base_class
        assert found[key]["provider"] == "CPUExecutionProvider"


def test_attributions_explain_the_class_that_was_asked_for(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    target = served.service.variants()[0].classes[-1]
    chosen = [ids["none"], ids["token_merging"]]
    found = client.predict(handle_file(PHOTO), chosen, "saliency", target, api_name="/attribute")
    expected = served.service.attribute(photo(served), chosen, "saliency", target)
    assert list(found) == chosen
    for key, cell in found.items():
        assert (cell["target"], cell["signed"]) == (target, False)
        assert np.allclose(cell["values"], expected[key].values, rtol=1e-5)
        with Image.open(cell["picture"]) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), np.asarray(expected[key].picture))


def test_maps_come_with_their_trust_and_their_difference_from_dense(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    chosen = [ids["dense"], ids["none"]]
    found = client.predict(handle_file(PHOTO), chosen, "gradient_shap", api_name="/attribute")
    expected = served.service.attribute(photo(served), chosen, "gradient_shap")
    for key, cell in expected.items():
        assert cell.removal is not None
        plain = {
            "steps": cell.steps,
            "note": cell.note,
            "completeness_error": cell.completeness_error,
            "deletion": cell.removal.deletion,
            "insertion": cell.removal.insertion,
            "rank_correlation": cell.rank_correlation,
            "top_overlap": cell.top_overlap,
            "served": vars(cell.served),
        }
        assert {name: found[key][name] for name in plain} == plain
    assert found[ids["dense"]]["difference"] is found[ids["dense"]]["difference_picture"] is None
    drawn = expected[ids["none"]]
    assert drawn.difference is not None
    assert found[ids["none"]]["difference"] == drawn.difference.tolist()
    with Image.open(found[ids["none"]]["difference_picture"]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(drawn.difference_picture))


@pytest.mark.parametrize("quantity", ["burden", "load", "residual"])
def test_burdens_line_up_with_their_sites(
    client: Client, served: Served, ids: dict[str, str], quantity: str
) -> None:
    chosen = [ids["dense"], ids["handoff"]]
    found = client.predict(handle_file(PHOTO), chosen, quantity, api_name="/burden")
    expected = served.service.burden(photo(served), chosen, quantity)
    for key in chosen:
        cell, own = found[key], expected[key]
        assert [site["name"] for site in cell["sites"]] == list(own.site_names)
        assert np.allclose([s["value"] for s in cell["sites"]], own.values, rtol=1e-6)  # type: ignore[arg-type]
        assert np.allclose(cell["maps"], own.maps, rtol=1e-6)  # type: ignore[arg-type]
        with Image.open(cell["picture"]) as picture:
            assert picture.format == "PNG"
    if quantity == "burden":
        assert [site["value"] for site in found[ids["dense"]]["sites"]] == pytest.approx(
            [1.0] * len(found[ids["dense"]]["sites"])
        )


def test_comparison_holds_all_parts_and_the_crop(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    found = client.predict(handle_file(PHOTO), None, "saliency", api_name="/compare")
    shown = [ids["dense"], ids["none"], ids["handoff"]]
    assert [list(found[part]) for part in ("predictions", "attributions", "burdens")] == [shown] * 3
    assert list(found["differences"]) == shown[1:]
    assert found["failures"] == {}
    top = {key: cell["top"][0]["class"] for key, cell in found["predictions"].items()}
    for key in shown[1:]:
        assert found["differences"][key]["same_class"] == (top[key] == top[ids["dense"]])
    with Image.open(found["image"]) as crop:
        assert np.array_equal(np.asarray(crop), np.asarray(served.service.crop(photo(served))))


def test_bad_uploads_are_answered_with_a_sentence_and_the_app_goes_on(
    client: Client, tmp_path: Path
) -> None:
    for path, words in broken_files(tmp_path).items():
        with pytest.raises(AppError, match=words):
            client.predict(handle_file(str(path)), api_name="/predict")
    assert client.predict(handle_file(PHOTO), api_name="/predict")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("/predict", (["nope"],), "unknown variant 'nope'; available: "),
        ("/predict", ("dense",), "variants must be a list of ids, got 'dense'"),
        ("/predict", (None, 0), "top_k must be a whole number of at least 1, got 0"),
        ("/attribute", (None, "magic"), "unknown method 'magic'; available: "),
        ("/attribute", (None, "saliency", "unicorn"), "unknown target 'unicorn'; available: base"),
        ("/burden", (None, "weight"), "unknown quantity 'weight'; available: burden"),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_ones(
    client: Client, name: str, arguments: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(handle_file(PHOTO), *arguments, api_name=name)


def test_plain_http_takes_null_for_what_has_a_default(served: Served, ids: dict[str, str]) -> None:
    with Path(PHOTO).open("rb") as file:
        uploaded = httpx.post(f"{served.url}/gradio_api/upload", files={"files": file}).json()[0]
    image = {"path": uploaded, "meta": FILE_MARK}
    kind, found = call(served.url, "predict", [image, [ids["none"]], None])
    assert kind == "complete"
    assert list(found[0]) == [ids["none"]]
    assert len(found[0][ids["none"]]["top"]) == 5
    kind, found = call(served.url, "attribute", [image, [ids["none"]], "saliency", None])
    picture = httpx.get(found[0][ids["none"]]["picture"]["url"])
    assert picture.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"path": PHOTO}, text.ERROR_NOT_UPLOADED),
        # Gradio itself refuses what bears its mark and lies outside its folder, without words.
        ({"path": PHOTO, "meta": FILE_MARK}, None),
        ({"path": "../../etc/passwd"}, text.ERROR_NOT_UPLOADED),
        ({"path": 7}, text.ERROR_NOT_UPLOADED),
        (PHOTO, text.ERROR_NOT_UPLOADED),
        (["a"], text.ERROR_NOT_UPLOADED),
        (None, text.ERROR_NO_PHOTO),
    ],
)
def test_no_file_of_the_server_can_be_named_as_an_upload(
    served: Served, image: Any, words: str | None
) -> None:
    kind, said = call(served.url, "predict", [image, None, None])
    assert (kind, said["error"]) == ("error", words)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("predict", {"variants": [["x"]]}, "variants must be a list of ids, got [['x']]; /models"),
        ("predict", {"variants": {"a": 1}}, "variants must be a list of ids, got {'a': 1}; /mod"),
        ("attribute", {"method": ["saliency"]}, "method must be text, got ['saliency']"),
        ("attribute", {"method": {}}, "method must be text, got {}"),
        ("compare", {"target": [1]}, "target must be text, got [1]"),
        ("burden", {"quantity": ["load"]}, "quantity must be text, got ['load']"),
        ("flips", {"pattern": ["any"]}, "pattern must be text, got ['any']"),
        ("flips", {"pruned": ["x"]}, "pruned must be text, got ['x']"),
        ("flips", {"mitigated": {}}, "mitigated must be text, got {}"),
        ("flips", {"of": 3}, "of must be text, got 3"),
        ("flips", {"sort": ["kl"]}, "sort must be text, got ['kl']"),
        ("flips", {"packed": "yes"}, "packed must be true or false, got 'yes'"),
    ],
)
def test_what_is_no_word_is_answered_with_what_would_be_right(
    served: Served, name: str, asked: dict[str, Any], words: str
) -> None:
    body = {"pattern": "any"} if name == "flips" else {"image": {"path": "any"}}
    kind, said = call_by_name(served.url, name, body | asked)
    assert kind == "error"
    assert said["error"].startswith(words)


@pytest.mark.parametrize("path", ["nul\x00", "/tmp/nul\x00/photo.png", "half \ud800"])
def test_what_is_no_path_is_no_upload(path: str) -> None:
    with pytest.raises(UserError, match="must be an uploaded file"):
        uploaded_path({"path": path})


def test_models_answer_on_the_crop_while_the_photo_is_gone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(PHOTO).open("rb") as file:
        path = httpx.post(f"{served.url}/gradio_api/upload", files={"files": file}).json()[0]
    wanted = served.service.predict(photo(served))
    loaded: list[weakref.ref[Image.Image]] = []
    load, predict = served.service.load_image, served.service.predict

    def remembered(source: Any) -> Image.Image:
        image = load(source)
        loaded.append(weakref.ref(image))
        return image

    def meanwhile(image: Image.Image, *arguments: Any) -> Any:
        assert loaded[0]() is None
        assert max(image.size) == served.service.variants()[0].img_size
        return predict(image, *arguments)

    monkeypatch.setattr(served.service, "load_image", remembered)
    monkeypatch.setattr(served.service, "predict", meanwhile)
    kind, found = call(served.url, "predict", [{"path": path, "meta": FILE_MARK}, None, None])
    assert kind == "complete"
    for key, cell in wanted.items():
        assert [top["prob"] for top in found[0][key]["top"]] == [top.prob for top in cell.top]


def test_calls_cannot_go_around_the_queue(served: Served) -> None:
    answer = httpx.post(f"{served.url}/gradio_api/run/models", json={"data": []})
    assert answer.status_code == 404
    assert "join the queue" in answer.text


def test_only_sentences_for_people_pass_the_translation(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise UserError("Send a smaller photo.")

    def fail() -> None:
        raise RuntimeError("secret path /home/x")

    def fail_late() -> Iterator[int]:
        yield 1
        fail()

    with pytest.raises(gr.Error) as sentence:
        in_plain_words(refuse)()
    assert sentence.value.message == "Send a smaller photo."
    with pytest.raises(gr.Error) as generic:
        in_plain_words(fail)()
    assert generic.value.message == text.ERROR_GENERIC
    steps = in_plain_words(fail_late)()
    assert next(steps) == 1
    with pytest.raises(gr.Error) as late:
        next(steps)
    assert late.value.message == text.ERROR_GENERIC
    assert "secret path" in caplog.text
