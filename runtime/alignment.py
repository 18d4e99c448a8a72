"""Where what is at one place in a picture of one domain lies in those of the other, as one map for all.

A flow joins what is in the same place. Where all of one domain is taller, turned, mirrored, bent or elsewhere than the
other, training finds that map (train/alignment.py) and the flow moves pictures between the domains from where they lie
in the frame of domain 1: a picture of domain 0 is brought there first, and one that becomes of domain 0 is brought back
last.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .pixels import Uint8

Alignment = tuple[float, ...]
"""(a, b, c, d, e, f): what is at (x, y) after moving was at (ax + by + c, dx + ey + f) before. From the middle of the
picture to the right and down, in halves of its short side.

After these six there may be a mesh, which bends: (x, y) is moved by it first. Its 2·MESH² numbers say how far to the
right and down at MESH × MESH places, row by row, evenly from -1 to 1; linear between them, and beyond as at its rim."""
MESH = 9
IDENTITY: Alignment = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LENGTHS = 6, 6 + 2 * MESH**2
LARGEST, LEAST_AREA = 4.0, 0.05
"""Of the numbers; and what is left of an area, or its inverse: else next to nothing of a picture would be seen."""
STEEPEST = 0.9
"""By how much a mesh may move one of two places more than the other, in units of their distance: from 1 on it may fold
pictures, and there would be no way back."""
PIECE = 256
"""Pixels of the sides of what is moved at once, at most."""
SMALL = 1 << 18
"""Pixels of pictures up to which is kept how pictures of that size are moved."""
_CELL = 2 / (MESH - 1)
Places = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def sensible(a: Sequence[float]) -> bool:
    """Whether numbers are a map by which pictures stay pictures."""
    if len(a) not in LENGTHS or not all(abs(n) <= LARGEST for n in a):
        return False
    if not LEAST_AREA <= abs(a[0] * a[4] - a[1] * a[3]) <= 1 / LEAST_AREA:
        return False
    if len(a) == 6:
        return True
    mesh = _mesh(a)
    across, down = np.diff(mesh, axis=1) / _CELL, np.diff(mesh, axis=0) / _CELL
    slopes = [np.stack([p, q], axis=-1) for p in (across[:-1], across[1:]) for q in (down[:, :-1], down[:, 1:])]
    return float(np.linalg.norm(slopes, 2, axis=(-2, -1)).max()) <= STEEPEST


def inverse(a: Alignment) -> Alignment:
    """The way back; of a mesh it is one that is exact at its own MESH × MESH places."""
    turn = np.linalg.inv(np.array([[a[0], a[1]], [a[3], a[4]]]))
    (p, q), (r, s) = turn.tolist()
    x, y = (-turn @ [a[2], a[5]]).tolist()
    back = p, q, x, r, s, y
    if len(a) == 6:
        return back
    v, u = np.meshgrid(*(np.linspace(-1, 1, MESH),) * 2, indexing="ij")
    straight = _straight(back, u, v)
    at = straight
    for _ in range(100):  # each makes the error STEEPEST times what it was, at most
        dx, dy = _bend(a, *at)
        at = straight[0] - dx, straight[1] - dy
    x0, y0 = _straight(a, *at)
    return *back, *np.stack([x0 - u, y0 - v], axis=2).ravel().tolist()


def places(a: Alignment, x: Any, y: Any, column: Any = None, row: Any = None) -> tuple[Places, Places]:
    """Where what comes to (x, y) was; with `column` and `row` by that cell of the mesh, as if its sides went on."""
    x, y = np.broadcast_arrays(x, y)
    if len(a) > 6:
        dx, dy = _bend(a, x, y, column, row)
        x, y = x + dx, y + dy
    return _straight(a, x, y)


def moved(image: Uint8, a: Alignment) -> Uint8:
    """uint8 [H, W, 3] moved by `a`, as large as before: bicubic, and what was not to be seen as the nearest edge is."""
    height, width = image.shape[:2]
    planes = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]  # Pillow cuts fractions off of bytes
    out = np.empty_like(image)
    for piece in _same_pieces(a, width, height) if width * height <= SMALL else _pieces(a, width, height):
        part = out[piece.top : piece.bottom, piece.left : piece.right]
        for c, plane in enumerate(planes):
            size = part.shape[1], part.shape[0]
            made = plane.transform(size, Image.Transform.QUAD, piece.corners, Image.Resampling.BICUBIC)
            np.copyto(part[..., c], np.rint(np.asarray(made)).clip(0, 255), casting="unsafe")
        part[piece.beside] = image[piece.nearest]
    return out


class _Piece(NamedTuple):
    """A rectangle of a moved picture: where its corners come from, and which of its pixels from beside the picture."""

    top: int
    bottom: int
    left: int
    right: int
    corners: list[float]
    beside: tuple[Indices, Indices]
    nearest: tuple[Indices, Indices]


def _pieces(a: Alignment, width: int, height: int) -> Iterator[_Piece]:
    half = min(width, height) / 2
    for (top, bottom, row), (left, right, column) in product(_spans(a, height, half), _spans(a, width, half)):
        y, x = np.array([[top], [bottom]]) / half - height / 2 / half, np.array([left, right]) / half - width / 2 / half
        x, y = places(a, x, y, column, row)  # of the piece's corners, between which it is linear along each side
        x, y = x * half + width / 2, y * half + height / 2
        corners = [float(n) for i, k in ((0, 0), (1, 0), (1, 1), (0, 1)) for n in (x[i, k], y[i, k])]
        x, y = (_between(ends, right - left, bottom - top) for ends in (x, y))
        black = (x < _RIM) | (x > width - _RIM) | (y < _RIM) | (y > height - _RIM)  # what Pillow finds nothing for
        beside = np.nonzero(black)
        nearest = y[beside].clip(0, height - 1).astype(int), x[beside].clip(0, width - 1).astype(int)
        yield _Piece(top, bottom, left, right, corners, (beside[0], beside[1]), nearest)


@lru_cache(maxsize=16)
def _same_pieces(a: Alignment, width: int, height: int) -> list[_Piece]:
    return list(_pieces(a, width, height))


_RIM = 1e-6


def _between(corners: Places, width: int, height: int) -> Places:
    """At the middle of each pixel, what is [2, 2] at the corners: [height, width]."""
    s, t = (np.arange(width) + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height
    (p, q), (r, u) = corners
    return np.asarray((1 - t) * ((1 - s) * p + s * q) + t * ((1 - s) * r + s * u))


def _spans(a: Alignment, n: int, half: float) -> Iterator[tuple[int, int, int]]:
    """Runs of pixels along a side of `n` in one cell of the mesh: first, last and one, and which cell."""
    lines = np.ceil(half * np.linspace(-1, 1, MESH) + n / 2 - 0.5).clip(0, n).astype(int) if len(a) > 6 else ()
    for first, end in pairwise(sorted({*range(0, n, PIECE), *(int(line) for line in lines), n})):
        yield first, end, int(_cell((first + 0.5 - n / 2) / half))


def _straight(a: Alignment, x: Places, y: Places) -> tuple[Places, Places]:
    return a[0] * x + a[1] * y + a[2], a[3] * x + a[4] * y + a[5]


def _cell(n: Any) -> Any:
    """In which cell of the mesh a place is along one side: -1 and MESH - 1 are beyond."""
    return np.floor((np.asarray(n) + 1) / _CELL).clip(-1, MESH - 1).astype(int)


def _bend(a: Alignment, x: Places, y: Places, column: Any = None, row: Any = None) -> tuple[Places, Places]:
    """By how much the mesh moves (x, y): by the cells they are in, or by that one."""
    mesh = _mesh(a)
    (i, s), (k, t) = _share(y, _cell(y) if row is None else row), _share(x, _cell(x) if column is None else column)
    s, t = s[..., None], t[..., None]
    d = (1 - s) * ((1 - t) * mesh[i, k] + t * mesh[i, k + 1]) + s * ((1 - t) * mesh[i + 1, k] + t * mesh[i + 1, k + 1])
    return d[..., 0], d[..., 1]


def _share(n: Places, cell: Any) -> tuple[Any, Places]:
    """The line of the mesh before a place in that cell, and how far it is to the next one."""
    first = np.clip(cell, 0, MESH - 2)
    inside = (np.asarray(cell) >= 0) & (np.asarray(cell) < MESH - 1)
    return first, np.where(inside, (n + 1) / _CELL - first, np.asarray(cell) > 0)


def _mesh(a: Sequence[float]) -> Places:
    return np.reshape(np.asarray(a[6:], np.float64), (MESH, MESH, 2))
