"""A saved Core ML package computed on any machine: its MIL program, read back from disk, by operations of torch.

Core ML itself runs on Apple's systems only; this is what an export is proven with elsewhere. Compressed weights are
decoded from the package's own bytes. Where the program computes in fp16, every operation's result is rounded to fp16
and may not exceed 65504; sums inside one operation (a convolution, a mean) are float32's, and hardware may differ.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.errors import ExportError
from .mil_operations import ON_THE_WAY, OPERATIONS
from .proof import HalfOverflowError

MODEL_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FOLDER = "Data/com.apple.CoreML/weights"
LARGEST_FP16 = 65504.0
COMPRESSED = ("constexpr_affine_dequantize", "constexpr_lut_to_dense")
"""Weights of 8 bits with a scale a channel, and weights out of a palette."""


class Program:
    """The main function of a package. Calling it with its inputs by name gives its outputs by name, in float32.

    Raises:
        ExportError: the package cannot be read, or holds an operation that is not known here, by its name.
    """

    def __init__(self, package: Path) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.proto import Model_pb2

        spec = Model_pb2.Model()
        try:
            spec.ParseFromString((package / MODEL_FILE).read_bytes())
            program = load(spec, spec.specificationVersion, file_weights_dir=str(package / WEIGHTS_FOLDER))
        except Exception as e:  # protobuf's, coremltools' own, and what its C++ raises
            raise ExportError(f"{package.name}: cannot be read back: {_first_line(e)}") from e
        main = program.functions["main"]
        self.name, self.outputs = package.name, [v.name for v in main.outputs]
        self._constants: dict[str, Any] = {}
        self._operations = []
        for operation in main.operations:
            if operation.op_type == "const":
                self._constants[operation.outputs[0].name] = _value(operation.outputs[0].val)
            elif operation.op_type in COMPRESSED:
                self._constants[operation.outputs[0].name] = _value(operation.materialized_val_inference())
            else:
                self._operations.append(operation)
        unknown = sorted({o.op_type for o in self._operations} - OPERATIONS.keys())
        if unknown:
            raise ExportError(
                f"{self.name}: holds operations that the proof does not know: {', '.join(unknown)}; nothing can be "
                "said of this package here. A Mac would prove it with Core ML itself"
            )
        last = {v.name: i for i, o in enumerate(self._operations) for v in _flat(o.inputs.values())}
        self._done_with: dict[int, list[str]] = {}
        for name, i in last.items():
            if name not in self._constants and name not in self.outputs:
                self._done_with.setdefault(i, []).append(name)

    @property
    def operations(self) -> list[str]:
        """The types of the operations in their order, constants aside."""
        return [o.op_type for o in self._operations]

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Raises HalfOverflowError; ExportError where an operation fails or gives another shape than it declares."""
        values: dict[str, Any] = {**self._constants, **inputs}
        for i, operation in enumerate(self._operations):
            given = {k: _look_up(values, v) for k, v in operation.inputs.items() if v is not None}
            try:
                results = OPERATIONS[operation.op_type](given)
            except (RuntimeError, KeyError, TypeError, ValueError, IndexError, NotImplementedError) as e:
                raise ExportError(f"{self.name}: {operation.op_type} {operation.name} failed: {_first_line(e)}") from e
            if on_the_way := ON_THE_WAY.get(operation.op_type):
                self._rounded(operation, operation.outputs[0], on_the_way(given))
            if not isinstance(results, tuple | list):
                results = (results,)
            for out, result in zip(operation.outputs, results, strict=True):
                values[out.name] = self._rounded(operation, out, result)
            for name in self._done_with.get(i, ()):
                del values[name]
        return {name: values[name] for name in self.outputs}

    def _rounded(self, operation: Any, out: Any, x: Any) -> Any:
        """A result as the program's type holds it."""
        if not isinstance(x, Tensor):
            return x
        if x.dtype.is_floating_point and out.dtype.__name__.startswith(("int", "uint")):
            return x.long()  # of sizes: MIL divides whole numbers to whole numbers
        declared = [int(n) if isinstance(n, int | np.integer) else None for n in out.shape]
        if x.dtype.is_floating_point and operation.op_type not in ON_THE_WAY and not _fits(x.shape, declared):
            raise ExportError(
                f"{self.name}: {operation.op_type} {operation.name} gives {tuple(x.shape)}, the package says {declared}"
            )
        if x.dtype.is_floating_point and out.dtype.__name__ == "fp16":
            most = float(x.abs().max()) if x.numel() else 0.0
            if not most <= LARGEST_FP16:  # NaN too
                raise HalfOverflowError(
                    f"{self.name}: {operation.op_type} {operation.name} reaches {most:.4g}, and fp16 ends at 65504"
                )
            return x.half().float()
        return x


def _fits(shape: torch.Size, declared: list[int | None]) -> bool:
    return len(shape) == len(declared) and all(d in (None, n) for n, d in zip(shape, declared, strict=True))


def _look_up(values: dict[str, Any], variable: Any) -> Any:
    return [values[v.name] for v in variable] if isinstance(variable, tuple | list) else values[variable.name]


def _flat(variables: Any) -> list[Any]:
    return [w for v in variables if v is not None for w in (v if isinstance(v, tuple | list) else [v])]


def _value(x: Any) -> Any:
    """A constant: float32 or int64 tensors, plain numbers, truth values and texts."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
        return torch.from_numpy(x.astype(np.float32 if x.dtype.kind == "f" else np.int64))
    return x.item() if isinstance(x, np.generic) else x


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
