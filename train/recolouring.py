"""Neighbours in each other's colours, where colours are not what sets the domains apart.

Of things that may have any colour and lie anywhere no neighbour has both right: a net that learns from such pairs
averages colours that none of them has. What a picture's colours can be changed to by one affine map, as an object's on
its ground, need not be found among real pictures.
"""

import numpy as np

from ..runtime.pixels import Uint8, to_float, to_uint8

RIDGE = 0.03
"""Weight, beside the mean square of the colours, of leaving them as they are."""
MOST = 2.0
"""By which contrasts are enlarged at most."""


def recoloured(x: Uint8, like: Uint8) -> Uint8:
    """x [H, W, 3] in the colours of `like` [H, W, 3]: by the affine map of colours, the same everywhere, that takes
    them nearest to what is there in the same place.

    Least squares make contrasts smaller where two pictures do not lie on each other (regression dilution: Frost &
    Thompson 2000); they are enlarged again until both have the same, about the mean, which least squares keep.
    """
    a, b = (to_float(picture).reshape(3, -1) for picture in (x, like))
    ones = np.concatenate([a, np.ones_like(a[:1])])
    gram = ones @ ones.T / a.shape[1] + RIDGE * np.eye(4)
    y = a + np.linalg.solve(gram, ones @ (b - a).T / a.shape[1]).T @ ones
    mean, contrast = y.mean(axis=1, keepdims=True), max(float(y.var(axis=1).mean()), 1e-4)
    more = np.clip(np.sqrt(b.var(axis=1).mean() / contrast), 1, MOST)
    return to_uint8((mean + more * (y - mean)).reshape(3, *x.shape[:2]))
