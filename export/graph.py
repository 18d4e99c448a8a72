"""ONNX graphs as data: checked, put in order, cleaned of this machine, written."""

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from ..runtime.errors import ExportError


def check(model: ModelProto) -> None:
    """Raises ExportError where the graph does not pass ONNX's checker."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the graph does not pass ONNX's checker: {e}") from e


def write(model: ModelProto, path: Path) -> None:
    """The same graph gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip(model: ModelProto) -> None:
    """Remove what the exporter notes about this machine: paths and stack traces on nodes, values and weights."""
    graph = model.graph
    for thing in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output, graph):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]


def in_order(graph: GraphProto) -> None:
    """Sort the nodes so that each stands after what it reads; otherwise as they stood."""
    made_by = {out: node for node in graph.node for out in node.output}
    done: set[str] = set()
    nodes: list[NodeProto] = []

    def add(node: NodeProto) -> None:
        waiting = [node]
        while waiting:
            last = waiting[-1]
            missing = [made_by[i] for i in last.input if i in made_by and i not in done]
            if missing:
                waiting.append(missing[0])
                continue
            waiting.pop()
            if last.output[0] not in done:
                done.update(last.output)
                nodes.append(last)

    for node in graph.node:
        add(node)
    del graph.node[:]
    graph.node.extend(nodes)
