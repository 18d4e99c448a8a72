"""The proof of exported graphs: their runtime against PyTorch in float32, over the whole integration."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.codec import Codec
from ..runtime.errors import ExportError
from ..runtime.euler import integrate
from ..runtime.manifest import PALETTES
from ..runtime.noise import noises
from ..runtime.pixels import Float, to_float, to_uint8
from .source import Source, resized

BATCH = 4


@dataclass(frozen=True)
class Floor:
    """The least parity that is kept: PSNR in dB over the range [-1, 1], and grey levels apart anywhere, if bounded."""

    psnr: float
    grey_levels: int | None = None

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        return {k: float(v) for k, v in asdict(self).items() if v is not None}


FLOORS = {
    ("onnx", "fp32"): Floor(80.0, 1),
    ("onnx", "fp16"): Floor(50.0),
    ("onnx", "int8"): Floor(30.0),
    ("coreml", "fp32"): Floor(80.0),
    ("coreml", "fp16"): Floor(50.0),
    **{("coreml", weights): Floor(30.0) for weights in ("int8", *PALETTES)},
}
"""By format and precision: a graph below its floor is not kept."""
PICTURE_FLOORS = {"fp32": Floor(60.0, 1)}
"""For graphs that give whole grey levels, in place of those: float32 may round one in a hundred the other way."""


@dataclass(frozen=True)
class Case:
    """What an integration starts from, and the pictures [B, 3, H, W] in which PyTorch ends it, not clipped.

    `x` float32 [B, 3, H, W] in [-1, 1], or with `noise` what the flow itself moves. It runs from t = `start` to the
    other end.
    """

    x: Float
    start: int
    noise: bool
    size: tuple[int, int]
    want: Float


@dataclass(frozen=True)
class Made:
    """The graphs of one format and precision, as a format's exporter hands them over for their proof.

    Attributes:
        files: by role, the names in the bundle folder.
        velocity, codec: what computes them; read back from those files.
        about: by role, what the format has to say in the manifest.
        takes: which cases these graphs can be given; a graph of one fixed size cannot be given all.
        translate: where one graph does it all, its result: whole grey levels, as float32 in [-1, 1].
        otherwise: makes the graphs again in a way that costs more and holds more, should these overflow or fall below
            their floor.
    """

    files: dict[str, str]
    velocity: Callable[[Float, float], Float]
    codec: Codec
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    takes: Callable[[Case], bool] = lambda case: True
    translate: Callable[[Case], Float] | None = None
    otherwise: "Callable[[], Made] | None" = None


class HalfOverflowError(ExportError):
    """A value left the range of fp16, where hardware gives finite wrong results. float32 normalisations may help."""


Maker = Callable[[str, Path], Made]
"""Writes the graphs of one precision into a folder. Raises ExportError where that cannot be done."""


@dataclass(frozen=True)
class Parity:
    """The worst of all cases: PSNR in dB between the final pictures, and the largest difference in grey levels."""

    psnr: float
    grey_levels: int
    steps: int
    cases: int

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        return {k: float(v) for k, v in asdict(self).items()}


def make_cases(source: Source) -> list[Case]:
    """Integrations by PyTorch: from both ends; at the first size batches of 4 and of 1, at every other one of 1."""

    def velocity(x: Float, t: float) -> Float:
        return through(lambda x: source.net(x, torch.full((1,), t)), x)

    cases = []
    for start, size, x, noise in _starts(source):
        z = x if noise else through(source.codec.encode, x)
        z = integrate(velocity, z, source.manifest.default_steps, float(start), 1.0 - start)
        cases.append(Case(x, start, noise, size, through(source.codec.decode, z)))
    return cases


def _starts(source: Source) -> list[tuple[int, tuple[int, int], Float, bool]]:
    latent = source.manifest.latent
    channels, factor = (latent.channels, latent.factor) if latent else (3, 1)
    starts = []
    for start, pictures in enumerate(source.pictures):
        noise = source.manifest.generative and start == 0
        for i, (width, height) in enumerate(source.sizes):
            for batch in (BATCH, 1) if i == 0 else (1,):
                if noise:
                    x = noises((channels, height // factor, width // factor), 0, range(batch))
                else:
                    some = pictures[np.arange(batch) % len(pictures)]  # a checkpoint may hold fewer
                    x = to_float(resized(some, (width, height)))
                starts.append((start, (width, height), x, noise))
    return starts


def prove(cases: Sequence[Case], made: Made, steps: int) -> Parity:
    """Encode, integrate and decode the cases by what was exported, and compare with PyTorch."""
    psnrs, levels = [], []
    for case in cases:
        want = case.want
        if made.translate is not None:
            want, got = to_float(to_uint8(want)), made.translate(case)
        else:
            z = case.x if case.noise else made.codec.encode(case.x)
            got = made.codec.decode(integrate(made.velocity, z, steps, float(case.start), 1.0 - case.start))
        psnrs.append(psnr(want, got))
        levels.append(int(np.abs(to_uint8(case.want).astype(int) - to_uint8(got)).max()))
    return Parity(round(min(psnrs), 2), max(levels), steps, len(psnrs))


def psnr(want: Float, got: Float) -> float:
    """dB over the range [-1, 1], at most 200; 0 where a value is not finite."""
    error = float(np.mean((want - got).astype(np.float64) ** 2))
    return float(min(200.0, 10 * np.log10(4 / max(error, 1e-20)))) if np.isfinite(error) else 0.0


def shortfall(parity: Parity, floor: Floor) -> str | None:
    """By how much a graph is below its floor, in words; None where it is not."""
    found = f"{parity.psnr:.1f} dB and up to {parity.grey_levels} grey levels apart over {parity.steps} steps"
    misses = []
    if parity.psnr < floor.psnr:
        misses.append(f"{floor.psnr - parity.psnr:.1f} dB below its floor of {floor.psnr:.0f} dB")
    if floor.grey_levels is not None and parity.grey_levels > floor.grey_levels:
        above = parity.grey_levels - floor.grey_levels
        misses.append(f"{above} above its bound of {floor.grey_levels} grey levels")
    return f"{found}: {', '.join(misses)}" if misses else None


@torch.no_grad()
def through(f: Callable[[Tensor], Tensor], x: Float) -> Float:
    """f in PyTorch, for arrays."""
    y: Float = f(torch.from_numpy(x)).numpy()
    return y
