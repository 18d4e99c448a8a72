"""Back to the input's own size, from the size at which the net worked."""

import numpy as np
from PIL import Image

from .pixels import Float, Uint8


def resized(pixels: Uint8, size: tuple[int, int]) -> Uint8:
    """uint8 [H, W, 3] at (width, height), by Lanczos, from whole pixels averaged down to three times that first."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def given_back(upscale: str, original: Uint8, small: Uint8, made: Uint8) -> Uint8:
    """The translation `made` of `small` at the size of `original`; all uint8 [H, W, 3].

    "none" leaves it as it is. "resize" enlarges it. "residual" enlarges what the flow added, made − small, and adds
    that to the original, whose detail so stays; it needs a flow that keeps what is where (pairs alike in structure).
    """
    height, width = original.shape[:2]
    if upscale == "none" or made.shape == original.shape:
        return made
    if upscale == "resize":
        return resized(made, (width, height))
    out = np.empty_like(original)
    for c in range(3):  # one channel at a time: a third of the memory at 4K
        added = enlarged(made[..., c].astype(np.float32) - small[..., c], (width, height))
        np.add(added, original[..., c], out=added)
        np.rint(added, out=added)
        np.clip(added, 0, 255, out=added)
        np.copyto(out[..., c], added, casting="unsafe")
    return out


def enlarged(plane: Float, size: tuple[int, int]) -> Float:
    """float32 [H, W] at (width, height): bicubic, and averaging where it becomes smaller."""
    return np.array(Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.BICUBIC))
