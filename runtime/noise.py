"""Noise that comes again: N(0, 1) as a function of a seed and keys, so that there is no generator state anywhere."""

from collections.abc import Iterable

import numpy as np

from .pixels import Float


def noise(shape: tuple[int, ...], seed: int, *key: int) -> Float:
    """float32 of `shape`, each value from N(0, 1): a function of the arguments, whatever was drawn before."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal(shape, np.float32)


def noises(shape: tuple[int, int, int], seed: int, numbers: Iterable[int]) -> Float:
    """What `rfp generate --seed S` starts pictures from: float32 [B, C, H, W], picture i from noise(shape, S, i)."""
    return np.stack([noise(shape, seed, i) for i in numbers])
