"""What the demo's landscapes are drawn with: the grid, outlines and textures.

Pictures are planar while they are drawn, float32 [3, h, w] in [0, 255]: numpy is faster on them than on [h, w, 3].
"""

from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Float = npt.NDArray[np.floating[Any]]
"""float32 throughout; numpy's stubs lose the precision at each Python number."""


class View:
    """The grid of h × w points, both axes in picture heights: y [h, 1] in [0, 1], x [w] in [0, w / h]."""

    def __init__(self, h: int, w: int) -> None:
        self.h, self.w, self.aspect = h, w, w / h
        self.y: Float = (np.arange(h, dtype=np.float32)[:, None] + np.float32(0.5)) / np.float32(h)
        self.x: Float = (np.arange(w, dtype=np.float32) + np.float32(0.5)) / np.float32(h)

    def row(self, y: float) -> int:
        return round(y * self.h)

    def repeat(self, place: float, offset: float, period: float, margin: float = 0.3) -> list[float]:
        """Every x in the frame, or within `margin` of it, at which `place` of a panorama slid by `offset` shows."""
        x = (place - offset + margin) % period - margin
        return [x + k * period for k in range(int((self.aspect + margin - x) // period) + 1)]


def mix(a: Float, b: Float, t: Float) -> Float:
    """Colours a, b and t [h, w] in [0, 1] → [3, h, w]: a where t is 0, b where it is 1."""
    return a + t * (b - a)


def lay(below: Float, layer: Float, depth: Float, view: View, rim: Float | None = None) -> None:
    """Put `layer` over `below` where depth > 0, with a line of light along its edge where `rim` is given."""
    if rim is not None:
        layer = layer + np.clip(1 - depth * (view.h / 5), 0, 1) * rim
    np.copyto(below, layer, where=depth > 0)


def to_image(picture: Float) -> Image.Image:
    """[3, h, w] in [0, 255] → RGB image."""
    pixels = np.empty((*picture.shape[1:], 3), np.uint8)
    np.copyto(np.moveaxis(pixels, 2, 0), np.clip(picture, 0, 255), casting="unsafe")
    return Image.fromarray(pixels)


def bell(away: Float, reach: Float | float) -> Float:
    """1 where `away` is 0, 1/e at `reach`."""
    scaled = away / reach
    return np.exp(-scaled * scaled)


def tri(u: Float) -> Float:
    """Triangle wave in [0, 1] of period 1, 0 at whole numbers."""
    return 1 - np.abs(2 * (u - np.floor(u)) - 1)


def ridge(u: Float) -> Float:
    """The mountains' outline in about [0, 1]; period 8."""
    massif: Float = 0.46 * tri(u * 1.25) + 0.26 * tri(u * 2.125 + 0.35)
    peaks: Float = 0.18 * tri(u * 4.5 + 0.6) + 0.08 * tri(u * 11 + 0.2)
    return massif + peaks


def waves(u: Float) -> Float:
    """Rolling hills in about [0, 1]; period 1."""
    u = u * np.float32(2 * np.pi)
    height: Float = 0.5 + 0.30 * np.sin(u + 0.6) + 0.16 * np.sin(2 * u + 2.0) + 0.05 * np.sin(5 * u)
    return height


Kind = Literal["rough", "grass", "ripple"]
SPECTRUM: dict[Kind, tuple[float, float, float]] = {
    "rough": (1.0, 1.0, 9.0),
    "grass": (0.45, 1.6, 26.0),
    "ripple": (3.2, 0.35, 16.0),
}
"""Of each texture: stretch of the spectrum down and across, cycles in a picture height where it has halved."""


@cache
def _tile(kind: Kind, h: int) -> Float:
    """A texture of mean 0 and deviation 1 that repeats, float32 [h, 2h]: noise shaped by its spectrum."""
    down, across, middle = SPECTRUM[kind]
    white = np.random.default_rng(5).standard_normal((256, 512))
    fy = np.fft.fftfreq(256, 1 / 256)[:, None] / down
    fx = np.fft.rfftfreq(512, 1 / 256)[None] / across
    f = np.hypot(fy, fx)
    tile = np.fft.irfft2(np.fft.rfft2(white) / (1 + (f / middle) ** 3) * (f > 1), s=white.shape)
    rows, columns = np.arange(h) * 256 // h, np.arange(2 * h) * 256 // h
    scaled: Float = (tile / tile.std())[rows][:, columns].astype(np.float32)
    return scaled


def noise(view: View, kind: Kind, offset: float, first: int, last: int) -> Float:
    """Rows first … last of a texture slid sideways by `offset`, float32 [last - first, w]."""
    tile = _tile(kind, view.h)
    columns = (np.arange(view.w) + round(offset * view.h)) % tile.shape[1]
    return tile[first:last][:, columns]
