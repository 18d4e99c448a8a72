"""The layers of a landscape, from the sky to the near trees. `land` is [3, h, w] down to the far shore.

Every layer takes `slide`, how far its panorama has moved to the left, in picture heights.
"""

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Float, View, bell, lay, mix, noise, ridge, to_image, tri, waves
from .palette import Look

SHORE = 0.64
"""Height of the far shore, 0 at the top and 1 at the bottom of the picture."""
SUN_RADIUS = 0.068
BANK_PERIOD, HOMES_PERIOD = 1.45, 1.25
"""Trees and houses come again after so many picture heights."""
TREES = ((0.00, 0.40), (0.10, 0.31), (-0.11, 0.27), (0.20, 0.21), (0.62, 0.17), (0.71, 0.23))
"""(place on the near bank, height) of each conifer."""
HOMES = ((0.00, 0.150, 0.070), (0.175, 0.105, 0.055), (0.66, 0.120, 0.060))
"""(place on the far shore, width, height of the wall) of each house."""
CLOUDS = ((0.30, 0.17, 1.0), (1.00, 0.29, 0.75), (1.62, 0.15, 1.1))
"""(x, y, size) of the clouds of a sky that is 2 wide."""
PUFFS = (
    (-0.125, -0.016, 0.045),
    (-0.06, -0.036, 0.058),
    (0.02, -0.052, 0.07),
    (0.085, -0.03, 0.052),
    (0.14, -0.012, 0.038),
)
"""(x, y, radius) of the puffs of a cloud, y from its flat foot."""
STARS = (
    (0.07, 0.10, 180), (0.16, 0.30, 110), (0.22, 0.05, 130), (0.31, 0.19, 210), (0.40, 0.07, 110), (0.45, 0.31, 150),
    (0.55, 0.13, 170), (0.63, 0.04, 130), (0.68, 0.26, 110), (0.77, 0.12, 210), (0.86, 0.33, 130), (0.92, 0.06, 170),
)  # fmt: skip
"""(x, y, light), repeated every picture height and the same in every night: nobody could guess a fresh sky."""
SEAS = ((-0.022, -0.012, 0.022), (0.020, 0.018, 0.026), (0.018, -0.030, 0.013))
"""(x, y, radius) of the dark patches of the moon."""
RIDGE_SLOPE: Float = np.gradient(ridge(np.arange(2048, dtype=np.float32) / 256), 1 / 256).astype(np.float32)
"""Slope of the mountains' outline over its whole period of 8."""

Sun = tuple[float, float]
Homes = list[tuple[float, float, float]]


