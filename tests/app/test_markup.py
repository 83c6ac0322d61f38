"""Numbers, columns and pictures of the page: hand-written values in, the very words out."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app import amounts, markup, text
from app.latency import Latency
from app.question import AttributionMethod, Found
from app.service import AttributionMap, Prediction, Status, TopClass, VariantInfo
from app.trust import RemovalScores, Served


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
        "merges": False,
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


def test_a_plain_sentence_says_who_contradicts_dense() -> None:
    infos = (info("d", base=None), info("same"), info("other"))
    cells = {
        "d": prediction("d", ("ring", 0.9, 0.0)),
        "same": prediction("same", ("ring", 0.8, -0.1)),
        "other": prediction("other", ("star", 0.7, 0.65)),
    }
    columns = markup.predictions(infos, cells, {}).split('class="nb-cell"')[1:]
    assert ">“d” says ring.</p>" in columns[0]
    assert ">“same” says ring, as dense does.</p>" in columns[1]
    assert ">“other” says star; dense said ring.</p>" in columns[2]
    assert ["nb-other" in column for column in columns] == [False, False, True]
    assert ["KL divergence 0.250" in column for column in columns] == [False, True, True]
    # The reference has no change against itself to show.
    assert ['nb-change">±0.0' in columns[0], "\u221210.0" in columns[1], "+65.0" in columns[2]] == [
        False,
        True,
        True,
    ]


METHOD = AttributionMethod(
    name="toy",
    title="Toy",
    shows="Shows nothing.",
    sign="Has no sign.",
    cost="free",
    signed=True,
    unit="toys",
    note=None,
    compute=lambda _: Found(patches=np.zeros((1, 1))),
)


def attribution(key: str, **changed: object) -> AttributionMap:
    values = {
        "variant": key,
        "method": "toy",
        "target": "ring",
        "values": np.zeros((1, 1)),
        "signed": True,
        "completeness_error": 0.0123,
        "steps": 30,
        "removal": RemovalScores(deletion=0.234, insertion=0.567),
        "served": Served(provider="CPUExecutionProvider", sha256="9bc1" * 16, difference=7.7e-7),
        "picture": Image.new("RGB", (8, 8)),
    }
    return AttributionMap(**(values | changed))  # type: ignore[arg-type]


def facts(page: str, column: int) -> dict[str, str]:
    """What the lines of the trust stamp say in one column."""
    rows = re.findall(r'data-fact="(\w+)">(.*?)</tr>', page)
    return {name: re.findall("<td>(.*?)</td>", row)[column] for name, row in rows}


def test_every_map_is_stamped_with_how_far_to_trust_it() -> None:
    infos = (info("d", base=None), info("p"), info("broken"))
    shown = attribution(
        "p",
        difference=np.zeros((1, 1)),
        difference_picture=Image.new("RGB", (8, 8)),
        rank_correlation=-0.25,
        top_overlap=0.4,
        completeness_error=None,
        steps=None,
        removal=None,
    )
    page = markup.attributions(
        infos,
        {"d": attribution("d"), "p": shown},
        {"broken": "broken failed"},
        crop=Image.new("RGB", (8, 8)),
        method=METHOD,
        scales=[Image.new("RGB", (8, 8))] * 2,
    )
    assert facts(page, 0) == {
        "rank_correlation": "–",
        "top_overlap": "–",
        "completeness_error": "1.2\u202f%",
        "deletion": "0.23",
        "insertion": "0.57",
        "steps": "30",
        "parity": "8e-07",
        "provider": "CPU",
        "sha256": "9bc19bc1",
    }
    assert facts(page, 1) == facts(page, 0) | {
        "rank_correlation": "\u22120.25",
        "top_overlap": "40.0\u202f%",
        "completeness_error": "–",
        "deletion": "–",
        "insertion": "–",
        "steps": "–",
    }
    assert set(facts(page, 2).values()) == {"–"}
    assert page.count("broken failed") == 1
    assert page.count("minus that of dense") == 1
    assert text.NO_DIFFERENCE["base"] in page
    assert "Shows nothing. Has no sign. Cost: free." in page


def test_what_is_computed_keeps_its_place() -> None:
    infos = (info("d", base=None), info("p"))
    crop = Image.new("RGB", (8, 8))
    page = markup.attributions(infos, None, {}, crop=crop, method=METHOD)
    assert page.count("nb-skeleton") == 2 * 2
    assert page.count("nb-blank") == 2
    assert set(facts(page, 0).values()) == {"–"}


def test_a_note_is_said_once_before_and_after_the_maps_are_there() -> None:
    infos = (info("d", base=None), info("m", merges=True), info("n", merges=True))
    method, crop = replace(METHOD, note="it <merges>."), Image.new("RGB", (8, 8))
    cells = {"d": attribution("d")} | {k: attribution(k, note=method.note) for k in "mn"}
    for shown in (None, cells):
        page = markup.attributions(infos, shown, {}, crop=crop, method=method)
        assert page.count("<b>m; n</b>: it &lt;merges&gt;.") == page.count("&lt;merges&gt;") == 1


def test_why_there_is_no_difference() -> None:
    crop = Image.new("RGB", (8, 8))
    maps = {"d": attribution("d"), "p": attribution("p", target="star")}
    for infos, cells, why in (
        ((info("d", base=None), info("p")), maps, "class"),
        ((info("p"), info("q")), {"p": maps["p"], "q": maps["p"]}, "missing"),
    ):
        page = markup.attributions(infos, cells, {}, crop=crop, method=METHOD)
        assert text.NO_DIFFERENCE[why] in page


def test_the_list_of_methods_says_all_of_each() -> None:
    page = markup.methods([METHOD])
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page.split("<tbody>")[1])
    assert cells == ["Toy", "Shows nothing.", "Has no sign.", "free"]


def test_a_failed_variant_says_why_in_its_own_column_only() -> None:
    infos = (info("d", base=None), info("p"))
    cells = {"d": prediction("d", ("ring", 0.9, 0.0))}
    columns = markup.predictions(infos, cells, {"p": "p failed"}).split('class="nb-cell"')[1:]
    assert ["p failed" in column for column in columns] == [False, True]


def test_costs_are_held_against_the_base() -> None:
    # 540 of 1080 MACs and 2.8 of 5.6 million parameters are 50 %, 5.7 of 11.4 MB too.
    dense = info("d", base=None, macs=1_080_000_000, num_params=5_600_000, size_bytes=11_400_000)
    # Half the time in every round but one, and so is the interval of the ratio.
    times = {
        "d": Latency(times_ms=(4.0,) * 9, provider="CPUExecutionProvider"),
        "p": Latency(times_ms=(*(2.0,) * 8, 4.0), provider="CPUExecutionProvider"),
    }
    table = markup.costs(
        (dense, info("p")),
        {"p": prediction("p", ("ring", 0.9, 0.1))},
        before=False,
        zeros={"d": 0.0, "p": 0.0123},
        times=times,
    )
    cells = [re.sub("<[^>]+>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", table)]
    corner, dense_column, pruned_column = cells[0], cells[1::2], cells[2::2]
    assert corner == []
    assert dense_column == [
        ["86.1", "%"],
        ["5.6", "M"],
        ["1.08", "G"],
        ["11.4", "MB"],
        ["0.00", "%"],
        ["4.0", "ms", "4.0", "ms", "to", "4.0", "ms"],
        ["–"],
    ]
    assert pruned_column == [
        ["86.1", "%"],
        ["2.8", "M", "50", "%", "of", "dense"],
        ["540", "M", "50", "%", "of", "dense"],
        ["5.7", "MB", "50", "%", "of", "dense"],
        ["1.23", "%"],
        ["2.0", "ms", "2.0", "ms", "to", "2.0", "ms"],
        ["0.250"],
    ]
    assert (
        "needs 50\u202f% of dense's MACs and 50\u202f% (50\u202f% to 50\u202f%) of its time"
        in html.unescape(table)
    )


def test_costs_say_where_fewer_macs_are_no_less_time() -> None:
    infos = (info("d", base=None), info("p"))
    times = {
        key: Latency(times_ms=(4.0,) * 6, provider="CPUExecutionProvider") for key in ("d", "p")
    }
    table = markup.costs(infos, {}, before=False, times=times)
    assert "but that did not become less time here" in html.unescape(table)
    waits = markup.costs(infos, {}, before=False)
    assert "timing" in waits
    assert "nb-unseen" in waits


@pytest.mark.parametrize(
    ("ready", "words"),
    [(True, "agree with their PyTorch twins to 3e-06"), (False, "is being checked")],
)
def test_foot_tells_where_it_runs_and_what_is_refused(ready: bool, words: str) -> None:
    status = Status(
        provider="CUDAExecutionProvider",
        device="cpu",
        precision="fp32",
        effects={},
        parity={"a": 2.6e-6, "b": 1e-7, "c": None},
        refused={"x": "variant x: model.onnx has sha256 3f2a"},
        ready=ready,
    )
    page = markup.standing(status)
    assert "on a CUDA GPU (ONNX Runtime), gradients on the CPU (PyTorch)" in page
    assert words in page
    assert "variant x: model.onnx has sha256 3f2a" in page
