"""What each preset weighs and how fast it trains: one Markdown row a preset.

    python benchmarks/presets.py [NAME …] [--memory GIB] [--steps 3]

Parameters and the memory estimate at the preset's own minibatch are of the preset as it is. Then real steps of
`rfp train` (loader, both losses, AdamW, average) on random pictures, on this machine's CPU in a process of its own, at
the largest minibatch up to the preset's whose estimate is below --memory; the classifier is untrained and starts
without ImageNet weights, which costs the same. Images/s are of the processor's time, so that a machine shared with
others tells the same. `--memory` too small for one picture leaves the measurement out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rfp.train.config import RFPix2pixModel
from rfp.train.job import Job
from rfp.train.plan import memory
from rfp.train.reading import load_config, presets
from rfp.train.training import train
from rfp.train.velocity_net import build_velocity_net, parameters

GIB = 2**30


class Clock:
    """A reporter that notes the processor's time after every step of the velocity."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def note(self, text: str) -> None:
        pass

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        if phase == "velocity":
            self.times.append(time.process_time())


def quick(name: str, minibatch: int, steps: int) -> RFPix2pixModel:
    """The preset with this minibatch as its batch, and as little as can be besides its steps."""
    changes = {
        "train_batch_size": minibatch,
        "train_minibatch_size": minibatch,
        "train_images": minibatch * steps,
        "sample_batch_size": 1,
        "num_inference_steps": 1,
        "log_every": 1,
        "saliency_max_steps": 1,
        "saliency_accuracy_threshold": 0,
    }
    config = load_config(name)
    if config.saliency_loss_weight and config.saliency_net.type == "ResNetSaliencyNet":
        changes["saliency_net.pretrained"] = False
    if config.codec.type == "VAE":  # the velocity's steps are what is timed
        changes |= {"codec.train_images": 2, "codec.train_batch_size": 2, "codec.train_minibatch_size": 1}
    return load_config(name, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def measure(name: str, minibatch: int, steps: int) -> None:
    """Train in this process; print images a second of one core after the first step, and its growth, as JSON."""
    config = quick(name, minibatch, steps)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder), np.random.default_rng(0)
        for domain in ("0", "1"):
            (root / domain).mkdir()
            for i in range(8):
                picture = rng.integers(0, 256, (config.max_size, config.max_size, 3), np.uint8)
                Image.fromarray(picture).save(root / domain / f"{i}.png")
        torch.nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 8, 8)).sum().backward()  # the libraries are there before
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        inputs0 = "random" if name == "generative" else (root / "0",)
        clock = Clock()
        train(Job(config, inputs0, (root / "1",), root / "run", device="cpu"), clock)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = minibatch / statistics.median(np.diff(clock.times))
    print(json.dumps({"rate": rate, "bytes": 1024 * (after - before)}))


def fitting(name: str, limit: float) -> int:
    """The largest minibatch of at most `limit` bytes by the estimate; 0 if not even one picture fits."""
    n = load_config(name).train_minibatch_size
    while n and memory(quick(name, n, 1)) > limit:
        n //= 2
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=presets())
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that a measurement may take")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.names[0], args.measure, args.steps)
        return
    columns = [
        "preset",
        "px",
        "net",
        "parameters, M",
        "memory, GiB",
        "minibatch",
        "taken",
        "images/s of a core",
        "of tiny",
    ]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    reference = None
    for name in sorted(args.names, key=lambda name: name != "tiny"):
        config = load_config(name)
        with torch.device("meta"):
            count = parameters(build_velocity_net(config))
        row = [f"`{name}`", config.max_size, config.velocity_net.type, f"{count / 1e6:.1f}"]
        row += [f"{memory(config) / GIB:.1f} at {config.train_minibatch_size}"]
        if n := fitting(name, args.memory * GIB):
            command = [sys.executable, __file__, name, "--measure", str(n), "--steps", str(args.steps)]
            seen = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            reference = reference or seen["rate"]
            ratio = seen["bytes"] / memory(quick(name, n, 1))
            row += [n, f"{ratio:.2f}", f"{seen['rate']:.3g}", f"{seen['rate'] / reference:.2g}"]
        else:
            row += ["", "", "not measured", ""]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
