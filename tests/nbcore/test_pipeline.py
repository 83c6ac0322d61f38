"""What is done is not done again, what was stopped goes on, and the manifest never lies."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nbcore import checkpoint, complete, pipeline
from nbcore.checkpoint import (
    CheckpointError,
    file_entry,
    load_model,
    read_manifest,
    read_trained,
    register_variant,
    verify_files,
    with_files,
    write_entry,
)
from nbcore.compact import compact
from nbcore.complete import export_variant, load_for, measure_variant
from nbcore.config import Merge, RunConfig
from nbcore.data import spread
from nbcore.fit import fit, read_base
from nbcore.parity import ExportError
from nbcore.pipeline import run_variant
from nbcore.vit import PrunableViT
from tests.nbcore.runs import CPU, DENSE, assert_same_bits, shapes, toy_child

CHILD = toy_child("handoff")


@pytest.fixture(scope="module", autouse=True)
def few_shapes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline, complete):
            patch.setattr(module, "load_dataset", shapes)
        yield


def run(config: RunConfig, out: Path) -> str:
    return run_variant(config, out, None, CPU, command="a test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense and a pruned toy as a training host leaves them; copy before changing."""
    out = tmp_path_factory.mktemp("trained") / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert [run(config, out) for config in (DENSE, CHILD)] == ["trained", "trained"]
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training host, without onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def register(out: Path, *configs: RunConfig) -> None:
    """Bring trained toys into the manifest with a stand-in for the graph."""
    for config in configs:
        path = out / config.id / "model.onnx"
        path.write_text(f"graph of {config.id}")
        variant = with_files(read_trained(out, config.id), {"onnx": file_entry(out, path)}, {})
        (out / config.id / "variant.json").unlink()
        write_entry(out, variant)
        register_variant(out, variant)


def ids(out: Path) -> list[str]:
    return [variant.id for variant in read_manifest(out).variants]


class Stop(BaseException):
    """The process ends here."""


def stop(*_: Any, **__: Any) -> None:
    raise Stop


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "fit", stop)


def test_trained_files_hold_what_was_measured(trained: Path) -> None:
    dense, child = read_trained(trained, DENSE.id), read_trained(trained, CHILD.id)
    assert (dense.base, child.base) == (None, DENSE.id)
    assert child.macs_ratio == child.macs / dense.macs <= 0.5
    assert set(child.files) == {"weights", "config", "history", "burden"}
    record = json.loads((trained / CHILD.id / "config.json").read_text())
    assert record["run"]["prune"]["macs_ratio"] == 0.5
    assert record["base_sha256"] == dense.files["weights"].sha256
    history = [json.loads(x) for x in (trained / CHILD.id / "history.jsonl").open()]
    assert history[-1]["macs_ratio"] == pytest.approx(child.macs_ratio, abs=1e-12)
    model = load_model(trained, child)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, parameter.half().float()), name
    assert child.num_params == sum(p.numel() for p in model.model.parameters())
    right = (model(shapes(img_size=32).test.images.float() / 255)[0].argmax(1)).eq(
        shapes(img_size=32).test.targets
    )
    assert child.metrics["top1"] == right.double().mean().item()
    assert not trained.with_name("checkpoints.runs").joinpath(CHILD.id).exists()
    assert not (trained / "manifest.json").exists()


