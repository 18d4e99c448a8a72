"""What each exported graph costs and how near it comes to PyTorch: size, parity, speed and load time.

    python benchmarks/export.py RUN... [--onnx fp32,fp16,int8] [--coreml fp16,fp32,int8,palette8,palette6,palette4]
        [--repeats 30] [--profile] [--size 64] [--keep DIR] [--busy]

A RUN may be a checkpoint file too. Speed is PyTorch eager (float32, evaluation mode, no autograd) over ONNX Runtime for
one call of the same graph on one picture of the training size, the least of calls taken in turn: with all cores by the
clock, and on one core by the processor's time, which other processes move little. Load is the processor's time, the
least of 5. `--busy` leaves out the clock's. Core ML packages are proven by their evaluator; timing takes a Mac.

`--profile` adds what the kinds of nodes of each velocity graph cost on one core, each node the least of its calls.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rfp.export.bundle import export_bundle
from rfp.export.mil import Program
from rfp.export.onnx import optimised_nodes
from rfp.export.source import Source, open_source
from rfp.runtime import Manifest
from rfp.runtime.manifest import MANIFEST_FILE, Graph
from rfp.runtime.network import open_session
from rfp.train.codec import VAE

NOT_HERE = "not here"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--onnx", default="fp32,fp16,int8", help="precisions; none to leave out")
    parser.add_argument("--coreml", default="fp16,fp32,int8,palette8,palette6,palette4", help="the same")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--size", type=int, help="side of the picture that is timed, if not the size of training")
    parser.add_argument("--busy", action="store_true", help="others use this machine: leave out the clock's figures")
    parser.add_argument("--keep", type=Path, help="folder in which bundles stay, and from which they are taken again")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| model | graph | nodes, as run | size | to PyTorch | grey levels | one core | all cores | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in args.runs:
        source = open_source(run)
        for format_, precisions in (("onnx", args.onnx), ("coreml", args.coreml)):
            if wanted := [p for p in precisions.split(",") if p not in ("", "none")]:
                with tempfile.TemporaryDirectory() as folder:
                    bundle = (args.keep or Path(folder)) / f"{named(run)}-{format_}"
                    if not bundle.exists():
                        export_bundle(run, bundle, formats=[format_], precisions=wanted, allow_below_floor=True)
                    rows(named(run), source, format_, bundle, args)


def named(run: Path) -> str:
    return run.stem if run.is_file() else run.name


def rows(name: str, source: Source, format_: str, bundle: Path, args: argparse.Namespace) -> None:
    graphs = Manifest.from_json((bundle / MANIFEST_FILE).read_text(encoding="utf-8")).graphs
    for graph in graphs:
        path = bundle / graph.file
        costs = timed(source, graph, path, args) if format_ == "onnx" else package(path)
        left = (
            f" ({len(graph.about['left_in_float'])} of {graph.about['layers']} in float)"
            if "layers" in graph.about
            else ""
        )
        below = " **below its floor**" if graph.below_floor else ""
        parity = f"{graph.parity['psnr']:.1f} dB{below} | {graph.parity['grey_levels']:.0f}"
        print(f"| {name} | {graph.file}{left} | {costs[0]} | {graph.bytes / 1e6:.1f} MB | {parity} | ", end="")
        print(" | ".join(costs[1:]), "|", flush=True)
    if args.profile and format_ == "onnx":
        for graph in graphs:
            if graph.role == "velocity":
                print(f"{name} {graph.file}: {profile(source, bundle / graph.file, args)}", flush=True)


def timed(source: Source, graph: Graph, path: Path, args: argparse.Namespace) -> tuple[str, ...]:
    """Nodes of the file and as they are run; speed on one core and with all; load time."""
    model, feed_and_torch = path.read_bytes(), call(source, graph.role, args.size)
    loads = [seconds(lambda: open_session(model, path, threads=1), time.process_time) for _ in range(5)]
    nodes = f"{len(onnx.load_from_string(model).graph.node)}, {optimised_nodes(path)}"
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    one = compared(*feed_and_torch, open_session(model, path, threads=1), args.repeats, time.thread_time)
    torch.set_num_threads(cores)
    every = "" if args.busy else compared(*feed_and_torch, open_session(model, path), args.repeats, time.perf_counter)
    return nodes, one, every, f"{min(loads) * 1e3:.0f} ms"


@torch.no_grad()
def compared(
    feed: dict[str, np.ndarray], by_torch: Callable[[], object], session: Any, repeats: int, clock: Callable[[], float]
) -> str:
    """The least of PyTorch's times over the least of ours."""
    pairs = [(seconds(by_torch, clock), seconds(lambda: session.run(None, feed), clock)) for _ in range(repeats)]
    eager, ours = (min(times) for times in zip(*pairs, strict=True))
    return f"{eager / ours:.2f}× ({eager * 1e3:.1f} / {ours * 1e3:.1f} ms)"


def package(path: Path) -> tuple[str, ...]:
    return str(len(Program(path).operations)), NOT_HERE, NOT_HERE, NOT_HERE


def profile(source: Source, path: Path, args: argparse.Namespace) -> str:
    """Milliseconds by kind of node, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling, options.log_severity_level = 1, True, 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed, _ = call(source, "velocity", args.size)
        for _ in range(args.repeats):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    least: dict[tuple[str, str], int] = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            node = event["args"]["op_name"], event["name"]
            least[node] = min(event["dur"], least.get(node, event["dur"]))
    costs = Counter[str]()
    for (kind, _), microseconds in least.items():
        costs[kind] += microseconds
    numbers = Counter(kind for kind, _ in least)
    kinds = ", ".join(f"{kind} ×{numbers[kind]} {costs[kind] / 1e3:.2f}" for kind, _ in costs.most_common(12))
    return f"{costs.total() / 1e3:.2f} ms: {kinds}"


def call(source: Source, role: str, side: int | None) -> tuple[dict[str, np.ndarray], Callable[[], object]]:
    """The inputs of one call, and the same call by PyTorch."""
    side, latent = side or source.manifest.image_size, source.manifest.latent
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    z = torch.randn(1, latent.channels, side // latent.factor, side // latent.factor) if latent else picture
    t = torch.full((1,), 0.3)
    if role == "velocity":
        return {"x": z.numpy(), "t": t.numpy()}, lambda: source.net(z, t)
    assert isinstance(source.codec, VAE)
    codec = source.codec
    if role == "encoder":
        return {"x": picture.numpy()}, lambda: codec.encode(picture)
    return {"z": z.numpy()}, lambda: codec.decode(z)


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


if __name__ == "__main__":
    main()
