"""Who is paired with whom. The coupling, not the loss, decides what a picture is turned into.

∇h depends on x_t alone, so E[x1 − x0 | x_t] always minimises the §5.3 loss: correspondence must come from here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..runtime.pixels import Float, Uint8, to_float
from . import ranks
from .domains import WORKERS, Crop, Domain, Indices
from .noise import Noise

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
    random_crop: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `start` to `stop` of x0, x1 [B, 3, size, size] in [-1, 1]; read ahead by `depth` batches.

    Both pictures of a pair get the same crop and mirroring, which keeps what structure pairing aligned. Noise has
    the shape that it has. Of several ranks each reads its share of every batch.
    """

    def crops(k: int) -> tuple[Uint8 | Float, Uint8]:
        i, j = pair(k)
        crop = Crop.draw(np.random.default_rng([seed, 3, k]), flip)
        crop = crop if random_crop else Crop(flip=crop.flip)
        return domain0.draw(i) if isinstance(domain0, Noise) else domain0.crop(i, crop), domain1.crop(j, crop)

    mine = ranks.share(batch)
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[list[Future[tuple[Uint8 | Float, Uint8]]]] = deque()
        try:
            for step in range(start, stop + depth):
                if step < stop:
                    pending.append([pool.submit(crops, k) for k in range(step * batch, (step + 1) * batch)[mine]])
                if step >= start + depth:
                    yield _collate([future.result() for future in pending.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collate(pairs: list[tuple[Uint8 | Float, Uint8]]) -> tuple[Tensor, Tensor]:
    x0, x1 = (np.stack(side) for side in zip(*pairs, strict=True))
    return torch.from_numpy(to_float(x0) if x0.dtype == np.uint8 else x0), torch.from_numpy(to_float(x1))
