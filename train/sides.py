"""What sets two domains apart, as small pictures tell: a side, so that mirrored pairs would teach both; colours."""

import numpy as np

from ..runtime.media import Media
from ..runtime.pixels import Float, to_float
from .config import RFPix2pixModel
from .domains import Domain, Indices
from .noise import Noise

LOOKED_AT = 1024
"""Pictures of each domain that are compared, at most."""
CELLS = 16
"""Side of their thumbnails."""
SPLITS = 200
"""Random splits of all pictures in two that the domains are compared with."""
LEAST_SHARE = 0.02
"""Of the difference between the mean pictures that a side must account for (figures in benchmarks/RESULTS.md)."""


def mirrored(config: RFPix2pixModel, domain0: Domain | Noise, domain1: Domain) -> tuple[bool, str]:
    """Whether pairs are mirrored, and a line that says why where the config leaves it open."""
    if config.horizontal_flip is not None:
        return config.horizontal_flip, ""
    if isinstance(domain0, Noise):
        return True, ""
    share = one_sided(thumbnails(domain0), thumbnails(domain1))
    which = "half" if share < LEAST_SHARE else "none"
    return share < LEAST_SHARE, f"mirroring {which} of the pairs: {share:.0%} of what sets the domains apart has a side"


def thumbnails(domain: Domain, most: int = LOOKED_AT) -> Float:
    """Some of the domain's pictures, the same ones each time, at 16×16: [N, 3, 16, 16] in [-1, 1].

    The frames of a film are one picture, their mean: they say the same of left and right over and over.
    """
    chosen, pictures = domain.some(most, CELLS)
    cells = to_float(pictures)
    sources: dict[Media, list[int]] = {}
    for n, i in enumerate(chosen):
        sources.setdefault(domain.items[i].media, []).append(n)
    return np.stack([cells[numbers].mean(axis=0) for numbers in sources.values()])


def one_sided(x0: Float, x1: Float) -> float:
    """The share of the squared difference between the mean pictures of two domains [N, C, H, W] that changes its sign
    when they are mirrored, as a badge in a corner, light from the left or a slant do; 0 where chance may explain it.

    Chance may explain what one of SPLITS random splits of all pictures reaches (a permutation test; Good 2005,
    chapter 3).
    """
    both = np.concatenate([x0, x1])
    odd = ((both - both[..., ::-1]) / 2).reshape(len(both), -1)
    n, rng = len(x0), np.random.default_rng(0)

    def apart(order: Indices) -> float:
        return float(np.square(odd[order[:n]].mean(axis=0) - odd[order[n:]].mean(axis=0)).sum())

    found = apart(np.arange(len(both)))
    if found <= max(apart(rng.permutation(len(both))) for _ in range(SPLITS)):
        return 0.0
    return found / float(np.square(x0.mean(axis=0) - x1.mean(axis=0)).sum())


def colourfulness(domain: Domain) -> float:
    """By how much the largest of a pixel's three levels exceeds the least, on an average: 0 in greys, 2 at most."""
    x = thumbnails(domain, 64)
    return float((x.max(axis=1) - x.min(axis=1)).mean())
