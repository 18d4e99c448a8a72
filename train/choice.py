"""The preset for a training that names none."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from PIL import Image

from ..runtime.discovery import discover
from ..runtime.media import IMAGE_FORMATS, Media

LOOKED_AT = 64
"""Pictures of domain 1, evenly spread, whose sizes are read."""
SMALL = 96
"""Pixels of the short side below which crops of 128 px would mostly be enlarged."""


def suited(
    inputs0: Sequence[Path] | Literal["random"], inputs1: Sequence[Path], device: torch.device
) -> tuple[str, str]:
    """A preset's name, and why it was chosen: by the device, by noise, and by the pictures' median short side.

    Raises:
        UsageError: domain 1 is not there, or holds no picture.
    """
    if inputs0 == "random":
        return "generative", "pictures from noise"
    if device.type == "cpu":
        return "tiny", "no GPU was found, and it takes minutes without one"
    found = [media for media in discover(inputs1, lambda error: None) if media.kind == "image"]
    spread = found[:: max(1, len(found) // LOOKED_AT)]
    sides = [side for media in spread if (side := _short_side(media)) is not None]
    if sides and median(sides) < SMALL:
        return "small", f"pictures of about {median(sides):.0f} px"
    return "structure", f"pictures of about {median(sides):.0f} px" if sides else "films"


def _short_side(media: Media) -> int | None:
    try:
        with (
            media.open() as stream,
            warnings.catch_warnings(action="ignore"),
            Image.open(stream, formats=IMAGE_FORMATS) as image,
        ):
            return min(image.size)
    except Exception:  # Pillow raises a dozen kinds on damaged files; training will say so
        return None
