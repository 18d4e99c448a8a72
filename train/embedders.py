"""What alike means: pictures to vectors whose cosine says how alike two are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RFPix2pixModel
from .dinov2 import build_dinov2, weights_file
from .net_config import ResNetSaliencyNet
from .pooling import pooled
from .saliency import build_saliency_net, torchvision

DIRECTIONS = 8
"""Bins of `hog` for the direction of an edge, over half a turn."""
GRID, CELL = 4, 256
"""Learned features are pooled to a grid of GRID × GRID cells, and each cell's channels taken to CELL numbers."""


@dataclass(frozen=True)
class Embedder:
    """Pictures [B, 3, size, size] in [-1, 1] → unit vectors [B, width].

    `name` says exactly which function this is: the net, its weights, the version of what comes before and after it.
    `parts`: the widths of parts of the vector, and how much each counts, from each of which what all pictures of a
    domain have in common is to be taken away before they are compared; none where vectors are compared as they are.
    """

    name: str
    size: int
    width: int
    parts: tuple[tuple[int, float], ...]
    embed: Callable[[Tensor], Tensor]


def foreground(x: Tensor) -> Tensor:
    """Distance to the picture's own median colour, pooled 8×8: where something is, whatever its colours.

    [B, 3, H, W] → unit vectors [B, 64].
    """
    median = x.flatten(2).median(dim=2).values[:, :, None, None]
    distance = (x - median).square().sum(dim=1, keepdim=True).sqrt()
    return F.normalize(pooled(distance, 8).flatten(1), dim=1)


def thumbnail(x: Tensor) -> Tensor:
    """The picture at 8×8, less its mean: which colours are where. [B, 3, H, W] → unit vectors [B, 192]."""
    small = pooled(x, 8).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


def pixels(x: Tensor) -> Tensor:
    """The picture at 16×16 as it is: the very same colours in the same places. [B, 3, H, W] → unit vectors [B, 768]."""
    return F.normalize(pooled(x, 16).flatten(1), dim=1)


def hog(x: Tensor) -> Tensor:
    """Edges that run the same way in the same places, and the layout of colours: [B, 3, H, W] → [B, 704].

    512 numbers are histograms of oriented gradients (Dalal & Triggs 2005, sections 6.2 to 6.4): 8 directions without
    sign in 8×8 cells, each cell in units of the edges around it, and square roots of these, so that a line drawing and
    a photograph of the same thing have the same. 192 are the picture at 8×8. Both are unit vectors.
    """
    cells = pooled(directions(x), 8)
    around = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 3, stride=1, padding=1)
    edges = (cells / (around.sqrt() + 0.05)).sqrt().flatten(1)
    return torch.cat([F.normalize(edges), F.normalize(pooled(x, 8).flatten(1))], dim=1)


def directions(x: Tensor) -> Tensor:
    """How strong edges are in each direction, without sign: [B, 3, H, W] → [B, DIRECTIONS, H, W]."""
    dx, dy = F.pad(x[..., 2:] - x[..., :-2], (1, 1)), F.pad(x[:, :, 2:] - x[:, :, :-2], (0, 0, 1, 1))
    strongest = (dx.square() + dy.square()).argmax(dim=1, keepdim=True)  # of the three colours
    dx, dy = dx.gather(1, strongest), dy.gather(1, strongest)
    place = torch.atan2(dy, dx).remainder(math.pi) / math.pi * DIRECTIONS
    below = place.floor()
    strength, share = torch.hypot(dx, dy), place - below
    votes = x.new_zeros(len(x), DIRECTIONS, *x.shape[2:])
    votes.scatter_add_(1, below.long() % DIRECTIONS, strength * (1 - share))
    votes.scatter_add_(1, (below.long() + 1) % DIRECTIONS, strength * share)
    return votes


def grid(features: Tensor) -> Tensor:
    """A feature map [B, C, H, W], pooled to 4×4 → unit vectors [B, 4096].

    Each cell's channels go through random signs of its own, fixed for ever, which keep cosines (Achlioptas 2003,
    theorem 1.1): a ResNet50's 32,768 numbers are too many to keep of every picture.
    """
    cells = pooled(features, GRID).flatten(2).transpose(1, 2)
    projected = torch.einsum("bnc,ncd->bnd", cells, _signs(features.shape[1]).to(cells.device))
    return F.normalize(projected.flatten(1), dim=1)


@cache
def _signs(channels: int) -> Tensor:
    bits = np.random.default_rng(0).integers(0, 2, (GRID * GRID, channels, CELL), np.int8)
    return torch.from_numpy(bits * 2 - 1).float()


def build_embedder(config: RFPix2pixModel, device: torch.device, md5: Callable[[Path], str]) -> Embedder:
    """The embedder of a config; a net is built when it is first needed. `md5` tells the MD5 of a weights file.

    Raises:
        UsageError: weights are missing or do not fit, or a package is (MissingExtraError).
    """
    match config.structure_embedder:
        case "foreground":
            return Embedder("foreground/1", 64, 64, (), foreground)
        case "thumbnail":
            return Embedder("thumbnail/1", 64, 192, (), thumbnail)
        case "pixels":
            return Embedder("pixels/1", 64, 768, (), pixels)
        case "hog":
            return Embedder("hog/1", 64, 704, ((512, 1.0), (192, 0.5)), hog)
        case "backbone":
            assert isinstance(config.saliency_net, ResNetSaliencyNet)  # the config sees to it
            return _backbone(config.saliency_net, device, md5)
        case name:
            path = weights_file(name, config.structure_weights)
            net = cache(lambda: build_dinov2(name, path).to(device))
            return learned(f"{name}/1/{md5(path)}", lambda x: net()(x))


def find_weights(config: RFPix2pixModel) -> Path | None:
    """The file that DINOv2's weights are read from, after a download if need be; None for the other embedders.

    Raises:
        UsageError: they are nowhere to be had. MissingExtraError: timm is not installed.
    """
    name = config.structure_embedder
    return weights_file(name, config.structure_weights) if name.startswith("dinov2_") else None


def learned(name: str, features: Callable[[Tensor], Tensor]) -> Embedder:
    """A net's feature map [B, C, H, W] of pictures [B, 3, 224, 224], pooled and projected by `grid`."""

    @torch.no_grad()
    def embed(x: Tensor) -> Tensor:
        return grid(features(x))

    return Embedder(name, 224, GRID * GRID * CELL, ((GRID * GRID * CELL, 1.0),), embed)


def _backbone(config: ResNetSaliencyNet, device: torch.device, md5: Callable[[Path], str]) -> Embedder:
    """The last feature map of the classifier's backbone, as it is before it learns the domains."""

    @cache
    def net() -> nn.Module:
        normalize, resnet = build_saliency_net(config).backbone.children()
        *layers, _pool, _head = resnet.children()
        return nn.Sequential(normalize, *layers).requires_grad_(False).eval().to(device)

    if config.weights is None:
        weights = Path(torchvision().models.get_model_weights(config.backbone).DEFAULT.url).stem
    elif not (weights := md5(Path(config.weights).expanduser())):
        net()  # says what is wrong with that file
    return learned(f"{config.backbone}/1/{weights}", lambda x: net()(x))
