"""The two palettes of the demo's landscapes: the same things by day and by night."""

from dataclasses import dataclass

import numpy as np

from .canvas import Float


@dataclass(frozen=True)
class Look:
    """A palette, colours as float32 [3, 1, 1] in [0, 255], and how strong the textures and lights are."""

    night: bool
    sky_top: Float
    sky_low: Float
    sky_bend: float
    glow: Float
    disc: Float
    cloud: Float
    cloud_rim: Float
    cloud_alpha: float
    rock: Float
    rock_shade: Float
    snow: Float
    haze: Float
    hill: Float
    field: Float
    wood: Float
    bank: Float
    bank_low: Float
    tree: Float
    tree_lit: Float
    trunk: Float
    wall: Float
    roof: Float
    window: Float
    lamp: Float
    rim: Float
    water: Float
    glitter: float
    texture: float


def _c(r: int, g: int, b: int) -> Float:
    return np.array((r, g, b), np.float32)[:, None, None]


def look_of(night: bool, season: float, warmth: float) -> Look:
    """The palette of a scene: the season shows by day only, warmth in both (the night's violet)."""
    return _night(warmth) if night else _day(season, warmth)


def _by(value: float, a: Float, b: Float) -> Float:
    return a + np.float32(value) * (b - a)


def _day(season: float, warmth: float) -> Look:
    return Look(
        night=False,
        sky_top=_by(warmth, _c(44, 120, 212), _c(92, 116, 190)),
        sky_low=_by(warmth, _c(192, 226, 242), _c(255, 216, 176)),
        sky_bend=1.2,
        glow=_by(warmth, _c(60, 52, 26), _c(84, 56, 10)),
        disc=_by(warmth, _c(255, 250, 214), _c(255, 240, 170)),
        cloud=_c(255, 255, 255),
        cloud_rim=_by(warmth, _c(214, 228, 242), _c(244, 222, 206)),
        cloud_alpha=0.95,
        rock=_by(warmth, _c(164, 160, 168), _c(186, 160, 146)),
        rock_shade=_by(warmth, _c(92, 104, 136), _c(104, 98, 124)),
        snow=_c(252, 252, 255),
        haze=_by(warmth, _c(166, 196, 218), _c(214, 198, 186)),
        hill=_by(season, _c(92, 152, 66), _c(160, 120, 56)),
        field=_by(season, _c(132, 180, 80), _c(204, 148, 70)),
        wood=_by(season, _c(36, 92, 58), _c(122, 60, 36)),
        bank=_by(season, _c(104, 166, 58), _c(172, 134, 58)),
        bank_low=_by(season, _c(52, 110, 44), _c(118, 92, 40)),
        tree=_c(20, 66, 46),
        tree_lit=_by(season, _c(46, 112, 60), _c(66, 104, 50)),
        trunk=_c(84, 58, 40),
        wall=_c(250, 242, 226),
        roof=_c(190, 70, 50),
        window=_c(74, 92, 116),
        lamp=_c(0, 0, 0),
        rim=_c(18, 18, 6),
        water=_by(warmth, _c(64, 148, 186), _c(112, 150, 168)),
        glitter=0.45,
        texture=1.0,
    )


def _night(warmth: float) -> Look:
    return Look(
        night=True,
        sky_top=_by(warmth, _c(8, 12, 44), _c(18, 10, 48)),
        sky_low=_by(warmth, _c(74, 94, 168), _c(128, 84, 158)),
        sky_bend=1.5,
        glow=_c(112, 118, 128),
        disc=_c(255, 250, 226),
        cloud=_c(104, 112, 168),
        cloud_rim=_c(62, 64, 120),
        cloud_alpha=0.8,
        rock=_c(58, 66, 120),
        rock_shade=_c(26, 28, 68),
        snow=_c(138, 152, 208),
        haze=_by(warmth, _c(42, 50, 104), _c(66, 46, 100)),
        hill=_c(20, 28, 62),
        field=_c(20, 28, 62),
        wood=_c(10, 16, 40),
        bank=_c(20, 30, 58),
        bank_low=_c(6, 8, 24),
        tree=_c(4, 8, 24),
        tree_lit=_c(18, 32, 62),
        trunk=_c(6, 6, 18),
        wall=_c(40, 38, 72),
        roof=_c(20, 18, 44),
        window=_c(255, 206, 104),
        lamp=_c(104, 64, 16),
        rim=_c(38, 46, 70),
        water=_c(44, 58, 124),
        glitter=0.95,
        texture=0.0,
    )
