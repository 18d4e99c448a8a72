"""What sizes above the trained one cost: time and peak memory of `rfp translate`, each run a process of its own.

    python benchmarks/any_size_cost.py BUNDLE [--count 24] [--steps 12] [--only tiles|upscale]

`tiles`: one drawn picture at 1080p, 4K and 8K, in tiles of 256 px, one Euler step (memory does not depend on steps).
`upscale`: COUNT 4K JPEGs to JPEGs with each --upscale, and the same pictures at the model's size; the stages are
seconds of work in all threads for one picture.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from rfp.cli.scenes import draw_scene, render

RFP = Path(sys.executable).with_name("rfp")
SIZES = {"1080p": (1920, 1080), "4K": (3840, 2160), "8K": (7680, 4320)}


def run(bundle: Path, source: Path, *options: str) -> tuple[float, float, dict[str, float]]:
    """Wall time in s, peak memory in MiB (VmHWM, read until the end), and seconds of work by stage."""
    with tempfile.TemporaryDirectory(dir=source.parent) as out, tempfile.TemporaryFile("w+") as said:
        command = [RFP, "translate", bundle, source, "-o", out, "--json", "--device", "cpu", *options]
        began, peak = time.monotonic(), 0.0
        with subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max([peak, *(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))])
                time.sleep(0.02)
        wall = time.monotonic() - began
        said.seek(0)
        report = json.load(said)
        assert report["done"] and not report["failed"], report
        return wall, peak, report["seconds"]


@cache
def scene(number: int) -> Image.Image:
    return Image.fromarray(render(draw_scene(np.random.default_rng([5, number])), False, 512))


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    return scene(number % 4).resize(size, Image.Resampling.BICUBIC)


def tiles(bundle: Path, folder: Path) -> None:
    print("| picture | peak | beyond the smallest, per pixel | time |\n| --- | --- | --- | --- |")
    first = None
    for name, size in SIZES.items():
        source = folder / f"{name}.png"
        picture(0, size).save(source, compress_level=1)
        wall, peak, _ = run(bundle, source, "--size", "native", "--tile", "256", "--steps", "1")
        pixels = size[0] * size[1]
        first = first or (peak, pixels)
        more = "" if first == (peak, pixels) else f"{(peak - first[0]) * (1 << 20) / (pixels - first[1]):.1f} bytes"
        print(f"| {name} | {peak:,.0f} MiB | {more} | {wall:.0f} s |", flush=True)


def upscaled(bundle: Path, folder: Path, count: int, steps: int) -> None:
    for name, size in (("4K", SIZES["4K"]), ("small", (114, 64))):
        (folder / name).mkdir()
        for i in range(count):
            picture(i, size).save(folder / name / f"{i}.jpg", quality=92)
    print(
        "| pictures | upscale | wall, a picture | decode | integrate | finish | encode | peak |\n" + "| --- " * 8 + "|",
        flush=True,
    )
    for name, upscale in (("small", "none"), ("4K", "none"), ("4K", "resize"), ("4K", "residual")):
        wall, peak, stages = run(bundle, folder / name, "--upscale", upscale, "--steps", str(steps))
        figures = " | ".join(
            f"{1000 * stages.get(s, 0) / count:.0f} ms" for s in ("decode", "integrate", "finish", "encode")
        )
        print(f"| {name} | {upscale} | {1000 * wall / count:.0f} ms | {figures} | {peak:,.0f} MiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", choices=("tiles", "upscale"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.only != "tiles":
            upscaled(args.bundle, Path(name), args.count, args.steps)
        if args.only != "upscale":
            tiles(args.bundle, Path(name))


if __name__ == "__main__":
    main()
