"""An entry is read as it was written; what contradicts itself is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbcore.checkpoint import (
    CheckpointError,
    FileEntry,
    read_manifest,
    variant_from_json,
    variant_to_json,
    verify_files,
    with_files,
    write_manifest,
)
from tests.nbcore.variants import (
    VARIANT,
    anything,
    named,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to every value inside plain data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inner:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_an_entry_holds_is_read_or_refused_by_name(data: st.DataObject) -> None:
    full = with_files(VARIANT, {"onnx": FileEntry(path="a-b/x", sha256="0", size_bytes=1)}, {})
    entry = variant_to_json(full)
    *path, last = data.draw(st.sampled_from(places(entry)))
    target = entry
    for key in path:
        target = target[key]
    if data.draw(st.booleans()) and isinstance(target, dict):
        del target[last]
    else:
        target[last] = data.draw(anything)
    try:
        variant = variant_from_json(entry)
    except CheckpointError:
        return
    assert json.loads(json.dumps(entry))["id"] == variant.id
    with pytest.raises(CheckpointError):
        verify_files(Path("nowhere"), variant)


def test_entry_of_before_exports_were_recorded_is_read() -> None:
    """Schema 1 has had the field since it was added; entries without it stay readable."""
    entry = variant_to_json(VARIANT)
    assert entry["provenance"].pop("export") is None
    assert variant_from_json(entry) == VARIANT
    entry["provenance"]["export"] = {"command": "c", "commit": "d", "versions": {}}
    with pytest.raises(CheckpointError, match=r"provenance.export lacks \['device'\]"):
        variant_from_json(entry)


def test_numbers_of_the_wrong_kind_are_named() -> None:
    entry = variant_to_json(VARIANT)
    entry["arch"]["head_dim"] = "eight"
    text = "variant a-b: unreadable manifest entry .*arch.head_dim must be int, got 'eight'"
    with pytest.raises(CheckpointError, match=text):
        variant_from_json(entry)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda e: e.pop("arch"), r"lacks \['arch'\]"),
        (lambda e: e.update(colour="red"), r"unknown fields \['colour'\]"),
        (lambda e: e.update(id="../evil"), "an id holds only letters"),
        (lambda e: e.update(id=".hidden"), "an id holds only letters"),
        (lambda e: e.update(id=""), "an id holds only letters"),
        (lambda e: e.update(id="a/b"), "an id holds only letters"),
        (lambda e: e.update(base="a-b"), "cannot be its own base"),
        (lambda e: e.update(img_size=24), r"img_size 24 is not patch_size 8 times grid \(2, 2\)"),
        (lambda e: e.update(grid=[2]), r"grid must be"),
        (lambda e: e.update(classes=["cat"]), "at least two classes, has 1"),
        (lambda e: e.update(patch_size=0, img_size=0), "must be at least 1, got 0 and"),
        (lambda e: e.update(patch_size=-8, grid=[-2, -2]), "must be at least 1, got -8 and"),
        (lambda e: e.update(classes=["cat", "dog", "cat"]), r"classes \['cat'\] are listed more"),
        (lambda e: e.update(classes=["own", "cat", "base"]), r"classes \['base', 'own'\] bear"),
        (lambda e: e["preprocessing"].update(crop_pct=0.0), r"crop_pct must lie in \(0, 1\]"),
        (lambda e: e["preprocessing"].update(crop_pct=1.01), r"crop_pct must .* got 1\.01"),
        (lambda e: e["preprocessing"].update(interpolation="nearest"), "interpolation must be"),
        (lambda e: e["sites"].pop(), r"sites keep \[1\] units, arch has \[1, 8\]"),
        (lambda e: e["sites"].reverse(), r"sites keep \[8, 1\] units"),
        (lambda e: e["sites"][0].update(name="blocks.7.attn"), "sites are"),
        (lambda e: e["sites"][0].update(kind="neurons"), "sites are"),
        (lambda e: e["sites"][0].update(kept=[2]), "blocks.0.attn: kept must be ascending"),
        (lambda e: e["sites"][0].update(kept=[-1]), "blocks.0.attn: kept must be ascending"),
        (lambda e: e["sites"][1].update(kept=[9, 8, *range(10, 16)]), "blocks.0.mlp: kept must"),
        (lambda e: e["sites"][1].update(kept=[8, 8, *range(9, 15)]), "blocks.0.mlp: kept must"),
        (lambda e: e["metrics"].update(loss=float("nan")), r"metrics \['loss'\] are not finite"),
        (lambda e: e["metrics"].update(ci=[0, float("inf")]), r"metrics \['ci'\] are not finite"),
        (lambda e: e.update(macs_ratio=float("nan")), r"metrics \['macs_ratio'\] are not finite"),
        (lambda e: e.update(macs_ratio=10**400), "unreadable manifest entry .* too large"),
        (lambda e: e["metrics"].update(top1=-(10**400)), r"metrics \['top1'\] are not finite"),
    ],
)
def test_contradictions_are_refused_and_other_variants_stay(
    change: Callable[[dict], Any], text: str, tmp_path: Path
) -> None:
    write_manifest(tmp_path, (named("first", None), VARIANT, named("last", None)))
    data = json.loads((tmp_path / "manifest.json").read_text())
    change(data["variants"][1])
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    manifest = read_manifest(tmp_path)
    assert [v.id for v in manifest.variants] == ["first", "last"]
    ((_, reason),) = manifest.refused.items()
    with pytest.raises(CheckpointError, match=text):
        raise CheckpointError(reason)


def test_metrics_that_json_cannot_say_are_not_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, (VARIANT,))
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="are not finite, which JSON cannot say; use null"):
        write_manifest(tmp_path, (with_files(VARIANT, {}, {"loss": float("inf")}),))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_positions_in_the_base_by_hand() -> None:
    # Site 0 has units 0..1 of the base, site 1 units 2..65.
    assert VARIANT.kept_in_base() == [1, 5, 6, 7, 8, 9, 10, 11, 12]
    assert VARIANT.num_units == 9
