"""Bundles around tiny velocity graphs whose answers are known, written with onnx.helper."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from rfp.runtime import Graph, Manifest
from rfp.runtime.manifest import METADATA_KEY
from rfp.runtime.network import failure
from rfp.runtime.velocity import Velocity

MANIFEST = Manifest("test", image_size=32, multiple=8, default_steps=4, domains=("cats", "dogs"))


def room_for(most: int, tried: list[int]) -> Callable[..., Any]:
    """A Velocity's call on a GPU whose memory holds a batch of `most`; `tried` gets the sizes that it is asked for."""
    call = Velocity.__call__

    def small(self: Velocity, x: Any, t: float) -> Any:
        tried.append(len(x))
        if len(x) > most:
            raise failure("velocity", x.shape, RuntimeError("CUDA error: Out of memory"))
        return call(self, x, t)

    return small


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def velocity_graph(nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto] = ()) -> onnx.ModelProto:
    """A graph from x and t to velocity; `nodes` may use `zero`, which is 0·x + 0·t of the shape of x."""
    info = helper.make_tensor_value_info
    zero = [
        helper.make_node("Mul", ["x", "none"], ["x0"]),
        helper.make_node("Mul", ["t", "none"], ["t0"]),
        helper.make_node("Add", ["x0", "t0"], ["zero"]),
    ]
    graph = helper.make_graph(
        [*zero, *nodes],
        "velocity",
        [info("x", 1, ["B", 3, "H", "W"]), info("t", 1, [1])],
        [info("velocity", 1, ["B", 3, "H", "W"])],
        [constant("none", 0.0), *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def identity() -> onnx.ModelProto:
    """v = 0: x stays."""
    return velocity_graph([helper.make_node("Identity", ["zero"], ["velocity"])])


def towards(c: float) -> onnx.ModelProto:
    """v = c − x: n Euler steps of 1/n leave x(1) = c + (1 − 1/n)^n · (x(0) − c)."""
    nodes = [helper.make_node("Sub", ["c", "x"], ["d"]), helper.make_node("Add", ["d", "zero"], ["velocity"])]
    return velocity_graph(nodes, [constant("c", c)])


def cubic() -> onnx.ModelProto:
    """v = 3t²: n Euler steps add 3·Σ(k/n)²/n = (n − 1)(2n − 1) / (2n²)."""
    nodes = [
        helper.make_node("Mul", ["t", "t"], ["tt"]),
        helper.make_node("Mul", ["tt", "three"], ["ttt"]),
        helper.make_node("Add", ["zero", "ttt"], ["velocity"]),
    ]
    return velocity_graph(nodes, [constant("three", 3.0)])


def blur() -> onnx.ModelProto:
    """v = (3×3 mean of x, zero padding) − x: looks over the edge, and one step gives the mean."""
    weight = np.zeros((3, 3, 3, 3), np.float32)
    for channel in range(3):
        weight[channel, channel] = 1 / 9
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["mean"], pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["mean", "x"], ["d"]),
        helper.make_node("Add", ["d", "zero"], ["velocity"]),
    ]
    return velocity_graph(nodes, [constant("w", weight)])


def write_bundle(folder: Path, model: onnx.ModelProto, **changes: Any) -> Path:
    """Write `rfp.json` and `velocity.onnx`, the graph with its manifest in its metadata; returns the folder."""
    manifest = replace(MANIFEST, **changes)
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    data = model.SerializeToString()
    graph = Graph("velocity.onnx", "fp32", hashlib.sha256(data).hexdigest(), len(data), {"max_abs": 0.0})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / graph.file).write_bytes(data)
    (folder / "rfp.json").write_text(replace(manifest, graphs=(graph,)).to_json(), encoding="utf-8")
    return folder
