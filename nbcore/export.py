"""Compact model -> ONNX file, re-run and compared with torch before it is kept.

The graph is that of DESIGN: `image`, `unit_gate`, `unit_keep` in; `logits`, `unit_load`,
`token_load`, `stream` and, for merging models, `token_group` out. Weights that half precision
holds exactly are stored in half precision and cast back, which halves the file and changes no
result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nbcore.burden import MeteredViT
from nbcore.parity import Parity, compare
from nbcore.serve import plain_session

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 20
INPUTS = ("image", "unit_gate", "unit_keep")
OUTPUTS = ("logits", "unit_load", "token_load", "stream")
GROUP_OUTPUT = "token_group"


def export(metered: MeteredViT, path: Path, images: Tensor, *, name: str) -> Parity:
    """Write a model as ONNX and compare it with torch; nothing is left at `path` if they differ.

    Args:
        metered: Compact model with calibration means, weights already rounded (`round_to_half`),
            on the CPU.
        path: File to write.
        images: Photos to compare on, uint8 [n, 3, S, S].
        name: Id of the variant, stored in the file.

    Raises:
        ExportError: If outputs differ by more than 1e-5.
    """
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_onnx(metered, temporary, name=name)
        parity = compare(open_session(temporary), metered, images)
        parity.check(name, "the file was not kept")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return parity


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Round all parameters of a model to half precision in place; buffers stay as they are.

    Raises:
        ValueError: If a weight does not fit half precision.
    """
    for name, parameter in model.named_parameters():
        rounded = parameter.half()
        if not torch.isfinite(rounded).all():
            raise ValueError(
                f"{name} holds values beyond half precision (65504); train with less drift"
            )
        parameter.copy_(rounded)


def write_onnx(metered: MeteredViT, path: Path, *, name: str) -> None:
    """Write the graph without comparing it."""
    import onnx

    model = metered.model
    units, side = model.num_units, model.img_size
    example = (torch.rand(2, 3, side, side), torch.ones(2, units), torch.ones(2, units))
    outputs = [*OUTPUTS, *([GROUP_OUTPUT] if model.merge is not None else [])]
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet_exporter():
        program = torch.onnx.export(
            metered.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=outputs,
            dynamic_shapes={n: {0: batch} for n in INPUTS},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    for node in graph.graph.node:
        # The exporter's stack traces: a megabyte of paths of this machine.
        del node.metadata_props[:]
    _add_default_gates(graph, units)
    _store_half(graph)
    for key, value in {
        "variant": name,
        "num_units": str(units),
        "site_names": json.dumps([site.name for site in model.sites]),
        "site_sizes": json.dumps([site.num_units for site in model.sites]),
        "grid": json.dumps(list(model.grid)),
    }.items():
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Mute the exporter's notes on its own internals: hundreds of lines that no user can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


def _add_default_gates(graph: onnx.ModelProto, num_units: int) -> None:
    """Give both gate inputs a default of ones [1, U], so that plain clients feed only `image`."""
    from onnx import numpy_helper

    for name in INPUTS[1:]:
        value = next(i for i in graph.graph.input if i.name == name)
        value.type.tensor_type.shape.dim[0].dim_param = f"{name}_batch"
        graph.graph.initializer.append(
            numpy_helper.from_array(np.ones((1, num_units), dtype=np.float32), name)
        )
    # Recorded shapes promise that gates have the photos' batch size, and ONNX Runtime would reuse
    # buffers by that promise.
    del graph.graph.value_info[:]


def _store_half(graph: onnx.ModelProto) -> None:
    """Replace single-precision initialisers that half precision holds exactly by half ones and a
    Cast."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    inputs = {i.name for i in graph.graph.input}
    for position, tensor in enumerate(graph.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or tensor.name in inputs:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if values.size < 64 or not np.array_equal(half.astype(np.float32), values):
            continue
        stored = f"{tensor.name}_half"
        casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
        graph.graph.initializer[position].CopyFrom(numpy_helper.from_array(half, stored))
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(casts + nodes)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A plain CPU session, for checks and accuracy.

    Raises:
        RuntimeError: If onnxruntime is not installed.
    """
    return plain_session(path, threads=torch.get_num_threads())
