"""What the runtime costs beside its velocity calls. Ratios within one run; nothing else should run beside it.

python benchmarks/runtime.py folder BUNDLE [--images 100] [--film FILM]    wall time over bare session.run calls
python benchmarks/runtime.py loop BUNDLE RUN [--images 16]                 against PIL → PyTorch, batch 1 → PIL
python benchmarks/runtime.py start BUNDLE                                  rfp --help, one picture
python benchmarks/runtime.py memory BUNDLE [--few 200] [--many 2000]       peak memory: long over short inputs
python benchmarks/runtime.py size                                          bytes installed, with torch and without
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from PIL import Image
from rfp.runtime import FlowOptions, load_bundle, translate
from rfp.runtime.bundle import Bundle
from rfp.runtime.network import cores, open_session
from rfp.runtime.pixels import to_float, to_uint8


def pictures(folder: Path, count: int, side: int) -> Path:
    """Smooth pictures that compress as photos do."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")
    return folder


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bare(bundle: Bundle, pictures_: int, height: int, width: int) -> tuple[float, str]:
    """Seconds of the velocity calls of so many pictures alone, at the best of three layouts, and its name."""
    x, t = np.zeros((4, 3, height, width), np.float32), np.array([0.5], np.float32)
    wide, narrow = (open_session(bundle.model, bundle.path, n) for n in (cores(), 1))
    pool = ThreadPoolExecutor(cores())

    def one(session: object, part: object) -> None:
        session.run(["velocity"], {"x": part, "t": t})  # type: ignore[attr-defined]

    parts = [x[i : i + 1] for i in range(len(x))]
    layouts = {
        "one batch, all threads": lambda: one(wide, x),
        "one by one, all threads": lambda: [one(wide, part) for part in parts],
        "a picture a core": lambda: list(pool.map(lambda part: one(narrow, part), parts)),
    }
    best = {name: statistics.median(seconds(layout) for _ in range(8)) for name, layout in layouts.items()}
    name = min(best, key=lambda k: best[k])
    return best[name] / len(x) * bundle.manifest.default_steps * pictures_, name


