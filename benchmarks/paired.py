"""Train a preset on an unpaired data set whose test pictures have a truth, and score the exported graph.

    python benchmarks/paired.py DATA -c icons -o OUT [--seed N] [--set KEY=VALUE …]

DATA holds train0/ train1/ (unpaired) and test0/ test1/ (pairs by name: never trained on). Writes OUT/run, OUT/bundle,
OUT/translated and OUT/gallery.png (input | ours | truth), and prints one Markdown row beside the untouched input's.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rfp.cli.gallery import gallery
from rfp.cli.train_report import reporter
from rfp.export.bundle import export_bundle
from rfp.runtime import FlowOptions, translate
from rfp.runtime.discovery import discover
from rfp.runtime.manifest import Manifest
from rfp.runtime.media import read_image
from rfp.runtime.metrics import l1, psnr, ssim, texture_energy
from rfp.runtime.pixels import Uint8
from rfp.train.job import Job
from rfp.train.reading import load_config
from rfp.train.training import train


def pictures(folder: Path) -> Uint8:
    """All pictures of a folder, of one size, in natural order: [N, H, W, 3]."""
    return np.stack([np.asarray(read_image(media)) for media in discover([folder])])


def row(name: str, images: Uint8, truth: Uint8) -> str:
    """Figures against the truth, as a Markdown row."""
    figures = psnr(images, truth), l1(images, truth), ssim(images, truth), texture_energy(images, truth)
    return "| {} | {:.2f} | {:.3f} | {:.3f} | {:.2f} |".format(name, *figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=30, help="pictures in the gallery")
    args = parser.parse_args()
    out: Path = args.output
    start = time.monotonic()
    with reporter() as report:
        config = load_config(args.config, args.overrides)
        train(Job(config, (args.data / "train0",), (args.data / "train1",), out / "run", seed=args.seed), report)
    seconds = time.monotonic() - start
    export_bundle(out / "run", out / "bundle", overwrite=True)
    flow = FlowOptions(upscale="resize")  # to the truth's own size, where max_size is another
    translate(out / "bundle", [args.data / "test0"], out / "translated", flow=flow, overwrite=True)
    columns = [pictures(folder) for folder in (args.data / "test0", out / "translated", args.data / "test1")]
    shown = np.linspace(0, len(columns[0]) - 1, min(args.rows, len(columns[0]))).astype(int)
    rows = [[column[i] for column in columns] for i in shown]
    gallery(rows, ["input", "ours", "truth"], out / "gallery.png", scale=2)
    print("| | PSNR (dB) | L1 | SSIM | texture energy |\n| --- | --- | --- | --- | --- |")
    print(row("untouched input", columns[0], columns[2]))
    steps = Manifest.from_json((out / "bundle" / "rfp.json").read_text()).default_steps  # one where a critic ended it
    print(row(f"ours, {steps} steps", columns[1], columns[2]))
    print(f"\n{len(columns[0])} test pictures; trained for {seconds:.0f} s on {config.train_images:,} pairs")


if __name__ == "__main__":
    main()
