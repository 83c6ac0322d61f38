"""Splits: their laws, limits, sizes, and image folders from disk to tensors."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbcore.data import DATASETS, Dataset, load_dataset
from nbcore.data.base import View
from nbcore.data.photos import Arrays, Photo, decode_photos
from nbcore.data.splits import assemble, hold_out, take_turns
from nbcore.preprocessing import preprocess

labels = st.lists(st.integers(0, 4), min_size=1, max_size=120)


def named(targets: list[int]) -> list[str]:
    return [f"train/{target}/{i}.png" for i, target in enumerate(targets)]


@settings(max_examples=100, deadline=None)
@given(targets=labels, share=st.floats(0, 0.9), salt=st.text(max_size=5))
def test_hold_out_is_a_stratified_partition(targets: list[int], share: float, salt: str) -> None:
    kept, held = hold_out(named(targets), np.array(targets), share, salt=salt)
    assert sorted([*kept, *held]) == list(range(len(targets)))
    assert kept.tolist() == sorted(kept)
    sizes, held_sizes = Counter(targets), Counter(targets[i] for i in held)
    for target, size in sizes.items():
        expected = max(round(share * size), 1 if share > 0 else 0)
        assert held_sizes[target] == min(expected, size - 1)


@settings(max_examples=50, deadline=None)
@given(targets=labels, share=st.floats(0, 0.5), seed=st.integers(0, 1000))
def test_hold_out_follows_names_not_positions_or_formats(
    targets: list[int], share: float, seed: int
) -> None:
    names = named(targets)
    _, held = hold_out(names, np.array(targets), share, salt="a")
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [names[i].replace(".png", ".jpeg") for i in order]
    _, held_too = hold_out(shuffled, np.array(targets)[order], share, salt="a")
    assert {names[i] for i in held} == {names[order[i]] for i in held_too}


@settings(max_examples=50, deadline=None)
@given(targets=labels, small=st.floats(0, 0.4), more=st.floats(0, 0.4))
def test_larger_share_only_adds(targets: list[int], small: float, more: float) -> None:
    _, held = hold_out(named(targets), np.array(targets), small, salt="a")
    _, held_more = hold_out(named(targets), np.array(targets), small + more, salt="a")
    assert set(held) <= set(held_more)


def test_another_salt_holds_out_others() -> None:
    names, targets = named([0] * 100), np.zeros(100, np.int64)
    assert hold_out(names, targets, 0.2, salt="a")[1].tolist() != (
        hold_out(names, targets, 0.2, salt="b")[1].tolist()
    )


def test_validation_split_stays_what_it_was() -> None:
    # The five smallest of `printf a/train/00000 | sha256sum` and so on. Another choice would make
    # new runs incomparable with shipped ones.
    _, held = hold_out([f"train/{i:05d}" for i in range(20)], np.zeros(20), 0.25, salt="a")
    assert held.tolist() == [2, 5, 8, 11, 13]


def test_limit_lets_classes_take_turns() -> None:
    # Five images of class 0, two of class 1, one of class 2; six places: first 0, 1 and 2 once,
    # then 0 and 1 once more, then 0 again.
    targets = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    assert take_turns(targets, 6).tolist() == [0, 1, 2, 5, 6, 7]
    assert take_turns(targets, 3).tolist() == [0, 5, 7]
    assert take_turns(targets, None).tolist() == list(range(8))
    assert take_turns(targets, 100).tolist() == list(range(8))


def grey_arrays(n: int) -> Arrays:
    images = np.random.default_rng(n).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    names = tuple(f"train/{i}" for i in range(n))
    return Arrays(images=images, targets=np.arange(n) % 2, names=names)


def test_images_targets_and_names_stay_together() -> None:
    train, test = grey_arrays(12), grey_arrays(6)
    view = View(img_size=8, validation_share=0.34)
    data = assemble("toy", ("a", "b"), train, test, view)
    assert sorted(data.train.names + data.validation.names) == sorted(train.names)
    for split, source in ((data.train, train), (data.validation, train), (data.test, test)):
        for image, target, name in zip(split.images, split.targets, split.names, strict=True):
            i = source.names.index(name)
            assert target == source.targets[i]
            # Grey in all three channels.
            assert np.array_equal(image, source.images[i].repeat(3, axis=0))


def test_crop_is_for_validation_and_test_only() -> None:
    train, test = grey_arrays(8), grey_arrays(4)
    view = View(img_size=6, crop_pct=0.75, validation_share=0.5)
    data = assemble("toy", ("a", "b"), train, test, view)

    def expected(arrays: Arrays, name: str, crop_pct: float) -> np.ndarray:
        pixels = arrays.images[arrays.names.index(name)][0]
        image = Image.fromarray(pixels).convert("RGB")
        return np.asarray(preprocess(image, 6, crop_pct)).transpose(2, 0, 1)

    assert np.array_equal(data.train.images[0], expected(train, data.train.names[0], 1.0))
    assert np.array_equal(
        data.validation.images[0], expected(train, data.validation.names[0], 0.75)
    )
    assert np.array_equal(data.test.images[3], expected(test, data.test.names[3], 0.75))
    # 6 / 0.75 = 8: the centre of the stored pixels, untouched.
    assert np.array_equal(data.test.images[3][0], test.images[3][0, 1:7, 1:7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"crop_pct": 1.5}, r"crop_pct must lie in \(0, 1\], got 1.5"),
        ({"validation_share": 0.6}, r"validation_share must lie in \[0, 0.5\], got 0.6"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("shapes", None, **arguments)


def test_unknown_name_is_answered_with_the_known_ones() -> None:
    assert list(DATASETS) == ["cifar10", "folder", "imagenette", "mnist", "shapes"]
    known = "cifar10, folder, imagenette, mnist, shapes"
    with pytest.raises(ValueError, match=f"unknown dataset 'cifar'; available: {known}"):
        load_dataset("cifar", None)


def colour(i: int) -> tuple[int, int, int]:
    return (i % 256, 255 - i % 256, 7)


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Plain photos of 10 x 8 pixels; each has a colour of its own, told by its number."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (10, 8), colour(i)).save(root / folder / f"{i:03d}.png")
    return root


def load_folder(root: Path, **options: float) -> Dataset:
    return load_dataset("folder", root, img_size=8, workers=1, **options)


def test_folder_with_train_and_val_reports_on_val(tmp_path: Path) -> None:
    counts = {"train/cat": 10, "train/dog": 20, "val/cat": 2, "val/dog": 3}
    data = load_folder(make_folder(tmp_path, counts), validation_share=0.1)
    assert data.classes == ("cat", "dog")
    assert torch.bincount(data.train.targets).tolist() == [9, 18]
    assert torch.bincount(data.validation.targets).tolist() == [1, 2]
    assert data.test.names == (
        "val/cat/000.png",
        "val/cat/001.png",
        "val/dog/000.png",
        "val/dog/001.png",
        "val/dog/002.png",
    )
    for image, name in zip(data.train.images, data.train.names, strict=True):
        expected = torch.tensor(colour(int(Path(name).stem)), dtype=torch.uint8)
        assert torch.equal(image, expected[:, None, None].expand(3, 8, 8))


def test_folder_with_three_splits_takes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in ("a", "b")}
    with caplog.at_level(logging.INFO):
        data = load_folder(make_folder(tmp_path, counts))
    for split, folder in ((data.train, "train"), (data.validation, "val"), (data.test, "test")):
        assert {name.split("/")[0] for name in split.names} == {folder}
    assert "validation_share is ignored" in caplog.text


def test_class_folders_alone_are_split_twice(tmp_path: Path) -> None:
    data = load_folder(make_folder(tmp_path, {"a": 20, "b": 40}), validation_share=0.25)
    # A fifth of 20 and 40 for reporting; of the 16 and 32 left, a quarter for choices.
    assert torch.bincount(data.test.targets).tolist() == [4, 8]
    assert torch.bincount(data.validation.targets).tolist() == [4, 8]
    assert torch.bincount(data.train.targets).tolist() == [12, 24]
    names = [*data.train.names, *data.validation.names, *data.test.names]
    assert len(set(names)) == 60


def test_limit_spares_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = decode_photos

    def counting(photos: list[Photo], **options: float) -> tuple[Arrays, list[str]]:
        decoded.append(len(photos))
        return original(photos, **options)

    monkeypatch.setattr("nbcore.data.folder.decode_photos", counting)
    load_folder(make_folder(tmp_path, {"a": 20, "b": 40}), limit=3)
    assert decoded == [3, 3, 3]


def test_few_unreadable_photos_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path, {"train/a": 60, "train/b": 60, "test/a": 1, "test/b": 1})
    (root / "train/a/bad.jpg").write_bytes(b"no picture")
    (root / "train/a/notes.txt").write_text("no picture either")
    (root / "train/a/._000.png").write_bytes(b"what macOS leaves")
    data = load_folder(root, validation_share=0)
    assert torch.bincount(data.train.targets).tolist() == [60, 60]
    assert "1 of 123 photos" in caplog.text
    assert "train/a/bad.jpg: cannot identify image file" in caplog.text


def test_many_unreadable_photos_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"a": 30, "b": 30})
    whole = (root / "a/000.png").read_bytes()
    (root / "a/cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1 of 61 photos .* a/cut\.png: .* At most 1 %"):
        load_folder(root)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 2}, "at least 2 classes, found 1"),
        ({"train/a": 2, "train/b": 0}, "no photos in .*train for b"),
        ({"test/a": 2, "test/b": 2}, "has test but no train folder"),
        ({"train/a": 2, "train/b": 2, "test/c": 1}, "classes that train lacks: c; known are a, b"),
        ({"train/a": 2, "train/b": 2, "test/a": 0}, "no photos for reporting"),
    ],
)
def test_incomplete_folder_is_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_folder(make_folder(tmp_path, counts))


@pytest.mark.parametrize("data_dir", [None, Path("nowhere")])
def test_missing_folder_is_refused(data_dir: Path | None) -> None:
    with pytest.raises(ValueError, match=r"folder needs an image folder, got .*--data DIR"):
        load_dataset("folder", data_dir)


def test_several_processes_decode_like_one(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"a": 70})
    (root / "a/005.png").write_bytes(b"no picture")
    photos = [
        Photo(name=path.name, target=i, path=path)
        for i, path in enumerate(sorted((root / "a").iterdir()))
    ]
    one, errors = decode_photos(photos, img_size=8, workers=1)
    two, errors_of_two = decode_photos(photos, img_size=8, workers=2)
    assert np.array_equal(one.images, two.images)
    assert one.names == two.names == tuple(f"{i:03d}.png" for i in range(70) if i != 5)
    assert one.targets.tolist() == two.targets.tolist() == [i for i in range(70) if i != 5]
    assert one.num_resized == two.num_resized == 69
    assert len(errors) == len(errors_of_two) == 1
