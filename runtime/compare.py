"""A frame and its translation in one picture."""

import math

import numpy as np
from PIL import Image

from .pixels import Uint8

PERIOD = 6.0
"""Seconds in which the line of a wipe goes across and back."""


def compared(source: Uint8, translated: Uint8, how: str, seconds: float) -> Uint8:
    """uint8 [H, W, 3] twice → [H, 2W, 3] with the source on the left, or [H, W, 3] with the source left of a white
    line that moves with the time in the film."""
    height, width = translated.shape[:2]
    if source.shape != translated.shape:
        source = np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.LANCZOS))
    if how == "side":
        return np.concatenate([source, translated], axis=1)
    line = round((width - 1) * (0.5 - 0.5 * math.cos(2 * math.pi * seconds / PERIOD)))
    out = translated.copy()
    out[:, :line] = source[:, :line]
    out[:, line : line + max(1, width // 400)] = 255
    return out
