"""Nearest neighbours by cosine among the embeddings of two domains."""

import torch
from torch import Tensor

from .domains import Indices

CHUNK = 2**25
"""Similarities in memory at once."""


def nearest(a: Tensor, b: Tensor, k: int) -> Indices:
    """For each row of unit vectors a [N, D] its k nearest rows of b [M, D] by cosine: [N, k], nearest first.

    In chunks: never N×M in memory.
    """
    k = min(k, len(b))
    rows = max(1, CHUNK // len(b))
    return torch.cat([(chunk @ b.T).topk(k, dim=1).indices for chunk in a.split(rows)]).numpy()
