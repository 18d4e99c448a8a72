"""Nearest neighbours by cosine among the embeddings of two domains."""

import torch
from torch import Tensor

from .domains import Indices

ROWS, COLUMNS = 2048, 16384
"""Vectors of either side that are compared at once."""


def nearest(a: Tensor, b: Tensor, k: int, device: torch.device | str = "cpu") -> Indices:
    """For each row of unit vectors a [N, D] its k nearest rows of b [M, D] by cosine: [N, k], nearest first.

    In chunks: never N×M in memory.
    """
    k = min(k, len(b))
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
