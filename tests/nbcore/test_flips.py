"""Asking all variants about all photos: answers are theirs, work is not lost, and is not redone."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nbcore import complete
from nbcore.__main__ import main
from nbcore.answers import Answers, answers_path, read_answers, write_answers
from nbcore.checkpoint import CheckpointError, load_model, read_manifest
from nbcore.data import load_dataset
from nbcore.flips import Renewal, ask, illustrate, renew_flips
from nbcore.flips.ask import open_model
from nbcore.flips.credits import MARKED
from nbcore.preprocessing import as_input
from nbcore.verify import verify
from tests.nbcore.folders import CHILD, DENSE
from tests.sources import ROOT

CPU = torch.device("cpu")
PHOTOS = 24
"""Packed ones."""


def renew(folder: Path, **options: Any) -> Renewal:
    options = {"data_dir": None, "device": CPU, "work_dir": folder / "work"} | options
    return renew_flips(folder, "shapes", num_photos=PHOTOS, **options)


@pytest.fixture
def folder(asked_checkpoints: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(asked_checkpoints, tmp_path / "checkpoints"))


def answers_in(folder: Path) -> Answers:
    return read_answers(answers_path(folder, "shapes"))


def test_answers_are_those_of_the_weights_within_half_precision(asked_checkpoints: Path) -> None:
    manifest, found = read_manifest(asked_checkpoints), answers_in(asked_checkpoints)
    test = load_dataset("shapes", None, img_size=32).test
    assert found.names == test.names
    assert found.targets.tolist() == test.targets.tolist()
    assert list(found.answers) == [v.id for v in manifest.variants]
    dense = load_model(asked_checkpoints, manifest[DENSE])
    images = as_input(test.images)
    for variant in manifest.variants:
        one = found.answers[variant.id]
        with torch.inference_mode():
            logits, _, own, *_ = load_model(asked_checkpoints, variant)(images)
        assert np.allclose(one.logits, logits, rtol=2**-10, atol=1e-4)
        assert (one.predicted == logits.argmax(1).numpy()).all()
        assert (one.predicted == found.targets).mean() == variant.metrics["top1"]
        if variant.base is None:
            assert one.burden is None
            continue
        # A site's load is also the root mean square of its patches' loads.
        survivors = torch.zeros(1, manifest[DENSE].num_units)
        survivors[0, variant.kept_in_base()] = 1
        with torch.inference_mode():
            _, _, past, *_ = dense(images, None, survivors)
        burden = own.pow(2).mean(-1).sqrt() / past.pow(2).mean(-1).sqrt()
        assert np.allclose(one.burden, burden, rtol=2e-3)
        removed = [site.total - len(site.kept) for site in variant.sites]
        assert [weight > 0 for weight in one.removed_macs] == [count > 0 for count in removed]


def test_torch_answers_as_onnx_runtime_does(
    asked_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = read_manifest(asked_checkpoints)[CHILD]
    images = load_dataset("shapes", None, img_size=32).test.images[:40]
    served = open_model(asked_checkpoints, variant, CPU)
    monkeypatch.setattr(ask.importlib.util, "find_spec", lambda name: None)
    weights = open_model(asked_checkpoints, variant, CPU)
    assert (served.engine, weights.engine) == ("onnxruntime", "torch")
    for one, two in zip(served.run(images, 16), weights.run(images, 16), strict=True):
        assert torch.allclose(one, two, atol=1e-5, rtol=1e-4)


def test_packed_photos_show_the_very_pixels(asked_checkpoints: Path) -> None:
    pack = answers_in(asked_checkpoints).photos
    assert pack is not None
    assert pack.largest_change == 0
    assert pack.licence
    images = load_dataset("shapes", None, img_size=32).test.images
    for k, position in enumerate(pack.positions.tolist()):
        with Image.open(io.BytesIO(pack.photo(k))) as photo:
            pixels = np.asarray(photo.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(pixels, images[position].numpy())


def test_what_holds_is_not_asked_again(folder: Path) -> None:
    before = answers_in(folder)
    assert renew(folder).asked == ()
    others = {key: one for key, one in before.answers.items() if key != CHILD}
    old = replace(others[DENSE], stamp="of other weights")
    write_answers(answers_path(folder, "shapes"), replace(before, answers=others | {DENSE: old}))
    assert renew(folder).asked == (DENSE, CHILD)
    after = answers_in(folder)
    for key, one in before.answers.items():
        assert after.answers[key].stamp == one.stamp
        assert np.array_equal(after.answers[key].logits, one.logits)


def test_stopped_work_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, path = answers_in(folder), answers_path(folder, "shapes")
    path.unlink()
    chunks, real = [], ask._ask_chunk

    def stopping(base: Any, others: Any, images: torch.Tensor, *rest: Any) -> Any:
        chunks.append(len(images))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return real(base, others, images, *rest)

    monkeypatch.setattr(ask, "_ask_chunk", stopping)
    with pytest.raises(KeyboardInterrupt):
        renew(folder)
    assert not path.exists()
    renew(folder)
    # Of four chunks the first two were kept.
    assert chunks == [256] * 5
    assert not list((folder / "work").iterdir())
    after = answers_in(folder)
    for key, one in before.answers.items():
        assert np.array_equal(after.answers[key].logits, one.logits)
        assert np.array_equal(after.answers[key].predicted, one.predicted)


def test_other_photos_than_those_of_the_test_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(name: str, data_dir: Path | None, **options: Any) -> Any:
        return load_dataset(name, data_dir, **options, n_test=50, seed=9)

    monkeypatch.setattr(complete, "load_dataset", others)
    with pytest.raises(CheckpointError, match="of its answers are right, the manifest says"):
        renew(folder)


def test_damaged_weights_and_unknown_datasets_are_refused(folder: Path) -> None:
    path = folder / CHILD / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"variant {CHILD}: model.safetensors has"):
        renew(folder)
    with pytest.raises(CheckpointError, match=r"no variant of dataset 'mnist' .* are: shapes"):
        renew_flips(folder, "mnist", data_dir=None, device=CPU, work_dir=folder)


def test_photos_that_bear_the_mark_of_their_owners_are_not_packed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed() -> list[str]:
        answers = answers_in(folder)
        assert answers.photos is not None
        return [answers.names[k] for k in answers.photos.positions]

    before = packed()
    monkeypatch.setattr(illustrate, "MARKED", frozenset(before[:3]))
    renew(folder)
    after = packed()
    assert set(before[:3]) & set(after) == set()
    assert len(after) == len(before)
    shipped = read_answers(answers_path(ROOT / "checkpoints", "imagenette"))
    assert shipped.photos is not None
    assert not {shipped.names[k] for k in shipped.photos.positions} & MARKED


def test_command_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = ["--work", str(folder / "work"), "--device", "cpu"]
    assert main(["flips", "--checkpoints", str(folder), "--photos", "5", *work]) == 0
    said = capsys.readouterr().out
    assert f"{folder}/flips/shapes.npz: 4 variants (0 asked anew) on 1024 photos, 5 packed" in said
    assert main(["flips", "--checkpoints", str(folder), "--photos", "-1", *work]) == 2
    assert "--photos must be at least 0, got -1" in capsys.readouterr().err
    assert main(["flips", "--checkpoints", str(folder), "--dataset", "mnist", *work]) == 2
    assert "no variant of dataset 'mnist'" in capsys.readouterr().err


def test_verify_tells_whether_answers_are_up_to_date(folder: Path) -> None:
    def findings() -> list[tuple[bool, str]]:
        found = verify(folder)
        return [(one.ok, one.text) for one in found if one.variant == "flips/shapes.npz"]

    assert findings() == [(True, "answers of 4 variants on 1024 photos are up to date")]
    answers, path = answers_in(folder), answers_path(folder, "shapes")
    old = replace(answers.answers[CHILD], stamp="old")
    write_answers(path, replace(answers, answers={**answers.answers, CHILD: old}))
    assert [ok for ok, _ in findings()] == [False]
    assert f"variant {CHILD}: its answers are those of other weights" in findings()[0][1]
    path.write_bytes(b"")
    assert [ok for ok, _ in findings()] == [False]
