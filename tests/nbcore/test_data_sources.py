"""Archives, tars and downloads -> prepared data -> tensors, on tiny files of the same formats."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nbcore.data import load_dataset, prepare
from nbcore.data.imagenette import IMAGENETTE
from nbcore.preprocessing import preprocess

SYNSETS = list(IMAGENETTE)


def photo(number: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def imagenette_files(size: tuple[int, int] = (16, 16)) -> dict[str, Image.Image]:
    """Three train photos and one val photo per class, by name."""
    files = {}
    for target, synset in enumerate(SYNSETS):
        for i in range(3):
            files[f"train/{synset}/{i}.webp"] = photo(10 * target + i, size)
        files[f"val/{synset}/0.png"] = photo(10 * target + 9, size)
    return files


def add_to_tar(tar: tarfile.TarFile, name: str, image: Image.Image) -> None:
    data = encoded(image, "WEBP" if name.endswith("webp") else "PNG")
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars in the manner of the archive: classes 1-5 and 6-10 of train, and val."""
    folder = tmp_path / "source" / "imagenette"
    folder.mkdir(parents=True)
    parts = {
        "train-a.tar": lambda split, target: split == "train" and target < 5,
        "train-b.tar": lambda split, target: split == "train" and target >= 5,
        "val.tar": lambda split, target: split == "val",
    }
    for tar_name, belongs in parts.items():
        with tarfile.open(folder / tar_name, "w") as tar:
            for name, image in imagenette_files().items():
                split, synset, _ = name.split("/")
                if belongs(split, SYNSETS.index(synset)):
                    add_to_tar(tar, name, image)
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    """A SHA256SUMS one level above the files, with paths relative to it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {folder.name}/{path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    (folder.parent / "SHA256SUMS").write_text("".join(lines))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_tars_come_back_bit_for_bit(tars: Path, tmp_path: Path) -> None:
    folder = prepare("imagenette", tars.parent, tmp_path / "data", img_size=16, workers=1)
    assert folder == tmp_path / "data" / "imagenette" / "16"
    data = load_dataset("imagenette", tmp_path / "data", img_size=16, validation_share=0.3)
    assert data.classes == tuple(IMAGENETTE.values())
    files = imagenette_files()
    # 0.3 · 3 rounds to one photo of each class.
    assert torch.bincount(data.validation.targets).tolist() == [1] * 10
    for split in (data.train, data.validation, data.test):
        for image, target, name in zip(split.images, split.targets, split.names, strict=True):
            assert np.array_equal(image, np.asarray(files[name]).transpose(2, 0, 1))
            assert name.split("/")[1] == SYNSETS[target]
    names = [*data.train.names, *data.validation.names, *data.test.names]
    assert sorted(names) == sorted(files)


def test_unpacked_folder_gives_the_same_as_the_tars(tars: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked" / "imagenette2-320"
    for tar_path in tars.glob("*.tar"):
        with tarfile.open(tar_path) as tar:
            tar.extractall(unpacked, filter="data")
    prepare("imagenette", tars, tmp_path / "a", img_size=16, workers=1)
    prepare("imagenette", unpacked.parent, tmp_path / "b", img_size=16, workers=1)
    one = load_dataset("imagenette", tmp_path / "a", img_size=16)
    two = load_dataset("imagenette", tmp_path / "b", img_size=16)
    assert one.train.names == two.train.names
    assert torch.equal(one.validation.images, two.validation.images)
    assert torch.equal(one.test.images, two.test.images)


def test_photos_of_other_sizes_are_preprocessed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "source"
    files = imagenette_files(size=(30, 20))
    for name, image in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    folder = prepare("imagenette", root, tmp_path / "data", img_size=16, workers=1)
    data = load_dataset("imagenette", tmp_path / "data", img_size=16)
    for split in (data.train, data.test):
        for image, name in zip(split.images, split.names, strict=True):
            expected = np.asarray(preprocess(files[name], 16)).transpose(2, 0, 1)
            assert np.array_equal(image, expected)
    assert json.loads((folder / "meta.json").read_text())["num_resized"] == {
        "train": 30,
        "test": 10,
    }
    assert "differ from what the page shows" not in caplog.text
    load_dataset("imagenette", tmp_path / "data", img_size=12)
    assert "40 photos were cropped to 16 px" in caplog.text


def test_prepared_again_only_if_the_source_changed(tars: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    folder = prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    before = (folder / "meta.json").stat().st_mtime_ns
    prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    assert (folder / "meta.json").stat().st_mtime_ns == before
    with tarfile.open(tars / "val.tar", "a") as tar:
        add_to_tar(tar, f"val/{SYNSETS[0]}/1.png", photo(999))
    write_sums(tars)
    prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    assert len(load_dataset("imagenette", data_dir, img_size=16).test.names) == 11
    (folder / "test-targets.npy").unlink()
    with pytest.raises(ValueError, match=r"cannot be used .*delete that folder and prepare it"):
        load_dataset("imagenette", data_dir, img_size=16)
    prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    assert len(load_dataset("imagenette", data_dir, img_size=16).test.names) == 11


def test_interrupted_preparation_leaves_the_old_data(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    with tarfile.open(tars / "val.tar", "a") as tar:
        add_to_tar(tar, f"val/{SYNSETS[0]}/1.png", photo(999))
    write_sums(tars)
    saved = []

    def save(path: Path, array: np.ndarray) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        with pytest.raises(KeyboardInterrupt):
            prepare("imagenette", tars, data_dir, img_size=16, workers=1)
    assert [path.name for path in (data_dir / "imagenette").iterdir()] == ["16"]
    assert len(load_dataset("imagenette", data_dir, img_size=16).test.names) == 10


def test_damaged_tar_is_named_with_both_sums(tars: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256((tars / "train-b.tar").read_bytes()).hexdigest()
    damage(tars / "train-b.tar")
    found = hashlib.sha256((tars / "train-b.tar").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"train-b.tar is damaged: .*{found}.*{expected}"):
        prepare("imagenette", tars, tmp_path / "data", workers=1)


def test_cut_tar_without_sums_is_named(tars: Path, tmp_path: Path) -> None:
    (tars.parent / "SHA256SUMS").unlink()
    whole = (tars / "val.tar").read_bytes()
    with tarfile.open(tars / "val.tar") as tar:
        last = tar.getmembers()[-1]
    (tars / "val.tar").write_bytes(whole[: last.offset_data + 5])
    with pytest.raises(ValueError, match=r"val\.tar is damaged or no uncompressed tar"):
        prepare("imagenette", tars, tmp_path / "data", workers=1)


def test_missing_tar_is_told_by_the_classes_it_held(tars: Path, tmp_path: Path) -> None:
    (tars / "train-b.tar").unlink()
    with pytest.raises(ValueError, match=r"no train photos of n03394916 \(French horn\), .*parach"):
        prepare("imagenette", tars, tmp_path / "data", workers=1)


def test_stranger_among_the_classes_is_refused(tars: Path, tmp_path: Path) -> None:
    with tarfile.open(tars / "val.tar", "a") as tar:
        add_to_tar(tar, "val/n99999999/0.png", photo(1))
    write_sums(tars)
    with pytest.raises(ValueError, match=r"n99999999/0\.png is in none of the ten"):
        prepare("imagenette", tars, tmp_path / "data", workers=1)


def make_cifar10(folder: Path) -> dict[str, list[bytes]]:
    """Archives of JPEG streams; every image one plain colour, label i % 10."""
    folder.mkdir(parents=True)
    streams = {}
    for split, n in (("train", 40), ("test", 10)):
        jpegs = [encoded(Image.new("RGB", (32, 32), (6 * i, 99, i)), "JPEG") for i in range(n)]
        streams[split] = jpegs
        np.savez(
            folder / f"{split}.npz",
            data=np.frombuffer(b"".join(jpegs), np.uint8),
            offsets=np.cumsum([0, *map(len, jpegs)]),
            labels=(np.arange(n) % 10).astype(np.uint8),
            classes=np.array([f"class {i}" for i in range(10)]),
        )
    return streams


def test_cifar10_archive_is_decoded(tmp_path: Path) -> None:
    streams = make_cifar10(tmp_path / "source" / "cifar10")
    prepare("cifar10", tmp_path / "source", tmp_path / "data")
    data = load_dataset("cifar10", tmp_path / "data", validation_share=0.25)
    assert data.classes[3] == "class 3"
    assert data.img_size == 32
    assert torch.bincount(data.validation.targets).tolist() == [1] * 10
    for split in (data.train, data.validation, data.test):
        for image, target, name in zip(split.images, split.targets, split.names, strict=True):
            source, _, number = name.partition("/")
            pixels = np.asarray(Image.open(io.BytesIO(streams[source][int(number)])))
            assert np.array_equal(image, pixels.transpose(2, 0, 1))
            assert target == int(number) % 10


def rewrite(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.arange(41) * 7}, "test.npz: offsets must be 11 rising numbers"),
        ({"labels": np.full(10, 10, np.uint8)}, "test.npz: expected labels from 0 to 9"),
        ({"data": None}, "test.npz: image 0 cannot be decoded"),
    ],
)
def test_inconsistent_cifar10_archive_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make_cifar10(tmp_path / "source")
    path = tmp_path / "source" / "test.npz"
    if changes.get("data", 0) is None:
        with np.load(path) as archive:
            changes = {"data": np.zeros_like(archive["data"])}
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        prepare("cifar10", tmp_path / "source", tmp_path / "data")


def make_mnist(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    images = {}
    for split, n in (("train", 40), ("test", 10)):
        rng = np.random.default_rng(n)
        images[split] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        digits = (np.arange(n) % 10).astype(np.uint8)
        np.savez(folder / f"{split}.npz", images=images[split], labels=digits)
    return images


def test_mnist_is_grey_in_three_channels(tmp_path: Path) -> None:
    images = make_mnist(tmp_path / "source")
    prepare("mnist", tmp_path / "source", tmp_path / "data")
    data = load_dataset("mnist", tmp_path / "data", limit=10)
    assert data.classes == tuple("0123456789")
    assert data.img_size == 28
    # One of each digit, as the limit lets them take turns.
    assert data.train.targets.tolist() == sorted(range(10), key=data.train.targets.tolist().index)
    for image, name in zip(data.train.images, data.train.names, strict=True):
        pixels = images["train"][int(name.split("/")[1])]
        assert np.array_equal(image, np.broadcast_to(pixels, (3, 28, 28)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no readable NumPy archive"), (b"PK\x03\x04 cut", "no readable NumPy archive")],
)
def test_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    make_mnist(tmp_path / "source")
    (tmp_path / "source" / "test.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"test.npz is {message}"):
        prepare("mnist", tmp_path / "source", tmp_path / "data")


def test_flipped_byte_without_sums_is_named(tmp_path: Path) -> None:
    make_mnist(tmp_path / "source")
    damage(tmp_path / "source" / "train.npz")
    with pytest.raises(ValueError, match=r"train\.npz has no readable array 'images'"):
        prepare("mnist", tmp_path / "source", tmp_path / "data")


def test_missing_half_of_an_archive_is_named(tmp_path: Path) -> None:
    make_mnist(tmp_path / "source")
    (tmp_path / "source" / "test.npz").unlink()
    with pytest.raises(ValueError, match=r"test\.npz cannot be read: No such file"):
        prepare("mnist", tmp_path / "source", tmp_path / "data")


def test_mnist_in_torchvisions_folder(tmp_path: Path) -> None:
    images = make_mnist(tmp_path / "archives")
    raw = tmp_path / "source" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = images[split]
        header = struct.pack(">4I", 0x803, *pixels.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        digits = (np.arange(len(pixels)) % 10).astype(np.uint8)
        header = struct.pack(">2I", 0x801, len(pixels))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())
    prepare("mnist", tmp_path / "archives", tmp_path / "a")
    prepare("mnist", tmp_path / "source", tmp_path / "b")
    one, two = (load_dataset("mnist", tmp_path / name) for name in ("a", "b"))
    assert one.classes == two.classes == tuple("0123456789")
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.test.targets, two.test.targets)


def test_download_goes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(root: Path, *, split: str, size: str, download: bool) -> None:
        calls.append((split, size, download))
        for name, image in imagenette_files().items():
            if name.startswith(split):
                path = root / "imagenette2-320" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, **({"lossless": True} if name.endswith("webp") else {}))

    monkeypatch.setattr("torchvision.datasets.Imagenette", fake)
    prepare("imagenette", None, tmp_path, download=True, img_size=16, workers=1)
    assert calls == [("train", "320px", True), ("val", "320px", True)]
    assert (tmp_path / "downloads" / "imagenette2-320" / "train").is_dir()
    assert len(load_dataset("imagenette", tmp_path, img_size=16).test.names) == 10


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Error downloading")])
def test_download_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(ValueError, match=f"could not download CIFAR10 .*{error}.*--source"):
        prepare("cifar10", None, tmp_path, download=True)


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "mnist"])
def test_missing_data_say_the_command(name: str, tmp_path: Path) -> None:
    command = f"python -m nbcore data {name} --source DIR --data {tmp_path}"
    with pytest.raises(ValueError, match=f"no prepared {name} .*run `{command}`"):
        load_dataset(name, tmp_path)
    with pytest.raises(ValueError, match=f"data {name} --source DIR --data DIR`"):
        load_dataset(name, None)
    with pytest.raises(ValueError, match=f"no source for {name}; run `{command}`"):
        prepare(name, None, tmp_path)
    with pytest.raises(ValueError, match=f"nowhere is no folder; run `{command}`"):
        prepare(name, Path("nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="(?i)no " + name):
        prepare(name, tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("name", ["shapes", "folder"])
def test_data_sets_without_preparation_say_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} needs no preparation"):
        prepare(name, tmp_path, tmp_path)


def test_only_photos_can_be_stored_at_another_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mnist is stored at its own 28 px; choose 32 px when"):
        prepare("mnist", tmp_path, tmp_path, img_size=32)
