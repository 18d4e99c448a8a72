"""Steadier videos: what a translation adds to a frame is carried on from the last one where the frame stays."""

import numpy as np
import numpy.typing as npt

from .pixels import Uint8

MOVED = 24.0
"""Grey levels, a mean over 5×5 pixels, by which a frame must change for nothing to be carried on."""
REACH = 5


class Steady:
    """Called with frames and their translations in their order; gives the steadier translations.

    The displacement d = translation − frame is smoothed over time, per pixel: s ← s + a·(d − s), where a rises from
    1 − `strength` where nothing moves to 1 where the frame changes by MOVED, so that nothing is dragged behind. The
    output is frame + s: what moves in the frame moves at once.
    """

    def __init__(self, strength: float) -> None:
        """`strength` in [0, 1): 0 changes nothing."""
        self._strength = strength
        self._before: npt.NDArray[np.float32] | None = None
        self._kept: npt.NDArray[np.float32] | None = None

    @property
    def state(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """(the last frame, its smoothed displacement), with which another one goes on; None before the first."""
        return None if self._before is None or self._kept is None else (self._before, self._kept)

    @state.setter
    def state(self, state: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]) -> None:
        self._before, self._kept = state

    def __call__(self, frames: Uint8, translated: Uint8) -> Uint8:
        """uint8 [B, H, W, 3] twice → uint8 [B, H, W, 3]."""
        out = np.empty_like(translated)
        for i, (frame, made) in enumerate(zip(frames, translated, strict=True)):
            now = frame.astype(np.float32)
            shift = made.astype(np.float32) - now
            if self._before is not None and self._kept is not None:
                change = _smooth(np.abs(now - self._before).mean(axis=2))
                rate = 1 - self._strength * np.clip(1 - change / MOVED, 0, 1)
                shift = self._kept + rate[..., None] * (shift - self._kept)
            self._before, self._kept = now, shift
            out[i] = np.clip(np.rint(now + shift), 0, 255).astype(np.uint8)
        return out


def _smooth(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means over REACH × REACH pixels of [H, W], edges repeated."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        x = np.concatenate([x[:1].repeat(REACH // 2, 0), x, x[-1:].repeat(REACH // 2, 0)])
        n = len(x) - REACH + 1
        x = np.moveaxis(sum(x[k : k + n] for k in range(REACH)) / REACH, 0, axis)  # type: ignore[arg-type]
    return x
