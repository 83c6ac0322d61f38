"""The manifest: what is written is read back, and what breaks the contract is refused by name."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nbcore.burden import MeteredViT
from nbcore.checkpoint import (
    METRICS,
    CheckpointError,
    FileEntry,
    Preprocessing,
    Provenance,
    SiteEntry,
    Variant,
    check_base,
    file_entry,
    load_model,
    read_manifest,
    register_variant,
    resolve,
    variant_from_json,
    variant_to_json,
    verify_files,
    with_files,
    withdraw_variant,
    write_atomically,
    write_manifest,
)
from nbcore.config import Arch, Merge
from nbcore.vit import build_model, sites_of
from tests.nbcore.tiny import pictures

ARCH = Arch(
    name="vit_tiny_patch16_224",
    kwargs={"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8, "img_size": 16}
    | {"num_classes": 2, "class_token": False, "global_pool": "avg"},
    num_heads=(1,),
    hidden_features=(8,),
    head_dim=8,
)
VARIANT = Variant(
    id="a-b",
    dataset="shapes",
    base="a",
    arch=ARCH,
    merge=Merge(block=1, r=2),
    pruner="taylor",
    mitigation="none",
    img_size=16,
    patch_size=8,
    grid=(2, 2),
    classes=("cat", "dog"),
    preprocessing=Preprocessing(),
    num_params=10,
    macs=100,
    macs_ratio=0.5,
    sites=(
        SiteEntry(name="blocks.0.attn", kind="heads", total=2, kept=(1,)),
        SiteEntry(name="blocks.0.mlp", kind="neurons", total=64, kept=tuple(range(3, 11))),
    ),
    metrics={"top1": 0.5, "top1_ci95": [0.4, 0.6], "takeover": None, "num_images": 3},
    files={},
    provenance=Provenance(command="c", seed=0, commit="d", versions={"torch": "2"}, device="cpu"),
)
KINDS = {"onnx": "model.onnx", "weights": "model.safetensors"} | {
    "config": "config.json",
    "history": "history.jsonl",
}


def write_files(folder: Path, variant: Variant = VARIANT) -> Variant:
    """The variant with four small files of its own."""
    entries = {}
    for kind, name in KINDS.items():
        path = folder / variant.id / name
        write_atomically(path, f"{variant.id} {kind}")
        entries[kind] = file_entry(folder, path)
    return with_files(variant, entries, {})


def named(variant_id: str, base: str | None) -> Variant:
    return replace(VARIANT, id=variant_id, base=base)


numbers = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.one_of(numbers, st.text(max_size=5), st.lists(numbers, max_size=3))
anything = st.recursive(
    st.one_of(values, st.booleans(), st.just(float("nan"))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    depth = draw(st.integers(1, 3))
    totals = [draw(st.integers(1, 6)) for _ in range(2 * depth)]
    kept = [
        tuple(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n)))) for n in totals
    ]
    arch = Arch(
        name=draw(st.text(max_size=5)),
        kwargs=draw(st.dictionaries(st.text(max_size=5), values, max_size=3)),
        stem=draw(st.sampled_from(["patch", "conv"])),
        num_heads=tuple(map(len, kept[0::2])),
        hidden_features=tuple(map(len, kept[1::2])),
        head_dim=draw(st.integers(1, 64)),
    )
    side, patch = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return Variant(
        id=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)),
        dataset=draw(st.text(max_size=5)),
        base=draw(st.one_of(st.none(), st.just("_base"))),
        arch=arch,
        merge=draw(st.one_of(st.none(), st.builds(Merge, block=st.integers(1), r=st.integers(1)))),
        pruner=draw(st.one_of(st.none(), st.text(max_size=5))),
        mitigation=draw(st.one_of(st.none(), st.text(max_size=5))),
        img_size=side * patch,
        patch_size=patch,
        grid=(side, side),
        classes=tuple(draw(st.lists(st.text(max_size=5), min_size=2, max_size=4))),
        preprocessing=Preprocessing(crop_pct=draw(st.floats(0.1, 1))),
        num_params=draw(st.integers(0)),
        macs=draw(st.integers(0)),
        macs_ratio=draw(st.floats(0, 2)),
        sites=tuple(
            SiteEntry(name=site.name, kind=site.kind, total=total, kept=units)
            for site, total, units in zip(sites_of(arch), totals, kept, strict=True)
        ),
        metrics=draw(st.dictionaries(st.text(max_size=5), values, max_size=4)),
        files=draw(
            st.dictionaries(
                st.text(max_size=5),
                st.builds(FileEntry, path=st.text(), sha256=st.text(), size_bytes=st.integers()),
                max_size=3,
            )
        ),
        provenance=Provenance(
            command=draw(st.text()), seed=draw(st.integers()), commit="", versions={}, device=""
        ),
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


def lose(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("damage", "text"),
    [(lose, "is missing"), (truncate, r"has \d+ bytes, manifest says"), (change_a_byte, "sha256")],
)
def test_damaged_file_is_named_with_its_remedy(
    kind: str, damage: Callable[[Path], None], text: str, tmp_path: Path
) -> None:
    variant = write_files(tmp_path)
    verify_files(tmp_path, variant)
    damage(tmp_path / "a-b" / KINDS[kind])
    remedy = "re-run `python -m nbcore export a-b`" if kind == "onnx" else "restore it"
    with pytest.raises(CheckpointError, match=f"variant a-b: .*{KINDS[kind]} .*{text}.*{remedy}"):
        verify_files(tmp_path, variant)


def test_variant_without_a_graph_is_to_be_completed(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    files = {kind: entry for kind, entry in variant.files.items() if kind != "onnx"}
    with pytest.raises(CheckpointError, match="no onnx file; complete it with `python -m nbcore"):
        verify_files(tmp_path, replace(variant, files=files))


@pytest.mark.parametrize(
    "path", ["../out.txt", "a-b/../../out.txt", "a-b/link", "a-b/folder/out.txt"]
)
def test_path_that_leaves_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "a-b").mkdir(parents=True)
    out = tmp_path / "out.txt"
    out.write_text("outside")
    (folder / "a-b" / "link").symlink_to(out)
    (folder / "a-b" / "folder").symlink_to(tmp_path)
    entry = replace(file_entry(tmp_path, out), path=path)
    with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
        resolve(folder, "a-b", entry)


def test_absolute_path_is_refused_even_inside(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    entry = replace(variant.files["onnx"], path=str(tmp_path / "a-b" / "model.onnx"))
    with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
        verify_files(tmp_path, with_files(variant, {"onnx": entry}, {}))


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a-b/loop"])
def test_impossible_path_is_refused_like_any_other(path: str, tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    (tmp_path / "a-b" / "loop").symlink_to("loop")
    entry = replace(variant.files["onnx"], path=path)
    with pytest.raises(CheckpointError, match="variant a-b"):
        verify_files(tmp_path, with_files(variant, {"onnx": entry}, {}))


def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


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


def test_positions_in_the_base_by_hand() -> None:
    # Site 0 has units 0..1 of the base, site 1 units 2..65.
    assert VARIANT.kept_in_base() == [1, 5, 6, 7, 8, 9, 10, 11, 12]
    assert VARIANT.num_units == 9


def base_of(variant: Variant, folder: Path) -> Variant:
    base = write_files(folder, named("a", None))
    sites = tuple(replace(s, kept=tuple(range(s.total))) for s in variant.sites)
    return replace(base, sites=sites)


def test_base_is_recognised_by_its_units_and_its_weights(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    base = base_of(variant, tmp_path)
    check_base(tmp_path, variant, base)  # config.json is no JSON: nothing is recorded
    config = tmp_path / "a-b" / "config.json"
    config.write_text(json.dumps({"base_sha256": base.files["weights"].sha256}))
    check_base(tmp_path, variant, base)
    config.write_text(json.dumps({"base_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="variant a-b was pruned from another a than"):
        check_base(tmp_path, variant, base)
    config.unlink()
    with pytest.raises(CheckpointError, match="was pruned from another a"):
        check_base(tmp_path, variant, replace(base, sites=VARIANT.sites))


def stored_model(folder: Path) -> tuple[Variant, MeteredViT]:
    variant = replace(VARIANT, merge=None)
    model = build_model(ARCH)
    metered = MeteredViT(model, [torch.rand(1, 8), torch.rand(8)])
    path = folder / "a-b" / "model.safetensors"
    path.parent.mkdir()
    save_file(metered.state_dict(), path)
    return with_files(variant, {"weights": file_entry(folder, path)}, {}), metered


def test_model_is_rebuilt_with_its_weights_and_means(tmp_path: Path) -> None:
    variant, metered = stored_model(tmp_path)
    images = pictures(side=16).float()
    found, wanted = load_model(tmp_path, variant)(images), metered.eval()(images)
    assert all(map(torch.equal, found, wanted))


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    variant, _ = stored_model(tmp_path)
    other = copy.deepcopy(replace(ARCH, hidden_features=(16,)))
    with pytest.raises(CheckpointError, match="weights do not fit the manifest's arch"):
        load_model(tmp_path, replace(variant, arch=other))
    with pytest.raises(CheckpointError, match=r"arch cannot be built: .*no model 'resnet_x'"):
        load_model(tmp_path, replace(variant, arch=replace(ARCH, name="resnet_x")))
    (tmp_path / "a-b" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors is unreadable"):
        load_model(tmp_path, variant)
