"""From a config's coupling to the pairs of a training, with a proof sheet of who is like whom."""

import json
import time
from itertools import zip_longest

import numpy as np
from torch import Tensor

from ..runtime.errors import UsageError
from ..runtime.pixels import Uint8
from . import ranks
from .coupling import Pair, noise_pairs, paired, random_pairs, structure_pairs
from .domains import Crop, Domain, Indices
from .embedders import build_embedder
from .embedding import embed
from .embedding_cache import EmbeddingCache
from .frame_cache import cache_folder
from .neighbours import neighbours, require_index
from .noise import Noise
from .run import Interrupted, Run
from .transport import transport_pairs

SHEET_CANDIDATES = 8
"""Candidates shown beside a picture, at most."""
SHOW_EVERY = 10.0
"""Seconds between plain lines about embedding."""


def couple(run: Run, step: int) -> Pair:
    """The coupling that the config asks for; at `step` 0 its figures are logged."""
    config = run.config
    if isinstance(run.domain0, Noise):
        pairs = noise_pairs(len(run.domain1), run.seed)
    else:
        pairs = random_pairs(len(run.domain0), len(run.domain1), run.seed)
    match config.pairs_by:
        case "paired":
            return paired(len(run.domain1), run.seed)
        case "random":
            return pairs
        case "minibatch_ot":
            return transport_pairs(run.domain0, run.domain1, pairs, config.train_batch_size)
        case "structure":
            return _by_structure(run, step)


def same_names(domain0: Domain, domain1: Domain) -> None:
    """Raise UsageError unless both hold the same names in the same order, as `coupling` `paired` takes them."""
    names = [[item.name for item in domain.items] for domain in (domain0, domain1)]
    if names[0] != names[1]:
        odd = next((a, b) for a, b in zip_longest(*names) if a != b)
        raise UsageError(
            f"coupling paired: picture {odd[0] or 'none'} of domain 0 stands beside {odd[1] or 'none'} of domain 1 "
            f"({len(names[0]):,} and {len(names[1]):,} pictures); give both domains files of the same names"
        )


def _by_structure(run: Run, step: int) -> Pair:
    """Raises UsageError where the embedder's weights are missing, and Interrupted between batches of embedding."""
    near1, near0 = ranks.once(lambda: _neighbours(run))
    pairs = structure_pairs(near1, near0, run.seed)
    if ranks.first():
        _write_sheet(run, near1, near0)
        if step == 0:
            _report_drawn(run, pairs, near1, near0)
    return pairs


def _neighbours(run: Run) -> tuple[Indices, Indices]:
    k, name = run.config.structure_candidates, run.config.structure_embedder
    require_index(max(len(domain) for domain in run.pictures))  # before hours of embedding
    e0, e1 = embeddings(run)
    start = time.monotonic()
    near1, near0 = neighbours(e0, e1, k, run.device)
    run.report.note(f"structure pairing: {k} nearest by {name}, found in {time.monotonic() - start:.1f} s")
    return near1, near0


def embeddings(run: Run) -> tuple[Tensor, Tensor]:
    """Both domains' pictures as unit vectors [N, D]; what the cache has is not computed."""
    cache = EmbeddingCache(cache_folder(), run.report.note)
    shown = time.monotonic()

    def embedded(domain: Domain) -> Tensor:
        def progress(done: int, count: int, rate: float) -> None:
            nonlocal shown
            due = done == count or time.monotonic() - shown > SHOW_EVERY
            shown = time.monotonic() if due else shown
            run.report.step(f"embedding {domain.name}", done, count, {"images_per_second": rate} if due else {})
            if run.asked.is_set():
                raise Interrupted

        return embed(domain, embedder, cache, run.device, progress)

    try:
        embedder = build_embedder(run.config, run.device, cache.md5)
        domain0, domain1 = run.pictures
        return embedded(domain0), embedded(domain1)
    finally:
        cache.close()


def ever_drawn(pairs: Pair, count: int, n0: int, n1: int) -> tuple[float, float]:
    """The shares of both domains that the first `count` pairs hold."""
    seen0, seen1 = np.zeros(n0, bool), np.zeros(n1, bool)
    for k in range(min(count, 2 * max(n0, n1))):  # by then every epoch of `structure_pairs` has been through once
        i, j = pairs(k)
        seen0[i] = seen1[j] = True
    return float(seen0.mean()), float(seen1.mean())


def _report_drawn(run: Run, pairs: Pair, near1: Indices, near0: Indices) -> None:
    """Say, and write to metrics.jsonl, how much of the domains training will see.

    Some pictures are many others' nearest and some nobody's (hubness): `chosen0|1` is the share that the other
    domain's choice alone would ever draw.
    """
    n0, n1 = (len(domain) for domain in run.pictures)
    count = run.config.steps * run.config.train_batch_size
    drawn0, drawn1 = ever_drawn(pairs, count, n0, n1)
    chosen0, chosen1 = len(np.unique(near0)) / n0, len(np.unique(near1)) / n1
    run.report.note(
        f"structure pairing: draws {drawn0:.1%} of domain 0 and {drawn1:.1%} of domain 1 "
        f"(paired one way only: {chosen0:.1%} and {chosen1:.1%})"
    )
    if min(drawn0, drawn1) < 0.95:
        run.report.note(
            f"structure pairing: {count:,} pairs are too few to draw every picture once; raise train_images to "
            f"{2 * max(n0, n1):,} or more"
        )
    figures = {"drawn0": drawn0, "drawn1": drawn1, "chosen0": chosen0, "chosen1": chosen1}
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps({"phase": "velocity", "step": 0, **figures}) + "\n")


def _write_sheet(run: Run, near1: Indices, near0: Indices) -> None:
    """samples/pairings.png: left, pictures of domain 0, each followed by its candidates; right, of domain 1."""
    domain0, domain1 = run.pictures
    halves = [_half(run, domain0, domain1, near1), _half(run, domain1, domain0, near0)]
    gap = np.full((len(halves[0]), run.config.max_size // 2, 3), 255, np.uint8)
    run.write_sheet("pairings", np.concatenate([halves[0], gap, halves[1]], axis=1))


def _half(run: Run, domain: Domain, other: Domain, near: Indices) -> Uint8:
    n, size = run.config.sample_batch_size, run.config.max_size
    gap = np.full((size, max(2, size // 8), 3), 255, np.uint8)
    rows = []
    for i in (row * len(domain) // n for row in range(n)):
        candidates = [other.crop(int(j), Crop()) for j in near[i, :SHEET_CANDIDATES]]
        rows.append(np.concatenate([domain.crop(i, Crop()), gap, *candidates], axis=1))
    return np.concatenate(rows)
