"""How far two sets of pictures are apart, as vectors [N, D] of some feature network.

Called by their own names and that network's: only Inception's Fréchet distance is an FID.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]
FEWEST = 3
"""Vectors that each set must have."""


class Kid(NamedTuple):
    """A kernel distance, and the half width of its 95 % confidence interval."""

    value: float
    margin: float


def kernel_distance(x: Vectors, y: Vectors) -> Kid:
    """The KID of Bińkowski et al. 2018 (arXiv:1801.01401, section 4): squared MMD with the kernel (a·b / D + 1)³.

    The unbiased estimate over all pairs, so 0 ± its margin for two samples of one distribution, whatever their sizes.
    The margin is 1.96 standard errors by the jackknife over both samples (Efron & Stein 1981).

    Args:
        x, y: [M, D] and [N, D], M and N at least 3.

    Raises:
        ValueError: too few vectors, or of unlike lengths.
    """
    _check(x, y)
    m, n = len(x), len(y)
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(within_x, 0)
    np.fill_diagonal(within_y, 0)
    sx, sy, sxy = within_x.sum(), within_y.sum(), between.sum()
    ux, uy = sx / (m * (m - 1)), sy / (n * (n - 1))
    # What is left of the estimate without each x, then without each y.
    less_x = (sx - 2 * within_x.sum(axis=1)) / ((m - 1) * (m - 2)) - 2 * (sxy - between.sum(axis=1)) / ((m - 1) * n)
    less_y = (sy - 2 * within_y.sum(axis=1)) / ((n - 1) * (n - 2)) - 2 * (sxy - between.sum(axis=0)) / ((n - 1) * m)
    variance = (m - 1) * less_x.var() + (n - 1) * less_y.var()
    return Kid(float(ux + uy - 2 * sxy / (m * n)), float(1.96 * np.sqrt(variance)))


def frechet_distance(x: Vectors, y: Vectors) -> float:
    """‖μx − μy‖² + Tr(Cx + Cy − 2·(Cx·Cy)^½): the distance of two normal distributions (Dowson & Landau 1982).

    Exact for few vectors of many numbers too: with centred X = x/√(M−1), Y alike, Tr (Cx·Cy)^½ is the sum of the
    singular values of X·Yᵀ. It falls with the number of vectors: compare only figures of equally many.

    Args:
        x, y: [M, D] and [N, D], M and N at least 3.

    Raises:
        ValueError: too few vectors, or of unlike lengths.
    """
    _check(x, y)
    mean = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    a, b = _root(x), _root(y)
    return float(mean + np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum())


def _kernel(x: Vectors, y: Vectors) -> Vectors:
    kernel: Vectors = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _root(x: Vectors) -> Vectors:
    """A matrix A with AᵀA = the covariance of x [N, D], of at most D rows."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return np.asarray(centred)
    return np.asarray(np.linalg.qr(centred, mode="r"), np.float64)


def _check(x: Vectors, y: Vectors) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < FEWEST:
        raise ValueError(f"wanted [M, D] and [N, D] with M and N at least {FEWEST}, got {x.shape} and {y.shape}")
