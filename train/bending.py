"""By which bend all of one domain differs from the other, from pictures that are no pairs.

Each picture is bent onto the nearest of the other domain, which is of another thing: what is found differs from pair to
pair, but not what all have in common, and that is the middle of all. Bent by it pictures have nearer neighbours, and so
on. Bending one picture onto another is elastic registration by gradients (Bajcsy & Kovačič 1989, section 2), here of
edges' directions in place of grey levels, that domains of other looks have in common.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.alignment import MESH, Alignment, sensible
from .embedders import DIRECTIONS, directions, hog

SIZE = 64
"""Pixels of the side of pictures that are bent."""
SIDES = (8, 15), (16, 15), (32, 10)
"""Cells of the side at which edges are compared, from coarse to fine, and for how many steps each."""
RATE = 0.04
"""Of Adam, in halves of a side."""
STIFF, SHORT = 1.0, 0.1
"""What slopes of the bend cost, squared and in mean, beside the edges' difference, which is 1 to 2 before; and what its
lengths do: where there are no edges it is to be nothing."""
ROUNDS = 6
EDGES = 64 * DIRECTIONS
"""Numbers of `hog` that are of edges; the others are of colours, by which the domains may differ."""
BATCH = 128


def bent(x0: Tensor, x1: Tensor, a: Alignment, unlike: Callable[[Sequence[float]], float]) -> tuple[Alignment, float]:
    """`a` with a mesh, by which pictures x0 [N, 3, SIZE, SIZE] are more like their nearest of x1, and the share of
    what they lack by `a` in likeness (`unlike`) that it makes up for; `a` itself where that is nothing."""
    edges1, hog1, mesh = _edges(x1), hog(x1)[:, :EDGES], torch.zeros(1, 2, MESH, MESH)
    best, least = a, (first := unlike(a))
    for _ in range(ROUNDS):
        there = moved(x0, best)
        cosine, near = cosines(hog(there)[:, :EDGES], hog1).max(dim=1)
        some = cosine.topk(len(x0) // 2).indices  # of others nothing is learned
        found = [_onto(edges1[near[part]], _edges(there[part])) for part in some.split(BATCH)]
        step = torch.cat(found).median(dim=0, keepdim=True).values
        mesh = step + _at(mesh, _places(MESH, corners=True) + step.permute(0, 2, 3, 1))
        after = *a[:6], *(round(float(n), 4) for n in mesh[0].permute(1, 2, 0).flatten())
        if not sensible(after) or (cost := unlike(after)) >= least:
            break
        best, least = after, cost
    return best, made_up(first, least)


def made_up(before: float, after: float) -> float:
    """The share of what pictures lacked in likeness to their nearest that they lack no more; of next to nothing, as
    where the domains are the same pictures, next to none."""
    return (before - after) / max(before, 1e-3)


def cosines(e0: Tensor, e1: Tensor) -> Tensor:
    """How alike edges of two domains are, less what all have in common: [N0, D] and [N1, D] → [N0, N1]."""
    both = (e0.mean(dim=0) + e1.mean(dim=0)) / 2
    return F.normalize(e0 - both) @ F.normalize(e1 - both).T


def _edges(x: Tensor) -> Tensor:
    """Which way edges run, in units of those around: [N, 3, SIZE, SIZE] → [N, DIRECTIONS, 32, 32]."""
    cells = F.adaptive_avg_pool2d(directions(x), SIDES[-1][0])
    around = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 9, stride=1, padding=4, count_include_pad=False)
    return (cells / (around.sqrt() + 0.05)).clamp(max=4).sqrt()


def _onto(fixed: Tensor, moving: Tensor) -> Tensor:
    """Bends [N, 2, MESH, MESH] by which edges `moving` come to lie on those `fixed`, both as of `_edges`."""
    mesh = torch.zeros(len(fixed), 2, MESH, MESH, requires_grad=True)
    optimizer = torch.optim.Adam([mesh], lr=RATE)
    for side, steps in SIDES:
        there, here = (_blurred(F.adaptive_avg_pool2d(x, side), side < SIDES[-1][0]) for x in (fixed, moving))
        unit = (there.square() + here.square()).mean(dim=(1, 2, 3)) / 2 + 1e-6
        for _ in range(steps):
            places = _places(side) + _at(mesh, _places(side)).permute(0, 2, 3, 1)
            apart = (there - _at(here, places, corners=False)).square().mean(dim=(1, 2, 3)) / unit
            across, down = (torch.diff(mesh, dim=d) * (MESH - 1) / 2 for d in (2, 3))
            slopes = across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3))
            loss = apart + STIFF * slopes + SHORT * mesh.square().mean(dim=(1, 2, 3))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    return mesh.detach()


def _blurred(x: Tensor, wide: bool) -> Tensor:
    for _ in range(2 * wide):
        x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return x


def moved(x: Tensor, a: Sequence[float]) -> Tensor:
    """Squares [N, 3, H, H], moved as runtime/alignment.py moves them, bilinearly."""
    places = _places(x.shape[-1])
    if len(a) > 6:
        mesh = torch.tensor(a[6:]).view(1, MESH, MESH, 2).permute(0, 3, 1, 2)
        places = places + _at(mesh, places).permute(0, 2, 3, 1)
    u, v = places.unbind(dim=-1)
    places = torch.stack([a[0] * u + a[1] * v + a[2], a[3] * u + a[4] * v + a[5]], dim=-1)
    return _at(x, places, corners=False)


def _places(n: int, corners: bool = False) -> Tensor:
    """(x, y) of n × n pixels' middles in halves of a side, or from corner to corner: [1, n, n, 2]."""
    line = torch.linspace(-1, 1, n) if corners else (torch.arange(n) + 0.5) * 2 / n - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1)[None]


def _at(x: Tensor, places: Tensor, corners: bool = True) -> Tensor:
    """x [N, C, H, W], bilinearly at places; a mesh goes from corner to corner, pixels have middles."""
    places = places.expand(len(x), -1, -1, -1)
    return F.grid_sample(x, places, padding_mode="border", align_corners=corners)
