"""A Triton repository: NVIDIA's own schema reads it, and it says what the files hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nbcore.__main__ import main
from nbcore.checkpoint import CheckpointError, read_manifest, sha256_of
from nbcore.triton import write_triton
from tests.app.folders import copy_of, flip_byte

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


def config_of(folder: Path) -> model_config_pb2.ModelConfig:
    """A config.pbtxt, read by NVIDIA's schema, which refuses unknown fields."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_every_variant_is_a_model_that_the_schema_and_its_own_session_agree_on(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    folders = write_triton(tiny_checkpoints, tmp_path / "repository")
    variants = read_manifest(tiny_checkpoints).variants
    assert [folder.name for folder in folders] == [variant.id for variant in variants]
    for folder, variant in zip(folders, variants, strict=True):
        config = config_of(folder)
        assert config.name == folder.name
        assert config.backend == "onnxruntime"
        assert config.max_batch_size >= max(config.dynamic_batching.preferred_batch_size)
        model = folder / "1" / "model.onnx"
        assert sha256_of(model) == variant.files["onnx"].sha256
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for listed, real in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            # The batch comes first and is not among Triton's dims.
            assert [(t.name, list(t.dims)) for t in listed] == [(r.name, r.shape[1:]) for r in real]
            names = [model_config_pb2.DataType.Name(tensor.data_type) for tensor in listed]
            assert names == [TYPES[r.type] for r in real]
        labelled = [t.name for t in config.output if t.label_filename]
        assert labelled == ["logits"]
        labels = (folder / config.output[0].label_filename).read_text(encoding="utf-8")
        assert tuple(labels.splitlines()) == variant.classes
    merged = next(f for f, v in zip(folders, variants, strict=True) if v.merge is not None)
    assert "token_group" in [tensor.name for tensor in config_of(merged).output]


def test_the_command_writes_one_or_all_and_refuses_what_is_damaged(
    tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)
    ids = [variant.id for variant in read_manifest(folder).variants]
    out = tmp_path / "repository"
    arguments = ["export", "--checkpoints", str(folder), "--triton", str(out)]
    assert main([*arguments, ids[1]]) == 0
    assert [path.name for path in out.iterdir()] == [ids[1]]
    assert main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(ids)
    assert main([*arguments, "nobody"]) == 2
    assert "unknown variants ['nobody']" in capsys.readouterr().err
    assert main(["export", "--checkpoints", str(folder)]) == 2
    assert "name a variant, or a folder with --triton" in capsys.readouterr().err
    flip_byte(folder / ids[0] / "model.onnx")
    with pytest.raises(CheckpointError, match="sha256"):
        write_triton(folder, out)


def test_sizes_that_are_not_fixed_are_refused(tiny_checkpoints: Path) -> None:
    from nbcore.triton import configuration

    variant = read_manifest(tiny_checkpoints).variants[0]
    graph = onnx.load(tiny_checkpoints / variant.files["onnx"].path).graph
    graph.input[0].type.tensor_type.shape.dim[2].dim_param = "side"
    with pytest.raises(ValueError, match="image has other dynamic sizes than its batch"):
        configuration("a", graph)
