"""The graph of a file -> the graph that is served: wanted outputs, gates or none, plain weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

GATES = ("unit_gate", "unit_keep")
MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
MOVES = {"Cast", "Transpose", "Split", "Unsqueeze", "Squeeze", "Slice", "Reshape", "Gather"}
MAX_FOLDED = 1 << 22
"""Elements of the largest constant that is computed ahead."""


class Graph:
    """An ONNX graph while it is rewritten: who makes a tensor, who reads it, what is constant."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.model = model
        self.constants: dict[str, np.ndarray] = {
            t.name: numpy_helper.to_array(t) for t in model.graph.initializer
        }
        self.nodes = list(model.graph.node)
        self._number = 0
        self.index()

    def index(self) -> None:
        """Look up makers and readers again after nodes changed."""
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def output_names(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    def new_name(self, stem: str) -> str:
        self._number += 1
        return f"served_{stem}_{self._number}"

    def constant(self, stem: str, value: np.ndarray) -> str:
        """Add a constant; returns its name."""
        name = self.new_name(stem)
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def replace(self, old: str, new: str) -> None:
        """Let every reader of a tensor read another."""
        for node in self.readers.pop(old, []):
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new
            self.readers.setdefault(new, []).append(node)

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out; nodes are compared by identity, since equal ones may be twins."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        self.index()

    def prune(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed, kept = set(self.output_names()), []
        for node in reversed(self.sorted()):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}
        self.index()

    def sorted(self) -> list[onnx.NodeProto]:
        """Nodes, each behind those that make its inputs."""
        maker = {name: node for node in self.nodes for name in node.output if name}
        done: set[int] = set()
        order: list[onnx.NodeProto] = []
        for start in self.nodes:
            stack = [(start, False)]
            while stack:
                node, ready = stack.pop()
                if id(node) in done:
                    continue
                if ready:
                    done.add(id(node))
                    order.append(node)
                    continue
                stack.append((node, True))
                before = [maker[name] for name in node.input if name in maker]
                stack.extend((one, False) for one in before if id(one) not in done)
        return order

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Names of all tensors that these need, themselves included."""
        found: set[str] = set()
        frontier = list(names)
        while frontier:
            name = frontier.pop()
            if name in found:
                continue
            found.add(name)
            if name in self.maker:
                frontier.extend(n for n in self.maker[name].input if n)
        return found

    def import_microsoft(self) -> None:
        """Let the graph hold operators of ONNX Runtime's own."""
        from onnx import helper

        imports = self.model.opset_import
        if all(opset.domain != MICROSOFT for opset in imports):
            imports.append(helper.make_opsetid(MICROSOFT, 1))

    def finish(self) -> onnx.ModelProto:
        """Write everything back into the model."""
        from onnx import numpy_helper

        graph = self.model.graph
        self.prune()
        for node in self.nodes:
            # Tools name nodes that they are told to leave alone.
            node.name = node.name or node.output[0]
        for field in (graph.node, graph.initializer, graph.value_info):
            del field[:]  # type: ignore[attr-defined]
        graph.node.extend(self.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in self.constants.items()
        )
        return self.model


def read_graph(path: object, outputs: Sequence[str] | None, *, gates: bool) -> Graph:
    """A file's graph without what is not asked for.

    Args:
        path: The ONNX file.
        outputs: Names of the outputs to keep; None means all.
        gates: Keep `unit_gate` and `unit_keep` as inputs; otherwise they are ones, and multiplying
            by ones is left out.

    Raises:
        ValueError: If the file has no such output.
    """
    import onnx

    model = onnx.load(path)
    names = [value.name for value in model.graph.output]
    wanted = names if outputs is None else list(outputs)
    if missing := [name for name in wanted if name not in names]:
        raise ValueError(f"{path} has no output {missing}; it has {names}")
    kept = [value for value in model.graph.output if value.name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    graph = Graph(model)
    graph.prune()
    if gates:
        fed = [name for name in GATES if name in graph.readers]
        inputs = [value for value in model.graph.input if value.name in ("image", *fed)]
        # Gates are always fed, so that what ONNX Runtime folds ahead depends on no default.
        for name in fed:
            graph.constants.pop(name, None)
    else:
        inputs = [value for value in model.graph.input if value.name not in GATES]
        _drop_gates(graph)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    fold(graph)
    graph.prune()
    return graph


def fold(graph: Graph) -> None:
    """Compute ahead what depends on constants alone and only moves them."""
    folded = []
    for node in graph.sorted():
        known = all(name in graph.constants for name in node.input if name)
        if known and node.op_type in MOVES and graph.constants[node.input[0]].size <= MAX_FOLDED:
            graph.constants.update(zip(node.output, _evaluate(node, graph), strict=True))
            folded.append(node)
    graph.remove(folded)


def _evaluate(node: onnx.NodeProto, graph: Graph) -> Sequence[np.ndarray]:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    feed = {name: graph.constants[name] for name in node.input if name}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
        for names in (feed, node.output)
    )
    alone = helper.make_graph([node], "fold", inputs, outputs)
    model = helper.make_model(alone, opset_imports=graph.model.opset_import)
    return ReferenceEvaluator(model).run(None, feed)


def _drop_gates(graph: Graph) -> None:
    """Leave out the multiplications by gates, which are ones where nobody feeds any."""
    ones, products = {"unit_gate"}, []
    for node in graph.sorted():
        if node.input and node.input[0] in ones and node.op_type in MOVES:
            ones.update(node.output)
        elif node.op_type == "Mul" and (gate := next((n for n in node.input if n in ones), None)):
            other = next(name for name in node.input if name != gate)
            graph.replace(node.output[0], other)
            products.append(node)
    graph.remove(products)