def folder(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.bundle)
    side, multiple = bundle.manifest.image_size, bundle.manifest.multiple
    with tempfile.TemporaryDirectory() as where:
        source = pictures(Path(where) / "in", args.images, side)
        for trial in range(2):
            before, layout = bare(bundle, args.images, side, side)
            wall = seconds(lambda: translate(bundle, [source], Path(where) / f"out{trial}"))  # noqa: B023
            after, _ = bare(bundle, args.images, side, side)
            calls = (before + after) / 2
            print(f"{args.images} pictures of {side} px: wall {wall:.1f} s, calls {calls:.1f} s ({layout}): ", end="")
            print(f"{wall / calls:.2f}")
        if args.film:
            from rfp.runtime.discovery import discover
            from rfp.runtime.video import look

            (media,) = discover([args.film])
            with media.open() as stream:
                seen = look(media, stream)
            w, h = (-(-round(s * side / min(seen.width, seen.height)) // multiple) * multiple for s in
                    (seen.width, seen.height))  # fmt: skip
            frames = 0

            def count(event: object) -> None:
                nonlocal frames
                frames = max(frames, getattr(event, "count", 0) or 0)

            wall = seconds(lambda: translate(bundle, [args.film], Path(where) / args.film.name, on_event=count))
            calls, layout = bare(bundle, frames, h, w)
            print(
                f"film, {seen.width}×{seen.height}, {frames} frames at {w}×{h}: wall {wall:.1f} s, calls {calls:.1f} s "
            )
            print(f"({layout}): {wall / calls:.2f}")


def loop(args: argparse.Namespace) -> None:
    import torch
    from rfp.train import checkpoint

    net = checkpoint.load(checkpoint.find(args.run)).velocity().eval()
    bundle = load_bundle(args.bundle)
    steps, side = bundle.manifest.default_steps, bundle.manifest.image_size

    @torch.no_grad()
    def obvious(source: Path, target: Path) -> None:
        target.mkdir()
        for path in sorted(source.iterdir()):
            x = torch.from_numpy(to_float(np.asarray(Image.open(path).convert("RGB"))[None]))
            for k in range(steps):
                x = x + net(x, torch.full((1,), k / steps)) / steps
            Image.fromarray(to_uint8(x.numpy())[0]).save(target / path.name)

    with tempfile.TemporaryDirectory() as where:
        source = pictures(Path(where) / "in", args.images, side)
        for trial in range(2):
            eager = seconds(lambda: obvious(source, Path(where) / f"torch{trial}"))  # noqa: B023
            for precision in (p for p in ("fp32", "int8") if any(g.precision == p for g in bundle.manifest.graphs)):
                flow = FlowOptions(precision=precision, device="cpu")
                target = Path(where) / f"{precision}{trial}"
                ours = seconds(lambda: translate(args.bundle, [source], target, flow=flow))  # noqa: B023
                print(
                    f"{args.images} pictures of {side} px, {precision}: loop {eager:.1f} s, rfp {ours:.1f} s: ", end=""
                )
                print(f"{eager / ours:.2f} times as fast")


def start(args: argparse.Namespace) -> None:
    def run(*command: str) -> float:
        return min(seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3))

    load = (
        "import onnxruntime, numpy as np\n"
        f"s = onnxruntime.InferenceSession({str(load_bundle(args.bundle).path)!r})\n"
        "x = np.zeros((1, 3, 64, 64), np.float32)\n"
        "for k in range(12): s.run(None, {'x': x, 't': np.array([k / 12], np.float32)})"
    )
    with tempfile.TemporaryDirectory() as where:
        source = pictures(Path(where) / "in", 1, 64)
        rfp = [sys.executable, "-m", "rfp"]
        helped, torch = run(*rfp, "--help"), run(sys.executable, "-c", "import torch")
        out = str(Path(where) / "out")
        whole = run(*rfp, "translate", str(args.bundle), str(source), "-o", out, "--steps", "12", "--overwrite")
        least = run(sys.executable, "-c", load)
    print(f"rfp --help {helped:.2f} s, import torch {torch:.2f} s: {helped / torch:.2f}")
    print(f"one picture {whole:.2f} s, onnxruntime, session and 12 calls {least:.2f} s: {whole / least:.2f}")


def memory(args: argparse.Namespace) -> None:
    code = (
        "import resource, sys; from rfp.runtime import FlowOptions, translate\n"
        "translate(sys.argv[1], [sys.argv[2]], sys.argv[3], flow=FlowOptions(steps=1, size=16))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    peaks = {}
    with tempfile.TemporaryDirectory() as where:
        for count in (args.few, args.many):
            source = pictures(Path(where) / f"in{count}", count, 16)
            command = [sys.executable, "-c", code, str(args.bundle), str(source), str(Path(where) / f"out{count}")]
            peaks[count] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    few, many = peaks[args.few], peaks[args.many]
    print(f"{args.few} pictures {few:.0f} MiB, {args.many} pictures {many:.0f} MiB: {many / few:.2f}")


def size(args: argparse.Namespace) -> None:
    def megabytes(*names: str) -> float:
        files = [f for name in names for f in distribution(name).files or []]
        return sum(f.locate().stat().st_size for f in files if f.locate().is_file()) / 1e6  # type: ignore[attr-defined]

    base = megabytes("numpy", "pillow", "av", "onnxruntime", "typer", "rich", "protobuf", "flatbuffers", "pydantic")
    train = megabytes("torch", "torchvision", "scipy", "sympy", "networkx", "safetensors")
    print(f"runtime {base:.0f} MB, with torch {base + train:.0f} MB: {base / (base + train):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for part, takes in ((folder, "bundle"), (loop, "bundle run"), (start, "bundle"), (memory, "bundle"), (size, "")):
        sub = parts.add_parser(part.__name__)
        sub.set_defaults(part=part)
        for name in takes.split():
            sub.add_argument(name, type=Path)
        if part in (folder, loop):
            sub.add_argument("--images", type=int, default=100 if part is folder else 16)
        if part is folder:
            sub.add_argument("--film", type=Path)
        if part is memory:
            sub.add_argument("--few", type=int, default=200)
            sub.add_argument("--many", type=int, default=2000)
    args = parser.parse_args()
    args.part(args)


if __name__ == "__main__":
    main()
