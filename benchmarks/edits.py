"""Tasks whose truth is known because one domain is made of pictures of the other: a small edit, other shapes, hues.

    python benchmarks/edits.py FOLDER -o OUT [--windows N]

Writes OUT/badge, OUT/slant, OUT/lens, OUT/swirl and OUT/hues, each with train0/ train1/ (halves of FOLDER's square
PNGs: no picture is in both) and test0/ test1/ (200 others, as they are and edited), for benchmarks/quality.py and
paired.py. With --windows FOLDER holds large pictures, photographs say, in any folders: N windows of each are taken, at
64 px, no picture's in two parts, and OUT/dusk and OUT/paint are written.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from rfp.runtime.discovery import discover
from rfp.runtime.media import read_image

TESTS = 200
Edit = Callable[[Image.Image], Image.Image]
Plane = npt.NDArray[np.floating]


def badge(image: Image.Image) -> Image.Image:
    """A red disc with a white rim in the lower right corner: a small local edit."""
    side = 4 * image.width
    large = image.resize((side, side), Image.Resampling.LANCZOS)
    place = [0.64 * side, 0.64 * side, 0.96 * side, 0.96 * side]
    ImageDraw.Draw(large).ellipse(place, fill=(220, 40, 40), outline=(255, 255, 255), width=6)
    return large.resize(image.size, Image.Resampling.LANCZOS)


def slant(image: Image.Image) -> Image.Image:
    """Three quarters as high, standing on the same ground, and slanted: a change of shape."""
    side = image.width
    back = (1, 0.3, -0.15 * side, 0, 1.35, -0.35 * side)
    return image.transform(
        image.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)
    )


def bent(image: Image.Image, place: Callable[[Plane, Plane], tuple[Plane, Plane]]) -> Image.Image:
    """What was at `place`(x, y) comes to (x, y), from the middle in halves of the side; by way of a larger picture."""
    side, n = image.width, 4 * image.width
    large = np.asarray(image.resize((n, n), Image.Resampling.LANCZOS))
    y, x = (2 * (np.mgrid[:n, :n] + 0.5) / n - 1).astype(np.float32)
    columns, rows = (((c + 1) / 2 * n).clip(0, n - 1).astype(int) for c in place(x, y))
    return Image.fromarray(large[rows, columns]).resize((side, side), Image.Resampling.LANCZOS)


def lens(x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """The middle twice as large, less and less so to the rim: a change of shape that no straight map makes."""
    near = 1 - 0.5 * (1 - np.hypot(x, y)).clip(0)
    return x * near, y * near


def swirl(x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """The middle turned by 46°, less and less so to the rim."""
    angle = 0.8 * (1 - np.hypot(x, y)).clip(0)
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)


def hues(image: Image.Image) -> Image.Image:
    """Every hue a third of the circle on: nothing keeps its colour but greys."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += 85
    return Image.fromarray(pixels, "HSV").convert("RGB")


def dusk(image: Image.Image) -> Image.Image:
    """Darker, paler and bluer, warm where it was bright, darker towards the corners: a photograph's evening."""
    pixels = np.asarray(image, np.float32) / 255
    grey = (pixels @ [0.3, 0.59, 0.11])[..., None]
    night = (grey + 0.55 * (pixels - grey)) ** 1.5 * [0.55, 0.62, 0.95]
    lamps = 0.84 * np.maximum(grey - 0.75, 0) * [1, 0.7, 0.3]
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j][..., None]
    shown = ((night + lamps) * (1 - 0.175 * (x**2 + y**2))).clip(0, 1)
    return Image.fromarray((255 * shown).round().astype(np.uint8))


def paint(image: Image.Image) -> Image.Image:
    """Fine detail made even, colours stronger: a watercolour."""
    return ImageEnhance.Color(image.filter(ImageFilter.MedianFilter(5))).enhance(1.6)


def windows(image: Image.Image, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Up to `count` squares at 64 px of a quarter to six tenths of the short side; none that shows next to nothing."""
    found: list[Image.Image] = []
    for _ in range(6 * count):
        if len(found) == count:
            break
        side = int(rng.uniform(0.25, 0.6) * min(image.size))
        left, top = (int(rng.integers(n - side + 1)) for n in image.size)
        window = image.resize((64, 64), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        if np.asarray(window).std() > 15:
            found.append(window)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=0)
    args = parser.parse_args()
    media = sorted((m for m in discover([args.folder]) if m.kind == "image"), key=lambda m: m.path)
    rng, order = np.random.default_rng(0), np.random.default_rng(0).permutation(len(media))
    tests = len(media) // 6 if args.windows else TESTS
    small: dict[str, Edit] = {
        "badge": badge,
        "slant": slant,
        "lens": partial(bent, place=lens),
        "swirl": partial(bent, place=swirl),
        "hues": hues,
    }
    edits = {"dusk": dusk, "paint": paint} if args.windows else small
    test, rest = order[:tests], order[tests:]
    for parts, numbers in ((("train0",), rest[::2]), (("train1",), rest[1::2]), (("test0", "test1"), test)):
        for i in numbers:
            pieces = {media[i].relative.stem: read_image(media[i])}
            if args.windows:
                (image,) = pieces.values()
                image.thumbnail((1280, 1280))
                pieces = {f"{i:03}-{n:02}": w for n, w in enumerate(windows(image, args.windows, rng))}
            for (name, edit), part, (stem, piece) in product(edits.items(), parts, pieces.items()):
                path = args.output / name / part / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                (edit(piece) if part.endswith("1") else piece).save(path)


if __name__ == "__main__":
    main()
