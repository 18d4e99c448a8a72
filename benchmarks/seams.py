"""Lines that a net draws and no picture has: a frame along the border, a grid of two pixels between patches.

    python benchmarks/seams.py TRANSLATED TRUTH

Compares the pictures of two folders, of the same names and all of one size. *Frame*: how far the error, in mean along
a side, jumps at the outermost pixels (root mean square of its second difference), over the same a quarter of the side
inside.
*Grid*: what power the error has at the finest frequency over that a little below it, across columns and across rows;
without a grid it falls towards there as pictures do, below 1.
"""

import argparse
from pathlib import Path

import numpy as np
from paired import pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("translated", type=Path)
    parser.add_argument("truth", type=Path)
    args = parser.parse_args()
    errors = pictures(args.translated).astype(np.float32) - pictures(args.truth)
    n = errors.shape[1]

    middle, grey = slice(n // 4, 3 * n // 4), errors.mean(axis=3)
    lines = np.stack([grey[:, :, middle].mean(axis=2), grey[:, middle].mean(axis=1)])
    lines = np.concatenate([lines, lines[..., ::-1]])[..., : n // 2]
    jumps = np.sqrt(np.square(np.diff(lines, 2)).mean(axis=(0, 1)))
    print(f"frame: {jumps[0] / jumps[n // 4 :].mean():.1f} times the jumps inside")

    errors -= errors.mean(axis=(1, 2), keepdims=True)
    window = np.hanning(n)[:, None] * np.hanning(n)
    power = (np.abs(np.fft.fft2(errors * window[..., None], axes=(1, 2))) ** 2).mean(axis=(0, 3))
    for name, spectrum in (("columns", power.sum(axis=0)), ("rows", power.sum(axis=1))):
        below = slice(n // 2 - n // 12, n // 2 - n // 32)
        print(f"grid across {name}: {spectrum[n // 2] / spectrum[below].mean():.2f} times the power beside it")


if __name__ == "__main__":
    main()
