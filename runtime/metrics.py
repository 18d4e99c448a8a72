"""How far a translated image is from the truth. Each takes uint8 [H, W, 3], or stacks [B, H, W, 3] for the mean over B.

Read them together: a blurred image can score a good psnr and ssim; its texture_energy shows the blur.
"""

import numpy as np
import numpy.typing as npt

from .pixels import Uint8

WINDOW = 7
"""Side of the ssim window, uniform as in scikit-image's structural_similarity."""


def l1(a: Uint8, b: Uint8) -> float:
    """Mean absolute difference as a part of the full range: 0 the same … 1 black against white."""
    a, b = _stacks(a, b)
    return float(np.mean(np.abs(a.astype(np.float64) - b))) / 255


def psnr(a: Uint8, b: Uint8) -> float:
    """Peak signal to noise ratio in dB, the mean of the images' own; 78.1 for identical images."""
    a, b = _stacks(a, b)
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def ssim(a: Uint8, b: Uint8) -> float:
    """Structural similarity in [-1, 1], 1 for identical images (Wang et al. 2004, equation 13).

    Equal to scikit-image's structural_similarity(a, b, channel_axis=2): the mean over all whole 7×7 windows.

    Raises:
        ValueError: the shapes differ, or a side is below 7.
    """
    a, b = _stacks(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"ssim() needs images of at least {WINDOW}×{WINDOW} pixels, got {a.shape[1]}×{a.shape[2]}")
    return float(np.mean([_ssim(x.astype(np.int64), y.astype(np.int64)) for x, y in zip(a, b, strict=True)]))


def _ssim(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> float:
    n, c1, c2 = WINDOW**2, (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _window_sums(x) / n, _window_sums(y) / n
    unbiased = n / (n - 1)
    vx = unbiased * (_window_sums(x * x) / n - mx * mx)
    vy = unbiased * (_window_sums(y * y) / n - my * my)
    vxy = unbiased * (_window_sums(x * y) / n - mx * my)
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))))


def _window_sums(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums over every whole window of [H, W, C], exact because they are integers, by differences of running sums."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        running = np.concatenate((np.zeros_like(x[:1]), np.cumsum(x, axis=0)))
        x = np.moveaxis(running[WINDOW:] - running[:-WINDOW], 0, axis)
    return x


def texture_energy(a: Uint8, b: Uint8) -> float:
    """Laplacian energy of `a` over that of `b`: 1 is right, below it is blur, above it noise. nan where b is flat.

    Raises:
        ValueError: the shapes differ, or a side is below 3.
    """
    a, b = _stacks(a, b)
    if min(a.shape[1:3]) < 3:
        raise ValueError(f"texture_energy() needs images of at least 3×3 pixels, got {a.shape[1]}×{a.shape[2]}")
    of_b = laplacian_energy(b)
    return laplacian_energy(a) / of_b if of_b else float("nan")


def laplacian_energy(images: Uint8) -> float:
    """Mean square of the grey picture's Laplacian (4, −1, −1, −1, −1), uint8 [B, H, W, 3]: how fine it is."""
    g = images.mean(axis=3)
    laplacian = 4 * g[:, 1:-1, 1:-1] - g[:, :-2, 1:-1] - g[:, 2:, 1:-1] - g[:, 1:-1, :-2] - g[:, 1:-1, 2:]
    return float(np.mean(laplacian**2))


def edge_correlation(a: Uint8, b: Uint8) -> float:
    """Pearson correlation of the sizes of the grey pictures' gradients: 1 edges in the same places … 0 unrelated.

    The mean over the images; one without edges counts 1 beside another such, else 0. Raises as texture_energy does.
    """
    a, b = _stacks(a, b)
    if min(a.shape[1:3]) < 3:
        raise ValueError(f"edge_correlation() needs images of at least 3×3 pixels, got {a.shape[1]}×{a.shape[2]}")
    x, y = (e - e.mean(axis=1, keepdims=True) for e in (_edges(a), _edges(b)))
    of_x, of_y = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    both = np.sqrt(of_x * of_y)
    same = np.where((of_x == 0) & (of_y == 0), 1.0, 0.0)
    return float(np.mean(np.where(both > 0, (x * y).sum(axis=1) / np.where(both > 0, both, 1), same)))


def _edges(images: Uint8) -> npt.NDArray[np.float64]:
    """Central differences' lengths, [B, (H − 2)·(W − 2)]."""
    g = images.mean(axis=3)
    size: npt.NDArray[np.float64] = np.hypot(g[:, 1:-1, 2:] - g[:, 1:-1, :-2], g[:, 2:, 1:-1] - g[:, :-2, 1:-1])
    return size.reshape(len(g), -1)


def _stacks(a: Uint8, b: Uint8) -> tuple[Uint8, Uint8]:
    if a.shape != b.shape or a.ndim not in (3, 4) or a.size == 0 or a.dtype != np.uint8 or b.dtype != np.uint8:
        wanted = "two uint8 arrays of one shape, [H, W, 3] or [B, H, W, 3]"
        raise ValueError(f"metrics compare {wanted}; got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return (a[None], b[None]) if a.ndim == 3 else (a, b)


STILL = 2.0
"""Grey levels, a mean over the channels, by which a pixel may change from frame to frame and be called still."""


def flicker(frames: Uint8, translated: Uint8) -> dict[str, float]:
    """How a translated film changes from frame to frame beside its source, both uint8 [T, H, W, 3], T at least 2.

    Returns:
        `change`: mean absolute difference of neighbouring frames over that of the source; 1 moves as much as it does.
        `still`: that difference in grey levels where the source changes by STILL at most: flicker and nothing else;
        `still_source`: the source's own there, the floor. nan where nothing stands still, or nothing moves at all.
    """
    if frames.shape != translated.shape or frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"flicker() needs two films of one shape [T, H, W, 3], got {frames.shape}, {translated.shape}")
    still, source, pixels, total, total_source = 0.0, 0.0, 0, 0.0, 0.0
    for k in range(1, len(frames)):
        before = np.abs(frames[k].astype(np.int16) - frames[k - 1]).mean(axis=2)
        after = np.abs(translated[k].astype(np.int16) - translated[k - 1]).mean(axis=2)
        rest = before <= STILL
        total, total_source = total + after.sum(), total_source + before.sum()
        still, source, pixels = still + after[rest].sum(), source + before[rest].sum(), pixels + int(rest.sum())
    nan = float("nan")
    return {
        "change": float(total / total_source) if total_source else nan,
        "still": float(still / pixels) if pixels else nan,
        "still_source": float(source / pixels) if pixels else nan,
    }
