"""Files and links of an open page: the numbers that it shows, for whoever knows its address."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image, ImageDraw, ImageFont

from app import visit
from app.errors import UserError
from app.gallery import find, read_examples
from app.permalink import query_of
from app.takeaway import FILES, Takeaway, view
from app.visit import Choices, Visit
from tests.app.folders import ids_by_mitigation
from tests.app.serving import Served, example_path, serve


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> list[str]:
    found = ids_by_mitigation(tiny_checkpoints)
    return [found["dense"], found["token_merging"], found["handoff"]]


def shown(served: Served, ids: list[str], path: Path | None = None, **changed: Any) -> Visit:
    """A page that has compared a photo."""
    values: dict[str, Any] = {
        "variants": ids,
        "method": "saliency",
        "target": "base",
        "before": False,
        "quantity": "burden",
        "layer": 2,
        "kind": "mlp",
    }
    state = Visit(site_chosen=True)
    service = served.service
    list(
        visit.compare(
            service,
            state,
            lambda: service.load_image(path or example_path()),
            Choices(**(values | changed)),
        )
    )
    return state


def link(served: Served, state: Visit) -> str | None:
    found = view(served.service, state)
    return None if found is None else query_of(found)


def file(served: Served, state: Visit, name: str) -> bytes:
    desk = Takeaway(served.service)
    return desk.file(desk.address(state).removeprefix("take/"), name)


def test_numbers_are_those_of_the_api(served: Served, ids: list[str]) -> None:
    found = json.loads(file(served, shown(served, ids), "numbers.json"))
    client = Client(served.url, verbose=False, download_files=False)
    answer = client.predict(handle_file(str(example_path())), ids, "saliency", api_name="/compare")
    for key in ids:
        assert found["predictions"][key]["top"] == answer["predictions"][key]["top"]
        for name in ("values", "rank_correlation", "deletion", "insertion", "difference"):
            assert found["attributions"][key][name] == answer["attributions"][key][name]
        for name in ("sites", "maps", "selection", "stream"):
            assert found["burdens"][key][name] == answer["burdens"][key][name]
    assert found["differences"] == answer["differences"]
    assert found["photo"] == example_path().stem
    assert found["choices"]["variants"] == ids


def test_maps_are_those_of_the_service(served: Served, ids: list[str]) -> None:
    state = shown(served, ids)
    with np.load(io.BytesIO(file(served, state, "maps.npz"))) as found:
        assert state.image is not None
        assert np.array_equal(found["crop"], np.asarray(served.service.crop(state.image, ids)))
        attributions = served.service.attribute(state.image, ids, "saliency")
        burdens = served.service.burden(state.image, ids)
        for key in ids:
            assert np.array_equal(found[f"attribution/{key}"], attributions[key].values)
            assert np.array_equal(found[f"burden/{key}"], burdens[key].maps)  # type: ignore[arg-type]
            assert found[f"burden_names/{key}"].tolist() == list(burdens[key].site_names)
        cut = burdens[ids[1]].null_maps
        assert np.array_equal(found[f"burden_before_retraining/{ids[1]}"], cut)  # type: ignore[arg-type]
        assert np.array_equal(found[f"difference/{ids[1]}"], attributions[ids[1]].difference)  # type: ignore[arg-type]
        merged = np.bincount(found[f"token_group/{ids[1]}"].ravel())
        assert merged.max() > 1
        assert f"token_group/{ids[0]}" not in found


def test_picture_holds_the_pictures_of_the_page(served: Served, ids: list[str]) -> None:
    state = shown(served, ids)
    found = Image.open(io.BytesIO(file(served, state, "comparison.png")))
    assert found.format == "PNG"
    pixels = np.asarray(found.convert("RGB"))
    assert state.attributions is not None
    for cell in state.attributions.values():
        wanted = np.asarray(cell.picture)
        side = len(wanted)
        # Where its first pixels stand, there must stand all of it.
        rows = np.lib.stride_tricks.sliding_window_view(pixels, (1, side, 3))[:, :, 0, 0]
        places = np.argwhere((rows[:, ::4] == wanted[0]).all((2, 3)))
        assert any(
            np.array_equal(pixels[y : y + side, 4 * x : 4 * x + side], wanted) for y, x in places
        )


def test_a_page_without_maps_still_has_its_files(served: Served, ids: list[str]) -> None:
    state = shown(served, ids)
    state.attributions = state.burdens = None
    for name in FILES:
        assert file(served, state, name)
    assert json.loads(file(served, state, "numbers.json"))["attributions"] == {}


def test_addresses_cannot_be_guessed_and_end_with_their_page(
    served: Served, ids: list[str]
) -> None:
    desk = Takeaway(served.service)
    one, other = shown(served, ids), shown(served, ids)
    assert desk.address(one) == desk.address(one) != desk.address(other)
    token = desk.address(one).removeprefix("take/")
    assert len(token) >= 32
    assert desk.file(token, "numbers.json")
    with pytest.raises(UserError, match=r"no file 'x'; available: comparison\.png, "):
        desk.file(token, "x")
    del one
    gc.collect()
    with pytest.raises(UserError, match="no longer open"):
        desk.file(token, "numbers.json")
    with pytest.raises(UserError, match="no longer open"):
        desk.file(desk.address(Visit()).removeprefix("take/"), "numbers.json")


def test_a_strange_address_is_answered_without_a_file(served: Served) -> None:
    answer = httpx.get(f"{served.url}/take/abc/numbers.json")
    assert answer.status_code == 404
    assert "compare again" in answer.text


def test_links_name_examples_and_never_a_visitors_photo(
    served: Served, ids: list[str], tmp_path: Path
) -> None:
    assert "example=n02102040_810" in str(link(served, shown(served, ids)))
    own = tmp_path / "private-name.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(own)
    query = str(link(served, shown(served, ids, own)))
    assert "example" not in query
    assert "private" not in query
    assert f"variants={','.join(ids)}" in query
    assert link(served, Visit()) is None


def test_every_example_is_found_by_its_pixels(served: Served) -> None:
    for example in read_examples():
        assert find(served.service.load_image(example.path)) == example


def test_no_sign_of_the_picture_is_missing_in_its_font(
    served: Served, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: set[str] = set()
    write = ImageDraw.ImageDraw.text

    def listen(
        self: ImageDraw.ImageDraw, place: Any, words: str, *args: Any, **kwargs: Any
    ) -> None:
        said.update(words)
        write(self, place, words, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", listen)
    file(served, shown(served, ids), "comparison.png")
    font = ImageFont.load_default(20)
    missing = bytes(font.getmask("\ue000"))
    assert {sign for sign in said if sign != " " and bytes(font.getmask(sign)) == missing} == set()
    assert {"x", "-", "%"} <= said
