"""What the runtime costs beside its velocity calls. Ratios within one run; nothing else should run beside it.

python benchmarks/runtime.py folder BUNDLE [--images 500] [--film FILM] [--trials 2]    time over bare session.run calls
python benchmarks/runtime.py loop BUNDLE RUN [--images 16]                 against PIL → PyTorch, batch 1 → PIL
python benchmarks/runtime.py start BUNDLE                                  rfp --help, one picture
python benchmarks/runtime.py memory BUNDLE [--few 200] [--many 2000]       peak memory: long over short inputs
python benchmarks/runtime.py size                                          bytes installed, with torch and without
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rfp.runtime import FlowOptions, Report, load_bundle, translate
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


@dataclass
class Took:
    """Seconds of wall time, and of the processor in all threads, which another program's load changes less."""

    wall: float
    processor: float

    def __add__(self, other: "Took") -> "Took":
        return Took(self.wall + other.wall, self.processor + other.processor)


def took(work: Callable[[], object]) -> Took:
    began = time.process_time()
    wall = seconds(work)
    return Took(wall, time.process_time() - began)


Calls = Callable[[int], object]
"""The velocity calls, and nothing else, of so many pictures."""


def layouts(bundle: Bundle, height: int, width: int) -> dict[str, Calls]:
    """Three ways to make the calls, by name."""
    batch = 2 * cores()
    x, t = np.zeros((batch, 3, height, width), np.float32), np.array([0.5], np.float32)
    wide, narrow = (open_session(bundle.model, bundle.path, n) for n in (cores(), 1))
    pool, steps = ThreadPoolExecutor(cores()), bundle.manifest.default_steps

    def follow(session: Any, part: Any) -> None:
        for _ in range(steps):
            session.run(["velocity"], {"x": part, "t": t})

    return {
        "one batch, all threads": lambda n: [follow(wide, x) for _ in range(n // batch)],
        "one by one, all threads": lambda n: [follow(wide, x[:1]) for _ in range(n)],
        "a picture a core": lambda n: list(pool.map(lambda _: follow(narrow, x[:1]), range(n))),
    }


def bare(bundle: Bundle, height: int, width: int) -> tuple[Calls, str]:
    """The layout in which the calls are fastest, and its name."""
    found, n = layouts(bundle, height, width), 4 * cores()
    times = {name: min(seconds(lambda: calls(n)) for _ in range(3)) for name, calls in found.items()}  # noqa: B023
    name = min(times, key=lambda k: times[k])
    return found[name], name


def compare(what: str, count: int, calls: Calls, run: Callable[[], Report]) -> None:
    """A translation of so many pictures between two halves of their bare calls."""
    half = count // 2
    before = took(lambda: calls(half))
    reports: list[Report] = []
    whole = took(lambda: reports.append(run()))
    need = before + took(lambda: calls(count - half))
    (report,) = reports
    print(
        f"{what}: wall {whole.wall:.1f} / {need.wall:.1f} s = {whole.wall / need.wall:.2f}, processor "
        f"{whole.processor:.1f} / {need.processor:.1f} s = {whole.processor / need.processor:.2f} "
        f"(load {os.getloadavg()[0]:.1f})"
    )
    print("  seconds by stage: " + ", ".join(f"{k} {v:.2f}" for k, v in report.stages.items()), flush=True)


def folder(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.bundle)
    side, multiple = bundle.manifest.image_size, bundle.manifest.multiple
    with tempfile.TemporaryDirectory() as where:
        source = pictures(Path(where) / "in", args.images, side)
        calls, layout = bare(bundle, side, side)
        for trial in range(args.trials):
            out = Path(where) / f"out{trial}"
            what = f"{args.images} pictures of {side} px ({layout})"
            compare(what, args.images, calls, lambda: translate(bundle, [source], out))  # noqa: B023
        if not args.film:
            return
        seen, frames = film_of(args.film)
        fitted = [round(s * side / min(seen)) for s in seen]
        w, h = (-(-s // multiple) * multiple for s in fitted)
        calls, layout = bare(bundle, h, w)
        for trial in range(args.trials):
            out = Path(where) / f"{trial}{args.film.suffix}"
            what = f"film, {seen[0]}×{seen[1]}, {frames} frames at {w}×{h} ({layout})"
            compare(what, frames, calls, lambda: translate(bundle, [args.film], out))  # noqa: B023


def film_of(path: Path) -> tuple[tuple[int, int], int]:
    """Its (width, height) in px, and how many frames it has."""
    from rfp.runtime.discovery import discover
    from rfp.runtime.frames import look, read

    (media,) = discover([path])
    with media.open() as stream:
        seen = look(media, stream)
        return (seen.width, seen.height), sum(1 for _ in read(media, stream, (16, 16)))


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
            eager = took(lambda: obvious(source, Path(where) / f"torch{trial}"))  # noqa: B023
            for precision in (p for p in ("fp32", "int8") if any(g.precision == p for g in bundle.manifest.graphs)):
                flow = FlowOptions(precision=precision, device="cpu")
                target = Path(where) / f"{precision}{trial}"
                ours = took(lambda: translate(args.bundle, [source], target, flow=flow))  # noqa: B023
                print(
                    f"{args.images} of {side} px, {precision}: loop {eager.wall:.1f} s, rfp {ours.wall:.1f} s: "
                    f"{eager.wall / ours.wall:.2f} times as fast; processor {eager.processor:.1f} and "
                    f"{ours.processor:.1f} s: {eager.processor / ours.processor:.2f} (load {os.getloadavg()[0]:.1f})",
                    flush=True,
                )


def child(command: Sequence[str]) -> Took:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def start(args: argparse.Namespace) -> None:
    def run(*command: str) -> Took:
        runs = [child(command) for _ in range(args.trials)]
        return Took(min(run.wall for run in runs), min(run.processor for run in runs))

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
    pairs = (("rfp --help", helped, "import torch", torch), ("one picture", whole, "session and 12 calls", least))
    for ours, took, theirs, other in pairs:
        print(
            f"{ours} {took.wall:.2f} s, {theirs} {other.wall:.2f} s: {took.wall / other.wall:.2f}; processor "
            f"{took.processor:.2f} and {other.processor:.2f} s: {took.processor / other.processor:.2f}"
        )


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

    base = megabytes("numpy", "pillow", "av", "onnxruntime", "typer", "rich", "protobuf", "flatbuffers")
    train = megabytes("torch", "torchvision", "pydantic", "pydantic_core", "scipy", "sympy", "networkx", "safetensors")
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
            sub.add_argument("--images", type=int, default=500 if part is folder else 16)
        if part is folder:
            sub.add_argument("--film", type=Path)
        if part in (folder, start):
            sub.add_argument("--trials", type=int, default=2 if part is folder else 5)
        if part is memory:
            sub.add_argument("--few", type=int, default=200)
            sub.add_argument("--many", type=int, default=2000)
    args = parser.parse_args()
    args.part(args)


if __name__ == "__main__":
    main()
