"""Flips files: a round trip, stamps that follow what answers, and damage that is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nbcore.answers import (
    Answer,
    Answers,
    PhotoPack,
    answers_path,
    base_of,
    read_answers,
    stale,
    stamp_of,
    write_answers,
)
from nbcore.checkpoint import CheckpointError, read_manifest
from nbcore.config import Merge
from tests.nbcore.folders import CHILD, DENSE

PACK = PhotoPack(
    positions=np.array([2, 0], np.int32),
    data=np.frombuffer(b"abcde", np.uint8),
    offsets=np.array([0, 2, 5]),
    largest_change=0.01,
    source="drawn",
    licence="free",
)


def answer(stamp: str = "s", burden: list[list[float]] | None = None) -> Answer:
    return Answer(
        stamp=stamp,
        photos_sha256="p",
        logits=np.array([[2, 1], [0.5, 3], [1, 1]], np.float16),
        predicted=np.array([0, 1, 0], np.int16),
        burden=None if burden is None else np.array(burden, np.float16),
        removed_macs=() if burden is None else (1, 3),
    )


def answers(**changes: object) -> Answers:
    found = Answers(
        dataset="shapes",
        classes=("a", "b"),
        names=("test/0", "test/ä", "test/2"),
        targets=np.array([0, 1, 1], np.int16),
        answers={
            "dense": answer(),
            "small": answer(burden=[[1, 2], [np.nan, 2], [np.nan, np.nan]]),
        },
        photos=PACK,
        made={"device": "CPU"},
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "shapes")
    assert path == tmp_path / "flips" / "shapes.npz"
    write_answers(path, answers())
    found, wanted = read_answers(path), answers()
    plain = ("dataset", "classes", "names", "made")
    assert [getattr(found, n) for n in plain] == [getattr(wanted, n) for n in plain]
    assert np.array_equal(found.targets, wanted.targets)
    assert list(found.answers) == ["dense", "small"]
    for key, one in wanted.answers.items():
        twin = found.answers[key]
        assert (twin.stamp, twin.removed_macs) == (one.stamp, one.removed_macs)
        assert np.array_equal(twin.logits, one.logits)
        assert np.array_equal(twin.predicted, one.predicted)
    assert found.answers["dense"].burden is None
    assert np.array_equal(
        found.answers["small"].burden,  # type: ignore[arg-type]
        wanted.answers["small"].burden,  # type: ignore[arg-type]
        equal_nan=True,
    )
    assert found.photos is not None
    assert [found.photos.photo(k) for k in (0, 1)] == [b"ab", b"cde"]
    assert (found.photos.source, found.photos.licence) == ("drawn", "free")


def test_mean_burden_weighs_sites_by_the_macs_they_lost() -> None:
    # (1·1 + 3·2) / 4 = 1.75; a site without a burden is left out; none at all is no number.
    mean = answers().answers["small"].mean_burden()
    assert mean is not None
    assert mean[:2].tolist() == [1.75, 2.0]
    assert np.isnan(mean[2])
    assert answers().answers["dense"].mean_burden() is None


def test_stamp_follows_weights_and_shape_of_variant_and_base(two: Path) -> None:
    manifest = read_manifest(two)
    child = manifest[CHILD]
    base = base_of(manifest, child)
    assert base is not None
    assert base.id == DENSE
    stamp = stamp_of(child, base)
    weights = replace(child.files["weights"], sha256="0" * 64)
    onnx = replace(child.files["onnx"], sha256="0" * 64)
    others = [
        stamp_of(replace(child, files={**child.files, "weights": weights}), base),
        stamp_of(replace(child, merge=Merge(block=1, r=3)), base),
        stamp_of(replace(child, preprocessing=replace(child.preprocessing, crop_pct=0.9)), base),
        stamp_of(child, replace(base, files={**base.files, "weights": weights})),
        stamp_of(child, None),
    ]
    assert len({stamp, *others}) == 1 + len(others)
    assert stamp_of(replace(child, files={**child.files, "onnx": onnx}, metrics={}), base) == stamp


def test_stale_answers_are_named_with_the_command_that_renews_them(two: Path) -> None:
    manifest = read_manifest(two)
    classes = manifest[DENSE].classes
    holding = {v.id: answer(stamp_of(v, base_of(manifest, v))) for v in manifest.variants}
    assert stale(answers(classes=classes, answers=holding), manifest) == {}
    found = stale(answers(classes=classes, answers=holding | {CHILD: answer("else")}), manifest)
    assert list(found) == [CHILD]
    assert "other weights" in found[CHILD]
    assert "python -m nbcore flips --dataset shapes --data DIR" in found[CHILD]
    found = stale(answers(classes=classes, answers={DENSE: holding[DENSE]}), manifest)
    assert "nobody asked it" in found[CHILD]
    assert set(stale(answers(classes=("x", "y"), answers=holding), manifest)) == {DENSE, CHILD}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("a", "b")}, r"targets has the shape \(3,\), not \(2,\)"),
        ({"classes": ("a", "b", "c")}, "dense/logits has the shape"),
        ({"photos": replace(PACK, offsets=np.array([0, 2, 4]))}, "offsets of its photos"),
        ({"photos": replace(PACK, offsets=np.array([0, 2, 2, 5]))}, "offsets of its photos"),
        ({"photos": replace(PACK, positions=np.array([0, 3]))}, "outside of 0 to 2"),
        ({"photos": replace(PACK, positions=np.array([0]))}, "one position for each photo"),
        ({"dataset": "mnist"}, "holds answers on 'mnist'"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = answers_path(tmp_path, "shapes")
    write_answers(path, answers(**changes))
    with pytest.raises(CheckpointError, match=words) as refused:
        read_answers(path)
    assert "python -m nbcore flips --dataset shapes" in str(refused.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = answers_path(tmp_path, "shapes")
    with pytest.raises(CheckpointError, match="does not exist; make it anew with"):
        read_answers(path)
    write_answers(path, answers())
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no archive", whole[:200] + whole[260:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="is unreadable"):
            read_answers(path)
