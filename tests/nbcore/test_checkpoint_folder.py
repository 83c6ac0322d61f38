"""A variant folder gives its model back, and knows its base."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from nbcore.burden import MeteredViT
from nbcore.checkpoint import (
    CheckpointError,
    Variant,
    check_base,
    file_entry,
    load_model,
    store_weights,
    with_files,
    write_atomically,
)
from nbcore.export import round_to_half
from nbcore.vit import build_model
from tests.nbcore.tiny import pictures
from tests.nbcore.variants import (
    ARCH,
    VARIANT,
    named,
    write_files,
)


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


def test_parameters_are_stored_in_half_precision_and_means_as_they_are(tmp_path: Path) -> None:
    metered = MeteredViT(build_model(ARCH), [torch.rand(1, 8), torch.rand(8)])
    round_to_half(metered)
    stored = load(store_weights(metered))
    assert {name: t.dtype for name, t in stored.items()} == {
        name: torch.float32 if name in dict(metered.named_buffers()) else torch.float16
        for name in metered.state_dict()
    }
    path = tmp_path / "a-b" / "model.safetensors"
    write_atomically(path, store_weights(metered))
    variant = with_files(replace(VARIANT, merge=None), {"weights": file_entry(tmp_path, path)}, {})
    images = pictures(side=16).float()
    assert all(map(torch.equal, load_model(tmp_path, variant)(images), metered.eval()(images)))


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
