"""The manifest: written whole, read entry by entry, and changed by one process at a time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from nbcore.checkpoint import (
    METRICS,
    CheckpointError,
    Variant,
    manifest,
    read_manifest,
    register_variant,
    variant_to_json,
    with_files,
    withdraw_variant,
    write_manifest,
)
from tests.nbcore.variants import (
    VARIANT,
    named,
    truncate,
    variants,
    write_files,
)


@given(st.lists(variants(), max_size=3, unique_by=lambda v: v.id))
@settings(max_examples=40, deadline=None)
def test_manifest_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[Variant]
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder, tuple(written))
    manifest = read_manifest(folder)
    assert manifest.variants == tuple(written)
    assert manifest.refused == {}
    data = json.loads((folder / "manifest.json").read_text())
    assert data["schema_version"] == 1
    assert [metric["name"] for metric in data["metrics"]] == [metric.name for metric in METRICS]


def test_second_entry_of_an_id_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, (VARIANT, with_files(VARIANT, {}, {"top1": 0.9})))
    manifest = read_manifest(tmp_path)
    assert manifest.variants == (VARIANT,)
    assert manifest.refused == {"a-b": "variant a-b: listed twice"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"does not exist; train a variant with `python -m nbcore run shapes-quick"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "schema_version None; this program reads 1"),
        (b'{"schema_version": 2, "variants": []}', "schema_version 2; this program reads 1"),
        (b'{"schema_version": "1"}', "schema_version '1'; this program reads 1"),
        (b'{"schema_version": 1, "variants": null}', "variants must be a list, got None"),
        (b'{"schema_version": 1, "variants": 3}', "variants must be a list, got 3"),
        (b'{"schema_version": 1, "variants": {"a": 1}}', "variants must be a list, got {'a': 1}"),
        (b'{"schema_version": 1, "x": ' + 5000 * b"9" + b"}", "is not valid JSON: Exceeds"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_unreadable_manifest_is_refused_whole(
    content: bytes | None, text: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        read_manifest(tmp_path)


@pytest.mark.parametrize("entry", [None, 5, "a", [], {}])
def test_entry_that_is_no_object_is_refused_by_its_place(entry: object, tmp_path: Path) -> None:
    data = {"schema_version": 1, "variants": [entry, variant_to_json(VARIANT)]}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    manifest = read_manifest(tmp_path)
    assert list(manifest.refused) == ["entry 0"]
    assert manifest.variants == (VARIANT,)


def test_unknown_id_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    write_manifest(tmp_path, (VARIANT, named("other", None)))
    with pytest.raises(CheckpointError, match="unknown variant 'x'; available: a-b, other"):
        read_manifest(tmp_path)["x"]


def test_registering_replaces_in_place_and_puts_bases_before_their_children(
    tmp_path: Path,
) -> None:
    for variant_id, base in (("z", None), ("b-1", "b"), ("b-2", "b"), ("b", None), ("c", None)):
        register_variant(tmp_path, write_files(tmp_path, named(variant_id, base)))
    order = ["z", "b", "b-1", "b-2", "c"]
    assert [v.id for v in read_manifest(tmp_path).variants] == order
    changed = with_files(write_files(tmp_path, named("b-1", "b")), {}, {"top1": 0.75})
    register_variant(tmp_path, changed)
    assert [v.id for v in read_manifest(tmp_path).variants] == order
    assert read_manifest(tmp_path)["b-1"] == changed


def test_withdrawn_variant_can_be_put_back_where_it_was(tmp_path: Path) -> None:
    for variant_id in ("a", "b", "c"):
        register_variant(tmp_path, write_files(tmp_path, named(variant_id, None)))
    before = (tmp_path / "manifest.json").read_bytes()
    taken = withdraw_variant(tmp_path, "b")
    assert taken is not None
    assert [v.id for v in read_manifest(tmp_path).variants] == ["a", "c"]
    register_variant(tmp_path, taken[1], taken[0])
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert withdraw_variant(tmp_path, "x") is None
    assert withdraw_variant(tmp_path / "nowhere", "x") is None


def test_registering_refuses_damaged_files_and_keeps_the_manifest(tmp_path: Path) -> None:
    register_variant(tmp_path, write_files(tmp_path))
    before = (tmp_path / "manifest.json").read_bytes()
    other = write_files(tmp_path, named("other", None))
    truncate(tmp_path / "other" / "model.onnx")
    with pytest.raises(CheckpointError, match=r"variant other: model.onnx has"):
        register_variant(tmp_path, other)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_rewriting_never_loses_entries_that_cannot_be_read(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    data = {"schema_version": 1, "variants": [{"id": "newer", "field": 1}]}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    for rewrite in (
        lambda: register_variant(tmp_path, variant),
        lambda: withdraw_variant(tmp_path, "x"),
    ):
        with pytest.raises(CheckpointError, match="unreadable entries that a rewrite would lose"):
            rewrite()
    assert json.loads((tmp_path / "manifest.json").read_text()) == data


def change_at_once(folder: Path, mine: list[str], start: Any) -> None:
    """What one of several processes does: register its variants, take every other one out again."""
    start.wait()
    for number, variant_id in enumerate(mine):
        register_variant(folder, write_files(folder, named(variant_id, None)))
        if number % 2:
            withdraw_variant(folder, variant_id)


@pytest.mark.slow
def test_processes_that_change_the_manifest_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    parts = [[f"p{part}-{number}" for number in range(12)] for part in range(2)]
    start = context.Barrier(len(parts))
    workers = [
        context.Process(target=change_at_once, args=(tmp_path, mine, start)) for mine in parts
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * len(parts)
    left = {variant.id for variant in read_manifest(tmp_path).variants}
    assert left == {name for mine in parts for name in mine[::2]}


def test_manifest_that_another_process_holds_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = write_files(tmp_path)
    register_variant(tmp_path, variant)
    before = (tmp_path / "manifest.json").read_bytes()
    monkeypatch.setattr(manifest, "LOCK_SECONDS", 0.2)
    with FileLock(tmp_path / ".manifest.lock"):
        for change in (
            lambda: register_variant(tmp_path, with_files(variant, {}, {"top1": 1.0})),
            lambda: withdraw_variant(tmp_path, variant.id),
        ):
            with pytest.raises(CheckpointError, match=r"manifest.json locked .*let it finish"):
                change()
        # Readers do not wait.
        assert read_manifest(tmp_path).variants == (variant,)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert withdraw_variant(tmp_path, variant.id) == (0, variant)
