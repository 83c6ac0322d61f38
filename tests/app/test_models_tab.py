"""The Models tab: what it shows are the numbers of the manifest."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import text_models as text
from app.amounts import count, percent, ratio
from app.benches import read_benches
from app.family import family
from app.kept_units import kept_units
from app.latency import Latency
from app.ledger import COLUMNS, ledger
from app.load_history import load_history
from app.records import Record
from app.service import Service
from app.styles import Styles
from app.timeline import Timeline, read_timeline
from app.tradeoff import against_macs, against_time, against_time_there, setting_words
from nbcore.checkpoint import read_manifest
from tests.app.serving import serve
from tests.app.test_model_files import bench


@pytest.fixture(scope="module")
def service(tiny_checkpoints: Path) -> Service:
    return serve(tiny_checkpoints).service


@pytest.fixture(scope="module")
def records(service: Service) -> tuple[Record, ...]:
    return service.records()


def changed(record: Record, **changes: Any) -> Record:
    """The record of another variant."""
    variant = replace(record.variant, **changes)
    title = changes.get("id", record.info.title)
    return replace(record, variant=variant, info=replace(record.info, id=variant.id, title=title))


def attributes(drawn: str, name: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(f'{name}="([^"]*)"', drawn)]


def test_records_are_the_manifest(tiny_checkpoints: Path, records: tuple[Record, ...]) -> None:
    manifest = read_manifest(tiny_checkpoints)
    assert [r.variant for r in records] == list(manifest.variants)
    for record in records:
        assert record.top1 == record.variant.metrics["top1"]
        assert record.top1_range == tuple(record.variant.metrics["top1_ci95"])
        # What is pruned was cut out, so no matrix holds more than chance zeros.
        assert record.zero_share is not None
        assert record.zero_share < 0.02


def test_every_number_of_the_table_is_the_manifests(records: tuple[Record, ...]) -> None:
    drawn = ledger(records)
    bodies = re.findall(r"<tbody data-variant=.*?</tr>", drawn, re.DOTALL)
    assert len(bodies) == len(records)
    assert set(COLUMNS) == set(text.COLUMNS)
    for body, record in zip(bodies, records, strict=True):
        variant = record.variant
        cells = dict(re.findall(r'data-column="(\w+)" data-value="([^"]*)"', body))
        for name in ("top1", "burden", "burden_null", "takeover", "selection", "residual"):
            value = variant.metrics.get(name)
            assert cells[name] == ("" if value is None else str(value))
        assert cells["macs"] == str(variant.macs)
        assert cells["sha256"] == variant.files["onnx"].sha256[:8]
        assert cells["commit"] == variant.provenance.commit[:7]
        low, high = record.top1_range or (0, 0)
        words = html.unescape(re.sub("<[^>]+>", " ", body))
        for shown in (
            percent(variant.metrics["top1"]),
            count(variant.macs),
            percent(low),
            percent(high),
        ):
            assert shown in words
        if variant.base:
            assert ratio(variant.metrics["burden"]) in words


def test_what_is_told_below_a_row_is_the_provenance(records: tuple[Record, ...]) -> None:
    for record in records:
        told = html.unescape(ledger([record]))
        made = record.variant.provenance
        assert made.export is not None
        for value in (made.command, made.commit, made.device, made.export.command, record.id):
            assert f"<dd>{value}</dd>" in told
        for entry in record.variant.files.values():
            assert entry.sha256 in told
        for name in record.variant.metrics:
            assert f'<th scope="row">{name}</th>' in told


def test_a_missing_metric_is_a_dash_and_sorts_as_nothing(records: tuple[Record, ...]) -> None:
    bare = changed(records[0], metrics={})
    row = re.search(r'data-column="top1".*?</td>', ledger([bare]))
    assert row is not None
    assert row[0] == 'data-column="top1" data-value="">–</td>'


def test_rounding_leaves_no_sign_before_nothing(records: tuple[Record, ...]) -> None:
    metrics = dict(records[1].variant.metrics)
    small = changed(records[1], metrics=metrics | {"takeover": -0.004, "residual": -0.1})
    drawn = ledger([small])
    assert ">0.00</td>" in drawn
    assert ">\u22120.10</td>" in drawn


def test_the_tree_goes_from_dense_to_host_to_mitigation(records: tuple[Record, ...]) -> None:
    drawn = family(records, dataset="shapes")
    depth, at = 0, {}
    for found in re.finditer(r'<ul|</ul>|data-variant="([^"]+)"|nb-term[^>]*>(\w+)', drawn):
        depth += {"<ul": 1, "</ul>": -1}.get(found[0], 0)
        at |= {name: depth for name in found.groups() if name}
    dense, *pruned = records
    assert at[dense.id] == 1
    assert at["taylor"] == 2
    assert {at[record.id] for record in pruned} == {3}
    assert depth == 0
    for record in records:
        assert percent(record.variant.metrics["top1"]) in drawn


def test_leaves_stand_in_one_order_under_every_host(records: tuple[Record, ...]) -> None:
    dense, *pruned = records
    first = [changed(r, id=f"a-{k}", macs_ratio=0.5) for k, r in enumerate(pruned)]
    second = [
        changed(r, id=f"b-{k}", macs_ratio=0.5, pruner="magnitude") for k, r in enumerate(pruned)
    ]
    larger = changed(pruned[-1], id="a-larger", macs_ratio=0.75)
    drawn = family([dense, *first, larger, *reversed(second)], dataset="shapes")
    order = [str(k) for k in range(len(pruned))]
    found = [name.partition("-") for name in attributes(drawn, "data-variant")[1:]]
    assert [rest for host, _, rest in found if host == "a"] == ["larger", *order]
    assert [rest for host, _, rest in found if host == "b"] == order


def test_a_composition_says_what_each_part_does(records: tuple[Record, ...]) -> None:
    both = changed(records[1], mitigation="handoff+distillation")
    drawn = html.unescape(family([records[0], both], dataset="shapes"))
    for part in ("handoff", "distillation"):
        assert text.MITIGATIONS[part] in drawn
    assert "handoff + distillation" in drawn
    unknown = changed(records[1], mitigation="handoff+something")
    assert text.MITIGATIONS["handoff"] not in family([records[0], unknown], dataset="shapes")


def test_models_without_their_base_stand_apart(records: tuple[Record, ...]) -> None:
    drawn = family(records[1:], dataset="shapes")
    assert text.ORPHANS in drawn
    assert attributes(drawn, "data-variant") == [r.id for r in records[1:]]
    assert text.ORPHANS not in family(records, dataset="shapes")


def test_colour_tells_the_mitigation_and_shape_the_host(records: tuple[Record, ...]) -> None:
    plain = next(r for r in records if r.variant.mitigation == "none")
    other = changed(plain, id="other-host", pruner="magnitude")
    handed = next(r for r in records if r.variant.mitigation == "handoff")
    styles = Styles([*records, other])
    shape, hue = styles.of(plain).split()
    assert styles.of(other).split()[1] == hue == "nb-c0"
    assert styles.of(other).split()[0] != shape
    assert styles.of(handed).split()[0] == shape
    assert styles.of(handed).split()[1] != hue
    assert styles.of(records[0]) == "nb-diamond nb-c0"
    assert len(dict(styles.key())) == len(styles.key())


def test_kept_heads_and_neurons_are_those_of_the_manifest(records: tuple[Record, ...]) -> None:
    for record in records:
        drawn = kept_units([record])
        heads = [site for site in record.variant.sites if site.kind == "heads"]
        neurons = [site for site in record.variant.sites if site.kind == "neurons"]
        rows = re.findall(r'<span class="nb-heads">(.*?)</span>', drawn)
        for row, site in zip(rows, heads, strict=True):
            full = [kind == "full" for kind in re.findall(r"nb-(full|gone)", row)]
            assert [k for k, is_full in enumerate(full) if is_full] == list(site.kept)
            assert len(full) == site.total
        assert attributes(drawn, "style") == [f"--p:{len(s.kept) / s.total:.4f}" for s in neurons]
        (alt,) = attributes(drawn, "aria-label")
        assert f"layer 1 keeps {len(heads[0].kept)} of {heads[0].total} heads" in alt
        merge = record.variant.merge
        assert drawn.count("nb-merged") == (merge is not None)


def test_accuracy_stands_against_multiply_adds(records: tuple[Record, ...]) -> None:
    drawn = against_macs(records)
    marks = attributes(drawn, 'role="img" aria-label')
    told = dict(zip([r.id for r in records], marks, strict=True))
    for record in records:
        low, high = record.top1_range or (0, 0)
        right = f"{percent(record.variant.metrics['top1'])} right"
        assert f"{right} ({percent(low)} to {percent(high)})" in told[record.id]
        assert f"{count(record.variant.macs)} MACs" in told[record.id]
    # The dense one costs most: its x is its MACs over 1.06 times as many.
    place = re.search(r'nb-diamond|left:([\d.]+)%;bottom:[\d.]+%"><i class="nb-diamond', drawn)
    assert place is not None
    assert float(place[1]) == pytest.approx(100 / 1.06, abs=0.01)


def of_equal_cost(records: tuple[Record, ...], count: int) -> list[Record]:
    """Dense, and pruned models that cost about a quarter of it, each a little less accurate."""
    dense, plain = changed(records[0], macs=1_330_000_000), records[1]
    return [dense] + [
        changed(
            plain,
            id=f"equal-{k}",
            macs=332_000_000 + 500_000 * (k % 2),
            metrics={"top1": 0.92 - 0.001 * k, "top1_ci95": [0.9, 0.94]},
        )
        for k in range(count)
    ]


def test_models_of_equal_cost_stand_side_by_side(records: tuple[Record, ...]) -> None:
    drawn = against_macs(of_equal_cost(records, 9))
    places = re.findall(r'aria-label="equal-\d:[^"]*" style="left:([^;]*);', drawn)
    # The axis ends at 1.06 times what dense costs.
    at = [f"{100 * macs / 1.06 / 1.33e9:.2f}%" for macs in (332e6, 332.5e6)]
    # The last one is the least accurate and stands where it belongs.
    shifts = (-3, 3, -6, 0, 6, -3, 3, -6, 0)
    expected = [f"calc({at[k % 2]} + {px}px)" if px else at[k % 2] for k, px in enumerate(shifts)]
    assert places == expected
    # On a screen of 1400 px the field is 580 px wide: 6 px are 1 % of the axis.
    assert max(abs(px) for px in shifts) <= 6
    assert text.SIDE_BY_SIDE.format(px=6) in drawn
    assert text.SIDE_BY_SIDE.format(px=6) not in against_macs(records[:1])


def test_times_stand_where_they_were_measured_with_their_intervals(
    records: tuple[Record, ...],
) -> None:
    dense, *equal = of_equal_cost(records, 3)
    found = latencies((dense, *equal), 1.0, 0.3, 0.3, 0.301)
    drawn = against_time((dense, *equal), found)
    assert "px)" not in drawn
    assert text.SIDE_BY_SIDE.format(px=6) not in drawn
    marks = re.findall(r'aria-label="equal-\d:[^"]*" style="left:([\d.]+)%', drawn)
    # Dense takes 9 to 11 ms around 10, so the axis ends at 1.06 * 11 ms.
    middles = [100 * ms / 11 / 1.06 for ms in (3.0, 3.0, 3.01)]
    assert [float(mark) for mark in marks] == pytest.approx(middles, abs=0.01)


def latencies(records: tuple[Record, ...], *factors: float) -> dict[str, Latency]:
    times = (9.0, 10.0, 11.0, 10.0, 9.5, 10.5, 10.0)
    return {
        record.id: Latency(
            times_ms=tuple(factor * t for t in times), provider="CPUExecutionProvider"
        )
        for record, factor in zip(records, factors, strict=True)
    }


def test_fewer_macs_that_took_no_less_time_get_a_word(records: tuple[Record, ...]) -> None:
    dense, slow, fast = records[0], records[1], records[2]
    drawn = against_time((dense, slow, fast), latencies((dense, slow, fast), 1.0, 1.02, 0.5))
    words = re.findall(r"<li([^>]*)>([^<]*)</li>", drawn)
    assert [bool(mark) for mark, _ in words] == [True, False]
    for (_, said), record, time in zip(words, (slow, fast), ("102", "50"), strict=True):
        macs = percent(record.variant.macs_ratio, 0)
        assert html.unescape(said).startswith(f"“{record.info.title}” needs {macs}")
        assert f"{time}\u202f%" in said
    assert "did not become less time" in words[0][1]
    assert html.escape(text.LESS_THAN_PROMISED) in drawn
    assert "Median of 7 runs" in drawn


def test_a_difference_within_the_wavering_is_not_called_faster(
    records: tuple[Record, ...],
) -> None:
    dense, pruned = records[:2]
    found = latencies((dense, pruned), 1.0, 1.0)
    wavering = (0.5, 1.5, 0.9, 0.8, 1.4, 0.7, 0.9)
    times = tuple(t * w for t, w in zip(found[dense.id].times_ms, wavering, strict=True))
    found[pruned.id] = Latency(times_ms=times, provider="CPUExecutionProvider")
    drawn = against_time((dense, pruned), found)
    # In the middle it takes 90 % of dense's time, but up to 150 %.
    assert "90\u202f% (50\u202f% to 150\u202f%)" in drawn
    assert "did not become less time" in drawn


def test_nothing_measured_is_said(records: tuple[Record, ...]) -> None:
    assert text.NOT_MEASURED in against_time(records, {})


def test_times_of_other_machines_stand_beside(records: tuple[Record, ...], tmp_path: Path) -> None:
    cells = [
        {"contender": "served", "precision": "fp16", "batch": 8, "place": "host"}
        | {"variant": r.id, "ms": 1.0 + k, "ms_iqr": [0.5 + k, 2.0 + k]}
        for k, r in enumerate(records[:2])
    ]
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "serve-x.json").write_text(json.dumps(bench(cells=cells)))
    (found,) = read_benches(tmp_path)
    (setting,) = found.timings
    drawn = against_time_there(records, found, setting)
    assert "1.0\u202fms (0.5\u202fms to 2.0\u202fms)" in drawn
    assert "a made-up card; 8 photos, fp16, as served. Level lines" in drawn
    assert "<code>python -m nbcore bench serve</code></p>" in drawn
    assert "`" not in drawn
    assert "Milliseconds for 8 photos" in drawn
    assert drawn.count('tabindex="0"') == 2
    # Of the mitigations, only those of the two models that were timed are explained.
    key = re.findall(r'nb-swatch ([^"]*)"></i>([^<]*)<', drawn)
    style = Styles(records).of(records[1]).split()[0]
    assert key == [
        ("nb-diamond nb-c0", text.DENSE),
        (f"{style} nb-c0", "taylor"),
        ("nb-patch nb-c0", text.NO_MITIGATION),
    ]
    # The machine timed models, though none of these.
    other = against_time_there(records[2:], found, setting)
    assert re.sub("<[^>]+>", "", other) == text.NOT_THERE
    unknown = [changed(record, metrics={}) for record in records[:2]]
    assert text.NO_ACCURACY in against_time_there(unknown, found, setting)


def test_settings_begin_with_what_tells_them_apart(tmp_path: Path) -> None:
    timed = {"ms": 1.0, "ms_iqr": [1.0, 1.0], "variant": "x", "precision": "fp32"}
    cells = [
        timed | {"contender": "served", "batch": batch, "place": place}
        for batch, place in ((1, "host"), (8, "host"), (8, "device"))
    ]
    (tmp_path / "bench").mkdir()
    for name, taken in (("one", cells[:2]), ("two", cells)):
        (tmp_path / "bench" / f"serve-{name}.json").write_text(json.dumps(bench(cells=taken)))
    one, two = read_benches(tmp_path)
    assert [setting_words(one, setting) for setting in one.timings] == [
        "1 photo, fp32, as served",
        "8 photos, fp32, as served",
    ]
    assert [setting_words(two, setting) for setting in two.timings][1:] == [
        "8 photos in main memory, fp32, as served",
        "8 photos on the card, fp32, as served",
    ]


@pytest.fixture(scope="module")
def timeline(tiny_checkpoints: Path, records: tuple[Record, ...]) -> Timeline:
    variant = records[1].variant
    return read_timeline(tiny_checkpoints / variant.files["history"].path, variant)


def test_loads_over_a_training_are_those_of_the_history(
    records: tuple[Record, ...], timeline: Timeline
) -> None:
    record = records[1]
    drawn = load_history(record, timeline, per_unit=False)
    attention, mlp = re.split("<h3>MLP</h3>", drawn)
    blocks = len(record.variant.sites) // 2
    for part, offset in ((attention, 0), (mlp, 1)):
        assert part.count('class="nb-ramp"') == blocks
        (alt,) = [a for a in attributes(part, "aria-label") if a.startswith("Load of")]
        for block in range(blocks):
            first, last = timeline.loads[[0, -1], 2 * block + offset]
            assert f"layer {block + 1} from {first:.3f} to {last:.3f}" in alt
        told = f"MACs left over the training of {record.info.title}: from "
        assert f"{told}{percent(timeline.macs_ratios[0], 0)} to" in html.unescape(part)


def test_load_of_one_unit_is_drawn_where_it_is_known(
    records: tuple[Record, ...], timeline: Timeline
) -> None:
    drawn = load_history(records[1], timeline, per_unit=True)
    found = timeline.unit_loads()
    assert found is not None
    assert f"layer 1 from {found[0, 0]:.3f} to {found[-1, 0]:.3f}" in drawn
    assert text.TIMELINE_NO_UNITS not in drawn
    unknown = load_history(records[1], replace(timeline, kept=None), per_unit=True)
    assert text.TIMELINE_NO_UNITS in unknown
    assert f"layer 1 from {timeline.loads[0, 0]:.3f}" in unknown
