"""Shipped variants -> a model repository of NVIDIA's Triton Inference Server, files unchanged.

Layout `DIR/<id>/config.pbtxt`, `DIR/<id>/labels.txt`, `DIR/<id>/1/model.onnx`, as the chapter Model
Repository of Triton's user guide has it; the configuration follows the schema of its
model_config.proto. `unit_gate` and `unit_keep` have defaults in the file and are no inputs there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbcore.checkpoint import Variant, read_manifest, resolve, verify_files, write_atomically

if TYPE_CHECKING:
    import onnx

VERSION = "1"
LABELS = "labels.txt"
MAX_BATCH = 64
PREFERRED = (8, 32)
"""Batches that Triton waits for, at most `MAX_WAIT_US`."""
MAX_WAIT_US = 2000
CLASSES_OF = "logits"
"""The output whose positions have names."""


def write_triton(checkpoints: Path, out: Path, ids: Sequence[str] = ()) -> list[Path]:
    """Write a model repository; a model that is there is replaced.

    Args:
        checkpoints: Folder that holds `manifest.json`.
        out: The repository; created.
        ids: Only these variants; none means all.

    Returns:
        A folder for each model.

    Raises:
        CheckpointError: If a file is not what the manifest says.
        ValueError: If a variant is unknown.
    """
    known = {variant.id: variant for variant in read_manifest(checkpoints).variants}
    if unknown := sorted(set(ids) - set(known)):
        raise ValueError(f"unknown variants {unknown}; available: {', '.join(known)}")
    return [_write_model(checkpoints, out, known[key]) for key in ids or known]


def _write_model(checkpoints: Path, out: Path, variant: Variant) -> Path:
    import onnx

    verify_files(checkpoints, variant)
    source = resolve(checkpoints, variant.id, variant.files["onnx"])
    folder = out / variant.id
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / VERSION / "model.onnx")
    write_atomically(folder / LABELS, "".join(f"{name}\n" for name in variant.classes))
    graph = onnx.load(source, load_external_data=False).graph
    write_atomically(folder / "config.pbtxt", configuration(variant.id, graph))
    return folder


def configuration(name: str, graph: onnx.GraphProto) -> str:
    """The text of a model's config.pbtxt.

    Args:
        name: Of the model and its folder.
        graph: With dynamic batch first in every input and output.
    """
    defaults = {tensor.name for tensor in graph.initializer}
    inputs = [_tensor(value) for value in graph.input if value.name not in defaults]
    outputs = [_tensor(value) for value in graph.output]
    preferred = ", ".join(map(str, PREFERRED))
    return (
        f"name: {json.dumps(name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        f"input [\n{_listed(inputs)}\n]\n"
        f"output [\n{_listed(outputs)}\n]\n"
        "dynamic_batching {\n"
        f"  preferred_batch_size: [ {preferred} ]\n"
        f"  max_queue_delay_microseconds: {MAX_WAIT_US}\n"
        "}\n"
    )


def _listed(tensors: Sequence[str]) -> str:
    return ",\n".join(tensors)


def _tensor(value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
    if not all(dims):
        raise ValueError(f"{value.name} has other dynamic sizes than its batch")
    labels = f'\n    label_filename: "{LABELS}"' if value.name == CLASSES_OF else ""
    return (
        "  {\n"
        f"    name: {json.dumps(value.name)}\n"
        f"    data_type: TYPE_{ {'FLOAT': 'FP32', 'FLOAT16': 'FP16'}.get(kind, kind) }\n"
        f"    dims: [ {', '.join(map(str, dims))} ]{labels}\n"
        "  }"
    )
