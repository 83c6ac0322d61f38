"""Whatever is sent is answered: with the numbers of the picture it is, or with a sentence."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.amounts import percent
from tests.app.corpus import HEIC, Sent, corpus
from tests.app.serving import Served, serve
from tests.app.visitor import Visitor


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False, download_files=False)


def test_corpus_holds_every_kind_of_trouble() -> None:
    assert len({sent.name for sent in corpus()}) == len(corpus()) == 26
    assert {sent.words is None for sent in corpus()} == {True, False}


def test_photos_of_phones_are_read(served: Served) -> None:
    image = served.service.load_image(HEIC)
    assert image.size == (64, 48)
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels[:, 4:28] - [240, 120, 20]).max() < 12
    assert np.abs(pixels[:, 36:60] - [30, 60, 200]).max() < 12


@pytest.mark.parametrize("sent", corpus(), ids=lambda sent: sent.name)
def test_a_file_through_the_api(served: Served, client: Client, sent: Sent, tmp_path: Path) -> None:
    path = tmp_path / sent.name
    path.write_bytes(sent.data)
    chosen = [served.service.default_variants()[1]]
    if sent.words is not None:
        with pytest.raises(AppError, match=sent.words):
            client.predict(handle_file(str(path)), chosen, api_name="/predict")
        return
    found = client.predict(handle_file(str(path)), chosen, api_name="/predict")
    image = served.service.load_image(sent.data)
    wanted = served.service.predict(image, chosen)[chosen[0]]
    assert [top["prob"] for top in found[chosen[0]]["top"]] == [top.prob for top in wanted.top]


def test_all_eight_ways_of_holding_a_camera_are_told_apart(served: Served) -> None:
    turned = [sent.data for sent in corpus() if sent.name.startswith("turned")]
    crops = [np.asarray(served.service.crop(served.service.load_image(d))) for d in turned]
    assert len({crop.tobytes() for crop in crops}) == 8


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_answered(served: Served, data: bytes) -> None:
    api = f"{served.url}/gradio_api"
    path = httpx.post(f"{api}/upload", files={"files": ("x.png", data)}, timeout=60).json()[0]
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = httpx.post(f"{api}/call/predict", json={"data": [image, None, None]}, timeout=60)
    answer = httpx.get(f"{api}/call/predict/{asked.json()['event_id']}", timeout=60).text
    assert "event: complete" in answer or "picture" in answer or "damaged" in answer


@pytest.mark.browser
def test_files_through_the_page(browser: Any, served: Served, tmp_path: Path) -> None:
    visitor = Visitor(browser, served)
    # A name without a suffix is no picture to the browser, which offers it to nobody.
    taken = [sent for sent in corpus() if sent.name != "no-suffix"]
    good = [sent for sent in taken if sent.words is None]
    bad = [sent for sent in taken if sent.words is not None]
    # In turns, since the page does not write the same sentence twice.
    for sent in (s for pair in zip_longest(good, bad) for s in pair if s is not None):
        path = tmp_path / sent.name
        path.write_bytes(sent.data)
        visitor.upload(path)
        if sent.words is not None:
            assert sent.words in visitor.wait("problem"), sent.name
            assert visitor.page.inner_text("#nb-predictions-block").strip() == ""
            continue
        visitor.wait()
        wanted = served.service.predict(served.service.load_image(sent.data))
        shown = [percent(top.prob) for cell in wanted.values() for top in cell.top]
        assert visitor.texts("#nb-predictions .nb-prob") == shown, sent.name
    visitor.context.close()


def test_uploads_are_read_by_those_who_know_the_address_only(served: Served) -> None:
    api = f"{served.url}/gradio_api"
    data = corpus()[8].data
    path = httpx.post(f"{api}/upload", files={"files": ("mine.png", data)}).json()[0]
    assert httpx.get(f"{api}/file={path}").content == data
    secret = Path(path).parent.name
    assert len(secret) >= 32
    folder = Path(path).parent.parent
    for guess in (folder, folder / secret, folder / "mine.png", folder / secret[:-1] / "mine.png"):
        assert httpx.get(f"{api}/file={guess}").status_code in (403, 404)
    other = httpx.post(f"{api}/upload", files={"files": ("mine.png", data[:-1] + b"x")}).json()[0]
    assert Path(other).parent != Path(path).parent
