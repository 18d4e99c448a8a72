"""Who is paired with whom. The coupling, not the loss, decides what a picture is turned into.

∇h depends on x_t alone, so E[x1 − x0 | x_t] always minimises the §5.3 loss: correspondence must come from here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..runtime.pixels import Float, Uint8, to_float
from . import ranks
from .domains import LEAST, WORKERS, Crop, Domain, Indices
from .noise import Noise
from .recolouring import recoloured

Pair = Callable[[int], tuple[int, int]]
"""The k-th pair of a training: indices into domain 0 and domain 1."""


def shuffled(n: int, *seed: int) -> Callable[[int], int]:
    """The k-th draw of an endless sequence of epochs, each a permutation of n: a function of (seed, k)."""

    @lru_cache(maxsize=4)  # threads that read ahead draw from neighbouring epochs at once
    def order(epoch: int) -> Indices:
        return np.random.default_rng([*seed, epoch]).permutation(n)

    def draw(k: int) -> int:
        epoch, place = divmod(k, n)
        return int(order(epoch)[place])

    return draw


def random_pairs(n0: int, n1: int, seed: int) -> Pair:
    """The independent coupling of arXiv:2209.03003: each domain in an order of its own."""
    draw0, draw1 = shuffled(n0, seed, 0), shuffled(n1, seed, 1)
    return lambda k: (draw0(k), draw1(k))


def noise_pairs(n1: int, seed: int) -> Pair:
    """Noise with pictures, independently: the k-th noise is only ever drawn in the k-th pair."""
    draw1 = shuffled(n1, seed, 1)
    return lambda k: (k, draw1(k))


def paired(n: int, seed: int) -> Pair:
    """Each picture with the one of its own number."""
    draw = shuffled(n, seed, 0)
    return lambda k: (draw(k), draw(k))


def structure_pairs(near1: Indices, near0: Indices, seed: int) -> Pair:
    """Each picture with one of its nearest neighbours in the other domain.

    Even pairs start from domain 0 (`near1` [N0, K]), odd ones from domain 1 (`near0` [N1, K]), so that no
    picture of either domain is left out.
    """
    draw0, draw1 = shuffled(len(near1), seed, 0), shuffled(len(near0), seed, 1)

    def pair(k: int) -> tuple[int, int]:
        rng = np.random.default_rng([seed, 2, k])
        if k % 2 == 0:
            i = draw0(k // 2)
            return i, int(rng.choice(near1[i]))
        j = draw1(k // 2)
        return int(rng.choice(near0[j])), j

    return pair


def least_crop(crop_scale: float, size: int, *pictures: tuple[int, int]) -> float:
    """Side of the smallest crop of pictures of these sizes: `crop_scale`, but LEAST where that would enlarge one."""
    return max([crop_scale, *(min(LEAST, size / min(picture)) for picture in pictures)])


def batches(
    domain0: Domain | Noise,
    domain1: Domain,
    pair: Pair,
    batch: int,
    start: int,
    stop: int,
    seed: int,
    flip: bool,
    depth: int = 2,
    crop_scale: float = LEAST,
    crop_share: float = 1.0,
    cutmix: float = 0.0,
    match_colours: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches `start` to `stop` of x0, x1 [B, 3, size, size] in [-1, 1]; read ahead by `depth` batches.

    Both pictures of a pair get the same crop and mirroring, which keeps what structure pairing aligned; where each
    pixel lies in them comes third, [B, 2, size, size]. Noise has the shape that it has. Of several ranks each reads
    its share of every batch.

    Args:
        crop_scale: side of the smallest crop, of the short side; larger where LEAST would not enlarge the picture.
        crop_share: share of pairs that are cropped at random; of the others the middle square is taken whole.
        cutmix: share of pairs of which a rectangle comes from the next pair, at the same place in both pictures (Yun
            et al. 2019, arXiv:1905.04899): what is far away says less of what is here, so there is less to memorise.
    """
    size = domain1.size

    def crops(k: int) -> tuple[Uint8 | Float, Uint8, Float]:
        i, j = pair(k)
        pictures = [domain1.read(j)] if isinstance(domain0, Noise) else [domain0.read(i), domain1.read(j)]
        least = least_crop(crop_scale, size, *(picture.size for picture in pictures))
        crop = Crop.draw(np.random.default_rng([seed, 3, k]), flip, least, crop_share)
        *first, x1 = (crop.apply(picture, size) for picture in pictures)
        if isinstance(domain0, Noise):
            return domain0.draw(i), x1, crop.place(size)
        (x0,) = first
        if match_colours and k % 2 == 0:
            x1 = recoloured(x1, x0)
        elif match_colours:
            x0 = recoloured(x0, x1)
        return x0, x1, crop.place(size)

    mine = ranks.share(batch)
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[list[Future[tuple[Uint8 | Float, Uint8, Float]]]] = deque()
        try:
            for step in range(start, stop + depth):
                if step < stop:
                    numbers = range(step * batch, (step + 1) * batch)[mine]
                    wanted = range(numbers.start, numbers.stop + (cutmix > 0))
                    pending.append([pool.submit(crops, k) for k in wanted])
                if step >= start + depth:
                    drawn = [np.stack(side) for side in zip(*(f.result() for f in pending.popleft()), strict=True)]
                    if cutmix:
                        rng = np.random.default_rng([seed, 5, step - depth])
                        drawn = _mixed(drawn, rng.random((batch, 5))[mine], cutmix)
                    *ends, place = drawn
                    x0, x1 = (torch.from_numpy(to_float(x) if x.dtype == np.uint8 else x) for x in ends)
                    yield x0, x1, torch.from_numpy(place).permute(0, 3, 1, 2)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _mixed(drawn: list[Any], chances: npt.NDArray[np.float64], cutmix: float) -> list[Any]:
    """Sides and places [B + 1, …] of pairs less the last, `cutmix` of them with a rectangle of the pair after them."""
    for n, (chance, *sides) in enumerate(chances):
        if chance < cutmix:
            top, bottom = sorted(round(s * drawn[1].shape[1]) for s in sides[:2])
            left, right = sorted(round(s * drawn[1].shape[2]) for s in sides[2:])
            for x in drawn:
                x[n, top:bottom, left:right] = x[n + 1, top:bottom, left:right]  # which is still as it was drawn
    return [x[:-1] for x in drawn]
