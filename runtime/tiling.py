"""Pictures in overlapping tiles, so that the memory of the net depends on the tile and not on the picture.

GroupNorm takes its statistics over what it sees, so by themselves tiles drift apart. What brings them together: the
norms' statistics at each step are measured over a sample of the tiles, and all tiles are normalised by their average,
nearly that of the whole picture (runtime/norms.py; benchmarks/RESULTS.md has figures). Nets that see coordinates are
told where each tile lies.
"""

from collections.abc import Callable

import numpy as np

from .norms import Frame, Norms
from .pixels import Float, Uint8

Through = Callable[[Uint8, Norms | None], Uint8]
"""uint8 [1, H, W, 3] to its translation."""
SAMPLE = 16
"""Tiles over which statistics are measured, at most."""
TRIM = 4
"""The part of an overlap, 1/TRIM at the rim of a tile, that is not used: zero padding reaches in there."""


def tiled(picture: Uint8, through: Through, tile: int, overlap: int, together: bool = True) -> Uint8:
    """uint8 [H, W, 3] → uint8 [H, W, 3], translated in tiles of `tile` px that overlap by `overlap` px.

    Memory beside the picture and the result: one row of tiles. The tiles' final results are blended, linearly over the
    overlap: better than blending velocities at every step.

    Args:
        together: without it each tile is left with its own statistics, and to think that it is a whole picture.
    """
    height, width = picture.shape[:2]
    if height <= tile and width <= tile:
        whole: Uint8 = through(picture[None], None)[0]
        return whole
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    norms = _agreed(picture, through, tile, [(top, left) for top in rows for left in columns]) if together else None
    out = np.empty_like(picture)
    waiting = np.zeros((min(tile, height), width, 3), np.float32)  # sums of the rows from `top` on
    weights = np.zeros((min(tile, height), width, 1), np.float32)
    for i, top in enumerate(rows):
        for left in columns:
            made = _through(picture, (top, left), tile, through, norms)
            h, w = made.shape[:2]
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


def _agreed(picture: Uint8, through: Through, tile: int, places: list[tuple[int, int]]) -> Norms | None:
    """Statistics over a sample of the tiles, each normalised by its own; None where the nets have no such norms."""
    norms = Norms()
    for i in np.random.default_rng(0).permutation(len(places))[:SAMPLE]:
        _through(picture, places[i], tile, through, norms)
        if not norms.measured:
            return None
    norms.agree()
    return norms


def _through(picture: Uint8, place: tuple[int, int], tile: int, through: Through, norms: Norms | None) -> Uint8:
    top, left = place
    if norms is not None:
        norms.begin(Frame(top, left, *picture.shape[:2]))
    made: Uint8 = through(picture[None, top : top + tile, left : left + tile], norms)[0]
    return made


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
