"""Sizes above the trained one: --upscale resize against residual, and --tile against the whole picture.

    python benchmarks/any_size.py BUNDLE [--scenes 6] [--size 256] [--tile 96] [--overlap 32]

BUNDLE is the demo's: landscapes are drawn larger than it was trained at, by day and, as the truth, by night. Tiles are
compared with the same picture untiled, a drawn one and one of two flat colours; the step is the worst mean difference
between the two sides of a tile's border, in grey levels, beyond that of the untiled result.
"""

import argparse
from pathlib import Path

import numpy as np
from rfp.cli.scenes import draw_scene, render
from rfp.runtime import FlowOptions, load_bundle
from rfp.runtime.codec import Identity
from rfp.runtime.flow import Flow
from rfp.runtime.metrics import psnr, ssim, texture_energy
from rfp.runtime.pixels import Uint8
from rfp.runtime.tiling import starts, tiled
from rfp.runtime.upscale import given_back, resized
from rfp.runtime.velocity import Velocity


def worst_step(a: Uint8, b: Uint8, tile: int, overlap: int) -> float:
    error = a.astype(np.float64) - b
    steps = [0.0]
    for axis in (0, 1):
        along = np.moveaxis(error, axis, 0)
        begins = starts(len(along), tile, overlap)
        for line in {*begins[1:], *(s + tile for s in begins[:-1])}:
            steps.append(float(np.abs((along[line] - along[line - 1]).mean(0)).max()))
    return max(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name, default in (("scenes", 6), ("size", 256), ("tile", 96), ("overlap", 32), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    flow = Flow(Velocity(bundle, "cpu"), Identity(), bundle.manifest, FlowOptions(steps=args.steps))
    scenes = [draw_scene(np.random.default_rng([77, i])) for i in range(args.scenes)]
    day, night = (np.stack([render(scene, dark, args.size) for scene in scenes]) for dark in (False, True))

    side = bundle.manifest.image_size
    small = np.stack([resized(x, (side, side)) for x in day])
    made = flow(small)
    for upscale in ("resize", "residual"):
        out = np.stack([given_back(upscale, *each) for each in zip(day, small, made, strict=True)])
        print(f"{upscale}: {psnr(out, night):.2f} dB, ssim {ssim(out, night):.3f}, ", end="")
        print(f"texture energy {texture_energy(out, night):.2f}", flush=True)

    flat = np.full((args.size, args.size, 3), (120, 170, 220), np.uint8)
    flat[args.size // 2 :] = (90, 140, 60)
    for name, picture in (("flat", flat), ("landscape", day[0])):
        whole = flow(picture[None])[0]
        for together in (False, True):
            out = tiled(picture, flow, args.tile, args.overlap, together)
            step = worst_step(out, whole, args.tile, args.overlap)
            how = "with the whole picture beside them" if together else "alone"
            print(f"{name}, tiles {how}: {psnr(out, whole):.1f} dB from untiled, worst step {step:.1f}", flush=True)


if __name__ == "__main__":
    main()
