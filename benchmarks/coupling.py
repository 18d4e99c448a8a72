"""How near the pictures that a coupling pairs lie to each other, for each embedder.

    python benchmarks/coupling.py DOMAIN0 DOMAIN1 [--size 64] [-k 4]

Prints, as a Markdown table, the mean PSNR between each picture and its nearest and k-th nearest neighbour in the other
domain, in both directions, and the share of the other domain that is anybody's nearest.
"""

import argparse
from pathlib import Path

import numpy as np
from rfp.runtime.pixels import Uint8
from rfp.train.coupling import EMBEDDERS, embed
from rfp.train.domains import Crop, Domain, open_domain
from rfp.train.neighbours import nearest


def pictures(domain: Domain) -> Uint8:
    """All pictures, centre-cropped: [N, size, size, 3]."""
    return np.stack([domain.crop(i, Crop()) for i in range(len(domain))])


def distance(a: Uint8, b: Uint8) -> float:
    """Mean PSNR in dB of pictures a [N, H, W, 3] to pictures b of the same shape."""
    errors = [np.mean((x.astype(np.float64) - y) ** 2) for x, y in zip(a, b, strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-3))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain0", type=Path)
    parser.add_argument("domain1", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("-k", type=int, default=4)
    args = parser.parse_args()
    domains = [open_domain([folder], args.size, 1 << 30) for folder in (args.domain0, args.domain1)]
    x0, x1 = (pictures(domain) for domain in domains)
    print(f"| embedder | nearest, 0 → 1 | 1 → 0 | {args.k}th nearest, 0 → 1 | domain 1 drawn at K = 1 |")
    print("| --- | --- | --- | --- | --- |")
    shuffled = np.random.default_rng(0).integers(len(x1), size=len(x0))
    print(f"| random | {distance(x0, x1[shuffled]):.1f} dB | | | |")
    for name in EMBEDDERS:
        e0, e1 = (embed(domain, name) for domain in domains)
        to1, to0 = nearest(e0, e1, args.k), nearest(e1, e0, 1)
        drawn = len(np.unique(to1[:, 0])) / len(x1)
        there, back, last = distance(x0, x1[to1[:, 0]]), distance(x0[to0[:, 0]], x1), distance(x0, x1[to1[:, -1]])
        print(f"| {name} | {there:.1f} dB | {back:.1f} dB | {last:.1f} dB | {drawn:.0%} |")


if __name__ == "__main__":
    main()
