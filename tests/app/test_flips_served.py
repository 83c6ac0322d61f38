"""Flips of real files: they are what the service says, and stale ones are refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.errors import UserError
from app.flip_photo import open_packed, truth_of
from app.flips import FlipBook, Query, find
from app.registry import ModelRegistry
from nbcore.answers import answers_path, read_answers, write_answers
from tests.app.folders import edit_variant, ids_by_mitigation
from tests.app.serving import Served, serve


@pytest.fixture(scope="module")
def served(asked_checkpoints: Path) -> Served:
    return serve(asked_checkpoints)


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(served.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def ids(asked_checkpoints: Path) -> dict[str, str]:
    return ids_by_mitigation(asked_checkpoints)


@pytest.fixture
def folder(asked_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(asked_checkpoints, tmp_path / "checkpoints"))


def test_a_photo_that_was_opened_is_known_by_its_true_class(served: Served) -> None:
    service = served.service
    chapter = service.flips.chapter("shapes")
    for position in np.flatnonzero(chapter.packed)[:5].tolist():
        path = open_packed(service, chapter, position)
        truth = chapter.classes[chapter.targets[position]]
        assert truth_of(service, service.load_image(path)) == truth
    assert truth_of(service, Image.new("RGB", (9, 9))) is None


def book_of(folder: Path) -> FlipBook:
    return FlipBook(ModelRegistry(folder))


def test_answers_on_packed_photos_are_those_of_the_service(
    served: Served, ids: dict[str, str]
) -> None:
    chapter = served.service.flips.chapter("shapes")
    assert chapter.packed.sum() == 24
    trio = chapter.trio(ids["none"], ids["handoff"])
    chosen = [ids["dense"], ids["none"], ids["handoff"]]
    for position in np.flatnonzero(chapter.packed)[:8].tolist():
        data = chapter.photo(position)
        photo = served.service.load_image(data)
        answers = served.service.predict(photo, chosen, top_k=len(chapter.classes))
        burdens = served.service.burden(photo, chosen)
        for voice in trio.voices.values():
            answer = answers[voice.info.id]
            probs = {top.class_name: top.prob for top in answer.top}
            wanted = [probs[name] for name in chapter.classes]
            assert np.allclose(voice.probs[position], wanted, atol=4e-3)
            assert chapter.classes[voice.predicted[position]] == answer.top[0].class_name
            if voice.burden is None:
                continue
            values = [value for value in burdens[voice.info.id].values if value is not None]
            assert min(values) * 0.998 <= voice.burden[position] <= max(values) * 1.002


def test_accuracies_are_those_of_the_manifest(served: Served) -> None:
    chapter = served.service.flips.chapter("shapes")
    for voice in chapter.voices.values():
        assert voice.right.mean() == voice.info.metrics["top1"]


def test_default_question_is_about_the_default_models(served: Served, ids: dict[str, str]) -> None:
    book = served.service.flips
    assert (book.datasets(), book.default_dataset()) == (("shapes",), "shapes")
    assert book.chapter().default_ids() == (ids["none"], ids["handoff"])
    assert book.chapter() is book.chapter("shapes")


def test_stale_answers_are_refused_and_the_others_stay(folder: Path, ids: dict[str, str]) -> None:
    path = answers_path(folder, "shapes")
    answers = read_answers(path)
    old = replace(answers.answers[ids["none"]], stamp="0" * 64)
    write_answers(path, replace(answers, answers={**answers.answers, ids["none"]: old}))
    chapter = book_of(folder).chapter()
    assert list(chapter.refused) == [ids["none"]]
    assert {info.id for info in chapter.pruned()} == {ids["handoff"], ids["token_merging"]}
    again = "python -m nbcore flips --dataset shapes --data DIR"
    with pytest.raises(UserError, match=again):
        chapter.trio(ids["none"], None)
    trio = chapter.trio(*chapter.completed(None, None))
    assert find(chapter, trio, Query(pattern="any"), limit=1).total == 1024


def test_a_dense_model_that_changed_makes_all_its_family_stale(
    folder: Path, ids: dict[str, str]
) -> None:
    book = book_of(folder)

    def retrain(entry: dict[str, Any]) -> None:
        entry["preprocessing"]["crop_pct"] = 0.9

    for key in ids.values():
        edit_variant(folder, key, retrain)
    with pytest.raises(UserError, match="renew the answers with") as refused:
        book.chapter()
    for key in ids.values():
        assert f"variant {key}: its answers are those of other weights" in str(refused.value)


def test_a_refused_variant_is_not_shown(folder: Path, ids: dict[str, str]) -> None:
    (folder / ids["handoff"] / "model.onnx").unlink()
    chapter = book_of(folder).chapter()
    assert {info.id for info in chapter.pruned()} == {ids["none"], ids["token_merging"]}
    with pytest.raises(UserError, match="unknown mitigated variant"):
        chapter.trio(ids["none"], ids["handoff"])


def test_missing_and_damaged_files_name_their_command(folder: Path) -> None:
    path = answers_path(folder, "shapes")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is unreadable .* `python -m nbcore flips"):
        book_of(folder).chapter()
    path.unlink()
    with pytest.raises(UserError, match="does not exist; make it anew with"):
        book_of(folder).chapter()
    with pytest.raises(UserError, match="unknown dataset 'mnist'; available: shapes"):
        book_of(folder).chapter("mnist")


def test_call_gives_the_items_of_the_book(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    chapter = served.service.flips.chapter()
    trio = chapter.trio(ids["none"], ids["handoff"])
    found = client.predict("models disagree", None, 7, 2, api_name="/flips")
    expected = find(chapter, trio, Query(pattern="disagree"), limit=7, offset=2)
    assert set(found) == {"total", "items"}
    assert found["total"] == expected.total > 9
    assert [item["position"] for item in found["items"]] == [i.position for i in expected.items]
    for item, own in zip(found["items"], expected.items, strict=True):
        assert (item["name"], item["truth"]) == (own.name, own.truth)
        assert item["answers"] == {
            key: {"class": cell.class_name}
            | {
                name: getattr(cell, name)
                for name in ("prob", "truth_prob", "right", "kl_to_base", "burden")
            }
            for key, cell in own.answers.items()
        }
        assert (item["photo"] is not None) == own.packed


def test_call_takes_models_classes_ranges_and_orders(
    client: Client, served: Served, ids: dict[str, str]
) -> None:
    chapter = served.service.flips.chapter()
    found = client.predict(
        pattern="broken",
        class_name="star",
        pruned=ids["token_merging"],
        mitigated="none",
        sort="margin",
        max_confidence=0.9,
        min_burden=0.5,
        api_name="/flips",
    )
    trio = chapter.trio(ids["token_merging"], None)
    query = Query(
        pattern="broken", class_name="star", sort="margin", max_confidence=0.9, min_burden=0.5
    )
    expected = find(chapter, trio, query, limit=50)
    assert found["total"] == expected.total
    assert [item["position"] for item in found["items"]] == [i.position for i in expected.items]
    assert all(list(i["answers"]) == [ids["dense"], ids["token_merging"]] for i in found["items"])


def test_photos_of_a_call_can_be_asked_about_again(client: Client, ids: dict[str, str]) -> None:
    found = client.predict("any", None, 3, packed=True, api_name="/flips")
    for item in found["items"]:
        answers = client.predict(
            handle_file(item["photo"]), list(item["answers"]), api_name="/predict"
        )
        for key, cell in item["answers"].items():
            top = answers[key]["top"][0]
            assert top["class"] == cell["class"]
            assert top["prob"] == pytest.approx(cell["prob"], abs=4e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pattern": "flip"}, "unknown pattern 'flip'; available: "),
        ({"pattern": "any", "class_name": "dog"}, "unknown class 'dog'; available: circle"),
        ({"pattern": "any", "limit": 1000}, "limit must be a whole number from 1 to 200, got 1000"),
        ({"pattern": "any", "pruned": "x"}, "unknown variant 'x'; available: "),
        ({"pattern": "any", "dataset": "x"}, "unknown dataset 'x'; available: shapes"),
        ({"pattern": "any", "sort": "x"}, "unknown order 'x'; available: "),
    ],
)
def test_wrong_calls_are_answered_with_the_right_ones(
    client: Client, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(**arguments, api_name="/flips")
