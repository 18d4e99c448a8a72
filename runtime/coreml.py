"""One Core ML package on a Mac, computed by Core ML itself through coremltools. Not tried: no Mac was at hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError, MediaError, MissingExtraError, UsageError
from .norms import Norms
from .pixels import Float

INSTALL = "pip install 'rfp[coreml]'"


class Package:
    """Batches through a package: float32 [B, C, H, W] → float32 [B, C', H', W'], by the package's own batch.

    Args:
        takes: names of the inputs with their number of axes; the first is the batch, the others are shared by it.
        gives: name of the output.
        image: the first input and the output are RGB pictures: grey levels 0 to 255 here.

    Raises:
        UsageError: not a Mac.
        MissingExtraError: coremltools is not installed.
        BundleError: Core ML cannot load the package, or it takes and gives something else.
    """

    def __init__(self, path: Path, takes: dict[str, int], gives: str, *, image: bool = False) -> None:
        self._path, self._takes, self._gives, self._image = path, list(takes), gives, image
        if sys.platform != "darwin":
            raise UsageError("--device coreml needs macOS 14 or later; --device cpu runs ONNX graphs everywhere")
        try:
            from coremltools import ComputeUnit
            from coremltools.models import MLModel
        except ImportError as e:
            raise MissingExtraError(f"Core ML packages need coremltools ({e}): {INSTALL}") from e
        try:
            self._model: Any = MLModel(str(path), compute_units=ComputeUnit.ALL)
        except Exception as e:  # coremltools passes on Core ML's errors as several kinds
            raise BundleError(f"{path}: Core ML cannot load this package ({_first_line(e)}); export it again") from e
        spec = self._model.get_spec().description
        found = [i.name for i in spec.input], [o.name for o in spec.output]
        if set(found[0]) != set(takes) or found[1] != [gives]:
            raise BundleError(
                f"{path}: takes {', '.join(found[0])} and gives {', '.join(found[1])}; wanted {', '.join(takes)} and "
                f"{gives}; export it again"
            )
        first = next(i for i in spec.input if i.name == self._takes[0])
        self.batch: int = 1 if image else int(first.type.multiArrayType.shape[0])

    def __call__(self, x: Float, *shared: Float, norms: Norms | None = None, factor: int = 1) -> Float:
        """A package's norms take no statistics, and it takes each tile for a whole picture.

        Raises MediaError where the package does not take this size.
        """
        return by_batch(lambda part: self._run(part, *shared), x, self.batch)

    def _run(self, *inputs: Float) -> Float:
        given: dict[str, Any] = dict(zip(self._takes, inputs, strict=True))
        if self._image:
            from PIL import Image

            (name,) = self._takes
            given = {name: Image.fromarray(given[name][0].transpose(1, 2, 0).astype(np.uint8))}
        try:
            out = self._model.predict(given)[self._gives]
        except Exception as e:
            size = f"{inputs[0].shape[3]}×{inputs[0].shape[2]}"
            raise MediaError(
                f"{self._path.name}: Core ML failed at {size} ({_first_line(e)}); a package takes only the "
                "sizes that it was exported with: `rfp export --format coreml --sizes …`"
            ) from e
        if self._image:
            return np.asarray(out.convert("RGB"), np.float32).transpose(2, 0, 1)[None]
        return np.asarray(out, np.float32)


def by_batch(run: Callable[[Float], Float], x: Float, batch: int) -> Float:
    """x [B, …] through something that takes `batch` at once and no other number; the last is repeated to fill up."""
    parts = []
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        whole = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        parts.append(run(np.ascontiguousarray(whole))[: len(part)])
    return np.concatenate(parts)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
