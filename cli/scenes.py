"""The demo's landscapes: a lake in the mountains by day, and the same place by night.

A Scene is a handful of numbers. They slide fixed panoramas (mountains, far shore, near bank) behind the frame, so that
among a few hundred scenes there is nearly always another that looks much alike: unpaired training lives on that.
What the night shows follows from what the day shows: the moon stands where the sun stood, the windows of the same
houses are lit, and the stars are fixed to the frame.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..runtime.pixels import Uint8
from .canvas import View, to_image
from .landscape import bank, hills, homes_in, houses, lake, mountains, sky, trees
from .palette import look_of

SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One landscape.

    sun: its place, x as a part of the width, y of the height. mountains, shore, bank, clouds: how far each panorama is
    slid, in picture heights. season: 0 spring green … 1 autumn. warmth: 0 clear … 1 golden light.
    """

    sun: tuple[float, float]
    mountains: float
    shore: float
    bank: float
    clouds: float
    season: float
    warmth: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene. It takes the same draws from `rng` every time, so scene k of a seed is always the same."""
    sun_x, place, side, near, clouds, season, warmth = rng.uniform(size=7).tolist()
    sun_x = 0.16 + 0.68 * sun_x
    return Scene(
        sun=(sun_x, 0.17 + 0.5 * (sun_x - 0.5) ** 2),  # higher in the middle of its path
        mountains=1.5 * place,  # one place for both: each freedom more makes a near match rarer
        shore=0.7 * place,
        bank=(-0.30 if side < 0.5 else -0.82) + 0.24 * near,  # the tall trees stand to the left or to the right
        clouds=2 * clouds,
        season=season,
        warmth=warmth,
    )


def render(scene: Scene, night: bool, size: int = 64, shift: float = 0.0, width: int | None = None) -> Uint8:
    """Draw `scene` as uint8 [size, width, 3] RGB; `width` is `size` unless given.

    `shift` moves the camera sideways, in picture heights of the near bank: what is farther moves less, the sun, the
    moon and the stars not at all. Day and night of one scene and shift show the same place.
    """
    view = View(size * SUPERSAMPLING, (width or size) * SUPERSAMPLING)
    look = look_of(night, scene.season, scene.warmth)
    sun = (scene.sun[0] * view.aspect, scene.sun[1])
    homes = homes_in(view, scene.shore + 0.45 * shift)
    land = sky(view, look, sun, scene.clouds + 0.35 * shift)
    mountains(land, view, look, sun, scene.mountains + 0.12 * shift)
    hills(land, view, look, scene.shore + 0.45 * shift)
    houses(land, view, look, sun, homes)
    picture = lake(land, view, look, sun, homes, 0.5 * shift)
    bank(picture, view, look, scene.bank + shift)
    image = to_image(picture)
    trees(image, view, look, sun, scene.bank + shift)
    return np.asarray(image.resize((view.w // SUPERSAMPLING, size), Image.Resampling.LANCZOS, reducing_gap=2))