def sky(full: View, look: Look, sun: Sun, slide: float) -> Float:
    """Gradient, glow, stars, disc and clouds: float32 [3, rows above the shore, w].

    They are smooth, so they are drawn at half the resolution and doubled.
    """
    view = View(full.h // 2, full.w // 2)
    y, x = view.y[: (full.row(SHORE) + 1) // 2], view.x
    d = np.sqrt((x - sun[0]) ** 2 + (y - sun[1]) ** 2)
    halo = np.exp(d / -0.30)
    land = mix(look.sky_top, look.sky_low, (y / SHORE) ** look.sky_bend) + (halo**3 + 0.45 * halo) * look.glow
    face = np.zeros_like(d) + look.disc
    if look.night:
        _stars(land, view, sun)
        for dx, dy, radius in SEAS:
            face[:, (x - sun[0] - dx) ** 2 + (y - sun[1] - dy) ** 2 < radius**2] -= 26
    land += np.clip((SUN_RADIUS - d) * view.h + 0.5, 0, 1) * (face - land)
    alpha, body = _clouds(y, x + slide)
    alpha *= look.cloud_alpha * np.clip(d / 0.10 - 0.7, 0, 1)  # none before the sun: it says where the moon will be
    land += alpha * (mix(look.cloud_rim, look.cloud, body) - land)
    return land.repeat(2, axis=1).repeat(2, axis=2)[:, : full.row(SHORE)]


def _stars(land: Float, view: View, sun: Sun) -> None:
    for panel in range(-(-view.w // view.h)):
        for at, y, light in STARS:
            x = at + panel
            r, c = 2 * int(y * view.h / 2), 2 * int(x * view.h / 2)  # whole pixels of the finished picture
            if np.hypot(x - sun[0], y - sun[1]) > 0.2:
                land[:, r : r + 2, c : c + 2] += light


def _clouds(y: Float, x: Float) -> tuple[Float, Float]:
    """How much cloud there is, and how far inside one, both [h, w] in [0, 1].

    Each puff is the product of a column's and a row's profile, so a cloud costs a few outer products.
    """
    density = np.zeros((len(y), len(x)), np.float32)
    for cx, cy, scale in CLOUDS:
        for dx, dy, radius in PUFFS:
            r = radius * scale
            away = np.abs((x - cx - dx * scale + 1) % 2 - 1)
            if away.min() < 1.5 * r:
                rows = bell(y - cy - dy * scale, r) * np.clip((cy + 0.012 - y) * 80, 0, 1)
                np.maximum(density, rows * bell(away, r), out=density)
    return np.clip((density - 0.38) * 5, 0, 1), np.clip((density - 0.40) * 3, 0, 1)


def mountains(land: Float, view: View, look: Look, sun: Sun, slide: float) -> None:
    """Jagged rock with lit and shaded spurs, snow near the tops, haze at the foot."""
    u = view.x + slide
    top = SHORE - 0.06 - 0.34 * ridge(u)
    first, last = int(top.min() * view.h), land.shape[1]
    depth = view.y[first:last] - top
    grain = noise(view, "rough", slide, first, last)
    # A spur runs down aslant from each kink of the ridge: its slope is looked up farther aside the deeper it is.
    at = ((u + 0.55 * depth * (1 + 0.5 * grain)) * 256).astype(np.int32) % len(RIDGE_SLOPE)
    lit = np.clip(0.5 - 0.35 * RIDGE_SLOPE[at] * np.sign(sun[0] - view.x) + 0.22 * grain, 0, 1)
    rock = mix(look.rock_shade, look.rock, lit)
    snow = np.clip((0.085 + 0.030 * grain + 0.10 * (0.42 - top) - depth) * 40, 0, 1)
    rock += snow * (0.36 + 0.64 * lit) * (look.snow - rock)
    haze = np.clip(depth / 0.30, 0, 1)
    rock += 0.75 * haze * haze * (look.haze - rock)
    lay(land[:, first:], rock, depth, view)


def hills(land: Float, view: View, look: Look, slide: float) -> None:
    """Meadows with fields, then the wood along the shore. By night they are silhouettes: look.texture is 0."""
    u, last = view.x + slide, land.shape[1]
    top = SHORE - 0.075 - 0.075 * waves(u / HOMES_PERIOD)
    first = int(top.min() * view.h)
    depth = view.y[first:last] - top
    grain = noise(view, "rough", slide + 0.7, first, last)
    fields = np.clip(2.5 * np.sin(102 * depth + 5 * grain + 9 * u) + 0.5, 0, 1) * look.texture
    meadow = mix(look.hill, look.field, fields)
    meadow *= 1 + look.texture * 0.16 * grain
    lay(land[:, first:], meadow, depth, view, look.rim)
    top = SHORE - 0.075 * np.clip(waves(u / HOMES_PERIOD * 2 + 0.3) - 0.25, 0, 1) * (0.55 + 0.45 * tri(u * 24))
    first = int(top.min() * view.h)
    grain = noise(view, "rough", slide + 0.3, first, last)
    wood = mix(look.wood, look.wood * np.float32(1.35), np.clip(0.5 + look.texture * grain, 0, 1))
    lay(land[:, first:], wood, view.y[first:last] - top, view)


def homes_in(view: View, slide: float) -> Homes:
    """(x of the middle, width, height of the wall) of every house in the frame."""
    return [(x, width, wall) for at, width, wall in HOMES for x in view.repeat(at, slide, HOMES_PERIOD)]


def houses(land: Float, view: View, look: Look, sun: Sun, homes: Homes) -> None:
    """White walls, red roofs, rows of windows; by night warm light spills out around the windows."""
    first, last = view.row(SHORE - 0.2), land.shape[1]
    band = land[:, first:]
    image = to_image(band)
    draw = ImageDraw.Draw(image)

    def polygon(colour: Float, *points: tuple[float, float]) -> None:
        draw.polygon([(x * view.h, y * view.h - first) for x, y in points], fill=_rgb(colour))

    def box(colour: Float, left: float, top: float, right: float, low: float) -> None:
        polygon(colour, (left, top), (right, top), (right, low), (left, low))

    for x, width, wall in homes:
        foot, half = SHORE - 0.006, width / 2
        eaves = foot - wall
        box(look.wall if sun[0] < x else look.wall * np.float32(0.86), x - half, eaves, x + half, foot)
        gable = ((x - half / 2, eaves - 0.062), (x + half / 2, eaves - 0.062))
        polygon(look.roof, (x - half - 0.015, eaves), *gable, (x + half + 0.015, eaves))
        panes = 3 if width > 0.13 else 2
        for k in range(panes):
            middle = x - half + width * (k + 0.5) / panes
            box(look.window, middle - 0.014, eaves + 0.016, middle + 0.014, eaves + 0.046)
    band[:] = np.moveaxis(np.asarray(image), 2, 0)
    if look.night:
        for x, width, wall in homes:
            middle = SHORE - wall + 0.025
            band += bell(view.y[first:last] - middle, 0.05) * bell(view.x - x, 0.6 * width) * look.lamp


def _rgb(colour: Float) -> tuple[int, int, int]:
    r, g, b = colour.ravel().tolist()
    return int(r), int(g), int(b)


def lake(land: Float, view: View, look: Look, sun: Sun, homes: Homes, slide: float) -> Float:
    """The whole picture [3, h, w]: `land`, and below it the land upside down, broken by ripples.

    The sun or moon lays a path of glitter, and by night each lit house a warm streak.
    """
    shore, rows = land.shape[1], view.h - land.shape[1]
    deep = (np.arange(rows, dtype=np.float32) / np.float32(rows))[:, None]
    ripple = noise(view, "ripple", slide, shore, view.h)
    source = np.clip(shore - 1 - (deep * rows * 1.25 + ripple * (1 + 7 * deep)), 0, shore - 1).astype(np.int32)
    column = np.clip(np.arange(view.w) + ripple * (1 + 5 * deep), 0, view.w - 1).astype(np.int32)
    water = land.reshape(3, -1).take(source * view.w + column, axis=1)
    tint = 0.30 + 0.25 * deep
    water *= (1 - tint) * (1 + 0.10 * ripple)
    water += tint * look.water
    crests = np.clip((ripple + 0.15) * 1.6, 0, 1)
    path = bell(view.x - sun[0], 0.055 + 0.10 * deep)
    water += crests * path * look.glitter * (look.disc - water)
    if look.night:
        streaks = np.zeros_like(view.x)
        for x, width, _ in homes:
            streaks += bell(view.x - x, 0.38 * width)
        water += streaks * np.exp(deep * -2.2) * (0.5 + crests) * look.lamp
    return np.concatenate((land, water), axis=1)


def bank(picture: Float, view: View, look: Look, slide: float) -> None:
    """The near meadow."""
    top = _bank_top(view.x + slide)
    first = int(top.min() * view.h)
    depth = view.y[first:] - top
    grain = noise(view, "grass", slide, first, view.h)
    grass = mix(look.bank_low, look.bank, np.clip(1 - depth / 0.16 + look.texture * 0.35 * grain, 0, 1))
    lay(picture[:, first:], grass, depth + 0.004 * grain, view, look.rim)


def _bank_top(u: Float) -> Float:
    u = u * np.float32(2 * np.pi / BANK_PERIOD)
    top: Float = 0.885 - 0.045 * np.cos(u) - 0.008 * np.sin(3 * u)
    return top


def trees(image: Image.Image, view: View, look: Look, sun: Sun, slide: float) -> None:
    """Conifers on the near bank: four tiers each, the half toward the sun in the light."""
    draw = ImageDraw.Draw(image)
    shade, light, trunk, h = _rgb(look.tree), _rgb(look.tree_lit), _rgb(look.trunk), view.h
    for place, height in TREES:
        foot = float(_bank_top(np.array([place]))[0]) + 0.02
        for x in view.repeat(place, slide, BANK_PERIOD, margin=0.12):
            draw.rectangle(((x - 0.008) * h, (foot - 0.05) * h, (x + 0.008) * h, foot * h), fill=trunk)
            for tier in range(4):
                low, high = foot - 0.03 - height * tier / 4.6, foot - height * (tier + 2) / 5
                reach = height * (0.26 - 0.05 * tier)
                for side in (-1, 1):
                    points = ((x, high), (x + side * reach, low), (x + side * 0.4 * reach, low - 0.012), (x, low))
                    draw.polygon([(a * h, b * h) for a, b in points], fill=light if (sun[0] - x) * side > 0 else shade)
