"""A variant entry to be changed, with or without files of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from nbcore.checkpoint import (
    ExportRecord,
    FileEntry,
    Preprocessing,
    Provenance,
    SiteEntry,
    Variant,
    file_entry,
    with_files,
    write_atomically,
)
from nbcore.checkpoint.entry import RESERVED
from nbcore.config import Arch, Merge
from nbcore.vit import sites_of

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


def truncate(path: Path) -> None:
    """Cut the last byte off."""
    path.write_bytes(path.read_bytes()[:-1])


numbers = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.one_of(numbers, st.text(max_size=5), st.lists(numbers, max_size=3))
class_names = st.text(max_size=5).filter(lambda name: name not in RESERVED)
anything = st.recursive(
    st.one_of(values, st.booleans(), st.just(float("nan"))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


exports = st.builds(
    ExportRecord,
    command=st.text(max_size=5),
    commit=st.text(max_size=5),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    device=st.text(max_size=5),
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
        classes=tuple(draw(st.lists(class_names, min_size=2, max_size=4, unique=True))),
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
            command=draw(st.text()),
            seed=draw(st.integers()),
            commit="",
            versions={},
            device="",
            export=draw(st.one_of(st.none(), exports)),
        ),
    )
