"""What each exported graph costs and how near it comes to PyTorch: size, parity, speed and load time.

    python benchmarks/export.py RUN... [--precision fp32,fp16,int8] [--repeats 30]

Speed is PyTorch eager (float32, evaluation mode, no autograd) over ONNX Runtime for one call of the same graph on one
picture of the training size, both with all cores; the least of calls taken in turn, since the machine is shared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from rfp.export.bundle import export_bundle
from rfp.export.onnx import optimised_nodes
from rfp.export.source import Source, open_source
from rfp.runtime import load_bundle
from rfp.runtime.manifest import Graph
from rfp.runtime.network import open_session
from rfp.train.codec import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| run | graph | nodes, as run | size | to PyTorch | grey levels | speed | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            export_bundle(run, bundle, precisions=args.precision.split(","), allow_below_floor=True)
            source = open_source(run)
            for graph in load_bundle(bundle).manifest.graphs:
                print(row(run.name, source, graph, bundle / graph.file, args.repeats), flush=True)


def row(run: str, source: Source, graph: Graph, path: Path, repeats: int) -> str:
    model = path.read_bytes()
    loads = [seconds(lambda: open_session(model, path)) for _ in range(5)]
    session = open_session(model, path)
    feed, by_torch = call(source, graph.role)
    with torch.no_grad():
        pairs = [(seconds(by_torch), seconds(lambda: session.run(None, feed))) for _ in range(repeats)]
    eager, ours = (min(times) for times in zip(*pairs, strict=True))
    nodes = f"{len(onnx.load_from_string(model).graph.node)}, {optimised_nodes(path)}"
    parity = f"{graph.parity['psnr']:.1f} dB | {graph.parity['grey_levels']:.0f}"
    left = f" ({len(graph.about['left_in_float'])} of {graph.about['layers']} in float)" if graph.about else ""
    return (
        f"| {run} | {graph.file}{left} | {nodes} | {graph.bytes / 1e6:.1f} MB | {parity} | "
        f"{eager / ours:.2f}× ({eager * 1e3:.1f} / {ours * 1e3:.1f} ms) | {min(loads) * 1e3:.0f} ms |"
    )


def call(source: Source, role: str) -> tuple[dict[str, np.ndarray], Callable[[], object]]:
    """The inputs of one call, and the same call by PyTorch."""
    side, latent = source.manifest.image_size, source.manifest.latent
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


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
