"""Which maps between domains training finds without pairs, where there are some and where there are none.

    python benchmarks/alignment.py DATA… [--pictures N] [--maps NAME…]

Each DATA holds train0/ and train1/, two domains that lie alike. Domain 1 is moved by each of MAPS, and the map is
looked for as training does. Prints a Markdown table: what the first look, at affine maps, and the bend after it would
make up for (training believes LEAST_GAIN and LEAST_BEND), and by how much the map that is believed errs, in mean over
the picture less its rim, in halves of the side; in brackets what no map would.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from edits import Plane, lens, swirl
from rfp.runtime.alignment import IDENTITY, MESH, Alignment, places
from rfp.train import bending
from rfp.train.alignment import MANY, clearest, find_alignment, pictures, unlikeness
from rfp.train.domains import Domain, open_domain, part

TURN = math.cos(0.26), math.sin(0.26)
SIZE = 64


def mesh(bend: Callable[[Plane, Plane], tuple[Plane, Plane]]) -> Alignment:
    y, x = np.meshgrid(*(np.linspace(-1, 1, MESH),) * 2, indexing="ij")
    u, v = bend(x, y)
    return *IDENTITY, *np.stack([u - x, v - y], axis=2).ravel().tolist()


MAPS: dict[str, Alignment] = {
    "none": IDENTITY,
    "slant": (1.0, 0.3, 0.0, 0.0, 1.35, 0.0),
    "turn by 15°": (TURN[0], TURN[1], 0.0, -TURN[1], TURN[0], 0.0),
    "five sixths of the size": (1.2, 0.0, 0.0, 0.0, 1.2, 0.0),
    "elsewhere": (1.0, 0.0, 0.15, 0.0, 1.0, 0.1),
    "lens": mesh(lens),
    "swirl": mesh(swirl),
}


def apart(a: Alignment, b: Alignment) -> float:
    """The mean distance between where two maps put the places of a picture less its rim, in halves of its side."""
    y, x = np.meshgrid(*(np.linspace(-0.8, 0.8, 33),) * 2, indexing="ij")
    return float(np.hypot(*(p - q for p, q in zip(places(a, x, y), places(b, x, y), strict=True))).mean())


def opened(folder: Path, most: int | None, seed: int) -> Domain:
    """All pictures of a folder, or some."""
    domain = open_domain([folder], SIZE)
    if most is None or most >= len(domain):
        return domain
    return part(domain, np.random.default_rng(seed).permutation(len(domain))[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--pictures", type=int, help="of each domain, at most")
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    args = parser.parse_args()
    print("| domains | domain 1 is moved | gain | by a bend | error | found |\n| --- | --- | --- | --- | --- | --- |")
    for data in args.data:
        for name, a in ((name, MAPS[name]) for name in args.maps):
            domain0, domain1 = (opened(data / f"train{i}", args.pictures, i) for i in range(2))
            domain1.align(a)
            _, gain, _ = clearest(domain0, domain1)
            found, why = find_alignment(domain0, domain1)
            x0, x1 = pictures(domain0, domain1, MANY, bending.SIZE)
            straight = (*found[:6],)
            _, bend = bending.bent(x0, x1, straight, unlikeness(x0, x1))
            error = f"{apart(found, a):.3f} ({apart(IDENTITY, a):.3f})" if why else "none"
            print(f"| {data.name} | {name} | {gain:.2f} | {bend:.2f} | {error} | {why} |", flush=True)


if __name__ == "__main__":
    main()
