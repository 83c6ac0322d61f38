"""Attention layers of an exported graph as one operator each.

The patterns are those that `nbcore.export` writes. What does not match is left as it is: a graph
that is not fused is slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nbcore.serve.graph import MICROSOFT, Graph

if TYPE_CHECKING:
    import onnx

OPSET_WITH_ATTENTION = 23
ON_THE_WAY = {"Mul", "Squeeze", "Slice", "Reshape", "Transpose"}
"""What stands between the projection and the product of queries and keys."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention layer found in a graph."""

    tokens: str
    """Input of the projection [B, N, D]."""
    weight: np.ndarray
    """[D, 3 * heads * width], columns of queries, keys, values."""
    bias: np.ndarray
    """[3 * heads * width]."""
    heads: int
    width: int
    scale: float
    mask: str
    """Added to the scores [B, 1, N, N]; "" for none."""
    result: str
    """Head outputs [B, heads, N, width]."""


def find_attention(graph: Graph) -> Iterator[Attention]:
    """All attention layers that have the exporter's form."""
    for softmax in [node for node in graph.nodes if node.op_type == "Softmax"]:
        found = _match(graph, softmax)
        if found is not None:
            yield found


def _match(graph: Graph, softmax: onnx.NodeProto) -> Attention | None:
    scores, mask = graph.maker.get(softmax.input[0]), ""
    if scores is not None and scores.op_type == "Add":
        mask = scores.input[1]
        scores = graph.maker.get(scores.input[0])
    readers = graph.readers.get(softmax.output[0], [])
    if scores is None or scores.op_type != "MatMul" or [r.op_type for r in readers] != ["MatMul"]:
        return None
    query, key, value = (_way(graph, n) for n in (*scores.input, readers[0].input[1]))
    if query is None or key is None or value is None:
        return None
    if (query.part, key.part, value.part) != (0, 1, 2):
        return None
    if len({way.projection for way in (query, key, value)}) != 1 or value.scale != 1.0:
        return None
    added = graph.maker[query.projection]
    product = next((graph.maker[n] for n in added.input if n in graph.maker), None)
    bias = next((graph.constants[n] for n in added.input if n in graph.constants), None)
    if added.op_type != "Add" or product is None or product.op_type != "MatMul" or bias is None:
        return None
    weight = graph.constants.get(product.input[1])
    if weight is None:
        return None
    return Attention(
        tokens=product.input[0],
        weight=weight,
        bias=bias,
        heads=query.heads,
        width=query.width,
        scale=query.scale * key.scale,
        mask=mask,
        result=readers[0].output[0],
    )


@dataclass(frozen=True, kw_only=True)
class _Way:
    projection: str
    part: int
    scale: float
    heads: int
    width: int


def _way(graph: Graph, name: str) -> _Way | None:
    """From queries, keys or values back to the projection that holds all three."""
    scale, part = 1.0, None
    while (node := graph.maker.get(name)) is not None and node.op_type in ON_THE_WAY:
        other = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Mul":
            if other is None or other.size != 1:
                return None
            scale *= float(other.reshape(()))
        if node.op_type == "Slice" and other is not None:
            part = int(other.reshape(-1)[0])
        if node.op_type == "Reshape" and other is not None and other.size == 5:
            _, _, three, heads, width = (int(size) for size in other)
            if part is None or three != 3:
                return None
            return _Way(projection=node.input[0], part=part, scale=scale, heads=heads, width=width)
        name = node.input[0]
    return None


def _packed(graph: Graph, found: Attention) -> tuple[list[onnx.NodeProto], str]:
    from onnx import helper

    out, size = graph.new_name("attention"), found.heads * found.width
    inputs = [
        found.tokens,
        graph.constant("weight", found.weight),
        graph.constant("bias", found.bias),
        *(["", "", found.mask] if found.mask else []),
    ]
    node = helper.make_node(
        "Attention",
        inputs,
        [out],
        domain=MICROSOFT,
        num_heads=found.heads,
        scale=found.scale,
        qkv_hidden_sizes=[size] * 3,
    )
    return [node], out


def _projected(graph: Graph, found: Attention) -> tuple[list[onnx.NodeProto], list[str]]:
    """Queries, keys and values [B, N, heads * width] each."""
    from onnx import helper

    product, added = graph.new_name("product"), graph.new_name("projected")
    parts = [graph.new_name(part) for part in ("queries", "keys", "values")]
    sizes = np.full(3, found.heads * found.width, np.int64)
    return [
        helper.make_node(
            "MatMul", [found.tokens, graph.constant("weight", found.weight)], [product]
        ),
        helper.make_node("Add", [product, graph.constant("bias", found.bias)], [added]),
        helper.make_node("Split", [added, graph.constant("sizes", sizes)], parts, axis=-1),
    ], parts


def _multihead(graph: Graph, found: Attention) -> tuple[list[onnx.NodeProto], str]:
    from onnx import helper

    nodes, parts = _projected(graph, found)
    out = graph.new_name("attention")
    node = helper.make_node(
        "MultiHeadAttention",
        [*parts, *(["", "", found.mask] if found.mask else [])],
        [out],
        domain=MICROSOFT,
        num_heads=found.heads,
        scale=found.scale,
    )
    return [*nodes, node], out


def _opset23(graph: Graph, found: Attention) -> tuple[list[onnx.NodeProto], str]:
    from onnx import helper

    nodes, parts = _projected(graph, found)
    out = graph.new_name("attention")
    node = helper.make_node(
        "Attention",
        [*parts, *([found.mask] if found.mask else [])],
        [out],
        q_num_heads=found.heads,
        kv_num_heads=found.heads,
        scale=found.scale,
    )
    for opset in graph.model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, OPSET_WITH_ATTENTION)
    return [*nodes, node], out


Emit = Callable[[Graph, Attention], tuple[list["onnx.NodeProto"], str]]
EMITTERS: dict[str, Emit] = {"fused": _packed, "multihead": _multihead, "opset23": _opset23}
"""How an attention layer is written; each gives the result as [B, N, heads * width]."""


def fuse_attention(graph: Graph, kind: str) -> int:
    """Write all attention layers anew; returns how many were found."""
    from onnx import helper

    if kind == "exported":
        return 0
    layers = list(find_attention(graph))
    for found in layers:
        nodes, flat = EMITTERS[kind](graph, found)
        shape = graph.constant("shape", np.array([0, 0, found.heads, found.width], np.int64))
        split, result = graph.new_name("heads"), graph.new_name("result")
        nodes += [
            helper.make_node("Reshape", [flat, shape], [split]),
            helper.make_node("Transpose", [split], [result], perm=[0, 2, 1, 3]),
        ]
        graph.nodes += nodes
        graph.index()
        graph.replace(found.result, result)
        _read_flat(graph, result, flat)
    graph.import_microsoft()
    graph.prune()
    return len(layers)


def _read_flat(graph: Graph, result: str, flat: str) -> None:
    """Let what joins the heads again read them joined, as attention gives them."""
    for transpose in graph.readers.get(result, []):
        perm = next((list(a.ints) for a in transpose.attribute if a.name == "perm"), None)
        if transpose.op_type != "Transpose" or perm != [0, 2, 1, 3]:
            continue
        for reshape in graph.readers.get(transpose.output[0], []):
            shape = graph.constants.get(reshape.input[1]) if reshape.op_type == "Reshape" else None
            if shape is not None and shape.size == 3:
                graph.replace(reshape.output[0], flat)
