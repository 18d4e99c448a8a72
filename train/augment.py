"""Augmentations for the classifier, drawn afresh for every picture: one draw for a whole batch lets it cheat."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .net_config import Augmentation

LUMA = torch.tensor([0.299, 0.587, 0.114])
LOTS = 10
"""Numbers that all augmentations together use for one picture."""
Draw = Callable[[float, float], Tensor]
"""Uniform numbers between two bounds, one per picture: [B, 1, 1, 1]."""


def lots(n: int, rng: torch.Generator) -> Tensor:
    """What decides on n pictures: uniform numbers in [0, 1), [n, LOTS], a row a picture.

    Drawn for a whole batch and then split with it: what happens to a picture depends neither on the minibatch nor on
    the ranks.
    """
    return torch.rand(n, LOTS, generator=rng)


def augment(x: Tensor, names: Sequence[Augmentation], lots: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] → the same shape and range, as `lots` [B, LOTS] decide."""
    columns = iter(lots[:, :, None, None, None].to(x.device).unbind(1))

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns)

    for name in names:
        match name:
            case "color_jitter":
                x = _color_jitter(x, draw)
            case "grayscale":
                x = torch.where(draw(0, 1) < 0.1, _gray(x), x)
            case "hflip":
                x = torch.where(draw(0, 1) < 0.5, x.flip(-1), x)
            case "random_erasing":
                x = _erase(x, draw)
    return x


def _gray(x: Tensor) -> Tensor:
    return (x * LUMA.to(x).view(3, 1, 1)).sum(dim=1, keepdim=True).expand_as(x)


def _color_jitter(x: Tensor, draw: Draw, strength: float = 0.2) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of 1 ± strength."""
    x = (x + 1) * draw(1 - strength, 1 + strength) - 1
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * draw(1 - strength, 1 + strength)
    gray = _gray(x)
    x = gray + (x - gray) * draw(1 - strength, 1 + strength)
    return x.clamp(-1, 1)


def _erase(x: Tensor, draw: Draw) -> Tensor:
    """A grey rectangle of 10 to 40 % of each side, in half of the pictures."""
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device).view(1, 1, h, 1) / h
    columns = torch.arange(w, device=x.device).view(1, 1, 1, w) / w
    height, width = draw(0.1, 0.4), draw(0.1, 0.4)
    top, left = draw(0, 1) * (1 - height), draw(0, 1) * (1 - width)
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return torch.where(inside & (draw(0, 1) < 0.5), torch.zeros_like(x), x)
