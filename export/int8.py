"""A float32 graph quantised to 8 bits for CPUs: u8 activations, s8 weights of each channel, the sensitive layers left.

Static quantisation as ONNX Runtime's (Jacob et al. 2018, arXiv:1712.05877), with QuantizeLinear and DequantizeLinear
around each layer. Which layers stay in float is measured, one layer at a time.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..runtime.errors import ExportError
from ..runtime.network import open_session
from ..runtime.pixels import Float
from .calibration import Feed
from .graph import in_order
from .proof import psnr

AIM = 36.0
"""dB over the whole integration: layers are left in float until it is reached."""
CODEC_AIM = 45.0
"""dB of an encoder's or decoder's own output; they run once, and the velocity at every step: float costs less there."""
SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Of all multiplications, what may stay in float; the first with which the aim is reached. 0: nothing, the fastest."""
PROBES = 8
"""Calls with which each layer's own error is measured, one picture each."""
KINDS = ["Conv", "MatMul", "Gemm"]


@dataclass(frozen=True)
class Layer:
    """One that can be quantised: its node, its name in the net, and what it does to one picture."""

    node: str
    name: str
    multiplications: int
    error: float
    """Mean square error of the graph's output with this layer alone in 8 bits."""


def int8(
    model: ModelProto, feeds: Sequence[Feed], quality: Callable[[ModelProto], float] | None = None
) -> tuple[ModelProto, dict[str, Any]]:
    """The quantised graph, and for the manifest what was left in float.

    Args:
        feeds: calls to calibrate with.
        quality: dB of a velocity graph in place of `model`; None compares the outputs for `feeds`, of a codec's graph.

    Raises:
        ExportError: the graph has no layer that can be quantised.
    """
    ranges = _calibrate(model, feeds)
    layers = _layers(model, feeds, ranges)
    if not layers:
        raise ExportError("int8: this graph has no layer that can be quantised")
    whole = sum(layer.multiplications for layer in layers)
    aim = CODEC_AIM if quality is None else AIM
    if quality is None:
        want = _outputs(model, feeds)
        quality = lambda m: min(map(psnr, want, _outputs(m, feeds)))  # noqa: E731
    for share in SHARES:
        left = _left_in_float(layers, share * whole)
        quantised = _quantise(model, ranges, [layer.node for layer in layers if layer not in left])
        figure = quality(quantised)
        if figure >= aim:
            break
    return quantised, {
        "left_in_float": [layer.name for layer in left],
        "layers": len(layers),
        "multiplications_in_float": round(sum(layer.multiplications for layer in left) / whole, 4),
        "calibration_calls": len(feeds),
    }


def _left_in_float(layers: Sequence[Layer], most: float) -> list[Layer]:
    """The layers whose error is the largest for what they cost in float, as long as they cost `most` together."""
    left: list[Layer] = []
    for layer in sorted(layers, key=lambda layer: layer.error / layer.multiplications, reverse=True):
        if sum(other.multiplications for other in left) + layer.multiplications <= most:
            left.append(layer)
    return sorted(left, key=layers.index)


def _layers(model: ModelProto, feeds: Sequence[Feed], ranges: Any) -> list[Layer]:
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    nodes = [n for n in _of_pictures(model) if n.op_type in KINDS and n.input[1] in weights]
    some = [feeds[round(i)] for i in np.linspace(0, len(feeds) - 1, min(PROBES, len(feeds)))]
    some = [{k: v[i % len(v)][None] if v.ndim > 1 else v for k, v in feed.items()} for i, feed in enumerate(some)]
    sizes, want = _sizes(model, nodes, some[0]), _outputs(model, some)
    layers = []
    for node in nodes:
        shape = weights[node.input[1]]
        outputs = shape[-1] if node.op_type == "MatMul" else shape[0]
        got = _outputs(_quantise(model, ranges, [node.name]), some)
        error = float(np.mean([np.mean((a - b) ** 2) for a, b in zip(want, got, strict=True)]))
        name = node.input[1].removesuffix(".weight") if "." in node.input[1] else node.name
        layers.append(Layer(node.name, name, sizes[node.name] * int(np.prod(shape)) // outputs, error))
    return layers


def _of_pictures(model: ModelProto) -> list[NodeProto]:
    """Nodes whose values depend on the pictures, and not on t alone."""
    seen, nodes = {i.name for i in model.graph.input if i.name != "t"}, []
    for node in model.graph.node:
        if node.op_type != "Shape" and seen.intersection(node.input):
            seen.update(node.output)
            nodes.append(node)
    return nodes


def _calibrate(model: ModelProto, feeds: Sequence[Feed]) -> Any:
    """The least and greatest value of everything that a layer takes or gives, over all feeds."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(path, KINDS, augmented, CalibrationMethod.MinMax)
        calibrator.collect_data(_Reader(feeds))
        ranges = calibrator.compute_data()
        del calibrator  # its session holds the file
    return ranges


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _quantise(model: ModelProto, ranges: Any, nodes: Sequence[str]) -> ModelProto:
    """`nodes` in 8 bits. Of matrices the output stays in float, as the kernel gives it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    options = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    with _quiet():
        quantizer = QDQQuantizer(
            copy, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, list(nodes), [], KINDS, options
        )
        quantizer.quantize_model()
    quantised: ModelProto = quantizer.model.model
    in_order(quantised.graph)
    quantised.producer_name = model.producer_name
    del quantised.metadata_props[:]  # the quantiser leaves a note to itself
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns, on the root logger, of what it was asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _sizes(model: ModelProto, nodes: Sequence[NodeProto], feed: Feed) -> dict[str, int]:
    """How many numbers each node gives."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in nodes)
    outputs = open_session(copy.SerializeToString(), Path("model.onnx")).run(None, feed)
    return {node.name: out.size for node, out in zip(nodes, outputs, strict=True)}


def _outputs(model: ModelProto, feeds: Sequence[Feed]) -> list[Float]:
    session = open_session(model.SerializeToString(), Path("model.onnx"))
    return [session.run(None, feed)[0] for feed in feeds]
