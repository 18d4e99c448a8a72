"""Nearest neighbours by cosine among the embeddings of two domains."""

import math

import numpy as np
import torch
from torch import Tensor

from ..runtime.errors import MissingExtraError
from ..runtime.pixels import Float
from .domains import Indices

ROWS, COLUMNS = 2048, 16384
"""Vectors of either side that are compared at once."""
EXACT_UP_TO = 200_000
"""Pictures of a domain above which an approximate index finds its neighbours."""
POOL, LOCAL = 64, 10
"""Nearest by cosine that are ranked, and of how many of them the mean says how near the other domain is."""
PROBES = 32
"""Cells of the index that are looked through for each picture: recall .97, measured in benchmarks/RESULTS.md."""


def neighbours(e0: Tensor, e1: Tensor, k: int, device: torch.device | str = "cpu") -> tuple[Indices, Indices]:
    """For each row of unit vectors e0 [N0, D] its k nearest rows of e1 [N1, D], and the other way round.

    By cross-domain similarity local scaling (Conneau et al. 2018, arXiv:1710.04087, section 2.3), the cosine less
    how near each of the two is to the other domain at all, so that pictures which are near to everything (hubs) are
    not everybody's. Of each row the POOL nearest by cosine are ranked.

    Returns:
        near1 [N0, k] and near0 [N1, k], nearest first.

    Raises:
        MissingExtraError: faiss is needed and not installed.
    """
    (i1, s1), (i0, s0) = (nearest(a, b, max(k, POOL), device) for a, b in ((e0, e1), (e1, e0)))
    r0, r1 = (s[:, :LOCAL].mean(axis=1) for s in (s1, s0))  # how near each is to the other domain
    near1, near0 = (
        np.take_along_axis(i, np.argsort(r[i] - 2 * s, axis=1, kind="stable")[:, :k], axis=1)
        for i, s, r in ((i1, s1, r1), (i0, s0, r0))
    )
    return near1, near0


def nearest(a: Tensor, b: Tensor, k: int, device: torch.device | str = "cpu") -> tuple[Indices, Float]:
    """For each row of unit vectors a [N, D] its k nearest rows of b [M, D] by cosine, and these cosines: both [N, k],
    nearest first.

    In chunks: never N×M in memory. Exact up to 200,000 of them, approximate (on the CPU) above.

    Raises:
        MissingExtraError: faiss is needed and not installed.
    """
    k = min(k, len(b))
    return _approximate(a, b, k) if max(len(a), len(b)) > EXACT_UP_TO else _exact(a, b, k, device)


def require_index(n: int) -> None:
    """Raise MissingExtraError where so many pictures need faiss, and it is not installed."""
    if n <= EXACT_UP_TO:
        return
    try:
        import faiss  # noqa: F401
    except ImportError as e:
        raise MissingExtraError(
            f"structure pairing of {n:,} pictures needs faiss-cpu: pip install 'rfp[ann]' (or train with fewer "
            f"pictures: up to {EXACT_UP_TO:,} a domain are compared one by one)"
        ) from e


def _exact(a: Tensor, b: Tensor, k: int, device: torch.device | str) -> tuple[Indices, Float]:
    found, cosines = [], []
    for rows in a.split(ROWS):
        x = rows.to(device, torch.float32)
        best = x.new_full((len(x), 0), 0.0)
        where = best.long()
        for start in range(0, len(b), COLUMNS):
            y = b[start : start + COLUMNS].to(device, torch.float32)
            alike = torch.cat([best, x @ y.T], dim=1)
            names = torch.arange(start, start + len(y), device=device).expand(len(x), -1)
            best, order = alike.topk(min(k, alike.shape[1]), dim=1)
            where = torch.cat([where, names], dim=1).gather(1, order)
        found.append(where.cpu())
        cosines.append(best.cpu())
    return torch.cat(found).numpy(), torch.cat(cosines).numpy()


def _approximate(a: Tensor, b: Tensor, k: int) -> tuple[Indices, Float]:
    """Through an inverted file (Jégou et al. 2011, section 4): b is split into cells around means, a looks into the
    nearest PROBES. Unlike a graph of neighbours it is the same each time it is built."""
    require_index(max(len(a), len(b)))
    import faiss

    width, cells = b.shape[1], max(1, min(int(4 * math.sqrt(len(b))), len(b) // 40))
    means = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        means, width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.niter, index.cp.seed, index.nprobe = 10, 0, min(PROBES, cells)
    index.train(b[:: max(1, len(b) // (64 * cells))].float().numpy())
    for part in b.split(COLUMNS):
        index.add(part.float().numpy())
    parts = [index.search(part.float().numpy(), k) for part in a.split(COLUMNS)]
    cosines, found = (np.concatenate(side) for side in zip(*parts, strict=True))
    if len(few := np.flatnonzero((found < 0).any(axis=1))):  # the cells looked into held fewer than k
        found[few], cosines[few] = _exact(a[few], b, k, "cpu")
    return found, cosines
