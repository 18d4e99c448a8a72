"""Which maps between domains training finds without pairs, where there are some and where there are none.

    python benchmarks/alignment.py DATA… [--pictures N]

Each DATA holds train0/ and train1/, two domains that lie alike. Domain 1 is moved by each of MAPS, and the map is
looked for as training does. Prints a Markdown table: what the first look would make up for (training believes
LEAST_GAIN), and by how much the final map errs where one is believed, the worst of its six numbers, in halves of the
pictures' side.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from rfp.runtime.alignment import IDENTITY, Affine
from rfp.train.alignment import clearest, find_alignment
from rfp.train.domains import Domain, open_domain, part

TURN = math.cos(0.26), math.sin(0.26)
MAPS: dict[str, Affine] = {
    "none": IDENTITY,
    "slant": (1.0, 0.3, 0.0, 0.0, 1.35, 0.0),
    "turn by 15°": (TURN[0], TURN[1], 0.0, -TURN[1], TURN[0], 0.0),
    "five sixths of the size": (1.2, 0.0, 0.0, 0.0, 1.2, 0.0),
    "elsewhere": (1.0, 0.0, 0.15, 0.0, 1.0, 0.1),
}
SIZE = 64


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
    args = parser.parse_args()
    print("| domains | domain 1 is moved | gain | likeness | found | error |\n| --- | --- | --- | --- | --- | --- |")
    for data in args.data:
        for name, a in MAPS.items():
            domain0, domain1 = (opened(data / f"train{i}", args.pictures, i) for i in range(2))
            domain1.align(a)
            _, gain, cosine = clearest(domain0, domain1)
            found, why = find_alignment(domain0, domain1)
            shown = ", ".join(f"{n:.2f}" for n in found) if why else "none"
            error = f"{max(abs(x - y) for x, y in zip(found, a, strict=True)):.2f}" if why else ""
            print(f"| {data.name} | {name} | {gain:.2f} | {cosine:.2f} | {shown} | {error} |", flush=True)


if __name__ == "__main__":
    main()
