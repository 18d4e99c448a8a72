"""How much a translated film flickers, and what `rfp translate --steady` does about it.

    python benchmarks/flicker.py BUNDLE VIDEO… [--frames 48] [--steps N]

Of each film's first frames, at the bundle's size: the change from frame to frame over the source's own, and the change
in grey levels where the source stands still (2 levels at most), beside the source's own there. `drift` is how far the
steadied film is from the plain one, in grey levels: over all pixels, and where the source moves by more than 24.
"""

import argparse
from pathlib import Path, PurePosixPath

import numpy as np
from rfp.runtime import FlowOptions
from rfp.runtime.bundle import load_bundle
from rfp.runtime.codec import open_codec
from rfp.runtime.flow import Flow
from rfp.runtime.frames import look, read
from rfp.runtime.media import Media
from rfp.runtime.metrics import flicker
from rfp.runtime.pixels import Uint8
from rfp.runtime.steady import Steady
from rfp.runtime.velocity import Velocity


def frames(path: Path, flow: Flow, count: int) -> Uint8:
    """The first frames at the flow's size: [T, H, W, 3]."""
    media = Media(path, "video", PurePosixPath(path.name))
    with media.open() as stream:
        seen = look(media, stream)
        found = []
        for _, pixels in read(media, stream, flow.fit(seen.width, seen.height)):
            assert isinstance(pixels, np.ndarray)
            found.append(pixels)
            if len(found) == count:
                break
    return np.stack(found)


def main() -> None:
    """Print a Markdown row for each film and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    flow = Flow(Velocity(bundle, "cpu"), open_codec(bundle, "cpu"), bundle.manifest, FlowOptions(steps=args.steps))
    print("| film | steady | change | still | source there | drift | where it moves |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in args.videos:
        source = frames(path, flow, args.frames)
        plain = np.concatenate([flow(source[i : i + 8]) for i in range(0, len(source), 8)])
        moves = np.abs(np.diff(source.astype(np.int16), axis=0)).mean(axis=3) > 24
        for strength in (0.0, 0.5, 0.8, 0.9):
            out = Steady(strength)(source, plain)
            f = flicker(source, out)
            drift = np.abs(out.astype(np.int16) - plain).mean(axis=3)
            moving = drift[1:][moves].mean() if moves.any() else float("nan")
            figures = f["change"], f["still"], f["still_source"], drift.mean(), moving
            print(f"| {path.stem} | {strength} | " + " | ".join(f"{x:.2f}" for x in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
