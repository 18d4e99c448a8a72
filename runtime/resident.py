"""States that stay on a device between Euler steps: ONNX Runtime's I/O binding behind `+` and `*`.

`integrate` needs no more than these two, so the one integrator serves arrays in memory and states on a GPU alike: a
batch is copied there once and back once, however many steps there are.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .network import failure
from .pixels import Float

STEP_GRAPH = base64.b64decode(
    "CAoSA3JmcDqcAQoPCgF2CgJkdBIBZCIDTXVsCg4KAXgKAWQSAXkiA0FkZBIEc3RlcFofCgF4EhoKGAgBEhQKAxIBQgoDEgFDCgMS"
    "AUgKAxIBV1ofCgF2EhoKGAgBEhQKAxIBQgoDEgFDCgMSAUgKAxIBV1oQCgJkdBIKCggIARIECgIIAWIfCgF5EhoKGAgBEhQKAxIB"
    "QgoDEgFDCgMSAUgKAxIBV0IECgAQFA=="
)
"""y = x + v·dt as an ONNX graph, x, v and y float32 [B, C, H, W], dt float32 [1]; tests/runtime/test_resident.py reads
it back with the onnx package."""
STEP_NAME = Path("euler step")


@dataclass(frozen=True)
class Scaled:
    """v·dt, worked out where it is added."""

    value: Any
    dt: float

    def __mul__(self, factor: float) -> "Scaled":
        return Scaled(self.value, self.dt * factor)


@dataclass(frozen=True)
class State:
    """float32 [B, C, H, W] on a device."""

    value: Any
    device: "Device"

    def __mul__(self, dt: float) -> Scaled:
        return Scaled(self.value, dt)

    def __add__(self, other: "Scaled | State") -> "State":
        return self.device.stepped(self, other if isinstance(other, Scaled) else Scaled(other.value, 1.0))

    def numpy(self) -> Float:
        """A copy in memory."""
        with _told(self.shape):
            copy: Float = self.value.numpy()
        return copy

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())


class Device:
    """Runs one velocity session on states that stay where it computes. All of it raises MediaError where that fails.

    Args:
        velocity: an InferenceSession from x [B, C, H, W] and t [1] to velocity.
        step: an InferenceSession over STEP_GRAPH.
        name: ONNX Runtime's name of the device's memory: cuda, or cpu (how the tests run this).
    """

    def __init__(self, velocity: Any, step: Any, name: str) -> None:
        self._velocity, self._step, self._name = velocity, step, name

    def put(self, x: Float) -> State:
        from onnxruntime import OrtValue

        with _told(x.shape):
            return State(OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x), self._name, 0), self)

    def velocity(self, x: State, t: float) -> State:
        """v(x, t), on the device."""
        return self._run(self._velocity, {"x": x.value}, {"t": np.array([t], np.float32)}, "velocity", x)

    def stepped(self, x: State, scaled: Scaled) -> State:
        """x + v·dt, on the device."""
        inputs = {"x": x.value, "v": scaled.value}
        return self._run(self._step, inputs, {"dt": np.array([scaled.dt], np.float32)}, "y", x)

    def _run(self, session: Any, there: dict[str, Any], here: dict[str, Float], output: str, like: State) -> State:
        from onnxruntime import OrtValue

        with _told(like.shape):
            out = OrtValue.ortvalue_from_shape_and_type(list(like.shape), np.float32, self._name, 0)
            binding = session.io_binding()
            for name, value in there.items():
                binding.bind_ortvalue_input(name, value)
            for name, array in here.items():
                binding.bind_cpu_input(name, array)
            binding.bind_ortvalue_output(output, out)
            session.run_with_iobinding(binding)
            return State(out, self)


@contextmanager
def _told(shape: tuple[int, ...]) -> Iterator[None]:
    """Let what fails on states [B, C, H, W] be said as where a graph fails on arrays: memory runs out at any of it."""
    try:
        yield
    except Exception as e:  # ONNX Runtime's errors share no base below Exception
        raise failure("velocity", shape, e) from e
