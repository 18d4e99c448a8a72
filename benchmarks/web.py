"""What the page costs beside the runtime: a velocity call in WebAssembly against the same graph in ONNX Runtime.

    python benchmarks/web.py SITE [--size 64] [--calls 10]

SITE is what `rfp export --format web` wrote, with `--precision fp32,fp16,int8` or less. Both take one thread, and what
is told is the processor's time, so that other processes matter less; WebAssembly runs under Node.js.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
from rfp.runtime import load_bundle
from rfp.runtime.network import open_session

NODE = """
import { readFileSync } from "node:fs";
const [site, size, calls, ...files] = process.argv.slice(1);
const ort = await import(`${site}/ort/ort.wasm.bundle.min.mjs`);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync(new URL(`${site}/ort/ort-wasm-simd-threaded.wasm`));
const state = new Float32Array(3 * size * size).map((_, i) => Math.sin(i));
const feeds = { x: new ort.Tensor("float32", state, [1, 3, +size, +size]), t: new ort.Tensor("float32", [0.5], [1]) };
const told = [];
for (const file of files) {
  const session = await ort.InferenceSession.create(readFileSync(new URL(`${site}/${file}`)));
  await session.run(feeds);
  const times = [];
  for (let i = 0; i < calls; i++) {
    const before = process.cpuUsage();
    await session.run(feeds);
    const { user, system } = process.cpuUsage(before);
    times.push((user + system) / 1000);
  }
  told.push(times);
}
process.stdout.write(JSON.stringify(told), () => process.exit(0));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--calls", type=int, default=10)
    args = parser.parse_args()
    graphs = [g for g in load_bundle(args.site).manifest.graphs if (g.format, g.role) == ("onnx", "velocity")]
    command = ["node", "--input-type=module", "-e", NODE, args.site.resolve().as_uri(), str(args.size), str(args.calls)]
    web = json.loads(subprocess.run([*command, *(g.file for g in graphs)], check=True, capture_output=True).stdout)
    print(f"one thread, {args.size} px, ms of the processor a call, medians of {args.calls}:\n")
    print("| graph | MB | WebAssembly | ONNX Runtime | WebAssembly takes |\n| --- | --- | --- | --- | --- |")
    for graph, times in zip(graphs, web, strict=True):
        page, runtime = (
            statistics.median(times),
            statistics.median(native(args.site / graph.file, args.size, args.calls)),
        )
        print(f"| {graph.precision} | {graph.bytes / 1e6:.1f} | {page:.0f} | {runtime:.0f} | {page / runtime:.1f}× |")


def native(path: Path, size: int, calls: int) -> list[float]:
    """ms of the processor of each call, after one that does not count."""
    session = open_session(path.read_bytes(), path, threads=1)
    x = np.sin(np.arange(3 * size * size, dtype=np.float32)).reshape(1, 3, size, size)
    times = []
    for _ in range(calls + 1):
        start = time.process_time()
        session.run(["velocity"], {"x": x, "t": np.array([0.5], np.float32)})
        times.append(1000 * (time.process_time() - start))
    return times[1:]


if __name__ == "__main__":
    main()