def test_calibration_means_are_those_of_the_rounded_compact_model(trained: Path) -> None:
    model = load_model(trained, read_trained(trained, CHILD.id))
    images = spread(shapes(img_size=32).train, 16).images.float() / 255
    seen: dict[int, torch.Tensor] = {}

    def tap(site: int, stream: object, contribution: torch.Tensor, tokens: object) -> None:
        seen[site] = contribution.mean((0, 1) if contribution.ndim == 3 else (0, 2))

    model.model(images, tap=tap)
    for site, mean in enumerate(model.means):
        torch.testing.assert_close(mean, seen[site], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mitigation", ["handoff", "token_merging"])
def test_fork_leaves_the_dense_base_untouched(
    mitigation: str, trained: Path, tmp_path: Path
) -> None:
    options = {"token_merging": {"block": 1, "r": 4}} if mitigation == "token_merging" else {}
    config = toy_child(mitigation)
    assert config.prune is not None
    config = replace(config, prune=replace(config.prune, mitigation_options=options))
    dense = read_base(config, trained)
    assert dense is not None
    before = {name: tensor.clone() for name, tensor in dense.metered.state_dict().items()}
    model = dense.metered.model
    flags = (dense.metered.training, model.masked, model.merge)
    fitted = fit(config, shapes(img_size=32), dense, CPU, tmp_path / "state.pt")
    assert_same_bits(dict(dense.metered.state_dict()), before)
    assert (dense.metered.training, model.masked, model.merge) == flags
    assert not any(p.requires_grad for p in dense.metered.parameters())
    weight = "vit.blocks.0.attn.proj.weight"
    assert not torch.equal(fitted.result.model.state_dict()[weight], before[f"model.{weight}"])
    assert fitted.model.merge == (Merge(block=1, r=4) if options else None)
    assert [len(units) for units in fitted.kept] == [s.num_units for s in fitted.model.sites]


def test_done_stage_is_not_done_again(
    out: Path, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    assert [run(config, out) for config in (DENSE, CHILD)] == ["trained", "trained"]
    register(out, DENSE, CHILD)
    monkeypatch.setattr(pipeline, "load_dataset", stop)
    assert [run(config, out) for config in (DENSE, CHILD)] == ["exported", "exported"]


def test_changed_run_is_trained_again_and_leaves_the_manifest_meanwhile(
    out: Path, host: None
) -> None:
    register(out, DENSE, CHILD)
    changed = replace(CHILD, seed=5)
    assert run(changed, out) == "trained"
    assert ids(out) == [DENSE.id]
    assert read_trained(out, CHILD.id).provenance.seed == 5
    with pytest.raises(CheckpointError, match="no onnx file"):
        verify_files(out, read_trained(out, CHILD.id))


def test_base_is_not_replaced_under_its_children(out: Path, host: None) -> None:
    register(out, DENSE, CHILD)
    before = (out / "manifest.json").read_bytes()
    weights = replace(DENSE, model=replace(DENSE.model, weights="other.safetensors"))
    for changed in (replace(DENSE, seed=1), weights):
        with pytest.raises(CheckpointError, match=f"replace the dense base of {CHILD.id}"):
            run(changed, out)
    (out / DENSE.id / "config.json").unlink()
    with pytest.raises(CheckpointError, match="give another --out, or restore the files"):
        run(DENSE, out)
    assert (out / "manifest.json").read_bytes() == before


def test_variant_of_a_changed_base_is_trained_again(
    out: Path, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_trained(out, CHILD.id)
    assert run(replace(DENSE, seed=1), out) == "trained"
    for stale in (lambda: export_variant(CHILD.id, out, shapes()), lambda: measure(out)):
        with pytest.raises(CheckpointError, match=f"{CHILD.id} was pruned from another"):
            stale()
    assert run(CHILD, out) == "trained"
    new = read_trained(out, CHILD.id)
    assert new.files["weights"].sha256 != old.files["weights"].sha256
    forbid_training(monkeypatch)
    assert run(CHILD, out) == "trained"


def measure(out: Path) -> object:
    return measure_variant(CHILD.id, out, shapes(img_size=32), num_images=16)


def test_record_of_an_earlier_version_counts_as_trained(
    out: Path, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = out / CHILD.id / "config.json"
    record = json.loads(path.read_text())
    del record["base_sha256"]
    path.write_text(json.dumps(record))
    forbid_training(monkeypatch)
    assert run(CHILD, out) == "trained"


def test_interrupted_run_goes_on_and_a_changed_one_starts_anew(
    out: Path, host: None, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(out / CHILD.id)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "record", stop)
        with pytest.raises(Stop):
            run(CHILD, out)
    states = list(out.with_name("checkpoints.runs").rglob("*.pt"))
    assert len(states) == 1
    resumed: list[bool] = []

    def watched(*arguments: Any) -> Any:
        resumed.append(arguments[4].exists())
        return fit(*arguments)

    monkeypatch.setattr(pipeline, "fit", watched)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "record", stop)
        with pytest.raises(Stop):
            run(replace(CHILD, seed=7), out)
    assert run(CHILD, out) == "trained"
    assert resumed == [False, True]
    assert not out.with_name("checkpoints.runs").joinpath(CHILD.id).exists()
    found, wanted = (read_trained(folder, CHILD.id) for folder in (out, trained))
    assert found.files["weights"] == wanted.files["weights"]
    assert found.metrics == wanted.metrics


def test_run_stopped_between_two_files_leaves_no_variant(
    out: Path, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(out, DENSE, CHILD)
    write = checkpoint.write_atomically

    def stopping(path: Path, content: str | bytes) -> None:
        if path.name == "history.jsonl":
            raise Stop
        write(path, content)

    changed = replace(CHILD, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", stopping)
        with pytest.raises(Stop):
            run(changed, out)
    assert ids(out) == [DENSE.id]
    with pytest.raises(CheckpointError, match=f"no trained variant '{CHILD.id}'.*{DENSE.id}"):
        read_trained(out, CHILD.id)
    assert run(changed, out) == "trained"
    assert read_trained(out, CHILD.id).provenance.seed == 5


def test_manifest_does_not_name_a_variant_while_its_graph_changes(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(out, DENSE, CHILD)
    before, seen = (out / "manifest.json").read_bytes(), []

    def refuse(metered: object, path: Path, *_: Any, **__: Any) -> None:
        seen.append(ids(out))
        raise ExportError("they differ")

    def half(metered: object, path: Path, *_: Any, **__: Any) -> None:
        path.write_text("another graph")
        raise Stop

    monkeypatch.setattr(complete, "export", refuse)
    with pytest.raises(ExportError):
        export_variant(DENSE.id, out, shapes(img_size=32))
    assert seen == [[CHILD.id]]
    assert (out / "manifest.json").read_bytes() == before  # nothing changed: it is back
    monkeypatch.setattr(complete, "export", half)
    with pytest.raises(Stop):
        export_variant(DENSE.id, out, shapes(img_size=32))
    assert ids(out) == [CHILD.id]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "history.jsonl"])
def test_damaged_training_files_are_not_exported(name: str, out: Path) -> None:
    path = out / DENSE.id / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=f"{name} has .* bytes.*train the variant again"):
        export_variant(DENSE.id, out, shapes(img_size=32))


def test_damaged_base_is_not_forked(out: Path, host: None) -> None:
    path = out / DENSE.id / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=f"variant {DENSE.id}: model.safetensors has sha256"):
        run(replace(CHILD, seed=5), out)


def test_measuring_again_gives_the_same_burden_and_keeps_the_place(out: Path) -> None:
    register(out, DENSE, CHILD)
    before, entry = (out / CHILD.id / "burden.json").read_bytes(), read_trained(out, CHILD.id)
    (out / CHILD.id / "burden.json").write_text("damaged: what can be measured again may be")
    measure(out)
    assert (out / CHILD.id / "burden.json").read_bytes() == before
    assert read_manifest(out)[CHILD.id] == entry == read_trained(out, CHILD.id)
    assert ids(out) == [DENSE.id, CHILD.id]
    with pytest.raises(CheckpointError, match=f"{DENSE.id} is dense; burden compares"):
        measure_variant(DENSE.id, out, shapes(img_size=32))


def test_missing_base_is_named(tmp_path: Path, host: None) -> None:
    with pytest.raises(CheckpointError, match=f"no trained variant '{DENSE.id}'.*available: none"):
        run(CHILD, tmp_path / "empty")


def test_unreadable_entry_is_named(out: Path) -> None:
    (out / DENSE.id / "variant.json").write_text("{")
    with pytest.raises(CheckpointError, match=f"variant {DENSE.id}: .*is not valid JSON"):
        read_trained(out, DENSE.id)


def test_data_are_split_as_in_the_training(out: Path) -> None:
    path = out / DENSE.id / "config.json"
    record = json.loads(path.read_text())
    record["run"]["data"]["validation_share"] = 0.5
    path.write_text(json.dumps(record))
    variant = read_trained(out, DENSE.id)
    data = load_for(out, variant, None)
    assert len(data.validation.names) == len(data.train.names) == 36
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="does not tell the validation share"):
        load_for(out, variant, None)


def test_spread_takes_even_steps_and_never_more_than_there_are() -> None:
    split = shapes(img_size=16).test  # 18 images
    assert spread(split, 3).names == tuple(split.names[i] for i in (0, 8, 17))
    assert spread(split, 99).names == split.names
    picked = spread(split, 4)
    where = [split.names.index(name) for name in picked.names]
    assert torch.equal(picked.images, split.images[where])
    assert torch.equal(picked.targets, split.targets[where])


@pytest.mark.slow
def test_host_with_onnxruntime_completes_what_another_trained(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    before = read_trained(out, DENSE.id)
    monkeypatch.setenv("NBCORE_COMMIT", "e8907")
    assert run(DENSE, out) == "exported"
    (variant,) = read_manifest(out).variants
    verify_files(out, variant)
    assert set(variant.files) == {*before.files, "onnx"}
    assert 0 < variant.metrics["parity_logits"] <= 1e-5
    assert 0 < variant.metrics["parity_loads"] <= 1e-5
    assert variant.metrics["parity_loads_largest"] > 0
    assert variant.metrics["parity_images"] == variant.metrics["num_images"] == 18
    assert variant.metrics["top1"] == before.metrics["top1"]
    exported = variant.provenance.export
    assert exported is not None
    assert exported.commit == "e8907" != before.provenance.commit
    assert exported.command == f"python -m nbcore export {DENSE.id} --data DIR"
    assert {"onnx", "torch"} < set(exported.versions)
    assert any(name.startswith("onnxruntime") for name in exported.versions)
    # Of the training nothing is overwritten.
    assert replace(variant.provenance, export=None) == before.provenance
    monkeypatch.setattr(pipeline, "load_dataset", stop)
    assert run(DENSE, out) == "exported"


def test_masked_result_and_compact_model_agree(trained: Path, tmp_path: Path) -> None:
    data = shapes(img_size=32)
    fitted = fit(CHILD, data, read_base(CHILD, trained), CPU, tmp_path / "state.pt")
    images = data.test.images.double() / 255
    masked: PrunableViT = fitted.result.model.double()
    small = compact(masked, fitted.result.keep)
    torch.testing.assert_close(small(images), masked(images), rtol=0, atol=1e-12)
    assert small.arch == fitted.model.arch
