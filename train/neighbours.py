"""Nearest neighbours by cosine among the embeddings of two domains."""

import math

import numpy as np
import torch
from torch import Tensor

from ..runtime.errors import MissingExtraError
from .domains import Indices

ROWS, COLUMNS = 2048, 16384
"""Vectors of either side that are compared at once."""
EXACT_UP_TO = 200_000
"""Pictures of a domain above which an approximate index finds its neighbours."""
PROBES = 32
"""Cells of the index that are looked through for each picture: recall .97, measured in benchmarks/RESULTS.md."""


def nearest(a: Tensor, b: Tensor, k: int, device: torch.device | str = "cpu") -> Indices:
    """For each row of unit vectors a [N, D] its k nearest rows of b [M, D] by cosine: [N, k], nearest first.

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


def _exact(a: Tensor, b: Tensor, k: int, device: torch.device | str) -> Indices:
    found = []
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
    return torch.cat(found).numpy()


def _approximate(a: Tensor, b: Tensor, k: int) -> Indices:
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
    found: Indices = np.concatenate([index.search(part.float().numpy(), k)[1] for part in a.split(COLUMNS)])
    if len(few := np.flatnonzero((found < 0).any(axis=1))):  # the cells looked into held fewer than k
        found[few] = _exact(a[few], b, k, "cpu")
    return found
