"""Why int8 graphs have u8 activations and s8 weights: a convolution by each kernel that ONNX Runtime has for it.

    python benchmarks/int8_kernels.py [--repeats 15]

One thread, batch 1, stride 1, the processor's time, the least of `repeats` calls. `ss` and `uu` are what graphs with
both signed or both unsigned would run. What it says holds for the processor that it is run on.
"""

import argparse
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SHAPES = ((32, 32, 32, 3), (64, 64, 16, 3), (64, 64, 64, 3), (128, 128, 64, 3), (256, 256, 32, 3), (128, 64, 64, 1))
"""Channels in and out, height and width, side of the kernel: layers of the demo's net and of `structure`'s."""
KINDS = {"float32": "", "u8·s8": "us", "u8·u8": "uu", "s8·s8": "ss"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print("| convolution | " + " | ".join(f"{kind}, ms" for kind in KINDS) + " | u8·s8 |")
    print("| --- |" + " --- |" * (len(KINDS) + 1))
    for c_in, c_out, side, kernel in SHAPES:
        times = [1e3 * least(session(c_in, c_out, side, kernel, signs), repeats) for signs in KINDS.values()]
        cells = " | ".join(f"{t:.2f}" for t in times)
        name = f"{kernel}×{kernel}, {c_in} → {c_out} at {side}×{side}"
        print(f"| {name} | {cells} | {times[0] / times[1]:.1f}× |", flush=True)


def session(c_in: int, c_out: int, side: int, kernel: int, signs: str) -> onnxruntime.InferenceSession:
    """One Conv of floats, or one QLinearConv with signed (s) or unsigned (u) activations and weights."""
    info, pads = helper.make_tensor_value_info, [kernel // 2] * 4
    shape = (c_out, c_in, kernel, kernel)
    weight = np.random.default_rng(0).integers(-127, 128, shape)
    if not signs:
        nodes, kind = [helper.make_node("Conv", ["x", "w"], ["y"], pads=pads)], TensorProto.FLOAT
        constants = {"w": weight.astype(np.float32)}
    else:
        of_x, of_w = (np.uint8 if sign == "u" else np.int8 for sign in signs)
        kind = TensorProto.UINT8 if signs[0] == "u" else TensorProto.INT8
        zero = 128 if signs[1] == "u" else 0
        constants = {"w": (weight + zero).astype(of_w), "wz": np.full(c_out, zero, of_w)}
        constants |= {"xs": np.float32(0.02), "ys": np.float32(0.1), "ws": np.full(c_out, 0.01, np.float32)}
        constants |= {"xz": of_x(0), "yz": of_x(0)}
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        nodes = [helper.make_node("QLinearConv", names, ["y"], pads=pads)]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [info("x", kind, [1, c_in, side, side])],
        [info("y", kind, [1, c_out, side, side])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def least(run: onnxruntime.InferenceSession, repeats: int) -> float:
    """Seconds of the processor."""
    (given,) = run.get_inputs()
    kind = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}[given.type]
    x = np.random.default_rng(1).integers(0, 127, given.shape).astype(kind)
    times = []
    for _ in range(repeats + 1):
        start = time.thread_time()
        run.run(None, {"x": x})
        times.append(time.thread_time() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
