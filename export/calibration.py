"""What int8 graphs are calibrated with: states along real trajectories, at all t, in both directions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runtime.alignment import moved
from ..runtime.discovery import discover
from ..runtime.errors import UsageError
from ..runtime.euler import integrate
from ..runtime.media import Media, read_image
from ..runtime.noise import noises
from ..runtime.pixels import Float, Uint8, to_float
from .proof import Made
from .source import Size, Source, resized

Feed = dict[str, npt.NDArray[np.float32]]
"""The inputs of one call of a graph."""
PICTURES = 8
"""Of each direction; their states at every step are 200 calls for 12 steps."""


def trajectories(source: Source, made: Made, folder: Path | None) -> dict[str, list[Feed]]:
    """Feeds of each role, by the float32 graphs `made`, from the checkpoint's pictures or those in `folder`.

    Pictures of a folder are of domain 0 (of domain 1 where the model is generative); trajectories the other way then
    begin where theirs ended.

    Raises:
        UsageError: no picture in the folder.
    """
    size, generative, steps = source.sizes[0], source.manifest.generative, source.manifest.default_steps
    feeds: dict[str, list[Feed]] = {"velocity": [], "encoder": [], "decoder": []}

    def velocity(x: Float, t: float) -> Float:
        feeds["velocity"].append({"x": x, "t": np.array([t], np.float32)})
        return made.velocity(x, t)

    def encoded(pictures: Uint8) -> Float:
        x = to_float(resized(pictures[:PICTURES], size))
        feeds["encoder"].append({"x": x})
        return made.codec.encode(x)

    def follow(z: Float, start: int) -> Float:
        end = integrate(velocity, z, steps, float(start), 1.0 - start)
        feeds["decoder"].append({"z": end})
        return end

    zero, one = (None, None) if folder else source.pictures
    if folder is not None:
        given, alignment = _read(folder, size), source.manifest.alignment
        given = np.stack([moved(picture, alignment) for picture in given]) if alignment else given
        zero, one = (None, given) if generative else (given, None)
    if generative:
        shape = made.codec.channels, size[1] // made.codec.factor, size[0] // made.codec.factor
        end = follow(noises(shape, 0, range(PICTURES)), 0)
    else:
        assert zero is not None
        end = follow(encoded(zero), 0)
    follow(end if one is None else encoded(one), 1)
    return feeds


def calibration_pictures(folder: Path) -> list[Media]:
    """Raises UsageError where there is none."""
    found = [media for media in discover([folder]) if media.kind == "image"]
    if not found:
        raise UsageError(f"--calibration {folder}: holds no picture")
    return found


def _read(folder: Path, size: Size) -> Uint8:
    found = calibration_pictures(folder)
    some: Sequence[int] = np.linspace(0, len(found) - 1, min(PICTURES, len(found))).round().astype(int).tolist()
    return np.concatenate([resized(np.asarray(read_image(found[i]))[None], size) for i in some])
