"""Augmentations for the classifier, drawn afresh for every picture: one draw for a whole batch lets it cheat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Augmentation

LUMA = torch.tensor([0.299, 0.587, 0.114])


def augment(x: Tensor, names: Sequence[Augmentation], rng: torch.Generator) -> Tensor:
    """[B, 3, H, W] in [-1, 1] → the same shape and range. `rng` lives on the CPU."""
    for name in names:
        match name:
            case "color_jitter":
                x = _color_jitter(x, rng)
            case "grayscale":
                x = torch.where(_draw(x, rng) < 0.1, _gray(x), x)
            case "hflip":
                x = torch.where(_draw(x, rng) < 0.5, x.flip(-1), x)
            case "random_erasing":
                x = _erase(x, rng)
    return x


def _draw(x: Tensor, rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """One uniform number per picture: [B, 1, 1, 1]."""
    return (low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=rng)).to(x.device)


def _gray(x: Tensor) -> Tensor:
    return (x * LUMA.to(x).view(3, 1, 1)).sum(dim=1, keepdim=True).expand_as(x)


def _color_jitter(x: Tensor, rng: torch.Generator, strength: float = 0.2) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of 1 ± strength."""
    x = (x + 1) * _draw(x, rng, 1 - strength, 1 + strength) - 1
    mean = _gray(x).mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * _draw(x, rng, 1 - strength, 1 + strength)
    gray = _gray(x)
    x = gray + (x - gray) * _draw(x, rng, 1 - strength, 1 + strength)
    return x.clamp(-1, 1)


def _erase(x: Tensor, rng: torch.Generator) -> Tensor:
    """A grey rectangle of 10 to 40 % of each side, in half of the pictures."""
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device).view(1, 1, h, 1) / h
    columns = torch.arange(w, device=x.device).view(1, 1, 1, w) / w
    height, width = _draw(x, rng, 0.1, 0.4), _draw(x, rng, 0.1, 0.4)
    top, left = _draw(x, rng) * (1 - height), _draw(x, rng) * (1 - width)
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return torch.where(inside & (_draw(x, rng) < 0.5), torch.zeros_like(x), x)
