"""What the Models tab reads: training histories, zeros of weights, times of other machines."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.benches import Setting, Timing, read_benches
from app.errors import UserError
from app.timeline import MOST_RECORDS, read_timeline
from app.zeros import zero_share
from nbcore.checkpoint import Variant, read_manifest


@pytest.fixture(scope="module")
def variant(tiny_checkpoints: Path) -> Variant:
    return read_manifest(tiny_checkpoints).variants[0]


def record(step: int, variant: Variant, **changes: Any) -> dict[str, Any]:
    sites = len(variant.sites)
    return {
        "step": step,
        "epoch": step // 10,
        "macs_ratio": 1 / step,
        "loads": [0.6] * sites,
        "kept": [9] * sites,
    } | changes


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in records))
    return path


def test_load_of_one_unit_is_the_sites_over_the_root_of_their_number(
    tmp_path: Path, variant: Variant
) -> None:
    found = read_timeline(
        write(tmp_path / "h", [record(10, variant), record(20, variant)]), variant
    )
    assert (found.steps, found.epochs, found.macs_ratios) == ((10, 20), (1, 2), (0.1, 0.05))
    per_unit = found.unit_loads()
    assert per_unit is not None
    # Nine units of load 0.2 together: sqrt(9 * 0.04) = 0.6.
    assert per_unit == pytest.approx(np.full((2, len(variant.sites)), 0.2))


def test_several_records_of_one_epoch_stand_at_its_fractions(
    tmp_path: Path, variant: Variant
) -> None:
    # Two epochs of 20 steps, of which whole ones are counted.
    records = [record(s, variant, epoch=s // 20) for s in (5, 10, 20, 30, 40)]
    found = read_timeline(write(tmp_path / "h", records), variant)
    assert found.epochs == pytest.approx((0.25, 0.5, 1, 1.5, 2))


def test_records_without_kept_units_have_no_load_of_one_unit(
    tmp_path: Path, variant: Variant
) -> None:
    old = record(20, variant)
    del old["kept"]
    found = read_timeline(write(tmp_path / "h", [record(10, variant), old]), variant)
    assert found.kept is None
    assert found.unit_loads() is None


def test_long_trainings_are_thinned_and_keep_their_end(tmp_path: Path, variant: Variant) -> None:
    records = [record(step, variant) for step in range(1, 362)]
    found = read_timeline(write(tmp_path / "h", records), variant)
    # Every fifth of 361, of which the last is the first of a new five.
    assert found.steps == (*range(1, 362, 5),)
    assert len(found.steps) <= MOST_RECORDS + 1
    assert read_timeline(write(tmp_path / "h", records[:-1]), variant).steps[-1] == 360


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "it is empty"),
        ([{"step": 1}], "macs_ratio|epoch"),
        ([{"step": 1, "epoch": 1, "macs_ratio": 1.0, "loads": [0.1]}], "sites need as many"),
    ],
)
def test_a_history_that_does_not_fit_is_refused(
    tmp_path: Path, variant: Variant, records: list[Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_timeline(write(tmp_path / "h", records), variant)


def test_real_histories_are_read(tiny_checkpoints: Path) -> None:
    for entry in read_manifest(tiny_checkpoints).variants:
        found = read_timeline(tiny_checkpoints / entry.files["history"].path, entry)
        assert found.kept is not None
        assert found.kept[-1].tolist() == [len(site.kept) for site in entry.sites]
        assert found.macs_ratios[-1] == pytest.approx(entry.macs_ratio, abs=0.02)


def test_zeros_are_counted_in_matrices_alone(tmp_path: Path) -> None:
    tensors = {
        "a.weight": np.array([[0, 1], [2, 0]], np.float16),
        "filter.weight": np.zeros((1, 1, 2, 2), np.float32),
        "norm.weight": np.zeros(7, np.float32),
        "a.bias": np.zeros(7, np.float32),
        "unit_mean_0": np.zeros((7, 7), np.float32),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    # Two of four and four of four.
    assert zero_share(tmp_path / "w.safetensors", "hash") == 6 / 8


def bench(**changes: Any) -> dict[str, Any]:
    cell = {"contender": "served", "precision": "fp32", "batch": 8, "place": "host"}
    timed = {"ms": 2.0, "ms_iqr": [1.5, 3.0], "num_runs": 9}
    return {
        "device": "a made-up card",
        "command": "python -m nbcore bench serve",
        "commit": "abc",
        "contenders": {"served": "as served"},
        "cells": [
            cell | timed | {"variant": "dense"},
            cell | timed | {"variant": "pruned", "ms": 1.0},
            cell | {"variant": "broken", "error": "out of memory"},
            cell | timed | {"variant": "dense", "batch": 1},
        ],
    } | changes


def test_times_of_other_machines_are_told_by_setting(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "serve-card.json").write_text(json.dumps(bench()))
    (tmp_path / "bench" / "train-card.json").write_text("{}")
    (found,) = read_benches(tmp_path)
    assert (found.name, found.device) == ("serve-card", "a made-up card")
    eight = Setting(contender="served", precision="fp32", batch=8, place="host")
    assert {s.batch for s in found.timings} == {1, 8}
    assert found.timings[eight] == {
        "dense": Timing(ms=2.0, low_ms=1.5, high_ms=3.0),
        "pruned": Timing(ms=1.0, low_ms=1.5, high_ms=3.0),
    }


def test_a_folder_without_benches_has_none(tmp_path: Path) -> None:
    assert read_benches(tmp_path) == ()


@pytest.mark.parametrize("content", ["no json", "[]", json.dumps(bench(cells=[{"ms": 1}]))])
def test_a_damaged_bench_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "serve-bad.json").write_text(content)
    (tmp_path / "bench" / "serve-good.json").write_text(json.dumps(bench()))
    with caplog.at_level(logging.WARNING):
        assert [found.name for found in read_benches(tmp_path)] == ["serve-good"]
    assert "serve-bad.json is left out" in caplog.text
