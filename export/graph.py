"""ONNX graphs as data: checked, put in order, cleaned of this machine, written and checked."""

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from ..runtime.bundle import DATA_SUFFIX
from ..runtime.errors import ExportError

LARGEST = (1 << 31) - (1 << 24)
"""Bytes of weights that a graph holds itself: protobuf ends at 2 GiB."""


def write(model: ModelProto, path: Path) -> None:
    """The same graph gives the same bytes. Above LARGEST the weights lie beside it, in `path`.data.

    Raises:
        ExportError: the graph does not pass ONNX's checker.
    """
    if weight_bytes(model) <= LARGEST:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}{DATA_SUFFIX}")
        onnx.load_external_data_for_model(model, str(path.parent))  # saving took the weights out of it
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the graph does not pass ONNX's checker: {e}") from e


def weight_bytes(model: ModelProto) -> int:
    """Of all initializers."""
    return sum(len(i.raw_data) for i in model.graph.initializer)


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
