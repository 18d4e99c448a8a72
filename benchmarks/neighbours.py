"""An approximate index against comparing all with all: time and recall of structure pairing's neighbours.

    python benchmarks/neighbours.py PICTURES [-n 200000] [-k 8]

Makes two domains of n thumbnails of random windows of the pictures in PICTURES (windows of one picture are near each
other, as real pictures of one thing are), and finds the neighbours of a sample exactly too.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rfp.runtime.discovery import discover
from rfp.runtime.media import read_image
from rfp.train import neighbours
from rfp.train.embedders import thumbnail
from rfp.train.neighbours import nearest
from torch import Tensor

SAMPLE = 4096


def windows(x: Tensor, n: int, seed: int) -> Tensor:
    """Thumbnails [n, 192], float16, of windows of .4 to .9 of the side, half of them mirrored, of x [N, 3, H, W]."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, n, 512):
        m = min(512, n - start)
        scale = torch.rand(m, generator=rng) * 0.5 + 0.4
        grid = torch.zeros(m, 2, 3)
        grid[:, 0, 0], grid[:, 1, 1] = scale * (torch.randint(0, 2, (m,), generator=rng) * 2 - 1), scale
        grid[:, :, 2] = (torch.rand(m, 2, generator=rng) * 2 - 1) * (1 - scale)[:, None]
        picked = x[torch.randint(0, len(x), (m,), generator=rng)]
        cut = F.grid_sample(picked, F.affine_grid(grid, [m, 3, 16, 16], align_corners=False), align_corners=False)
        parts.append(thumbnail(cut).half())
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("-n", type=int, default=200_000)
    parser.add_argument("-k", type=int, default=8)
    args = parser.parse_args()
    images = [read_image(media).resize((64, 64)) for media in discover(args.pictures)]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    a, b = windows(x, args.n, 1), windows(x, args.n, 2)
    rows = np.random.default_rng(0).choice(args.n, min(SAMPLE, args.n), replace=False)
    neighbours.EXACT_UP_TO = args.n
    start = time.monotonic()
    truth = nearest(a[rows], b, args.k)[0]
    exact = (time.monotonic() - start) * args.n / len(rows)
    neighbours.EXACT_UP_TO = 0
    start = time.monotonic()
    found = nearest(a, b, args.k)[0][rows]
    index = time.monotonic() - start
    recall = np.mean([len(set(t) & set(f)) / args.k for t, f in zip(truth, found, strict=True)])
    likeness = [(a[rows].float()[:, None] * b[torch.from_numpy(i)].float()).sum(dim=2).mean() for i in (truth, found)]
    print("| n | all with all | index | recall | mean cosine, all with all | index |\n|" + " --- |" * 6)
    print(f"| {args.n:,} | {exact:.0f} s | {index:.0f} s | {recall:.3f} | {likeness[0]:.4f} | {likeness[1]:.4f} |")


if __name__ == "__main__":
    main()
