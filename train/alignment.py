"""Finding how all of one domain is moved against the other, from pictures that are no pairs.

Moved rightly, each picture has a picture of the other domain whose edges run the same way in the same places, far more
alike than before: what is sought is the map under which pictures and their nearest neighbours are most alike, as in
iterated closest points (Besl & McKay 1992, section IV), but over whole pictures in place of points. First an affine
one, which may be large, then the bend that is left (train/bending.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..runtime.alignment import IDENTITY, Alignment, sensible
from ..runtime.pixels import to_float
from . import bending
from .bending import EDGES, cosines, moved
from .domains import Domain
from .embedders import hog

SIZE = 32
"""Pixels of the side at which pictures are compared for an affine map."""
SOME, MANY = 128, 384
"""Pictures of domain 0 that are looked at, and twice as many of domain 1: to see whether there is a map, and then to
find it well."""
FEWEST = 50
"""Pictures of each domain without which nothing is sought: of few, some are always more alike when moved."""
LEAST_GAIN, LEAST_COSINE = 0.1, 0.2
"""To be believed a map must make up for that much of what pictures lack in likeness to their nearest, and leave them
with that mean cosine. Where there is nothing to find it is 0.03 at most, where there is a map mostly 0.1 and more, but
in photographs, whose maps are found badly (benchmarks/RESULTS.md)."""
LEAST_BEND = 0.05
"""What a bend must make up for of what is lacking after that; where there is none, or a wrong one, 0.02 at most."""
TURNED = 0.03
"""By which they must be more alike mirrored or turned to be so: of domains of symmetric things it is all the same."""
ENLARGED = 0.05
"""By which they must be more alike for each e-fold of area, until a map is believed: enlarged, all pictures are alike,
for little is in them."""
SCALES = (1.0, 0.8, 1.25, 0.64, 1.5)
STEP = 0.15
"""Of the first simplex: a sixth of a half side."""


def find_alignment(domain0: Domain, domain1: Domain) -> tuple[Alignment, str]:
    """The map that brings domain 0 into the frame of domain 1, and a line that says what was found.

    IDENTITY where no map makes neighbours clearly more alike. Looks at some of the pictures, the same each time.
    """
    if min(len(domain0), len(domain1)) < FEWEST:
        return IDENTITY, ""
    start, gain, cosine = clearest(domain0, domain1)
    straight = IDENTITY
    if gain >= LEAST_GAIN and cosine >= LEAST_COSINE:
        cost = partial(_cost, unlikeness(*pictures(domain0, domain1, MANY, SIZE)), 0.0)
        straight = min((_downhill(cost, a) for a in (IDENTITY, start)), key=cost)
    x0, x1 = pictures(domain0, domain1, MANY, bending.SIZE)
    unlike = unlikeness(x0, x1)
    found, gain = bending.bent(x0, x1, straight, unlike)
    if gain < LEAST_BEND or unlike(found) > 1 - LEAST_COSINE:
        found = straight
    how = "" if straight == IDENTITY else f"moved by [{', '.join(f'{n:.2f}' for n in straight)}]"
    if len(found) > 6:
        how += f"{' and ' if how else ''}bent by up to {max(map(abs, found[6:])):.2f} of half a side"
    return found, how and (
        f"alignment: domain 0 is {how} before all else: the nearest pictures of the two domains are then alike to "
        f"{1 - unlike(found):.2f}, and to {1 - unlike(IDENTITY):.2f} as they lie"
    )


def clearest(domain0: Domain, domain1: Domain) -> tuple[Alignment, float, float]:
    """A first look: the affine map that some of the pictures are for, the share of what they lack in likeness as they
    lie that it makes up for, and how alike they are then."""
    unlike = unlikeness(*pictures(domain0, domain1, SOME, SIZE))
    cost = partial(_cost, unlike, ENLARGED)
    found = min((_downhill(cost, start) for start in {IDENTITY, min(_starts(), key=cost)}), key=cost)
    return found, bending.made_up(unlike(IDENTITY), cost(found)), 1 - unlike(found)


def pictures(domain0: Domain, domain1: Domain, most: int, side: int) -> tuple[Tensor, Tensor]:
    """Some of both domains' pictures, twice as many of domain 1: [N, 3, side, side] in [-1, 1]."""
    both = ((domain0, most), (domain1, 2 * most))
    x0, x1 = (torch.from_numpy(to_float(domain.some(n, side)[1])) for domain, n in both)
    return x0, x1


def unlikeness(x0: Tensor, x1: Tensor) -> Callable[[Sequence[float]], float]:
    """1 less the mean cosine between pictures and their nearest, both ways, as a function of the map."""
    edges1 = hog(x1)[:, :EDGES]

    def unlike(a: Sequence[float]) -> float:
        cosine = cosines(hog(moved(x0, a))[:, :EDGES], edges1)
        return 1 - float(cosine.amax(dim=0).mean() + cosine.amax(dim=1).mean()) / 2

    return unlike


def _cost(unlike: Callable[[Sequence[float]], float], enlarged: float, a: Sequence[float]) -> float:
    if not sensible(a):
        return 2.0
    upright, area = a[0] > abs(a[1]) and a[4] > abs(a[3]), abs(a[0] * a[4] - a[1] * a[3])
    return unlike(a) + TURNED * (not upright) + enlarged * abs(math.log(area))


def _downhill(cost: Callable[[Sequence[float]], float], start: Alignment) -> Alignment:
    """The cheapest map around there (Nelder & Mead 1965)."""
    simplex = [start, *(start + STEP * side for side in np.eye(6))]
    options = {"initial_simplex": np.array(simplex), "xatol": 2e-3, "fatol": 2e-4}
    end = minimize(cost, start, method="Nelder-Mead", options=options).x
    return tuple(round(float(n), 4) for n in end)


def _starts() -> Iterator[Alignment]:
    """As it lies, mirrored and by quarter turns, each at several sizes."""
    for s in SCALES:
        for p, q in ((s, s), (-s, s), (s, -s), (-s, -s)):
            yield p, 0.0, 0.0, 0.0, q, 0.0
            yield 0.0, p, 0.0, q, 0.0, 0.0
