"""Tasks whose truth is known because one domain is made from pictures of the other: a small edit, a slant, other hues.

    python benchmarks/edits.py FOLDER -o OUT

Writes OUT/badge, OUT/slant and OUT/hues, each with train0/ train1/ (halves of FOLDER's square PNGs: no picture is in
both) and test0/ test1/ (200 others, as they are and edited), for benchmarks/quality.py.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TESTS = 200


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


def hues(image: Image.Image) -> Image.Image:
    """Every hue a third of the circle on: nothing keeps its colour but greys."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += 85
    return Image.fromarray(pixels, "HSV").convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.png"))
    order = np.random.default_rng(0).permutation(len(files))
    test, rest = order[:TESTS], order[TESTS:]
    edits: dict[str, Callable[[Image.Image], Image.Image]] = {"badge": badge, "slant": slant, "hues": hues}
    for name, edit in edits.items():
        parts = {
            "train0": (rest[::2], None),
            "train1": (rest[1::2], edit),
            "test0": (test, None),
            "test1": (test, edit),
        }
        for part, (numbers, change) in parts.items():
            folder = args.output / name / part
            folder.mkdir(parents=True, exist_ok=True)
            for i in numbers:
                image = Image.open(files[i]).convert("RGB")
                (change(image) if change else image).save(folder / files[i].name)


if __name__ == "__main__":
    main()
