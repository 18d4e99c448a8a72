"""A task whose things change their shape, and may lie anywhere: a disc on white becomes a square, else the same.

    python benchmarks/shapes.py OUT

Writes OUT/train0/ and OUT/train1/ (700 scenes each, none of them in both) and OUT/test0/ and OUT/test1/ (200 others,
as discs and as squares), 64 px, for benchmarks/paired.py.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, DRAWN = 64, 256
AS_LARGE = 0.886
"""Half the side of a square of a disc's area, in radii."""


def picture(x: float, y: float, radius: float, colour: tuple[int, ...], square: bool) -> Image.Image:
    image = Image.new("RGB", (DRAWN, DRAWN), "white")
    half = AS_LARGE * radius if square else radius
    pen, box = ImageDraw.Draw(image), [x - half, y - half, x + half, y + half]
    (pen.rectangle if square else pen.ellipse)(box, fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    for part, count, kinds in (("train0", 700, "0"), ("train1", 700, "1"), ("test", 200, "01")):
        for i in range(count):
            radius = rng.uniform(0.12, 0.26) * DRAWN
            x, y = rng.uniform(radius + 4, DRAWN - radius - 4, 2)
            colour = tuple(int(level) for level in rng.integers(0, 230, 3))
            for kind in kinds:
                path = args.output / (part if len(kinds) == 1 else part + kind) / f"{part}{i:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(x, y, radius, colour, kind == "1").save(path)


if __name__ == "__main__":
    main()
