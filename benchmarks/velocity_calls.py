"""How the CPU runtime should call the graph, and what the pipeline around the calls costs.

    python benchmarks/velocity_calls.py BUNDLE [--size 64] [--images 32] [--film FILM]

Prints ratios within one run: a batch as one call on all threads against one-thread calls on one core each (what the
runtime does), and `rfp translate` of a film or folder against the bare velocity calls for as many pictures.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rfp.runtime import FlowOptions, load_bundle, translate
from rfp.runtime.euler import integrate
from rfp.runtime.network import open_session
from rfp.runtime.velocity import Velocity


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--film", type=Path, help="a film to translate at --size")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    velocity = Velocity(bundle, "cpu")
    wide = open_session(bundle.model, bundle.path)
    x = np.random.default_rng(0).uniform(-1, 1, (args.images, 3, args.size, args.size)).astype(np.float32)
    t = np.array([0.5], np.float32)
    together = seconds(lambda: wide.run(["velocity"], {"x": x, "t": t}))
    apart = seconds(lambda: velocity(x, 0.5))
    each = seconds(lambda: [wide.run(["velocity"], {"x": x[i : i + 1], "t": t}) for i in range(len(x))])
    print(f"{os.cpu_count()} cores, {args.images} pictures of {args.size} px, ms a picture and call:")
    for name, value in (("one batch, all threads", together), ("one by one, all threads", each), ("runtime", apart)):
        print(f"| {name} | {1000 * value / len(x):.1f} | {together / value:.2f}× |")
    if args.film:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            frames = 0

            def count(event: object) -> None:
                nonlocal frames
                frames = max(frames, getattr(event, "count", 0) or 0)

            translate(
                bundle, [args.film], Path(folder) / args.film.name, flow=FlowOptions(size=args.size), on_event=count
            )
            whole = time.perf_counter() - start
        from rfp.runtime.discovery import discover
        from rfp.runtime.video import look  # the film's own shape

        media = discover([args.film])[0]
        with media.open() as stream:
            seen = look(media, stream)
        scale = args.size / min(seen.width, seen.height)
        multiple = bundle.manifest.multiple
        h, w = (-(-round(n * scale) // multiple) * multiple for n in (seen.height, seen.width))
        y = np.zeros((velocity.batch, 3, h, w), np.float32)
        bare = seconds(lambda: integrate(velocity, y, bundle.manifest.default_steps), 3) * frames / len(y)
        print(
            f"film of {frames} frames at {w}×{h}: {whole:.1f} s; its velocity calls alone {bare:.1f} s: "
            f"{bare / whole:.2f}×"
        )


if __name__ == "__main__":
    main()
