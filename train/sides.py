"""What sets two domains apart, as small pictures tell: a side, so that mirrored pairs would teach both; colours."""

import numpy as np

from ..runtime.media import Media
from ..runtime.pixels import Float, to_float
from .config import RFPix2pixModel
from .domains import Domain
from .noise import Noise

LOOKED_AT = 1024
"""Pictures of each domain that are compared, at most."""
CELLS = 16
"""Side of their thumbnails."""
SPLITS = 200
"""Random splits of all pictures in two that the domains are compared with."""
FEWEST, APART = 200, 2.0
"""Pictures of each domain without which nothing is said of their colours, and how often as far apart as by chance
they may be: up to 1.7 where they are of the same, 2.8 and more else (figures in benchmarks/RESULTS.md)."""
LEAST_SHARE = 0.02
"""Of the difference between the mean pictures that a side must account for (figures in benchmarks/RESULTS.md)."""


def mirrored(config: RFPix2pixModel, domain0: Domain | Noise, domain1: Domain) -> tuple[bool, str]:
    """Whether pairs are mirrored, and a line that says why where the config leaves it open."""
    if config.horizontal_flip is not None:
        return config.horizontal_flip, ""
    if isinstance(domain0, Noise):
        return True, ""
    if config.matches_colours:
        return False, "mirroring none of the pairs: what differs does not show in the colours, and may have a side"
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
    odd0, odd1 = ((x - x[..., ::-1]).reshape(len(x), -1) * np.float32(0.5) for x in (x0, x1))
    found, *chance = distances(odd0, odd1)
    if found <= max(chance):
        return 0.0
    return float(found / np.square(x0.mean(axis=0) - x1.mean(axis=0)).sum())


def distances(x0: Float, x1: Float) -> Float:
    """The squared distance of the means of two sets of vectors [N, D]; then of SPLITS random splits of all of them in
    two as large: [1 + SPLITS]."""
    n, both, rng = len(x0), np.concatenate([x0, x1]), np.random.default_rng(0)
    weights = np.full((1 + SPLITS, len(both)), -1 / len(x1), both.dtype)
    for k, row in enumerate(weights):
        row[rng.permutation(len(both))[:n] if k else slice(n)] = 1 / n
    found: Float = np.square(weights @ both).sum(axis=1)
    return found


def colourfulness(domain: Domain) -> float:
    """By how much the largest of a pixel's three levels exceeds the least, on an average: 0 in greys, 2 at most."""
    x = thumbnails(domain, 64)
    return float((x.max(axis=1) - x.min(axis=1)).mean())


def same_colours(domain0: Domain, domain1: Domain) -> bool:
    """Whether chance may explain what sets the colours of two domains apart: which are where, and how often each is."""
    if min(len(domain0), len(domain1)) < FEWEST:
        return False
    x0, x1 = thumbnails(domain0), thumbnails(domain1)
    return min(len(x0), len(x1)) >= FEWEST and apart(x0, x1) < APART and apart(counted(x0), counted(x1)) < APART


def counted(x: Float) -> Float:
    """Shares of each picture [N, 3, H, W] that are of each of 64 colours, four levels of each channel: [N, 64]."""
    levels = ((x + 1) * 2).clip(0, 3).astype(np.int64)
    which = np.einsum("ncp,c->np", levels.reshape(*levels.shape[:2], -1), [16, 4, 1])
    return np.stack([(which == colour).mean(axis=1, dtype=np.float32) for colour in range(64)], axis=1)


def apart(x0: Float, x1: Float) -> float:
    """The squared distance of two domains' means [N, …], each number in units of its deviation, over the mean of that
    of random splits of all pictures: about 1 where chance may explain it."""
    both = np.concatenate([x0, x1]).reshape(len(x0) + len(x1), -1)
    deviation = both.std(axis=0)
    both = both[:, deviation > 1e-6] / deviation[deviation > 1e-6]
    found, *chance = distances(both[: len(x0)], both[len(x0) :])
    return float(found / max(np.mean(chance), 1e-12))
