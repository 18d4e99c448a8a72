"""Quality against the number of velocity calls: a flow, its reflow, its distillations; other solvers at equal calls.

    python benchmarks/few_steps.py --source DIR --truth DIR [--target DIR] [--features NAME|PATH] [--solvers NAME] \\
        NAME=RUN@CALLS,CALLS …

The averaged weights of each run's newest checkpoint translate the pictures of `source` (centre squares) by as many
Euler steps. PSNR and SSIM to the truth; texture energy over the truth's; KID ×1000 in `--features` (statistics if not
given) against `target` (the truth if not given). `--solvers NAME` also integrates that run by Heun's method and by the
midpoint rule, two calls a step.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rfp.runtime.distances import kernel_distance
from rfp.runtime.euler import integrate
from rfp.runtime.evaluation import squares
from rfp.runtime.features import FeatureNet, describe, in_units_of
from rfp.runtime.metrics import psnr, ssim, texture_energy
from rfp.runtime.pixels import Uint8, to_float, to_uint8
from rfp.train import checkpoint as ckpt
from rfp.train.feature_nets import load_features
from torch import Tensor

Field = Callable[[Tensor, float], Tensor]
Solver = Callable[[Field, Tensor, int], Tensor]


def heun(v: Field, x: Tensor, calls: int) -> Tensor:
    """The runtime's own, by calls."""
    return integrate(v, x, calls // 2, solver="heun")


def midpoint(v: Field, x: Tensor, calls: int) -> Tensor:
    """The midpoint rule: the velocity half a step ahead."""
    n = calls // 2
    for k in range(n):
        x = x + v(x + v(x, k / n) / (2 * n), (k + 0.5) / n) / n
    return x


def translated(run: Path, pictures: Uint8, calls: int, solver: Solver = integrate) -> Uint8:
    """uint8 [N, S, S, 3] through a run's newest averaged velocity net."""
    checkpoint = ckpt.load(ckpt.find(run))
    net, codec = checkpoint.velocity(), checkpoint.codec()
    out = []
    with torch.no_grad():
        for i in range(0, len(pictures), 16):
            z = codec.encode(torch.from_numpy(to_float(pictures[i : i + 16])))
            z = solver(lambda x, t: net(x, torch.full((1,), t)), z, calls)
            out.append(to_uint8(codec.decode(z).numpy()))
    return np.concatenate(out)


def judged(net: FeatureNet | None, truth: Uint8, real: Uint8) -> Callable[[str, int, Uint8], str]:
    """What makes a Markdown row of a name, a number of calls and translations."""
    of_real = describe(net, real).vectors

    def row(name: str, calls: int, out: Uint8) -> str:
        x, y = describe(net, out).vectors, of_real
        y, x = (y, x) if net else in_units_of(y, x)
        kid = kernel_distance(x, y)
        figures = f"{psnr(out, truth):.2f} | {ssim(out, truth):.3f} | {texture_energy(out, truth):.2f}"
        return f"| {name} | {calls} | {figures} | {1000 * kid.value:.0f} ± {1000 * kid.margin:.0f} |"

    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN@CALLS,CALLS")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--features")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--solvers", metavar="NAME")
    args = parser.parse_args()
    runs = {name: rest.rsplit("@", 1) for name, rest in (run.split("=", 1) for run in args.runs)}
    size = ckpt.load(ckpt.find(Path(next(iter(runs.values()))[0]))).config.max_size
    source, truth = (squares(folder, size, args.limit)[0].pixels for folder in (args.source, args.truth))
    real = squares(args.target, size, args.limit)[0].pixels if args.target else truth
    row = judged(load_features(args.features) if args.features else None, truth, real)
    print("| run | calls | PSNR (dB) | SSIM | texture | KID |\n| --- | --- | --- | --- | --- | --- |")
    print(row("untouched input", 0, source), flush=True)
    for name, (path, counts) in runs.items():
        for calls in map(int, counts.split(",")):
            print(row(name, calls, translated(Path(path), source, calls)), flush=True)
            if name == args.solvers and calls % 2 == 0:
                for solver in (heun, midpoint):
                    out = translated(Path(path), source, calls, solver)
                    print(row(f"{name}, {solver.__name__}", calls, out), flush=True)


if __name__ == "__main__":
    main()
