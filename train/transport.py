"""Minibatch optimal transport: each batch is paired anew at the least total distance (arXiv:2302.00482, section 3.3;
arXiv:2304.14772, section 4)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from ..runtime.pixels import Float, to_float
from .coupling import Pair
from .domains import WORKERS, Crop, Domain, Indices
from .noise import Noise

OT_SIZE = 32
"""Side in pixels, at most, of the centre crops whose distances count; noise is seen whole."""


def ot_permutation(x0: npt.NDArray[Any], x1: npt.NDArray[Any]) -> Indices:
    """The permutation that pairs x0[i] with x1[permutation[i]] at the least Σ ‖x0 − x1‖², exactly.

    Both [B, …] of one shape: pictures, latents, or noise on one side. A permutation, so every sample of the batch is
    used once and neither domain's distribution is bent.
    """
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x0, x1))
    cost = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * (a @ b.T)
    permutation: Indices = linear_sum_assignment(cost)[1]
    return permutation


def transport_pairs(domain0: Domain | Noise, domain1: Domain, pair: Pair, batch: int) -> Pair:
    """`pair`, with the pictures of domain 1 exchanged within each batch of `batch` pairs so as to lie nearest.

    Still a function of k alone: whoever draws any pair of a batch, in any thread or process, finds the same one.
    """
    size = domain1.size if isinstance(domain0, Noise) else min(domain1.size, OT_SIZE)
    solved: dict[int, list[tuple[int, int]]] = {}
    lock = threading.Lock()
    readers = ThreadPoolExecutor(WORKERS)

    def look(where: tuple[Domain | Noise, int]) -> Float:
        domain, index = where
        return domain.draw(index) if isinstance(domain, Noise) else to_float(Crop().apply(domain.read(index), size))

    def solve(step: int) -> list[tuple[int, int]]:
        drawn = [pair(k) for k in range(step * batch, (step + 1) * batch)]
        x0 = list(readers.map(look, [(domain0, i) for i, _ in drawn]))
        x1 = list(readers.map(look, [(domain1, j) for _, j in drawn]))
        order = ot_permutation(np.stack(x0), np.stack(x1))
        return [(i, drawn[place][1]) for (i, _), place in zip(drawn, order, strict=True)]

    def transported(k: int) -> tuple[int, int]:
        step, place = divmod(k, batch)
        if (found := solved.get(step)) is None:
            with lock:  # the pairs of a batch are drawn by many threads at once, and solved once
                if (found := solved.get(step)) is None:
                    found = solved[step] = solve(step)
                    for old in sorted(solved)[:-8]:  # batches are read ahead, so the last few are in use
                        del solved[old]
        return found[place]

    return transported
