"""Additions of an exported graph joined with the LayerNorm or GELU behind them.

What does not have the form that `nbcore.export` writes is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbcore.serve.graph import MICROSOFT, Graph

if TYPE_CHECKING:
    import onnx


def fuse_norms(graph: Graph) -> int:
    """Join additions with the LayerNorm or GELU behind them; returns how many were joined."""
    joined = 0
    for node in list(graph.nodes):
        if node.op_type == "Gelu":
            joined += _join_gelu(graph, node)
        elif node.op_type == "LayerNormalization":
            joined += _join_norm(graph, node)
    graph.import_microsoft()
    graph.prune()
    return joined


def _join_gelu(graph: Graph, gelu: onnx.NodeProto) -> int:
    from onnx import helper

    exact = all(a.s == b"none" for a in gelu.attribute if a.name == "approximate")
    parts = _biased(graph, gelu.input[0])
    if parts is None or not exact:
        return 0
    out = graph.new_name("gelu")
    graph.nodes.append(helper.make_node("BiasGelu", list(parts), [out], domain=MICROSOFT))
    graph.index()
    graph.replace(gelu.output[0], out)
    return 1


def _join_norm(graph: Graph, norm: onnx.NodeProto) -> int:
    from onnx import helper

    added = graph.maker.get(norm.input[0])
    if added is None or added.op_type != "Add" or len(norm.input) != 3:
        return 0
    for written, stream in (tuple(added.input), tuple(added.input)[::-1]):
        parts = _biased(graph, written)
        # What is added must be as wide as the stream: positions are [1, N, D].
        if parts is None or stream in graph.constants:
            continue
        product, bias = parts
        out, total = graph.new_name("norm"), graph.new_name("stream")
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        inputs = [product, stream, norm.input[1], norm.input[2], bias]
        fused = helper.make_node(
            "SkipLayerNormalization",
            inputs,
            [out, "", "", total],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        graph.nodes.append(fused)
        graph.index()
        graph.replace(norm.output[0], out)
        graph.replace(added.output[0], total)
        graph.remove([norm, added])
        return 1
    return 0


def _biased(graph: Graph, name: str) -> tuple[str, str] | None:
    """A matrix product and the bias that is added to it."""
    added = graph.maker.get(name)
    if added is None or added.op_type != "Add":
        return None
    for product, bias in (tuple(added.input), tuple(added.input)[::-1]):
        made = graph.maker.get(product)
        value = graph.constants.get(bias)
        if made is not None and made.op_type == "MatMul" and value is not None and value.ndim == 1:
            return product, bias
    return None
