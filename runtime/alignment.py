"""Where what is at one place in a picture of one domain lies in those of the other, as one affine map for all.

A flow joins what is in the same place. Where all of one domain is taller, turned, mirrored or elsewhere than the other,
training finds that map (train/alignment.py) and the flow moves pictures between the domains from where they lie in the
frame of domain 1: a picture of domain 0 is brought there first, and one that becomes of domain 0 is brought back last.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .pixels import Uint8

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): what is at (x, y) after moving was at (ax + by + c, dx + ey + f) before. From the middle of the
picture to the right and down, in halves of its short side."""
IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LARGEST, LEAST_AREA = 4.0, 0.05
"""Of the six numbers; and what is left of an area, or its inverse: else next to nothing of a picture would be seen."""
ROWS = 256


def sensible(a: Sequence[float]) -> bool:
    """Whether six numbers are a map by which pictures stay pictures."""
    if not all(abs(n) <= LARGEST for n in a):
        return False
    return LEAST_AREA <= abs(a[0] * a[4] - a[1] * a[3]) <= 1 / LEAST_AREA


def inverse(a: Affine) -> Affine:
    """The way back."""
    turn = np.linalg.inv(np.array([[a[0], a[1]], [a[3], a[4]]]))
    (p, q), (r, s) = turn.tolist()
    x, y = (-turn @ [a[2], a[5]]).tolist()
    return p, q, x, r, s, y


def moved(image: Uint8, a: Affine) -> Uint8:
    """uint8 [H, W, 3] moved by `a`, as large as before: bicubic, and what was not to be seen as the nearest edge is."""
    height, width = image.shape[:2]
    half, x0, y0 = min(width, height) / 2, width / 2, height / 2
    across = a[0], a[1], a[2] * half + x0 - a[0] * x0 - a[1] * y0  # in pixels, from the corner
    down = a[3], a[4], a[5] * half + y0 - a[3] * x0 - a[4] * y0
    out = np.empty_like(image)
    for c in range(3):  # in floats, for Pillow cuts fractions off of bytes
        plane = Image.fromarray(image[..., c].astype(np.float32))
        made = plane.transform(plane.size, Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC)
        np.copyto(out[..., c], np.rint(np.asarray(made)).clip(0, 255), casting="unsafe")
    columns = np.arange(width) + 0.5
    for top in range(0, height, ROWS):
        rows = np.arange(top, min(top + ROWS, height))[:, None] + 0.5
        x, y = (n[0] * columns + n[1] * rows + n[2] for n in (across, down))
        beside = (x < _RIM) | (x > width - _RIM) | (y < _RIM) | (y > height - _RIM)  # where Pillow gives black
        nearest = y[beside].clip(0, height - 1).astype(int), x[beside].clip(0, width - 1).astype(int)
        out[top : top + ROWS][beside] = image[nearest]
    return out


_RIM = 1e-6
