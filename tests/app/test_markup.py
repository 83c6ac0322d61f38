"""Numbers, columns and pictures of the page: hand-written values in, the very words out."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from app import amounts, markup
from app.service import Prediction, Status, TopClass, VariantInfo


def info(key: str, *, base: str | None = "d", **changed: object) -> VariantInfo:
    values = {
        "id": key,
        "title": key,
        "dataset": "shapes",
        "base": base,
        "pruner": "taylor",
        "mitigation": "none",
        "macs_ratio": 0.5,
        "macs": 540_000_000,
        "num_params": 2_800_000,
        "size_bytes": 5_700_000,
        "metrics": {"top1": 0.861},
        "classes": ("ring", "star"),
        "img_size": 32,
        "grid": (4, 4),
        "site_names": ("blocks.0.attn", "blocks.0.mlp"),
        "is_default": True,
    }
    return VariantInfo(**(values | changed))  # type: ignore[arg-type]


def prediction(key: str, *top: tuple[str, float, float | None]) -> Prediction:
    return Prediction(
        variant=key,
        top=tuple(TopClass(class_name=n, prob=p, change=c) for n, p, c in top),
        kl_to_base=0.25,
        base_class="ring",
        provider="CPUExecutionProvider",
        latency_ms=3.42,
        parity=None,
    )


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (amounts.percent(0.93421), "93.4\u202f%"),
        (amounts.percent(0.5, 0), "50\u202f%"),
        (amounts.points(-0.0312), "\u22123.1"),
        (amounts.points(0.0312), "+3.1"),
        (amounts.points(-0.0001), "±0.0"),
        (amounts.points(None), ""),
        (amounts.count(5_601_234), "5.6\u202fM"),
        (amounts.count(1_084_000_000), "1.08\u202fG"),
        (amounts.count(540_000_000), "540\u202fM"),
        (amounts.count(999), "999"),
        (amounts.megabytes(11_340_000), "11.3\u202fMB"),
        (amounts.milliseconds(3.42), "3.4\u202fms"),
        (amounts.milliseconds(34.2), "34\u202fms"),
        (amounts.amount(1.324, "burden"), "1.32×"),
        (amounts.amount(1.324, "load"), "1.324"),
        (amounts.amount(None, "burden"), "–"),
    ],
)
def test_numbers_are_written_as_people_read_them(written: str, words: str) -> None:
    assert written == words


def test_picture_inside_the_page_keeps_every_pixel_and_a_safe_description() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    made = markup.picture(Image.fromarray(pixels), 'a "quoted" <alt>', lossless=True)
    found = re.fullmatch(
        r'<img src="data:image/png;base64,([^"]+)" alt="a &quot;quoted&quot; &lt;alt&gt;" '
        r'width="7" height="5">',
        made,
    )
    assert found is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert np.array_equal(np.asarray(decoded), pixels)


def test_names_from_a_manifest_cannot_become_markup() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    infos = (info("d", base=None, title=hostile), info("p", title=hostile))
    cells = {"p": prediction("p", (hostile, 0.5, 0.1))}
    pages = (
        markup.names(infos, before=True),
        markup.predictions(infos, cells, {"d": hostile}),
        markup.costs(infos, cells, before=False),
        markup.problem(hostile),
    )
    assert all(hostile not in page and "&lt;img" in page for page in pages)


def test_only_a_column_that_contradicts_its_base_is_marked() -> None:
    infos = (info("d", base=None), info("same"), info("other"))
    cells = {
        "d": prediction("d", ("ring", 0.9, 0.0)),
        "same": prediction("same", ("ring", 0.8, -0.1)),
        "other": prediction("other", ("star", 0.7, 0.65)),
    }
    columns = markup.predictions(infos, cells, {}).split('class="nb-cell"')[1:]
    assert ["other answer than dense" in column for column in columns] == [False, False, True]
    # The reference has no change against itself to show.
    assert ['nb-change">±0.0' in columns[0], "\u221210.0" in columns[1], "+65.0" in columns[2]] == [
        False,
        True,
        True,
    ]


def test_a_failed_variant_says_why_in_its_own_column_only() -> None:
    infos = (info("d", base=None), info("p"))
    cells = {"d": prediction("d", ("ring", 0.9, 0.0))}
    columns = markup.predictions(infos, cells, {"p": "p failed"}).split('class="nb-cell"')[1:]
    assert ["p failed" in column for column in columns] == [False, True]


def test_costs_are_held_against_the_base() -> None:
    # 540 of 1080 MACs and 2.8 of 5.6 million parameters are 50 %, 5.7 of 11.4 MB too.
    dense = info("d", base=None, macs=1_080_000_000, num_params=5_600_000, size_bytes=11_400_000)
    table = markup.costs(
        (dense, info("p")), {"p": prediction("p", ("ring", 0.9, 0.1))}, before=False
    )
    cells = [re.sub("<[^>]+>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", table)]
    corner, dense_column, pruned_column = cells[0], cells[1::2], cells[2::2]
    assert corner == []
    assert dense_column == [
        ["86.1", "%"],
        ["5.6", "M"],
        ["1.08", "G"],
        ["11.4", "MB"],
        ["–"],
        ["–"],
    ]
    assert pruned_column == [
        ["86.1", "%"],
        ["2.8", "M", "50", "%", "of", "dense"],
        ["540", "M", "50", "%", "of", "dense"],
        ["5.7", "MB", "50", "%", "of", "dense"],
        ["3.4", "ms"],
        ["0.250"],
    ]


@pytest.mark.parametrize(
    ("ready", "words"),
    [(True, "agree with their PyTorch twins to 3e-06"), (False, "is being checked")],
)
def test_foot_tells_where_it_runs_and_what_is_refused(ready: bool, words: str) -> None:
    status = Status(
        provider="CUDAExecutionProvider",
        device="cpu",
        parity={"a": 2.6e-6, "b": 1e-7, "c": None},
        refused={"x": "variant x: model.onnx has sha256 3f2a"},
        ready=ready,
    )
    page = markup.standing(status)
    assert "on a CUDA GPU (ONNX Runtime), gradients on the CPU (PyTorch)" in page
    assert words in page
    assert "variant x: model.onnx has sha256 3f2a" in page
