"""Pictures in overlapping tiles, so that the memory of the net depends on the tile and not on the picture.

GroupNorm takes its statistics over what it sees, so by themselves tiles drift apart. What brings them together: each
tile goes through the net with the whole picture, reduced to the tile's size, at its right. The statistics of every
layer then come from both, and that half of the result is thrown away (benchmarks/RESULTS.md has figures).
"""

from collections.abc import Callable

import numpy as np

from .pixels import Float, Uint8
from .upscale import resized

Through = Callable[[Uint8], Uint8]
"""uint8 [1, H, W, 3] to its translation."""
TRIM = 4
"""The part of an overlap, 1/TRIM at the rim of a tile, that is not used: zero padding reaches in there."""


def tiled(picture: Uint8, through: Through, tile: int, overlap: int, together: bool = True) -> Uint8:
    """uint8 [H, W, 3] → uint8 [H, W, 3], translated in tiles of `tile` px that overlap by `overlap` px.

    Memory beside the picture and the result: one row of tiles. The tiles' final results are blended, linearly over the
    overlap: better than blending velocities at every step.

    Args:
        together: without it each tile is left with its own statistics, at half the time.
    """
    height, width = picture.shape[:2]
    if height <= tile and width <= tile:
        whole: Uint8 = through(picture[None])[0]
        return whole
    context = resized(picture, (min(tile, width), min(tile, height)))
    out = np.empty_like(picture)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    waiting = np.zeros((min(tile, height), width, 3), np.float32)  # sums of the rows from `top` on
    weights = np.zeros((min(tile, height), width, 1), np.float32)
    for i, top in enumerate(rows):
        for left in columns:
            part = picture[top : top + tile, left : left + tile]
            h, w = part.shape[:2]
            seen = np.concatenate([part, context], axis=1) if together else part
            made = through(seen[None])[0, :, :w]
            weight = np.outer(_ramp(h, overlap, top, height), _ramp(w, overlap, left, width))[..., None]
            waiting[:h, left : left + w] += weight * made
            weights[:h, left : left + w] += weight
        done = (rows[i + 1] if i + 1 < len(rows) else height) - top
        finished = np.rint(waiting[:done] / weights[:done])
        out[top : top + done] = np.clip(finished, 0, 255).astype(np.uint8)
        for sums in (waiting, weights):
            sums[: len(sums) - done] = sums[done:].copy()
            sums[len(sums) - done :] = 0
    return out


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: as few as cover it, the last one ending where it ends."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def _ramp(length: int, overlap: int, start: int, whole: int) -> Float:
    """Weights along a side: rising and falling over the overlap but for its rim, and 1 where the picture ends."""
    rim = overlap // TRIM
    ramp = np.zeros(overlap, np.float32)
    ramp[rim:] = (np.arange(overlap - rim, dtype=np.float32) + 1) / (overlap - rim + 1)
    weights = np.ones(length, np.float32)
    if start > 0:
        weights[:overlap] = ramp
    if start + length < whole:
        weights[length - overlap :] = np.minimum(weights[length - overlap :], ramp[::-1])
    return weights
