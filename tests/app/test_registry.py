"""What breaks the contract is not served, and what is served was verified."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from app.errors import UserError
from app.registry import ModelRegistry
from nbcore.checkpoint import CheckpointError
from tests.app.folders import (
    copy_of,
    edit_manifest,
    edit_variant,
    flip_byte,
    ids_by_mitigation,
    register_again,
)


@pytest.fixture
def folder(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    return copy_of(tiny_checkpoints, tmp_path)


@pytest.fixture
def ids(folder: Path) -> dict[str, str]:
    return ids_by_mitigation(folder)


@pytest.mark.parametrize("kind", ["onnx", "weights", "config", "history"])
def test_one_flipped_byte_refuses_its_variant_only(
    folder: Path, ids: dict[str, str], kind: str
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(e for e in manifest["variants"] if e["id"] == ids["handoff"])
    flip_byte(folder / entry["files"][kind]["path"])
    registry = ModelRegistry(folder)
    assert {m.id for m in registry.models()} == set(ids.values()) - {ids["handoff"]}
    name = Path(entry["files"][kind]["path"]).name
    assert f"{name} has sha256" in registry.refused[ids["handoff"]]
    with pytest.raises(UserError, match=f"{ids['handoff']} is not served: variant .* sha256"):
        registry[ids["handoff"]]


def test_without_its_base_a_variant_stays_and_says_why(folder: Path, ids: dict[str, str]) -> None:
    flip_byte(folder / ids["dense"] / "model.onnx")
    registry = ModelRegistry(folder)
    model = registry[ids["none"]]
    assert registry.base_of(model) is None
    problem = registry.base_problem(model)
    assert problem is not None
    assert "its dense base cannot be used" in problem
    assert "sha256" in problem


def test_a_base_is_itself_for_dense_and_the_fork_point_for_others(
    folder: Path, ids: dict[str, str]
) -> None:
    registry = ModelRegistry(folder)
    dense = registry[ids["dense"]]
    for key in ids.values():
        assert registry.base_of(registry[key]) is dense
        assert registry.base_problem(registry[key]) is None


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda e: e.update(classes=e["classes"][::-1]), "has another classes"),
        (lambda e: e["preprocessing"].update(crop_pct=0.5), "has another preprocessing"),
        (lambda e: e["sites"][1].update(total=e["sites"][1]["total"] + 1), "other sites or units"),
        (lambda e: e.update(base="shapes-gone"), "unknown variant 'shapes-gone'"),
    ],
)
def test_a_base_that_does_not_fit_is_not_used(
    folder: Path, ids: dict[str, str], edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    edit_variant(folder, ids["none"], edit)
    registry = ModelRegistry(folder)
    model = registry[ids["none"]]
    assert registry.base_of(model) is None
    assert said in str(registry.base_problem(model))


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd"])
def test_a_path_that_leaves_the_folder_is_refused(
    folder: Path, ids: dict[str, str], path: str
) -> None:
    (folder.parent / "outside.onnx").write_bytes(b"x")
    edit_variant(folder, ids["none"], lambda e: e["files"]["onnx"].update(path=path))
    assert "leaves the checkpoint folder" in ModelRegistry(folder).refused[ids["none"]]


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "loads"


def swap_outputs(model: onnx.ModelProto) -> None:
    first, second = model.graph.output[0], model.graph.output[1]
    name = first.name
    first.name = second.name
    second.name = name


def drop_default(model: onnx.ModelProto) -> None:
    kept = [t for t in model.graph.initializer if t.name != "unit_keep"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def other_sites(model: onnx.ModelProto) -> None:
    entry = next(p for p in model.metadata_props if p.key == "site_sizes")
    entry.value = json.dumps([1, *json.loads(entry.value)[1:]])


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_output, "its outputs are"),
        (swap_outputs, "its outputs are"),
        (drop_default, "inputs with a default are ['unit_gate']"),
        (other_sites, "its site_sizes are"),
        (no_metadata, "its num_units are None"),
        (weights_elsewhere, "keeps weights in other files"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    folder: Path, ids: dict[str, str], change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    path = folder / ids["none"] / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    register_again(folder, ids["none"], "onnx")
    registry = ModelRegistry(folder)
    assert said in registry.refused[ids["none"]]
    assert ids["dense"] in {m.id for m in registry.models()}


def test_a_file_that_is_no_graph_is_refused(folder: Path, ids: dict[str, str]) -> None:
    (folder / ids["none"] / "model.onnx").write_bytes(b"\xff" * 100)
    register_again(folder, ids["none"], "onnx")
    assert "model.onnx is no ONNX file" in ModelRegistry(folder).refused[ids["none"]]


def test_an_unknown_schema_or_no_manifest_stops_the_start(folder: Path, tmp_path: Path) -> None:
    edit_manifest(folder, lambda data: data.update(schema_version=99))
    with pytest.raises(CheckpointError, match="schema_version 99; this program reads 1"):
        ModelRegistry(folder)
    with pytest.raises(CheckpointError, match="does not exist; train a variant"):
        ModelRegistry(tmp_path)


def test_nothing_left_to_serve_stops_the_start_with_all_reasons(folder: Path) -> None:
    def break_all(data: dict[str, Any]) -> None:
        for entry in data["variants"]:
            entry["files"]["onnx"]["sha256"] = "0" * 64

    edit_manifest(folder, break_all)
    with pytest.raises(CheckpointError, match=r"nothing to serve .* sha256"):
        ModelRegistry(folder)
    edit_manifest(folder, lambda data: data.update(variants=[]))
    with pytest.raises(CheckpointError, match="it lists no variants"):
        ModelRegistry(folder)


def test_an_unknown_id_is_answered_with_those_there_are(folder: Path, ids: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        ModelRegistry(folder)["imagenette"]
    assert str(caught.value).startswith("unknown variant 'imagenette'; available: ")
    assert all(key in str(caught.value) for key in ids.values())


def test_files_are_hashed_again_when_they_are_opened(folder: Path, ids: dict[str, str]) -> None:
    model = ModelRegistry(folder)[ids["none"]]
    flip_byte(folder / ids["none"] / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors changed on disk since the start"):
        model.twin().__enter__()


def test_a_twin_is_loaded_once_and_lent_to_one_thread_at_a_time(
    folder: Path, ids: dict[str, str]
) -> None:
    model = ModelRegistry(folder)[ids["none"]]
    seen: list[int] = []
    inside = 0
    together = threading.Barrier(4)

    def use() -> None:
        nonlocal inside
        together.wait()
        for _ in range(20):
            with model.twin() as twin:
                inside += 1
                assert inside == 1
                seen.append(id(twin))
                twin(torch.rand(1, 3, model.variant.img_size, model.variant.img_size))
                inside -= 1

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert len(set(seen)) == 1


def test_a_refused_model_is_gone_at_once(folder: Path, ids: dict[str, str]) -> None:
    registry = ModelRegistry(folder)
    registry.refuse(ids["none"], "because")
    assert ids["none"] not in {m.id for m in registry.models()}
    assert registry.refused == {ids["none"]: "because"}
