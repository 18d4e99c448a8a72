"""Pictures a second that training can read, without a net, against what its steps use.

    python benchmarks/loader.py DOMAIN0 DOMAIN1 [-c tiny] [--batches 30] [--set KEY=VALUE …]

Reads batches as training does, with random pairs: first with nothing in memory (and cache_megabytes 0, so that every
picture is decoded each time), then from memory; and takes steps on one batch, by Muon and by AdamW, in turn with the
reading.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rfp.train.coupling import batches, random_pairs
from rfp.train.domains import Domain, open_domain
from rfp.train.muon import optimizers
from rfp.train.reading import load_config
from rfp.train.run import Run, Silence
from rfp.train.velocity_net import build_velocity_net
from rfp.train.velocity_step import velocity_step


def read(domains: tuple[Domain, Domain], batch: int, count: int) -> Iterator[float]:
    """Pairs a second over `count` batches, without end."""
    pairs = random_pairs(len(domains[0]), len(domains[1]), 0)
    for start in range(0, 10**6, count):
        begun = time.perf_counter()
        for _ in batches(*domains, pairs, batch, start, start + count, 0, True):
            pass
        yield count * batch / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs=2, type=Path)
    parser.add_argument("-c", "--config", default="tiny")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    batch, nothing = config.train_batch_size, Any
    domains = {
        name: tuple(open_domain([path], config.max_size, cache << 20) for path in args.domains)
        for name, cache in (("decoded each time", 0), ("from memory", 1 << 12))
    }
    for domain in domains["from memory"]:
        for i in range(len(domain)):
            domain.read(i)
    readers: dict[str, Iterator[float]] = {k: read(d, batch, args.batches) for k, d in domains.items()}
    run = Run(Path(), config, 0, torch.device("cpu"), nothing, nothing, Silence())
    v = build_velocity_net(config).to(memory_format=run.memory_format)
    rate, decay = config.learning_rate, config.weight_decay
    training = {name: optimizers(v, name, rate, decay, batch, config.fused_adamw) for name in ("muon", "adamw")}
    x0, x1 = torch.rand(2, batch, 3, config.max_size, config.max_size) * 2 - 1
    for either in training.values():
        velocity_step(run, v, None, either, x0, x1, x0[:, :2], 0)
    speeds: dict[str, list[float]] = {name: [] for name in [*readers, *training]}
    for _ in range(args.repeats):
        for name, reader in readers.items():
            speeds[name].append(next(reader))
        for name, either in training.items():
            begun = time.perf_counter()
            for _ in range(3):
                velocity_step(run, v, None, either, x0, x1, x0[:, :2], 0)
            speeds[name].append(3 * batch / (time.perf_counter() - begun))
    step = statistics.median(speeds["muon"])
    print("| data, or steps by | pairs/s | of a step's |\n| --- | --- | --- |")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(values) / step:.2f}× |")


if __name__ == "__main__":
    main()
