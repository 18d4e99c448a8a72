"""A float32 graph in half precision: float32 stays at the door, and where half would be too coarse."""

import onnx
from onnx import ModelProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from .graph import in_order

NORMALISATIONS = {"InstanceNormalization", "GroupNormalization", "LayerNormalization"}
"""Their sums of squares leave the range of half precision; in float32 also in training."""
MATRICES = {"Conv", "Gemm", "MatMul"}


def half(model: ModelProto) -> ModelProto:
    """The same graph for CUDA: inputs and outputs stay float32.

    Normalisations, positions and the time embedding (the sinusoid of 1000·t, what feeds it and the layers of `time.`)
    stay in float32.
    """
    graph = model.graph
    keep = [n.name for n in graph.node if n.op_type in NORMALISATIONS] + beside_x(graph)
    source = ModelProto()
    source.CopyFrom(model)
    # Blocked by name alone: the converter's own list of operations is older than the kernels are.
    # torch wrote the type of every value; inferring them again would fail above 2 GiB.
    converted = convert_float_to_float16(
        source, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=keep
    )
    _straighten(converted.graph, {node.name for node in graph.node})
    in_order(converted.graph)
    del converted.graph.value_info[:]  # some of the types are those of before
    return converted


def _straighten(graph: onnx.GraphProto, own: set[str]) -> None:
    """Let what stays in float32 read float32 as it is: the converter rounds to half and back between any two nodes.

    1000·t would come to the sinusoid a quarter off. `own` names the nodes that are no casts of the converter's.
    """
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast" and n.name not in own}
    for node in graph.node:
        if node.output[0] not in casts:
            for i, name in enumerate(node.input):
                node.input[i] = casts.get(casts.get(name, ""), name)
    read = {name for node in graph.node if node.output[0] not in casts for name in node.input}
    read.update(output.name for output in graph.output)
    read.update([casts[name] for name in casts if name in read])
    kept = [node for node in graph.node if node.output[0] not in casts or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


def beside_x(graph: onnx.GraphProto) -> list[str]:
    """Nodes whose values say nothing of the pictures: of t up to the layers of `time.`, and of positions.

    The first matrix of each block beyond them (FiLM, adaLN) is not among these, nor what follows it.
    """
    pictures = {i.name for i in graph.input if i.name != "t"}
    weights = {i.name for i in graph.initializer}
    names = []
    for node in graph.node:
        read = [i for i in node.input if i not in weights]
        matrix = node.op_type in MATRICES and not any(i.startswith("time.") for i in node.input)
        if node.op_type != "Shape" and (matrix or pictures.intersection(read)):
            pictures.update(node.output)
        else:
            names.append(node.name)
    return names
