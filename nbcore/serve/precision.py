"""A served graph in half precision, or with weights and activations in eight bits."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbcore.serve.graph import Graph

if TYPE_CHECKING:
    import onnx

POINTWISE = {"Sub", "Div", "Mul", "Add"}
"""What normalises pixels."""
GROUP = "token_group"
"""Says which token carries a patch; in the graph also where it is no output."""
PRODUCTS = {"Attention", "Conv", "Gemm", "MatMul", "MultiHeadAttention"}
"""What TF32 would round."""
BY_SIZE = {"Shape", "ConstantOfShape", "Constant"}
"""What makes tensors of sizes, or of a type of its own."""


def to_half(graph: Graph) -> None:
    """Compute in half precision; inputs and outputs stay single.

    Single stay the normalisation of pixels, whose steps half precision would blur, the match of
    merged tokens, which is discrete, and all that no logit needs: loads are ratios of small sums.
    The one product of the match is taken in double, out of reach of what rounds products.
    """
    from onnx import TensorProto, helper

    _match_in_double(graph)
    types = _element_types(graph)
    single = stays_single(graph)
    casts: dict[tuple[str, int], str] = {}

    def floating(name: str) -> bool:
        known = graph.constants.get(name)
        return known.dtype == np.float32 if known is not None else types.get(name, 1) == 1

    def cast(name: str, to: int) -> str:
        if (name, to) not in casts:
            casts[name, to] = graph.new_name("cast")
            made.append(helper.make_node("Cast", [name], [casts[name, to]], to=to))
        return casts[name, to]

    halves: dict[str, str] = {}
    made: list[onnx.NodeProto] = []
    in_half = {n for node in graph.nodes for n in node.output if floating(n)} - single
    for node in graph.nodes:
        half = any(name in in_half for name in node.output)
        for position, name in enumerate(node.input):
            if not name or not floating(name) or node.op_type == "Cast":
                continue
            if half and name in graph.constants:
                if name not in halves:
                    halves[name] = graph.constant("half", graph.constants[name].astype(np.float16))
                node.input[position] = halves[name]
            elif half and name not in in_half:
                node.input[position] = cast(name, TensorProto.FLOAT16)
            elif not half and name in in_half:
                node.input[position] = cast(name, TensorProto.FLOAT)
        if half and node.op_type == "Cast":
            next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT16
    graph.nodes += made
    graph.index()
    for output in graph.output_names():
        if output in in_half:
            _give_single(graph, output)
    graph.prune()


def _match_in_double(graph: Graph) -> None:
    from onnx import TensorProto, helper

    match = graph.ancestors({GROUP} & graph.maker.keys()) & stays_single(graph)
    for node in [n for n in graph.nodes if n.op_type == "MatMul" and n.output[0] in match]:
        for position, name in enumerate(node.input):
            node.input[position] = graph.new_name("double")
            cast = helper.make_node("Cast", [name], [node.input[position]], to=TensorProto.DOUBLE)
            graph.nodes.append(cast)
        product, node.output[0] = node.output[0], graph.new_name("product")
        graph.nodes.append(
            helper.make_node("Cast", [node.output[0]], [product], to=TensorProto.FLOAT)
        )
    graph.index()


def has_single_products(model: onnx.ModelProto) -> bool:
    """Whether a graph holds matrix products in single precision, as of loads or of the match."""
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = Graph(twin)
    types = _element_types(graph)
    products = [node for node in graph.nodes if node.op_type in PRODUCTS]
    return any(types[node.output[0]] == onnx.TensorProto.FLOAT for node in products)


def _give_single(graph: Graph, output: str) -> None:
    """Let an output that is computed in half precision leave the graph in single."""
    from onnx import TensorProto, helper

    inner = graph.new_name("half_output")
    graph.replace(output, inner)
    maker = graph.maker[output]
    maker.output[list(maker.output).index(output)] = inner
    graph.nodes.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))
    graph.index()


def _element_types(graph: Graph) -> dict[str, int]:
    """ONNX types of tensors by name, as far as they can be told; operators of ONNX Runtime's own
    give floats."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.finish())
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in graph.sorted():
        # Behind an operator that ONNX does not know, types are passed on by hand.
        for name in node.output:
            if name and not types.get(name):
                types[name] = _passed_on(node, types)
    return types


def _passed_on(node: onnx.NodeProto, types: dict[str, int]) -> int:
    from onnx import TensorProto

    if node.op_type == "Cast":
        return next(a.i for a in node.attribute if a.name == "to")
    if node.op_type in {"Equal", "Greater", "Less", "And", "Or", "Not"}:
        return TensorProto.BOOL
    if node.op_type in {"Shape", "ArgMax"}:
        return TensorProto.INT64
    first = node.input[1] if node.op_type == "Where" else node.input[0]
    return types.get(first, TensorProto.FLOAT)


def stays_single(graph: Graph) -> set[str]:
    """Names of tensors that `to_half` leaves in single precision."""
    everything = {name for node in graph.nodes for name in node.output}
    single = everything - graph.ancestors(["logits"])
    single.update(n for node in graph.nodes if node.op_type in BY_SIZE for n in node.output)
    frontier = ["image"]
    while frontier:
        for node in graph.readers.get(frontier.pop(), []):
            if node.op_type in POINTWISE and node.output[0] not in single:
                single.update(node.output)
                frontier.extend(node.output)
    # What only the match needs: all its readers lie on the way to it.
    matches = {GROUP} & graph.maker.keys()
    on_the_way = graph.ancestors(matches)
    for node in reversed(graph.sorted()):
        readers = [r for name in node.output for r in graph.readers.get(name, [])]
        reads = {name for reader in readers for name in reader.output}
        made = set(node.output)
        if made & matches or (made & on_the_way and reads and reads <= single):
            single.update(made)
    return single


def to_int8(graph: Graph) -> onnx.ModelProto:
    """Products with weights in eight bits: weights per column ahead, activations by their range in
    each run. Loads stay in single precision."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    answers = graph.ancestors(["logits"])
    model = graph.finish()
    loads = [node.name for node in model.graph.node if not answers & set(node.output)]
    log = logging.getLogger()
    level = log.level
    # It advises a preparation that exported graphs don't need, through the root logger.
    log.setLevel(max(level, logging.ERROR))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(
                model,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=loads,
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={
                    "MatMulConstBOnly": True,
                    "DefaultTensorType": onnx.TensorProto.FLOAT,
                },
            )
            return onnx.load(path)
    finally:
        log.setLevel(level)
