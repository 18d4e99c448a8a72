"""Sizes above the trained one: --upscale resize against residual, and --tile against the whole picture.

    python benchmarks/any_size.py BUNDLE [PHOTO…] [--scenes 6] [--size 256] [--tile 96] [--overlap 24] [--steps 6]

BUNDLE is the demo's: landscapes are drawn larger than it was trained at, by day and, as the truth, by night. Of a photo
there is no truth: printed are its texture energy and SSIM against the input, and how near the result, reduced
again, is to what the net made.

Tiles are compared with the same picture untiled: two flat colours, two landscapes, and the photos' middle. The step is
the worst mean difference across a tile's border, in grey levels, of the difference to the untiled result; "beside" is
the same 5 px off the borders, where no seam is.
"""

import argparse
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from rfp.cli.scenes import draw_scene, render
from rfp.runtime import Bundle, FlowOptions, load_bundle, tiling
from rfp.runtime.codec import open_codec
from rfp.runtime.flow import Flow
from rfp.runtime.media import read_image
from rfp.runtime.metrics import psnr, ssim, texture_energy
from rfp.runtime.norms import Norms
from rfp.runtime.pixels import Uint8
from rfp.runtime.upscale import given_back, resized
from rfp.runtime.velocity import Velocity


def opened(bundle: Bundle, steps: int, reverse: bool = False) -> Flow:
    options = FlowOptions(steps=steps, reverse=reverse)
    return Flow(Velocity(bundle, "cpu"), open_codec(bundle, "cpu"), bundle.manifest, options)


def upscaled(flow: Flow, pictures: Iterable[Uint8], truth: Uint8, name: str) -> None:
    small = [resized(x, flow.fit(x.shape[1], x.shape[0])) for x in pictures]
    made = flow(np.stack(small))
    for upscale in ("resize", "residual"):
        out = np.stack([given_back(upscale, *each) for each in zip(pictures, small, made, strict=True)])
        figures = f"{psnr(out, truth):.2f} | {ssim(out, truth):.3f} | {texture_energy(out, truth):.2f}"
        print(f"| {name} | {upscale} | {figures} |", flush=True)


def of_photo(flow: Flow, photo: Uint8, name: str) -> None:
    small = resized(photo, flow.fit(photo.shape[1], photo.shape[0]))
    made = flow(small[None])[0]
    for upscale in ("resize", "residual"):
        out = given_back(upscale, photo, small, made)
        again = psnr(resized(out, small.shape[1::-1]), made)
        figures = f"{texture_energy(out[None], photo[None]):.2f} | {ssim(out[None], photo[None]):.3f} | {again:.1f}"
        print(f"| {name} | {upscale} | {figures} |", flush=True)


def worst_step(error: np.ndarray, tile: int, overlap: int, off: int = 0) -> float:
    steps = [0.0]
    for axis in (0, 1):
        along = np.moveaxis(error, axis, 0)
        begins = tiling.starts(len(along), tile, overlap)
        for line in {*begins[1:], *(s + tile for s in begins[:-1])}:
            for at in {line - off, line + off}:
                steps.append(float(np.abs((along[at] - along[at - 1]).mean(0)).max()))
    return max(steps)


def in_tiles(flow: Flow, picture: Uint8, tile: int, overlap: int, name: str) -> dict[str, tuple[float, ...]]:
    whole, trim = flow(picture[None])[0], tiling.TRIM
    figures = {}
    for how, together, trimmed in (
        ("alone", False, True),
        ("together", True, True),
        ("the same, no trim", True, False),
    ):
        tiling.TRIM = trim if trimmed else 1 << 30
        out = tiling.tiled(picture, flow._whole, tile, overlap, together)
        error = out.astype(np.float64) - whole
        figures[how] = psnr(out, whole), worst_step(error, tile, overlap), worst_step(error, tile, overlap, 5)
        said(name, how, figures[how])
    tiling.TRIM = trim
    return figures


def price(velocity: Velocity, tile: int) -> None:
    """Processor time of a call that takes and tells statistics against a plain one, the least of 20 taken in turn."""
    x, norms = np.random.default_rng(0).normal(size=(1, 3, tile, tile)).astype(np.float32), Norms()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(21):
        norms.begin()
        for took, call in zip(seconds, (velocity, partial(velocity.tile, norms)), strict=True):
            began = time.process_time()
            call(x, 0.5)
            took.append(time.process_time() - began)
        norms.agree()
    plain, opened_ = (min(took[1:]) for took in seconds)
    print(f"a call: {1000 * opened_:.1f} / {1000 * plain:.1f} ms = {opened_ / plain:.2f}", flush=True)


def said(name: str, how: str, figures: Iterable[float]) -> None:
    print(f"| {name} | {how} | " + " | ".join(f"{f:.1f}" for f in figures) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, nargs="*")
    for name, default in (("scenes", 6), ("size", 256), ("tile", 96), ("overlap", 24), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    flow = opened(bundle, args.steps)
    photos = {path.stem: np.asarray(read_image(path)) for path in args.photos}
    scenes = [draw_scene(np.random.default_rng([77, i])) for i in range(max(2, args.scenes))]
    day, night = (np.stack([render(scene, dark, args.size) for scene in scenes]) for dark in (False, True))

    if args.scenes:
        print("| pictures | upscale | PSNR | SSIM | texture energy |\n| --- | --- | --- | --- | --- |")
        upscaled(flow, day, night, "day to night")
        upscaled(opened(bundle, args.steps, reverse=True), night, day, "night to day")
        print(
            "| photo | upscale | texture energy | SSIM to the input | reduced again |\n| --- | --- | --- | --- | --- |"
        )
        for name, photo in photos.items():
            of_photo(flow, photo, name)

    flat = np.full((args.size, args.size, 3), (120, 170, 220), np.uint8)
    flat[args.size // 2 :] = (90, 140, 60)
    pictures = {"two flat colours": flat, "a landscape": day[0], "another": day[1]}
    for name, photo in photos.items():
        top, left = (max(0, (side - args.size) // 2) for side in photo.shape[:2])
        pictures[name] = photo[top : top + args.size, left : left + args.size]
    print("| picture | tiles | dB from untiled | worst step | beside |\n| --- | --- | --- | --- | --- |")
    run = partial(in_tiles, flow, tile=args.tile, overlap=args.overlap)
    figures = [run(picture=picture, name=name) for name, picture in pictures.items()]
    for how in figures[0]:
        said("mean", how, np.mean([each[how] for each in figures], axis=0))
    price(Velocity(bundle, "cpu", threads=1), args.tile)


if __name__ == "__main__":
    main()
