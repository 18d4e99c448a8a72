"""Pictures as feature vectors, to judge how real they look and what was kept: by a network, or without weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .distances import Vectors
from .errors import BundleError, UsageError
from .pixels import Float, Uint8

GRID = 4
"""Cells a side of the grid on which features say what is where."""
METADATA_KEY = "rfp_features"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIRECTIONS = 8
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32).T


@dataclass(frozen=True)
class FeatureNet:
    """A network that sees RGB pictures of `size` × `size` px, (x/255 − mean)/std.

    `maps` takes float32 [B, 3, size, size] and gives float32 [B, C, h, w], or vectors [B, D], which say
    nothing of places. `at_once` pictures are given to it.
    """

    name: str
    size: int
    maps: Callable[[Float], Float]
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    at_once: int = 32

    def see(self, picture: Uint8) -> Float:
        """uint8 [H, W, 3] → float32 [3, size, size], resized bicubically with antialiasing, not rounded."""
        planes = np.empty((3, self.size, self.size), np.float32)
        for c in range(3):
            plane = Image.fromarray(picture[..., c].astype(np.float32) / 255)
            planes[c] = np.asarray(plane.resize((self.size, self.size), Image.Resampling.BICUBIC))
            planes[c] = (planes[c] - self.mean[c]) / self.std[c]
        return planes


class Seen(NamedTuple):
    """What features say of N pictures: of each as a whole, float64 [N, D]; and of the cells of a grid, or None."""

    vectors: Vectors
    grids: Float | None


def describe(net: FeatureNet | None, pictures: Uint8, on_progress: Callable[[int], None] = lambda count: None) -> Seen:
    """Features of uint8 [N, H, W, 3]; without a network those of `statistics`. `on_progress` counts pictures."""
    vectors, grids = [], []
    count = net.at_once if net else FeatureNet.at_once
    for i in range(0, len(pictures), count):
        batch = pictures[i : i + count]
        if net is None:
            vectors.append(np.stack([statistics(picture) for picture in batch]))
        else:
            out = net.maps(np.stack([net.see(picture) for picture in batch]))
            vectors.append((out if out.ndim == 2 else out.mean(axis=(2, 3))).astype(np.float64))
            grids += [pooled(out, GRID).reshape(len(out), -1)] if out.ndim == 4 else []
        on_progress(len(batch))
    return Seen(np.concatenate(vectors), np.concatenate(grids) if grids else None)


def pooled(maps: Float, cells: int) -> Float:
    """[B, C, h, w] → the means of `cells` × `cells` windows, which overlap where sizes do not divide.

    Equal to torch's adaptive_avg_pool2d.
    """
    for axis in (2, 3):
        n = maps.shape[axis]
        windows = [slice(i * n // cells, -(-(i + 1) * n // cells)) for i in range(cells)]
        maps = np.stack([np.take(maps, range(n)[w], axis).mean(axis=axis) for w in windows], axis=axis)
    return maps


def onnx_features(path: Path) -> FeatureNet:
    """A feature network from an ONNX graph, run on the CPU: one float32 input [B, 3, H, W], features as first output.

    How it wants pictures is in its metadata under `rfp_features`, as JSON: {"size": 224, "mean": [r, g, b], "std":
    [r, g, b]}. Without that, the size is the graph's own (224 where it takes any) and mean and std those of ImageNet.

    Raises:
        UsageError: no such file, or a graph that takes or gives something else.
        BundleError: a file that ONNX Runtime cannot load.
    """
    from .network import open_session

    try:
        model = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path}: cannot be read ({e.strerror or e})") from e
    session = open_session(model, path)
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    shape = inputs[0].shape
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, "C"):
        raise UsageError(f"{path}: not a feature graph: wanted one float32 input [B, 3, H, W], found {shape}")
    if output.type != "tensor(float)" or len(output.shape) not in (2, 4):
        raise UsageError(
            f"{path}: its output {output.name} is {output.type} {output.shape}; wanted features [B, C, h, w]"
        )
    size = shape[2] if isinstance(shape[2], int) else 224
    asked = _asked(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"), path)
    one_by_one = shape[0] == 1

    def maps(x: Float) -> Float:
        parts = np.split(x, len(x)) if one_by_one else [x]
        try:
            out: Float = np.concatenate([session.run([output.name], {inputs[0].name: part})[0] for part in parts])
        except Exception as e:  # ONNX Runtime's errors share no base below Exception
            raise BundleError(f"{path}: failed on pictures of {x.shape[2]}×{x.shape[3]} px: {str(e)[:300]}") from e
        return out

    return FeatureNet(**{"name": path.stem, "size": size, "maps": maps, **asked})


def _asked(text: str, path: Path) -> dict[str, Any]:
    try:
        given = dict(json.loads(text))
        asked: dict[str, Any] = {k: tuple(float(v) for v in given[k]) for k in ("mean", "std") if k in given}
        if any(len(v) != 3 for v in asked.values()) or 0 in asked.get("std", ()):
            raise ValueError("mean and std are three numbers each, and no std is 0")
        if "size" in given:
            asked["size"] = int(given["size"])
            if not 1 <= asked["size"] <= 4096:
                raise ValueError(f"size {given['size']}")
        return asked | ({"name": str(given["name"])} if "name" in given else {})
    except (ValueError, TypeError) as e:
        raise UsageError(f"{path}: its metadata {METADATA_KEY!r} cannot be read: {e}") from e


def statistics(picture: Uint8) -> Vectors:
    """Features without a network: texture, contrast and colours of uint8 [H, W, 3], float64 [156].

    At 64 px and three halvings of it, in Y, Cb and Cr: log energy and log mean size of differences in four
    directions, and log variance; then the colours of a 4×4 grid. It knows no object: it tells styles apart, not
    nonsense from things.
    """
    image = Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC)
    x = (np.asarray(image).astype(np.float32) / 127.5 - 1) @ _YCBCR
    out = []
    for _ in range(4):
        here, right, below, beyond = x[:-1, :-1], x[:-1, 1:], x[1:, :-1], x[1:, 1:]
        for d in (right - here, below - here, beyond - here, below - right):
            out += [np.log(np.square(d).mean(axis=(0, 1)) + 1e-4), np.log(np.abs(d).mean(axis=(0, 1)) + 1e-3)]
        out.append(np.log(x.var(axis=(0, 1)) + 1e-4))
        x = (x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]) / 4
    return np.concatenate([*out, 2 * x.ravel()]).astype(np.float64)


def in_units_of(real: Vectors, *others: Vectors) -> list[Vectors]:
    """`statistics` as deviations from what real ones [N, D] show, drawn in to ±1 so that no single one decides."""
    mean, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    return [np.tanh((x - mean) / spread / 2) for x in (real, *others)]


def outlines(pictures: Uint8) -> Float:
    """What is where, without a network: directions of the edges in each of 4×4 cells (Dalal & Triggs 2005),
    whatever the colours. uint8 [N, H, W, 3] → float32 [N, 128]."""
    gray = pictures.mean(axis=3)
    dy = gray[:, 2:, 1:-1] - gray[:, :-2, 1:-1]
    dx = gray[:, 1:-1, 2:] - gray[:, 1:-1, :-2]
    place = np.mod(np.arctan2(dy, dx), np.pi) / np.pi * DIRECTIONS
    size = np.sqrt(np.hypot(dx, dy))  # a strong edge says little more than a clear one
    near = [
        np.maximum(0, 1 - np.abs((place - k + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2)) for k in range(DIRECTIONS)
    ]
    maps = np.stack([size * share for share in near], axis=1).astype(np.float32)
    return pooled(maps, GRID).reshape(len(pictures), -1)


def apart(a: Float | Vectors, b: Float | Vectors) -> float:
    """1 − cosine of grids [N, D], the mean over N: 0 the same things in the same places."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.maximum(0, 1 - (a * b).sum(axis=1) / np.maximum(lengths, 1e-12))))
