"""The coupling made anew: each picture with the real ones nearest to what the flow has learned to make of it.

The first neighbours are found by an embedder that has to see through what sets the domains apart. What the flow makes
of a picture is in the other domain's colours already, so its neighbours there can be found by them: correspondence and
map improve each other by turns, as in iterated closest points (Besl & McKay 1992, section IV).
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint as ckpt
from .codec import Codec, decode, encode
from .config import RFPix2pixModel
from .domains import WORKERS, Crop, Domain
from .embedders import hog, pixels
from .neighbours import neighbours
from .noise import Noise
from .run import Run
from .velocity_net import VelocityNet, integrate_net

STEPS = 4
"""Euler steps from a picture to what the flow makes of it; once there is a critic, as many as it looks at."""
MOST = 0.2
"""Of the velocity calls of a training, counting a backward pass as two, that making pairs anew may take."""
NEAR0, NEAR1 = "near.0", "near.1"
"""Names, in the training state, of the neighbours of domain 1 in domain 0 [N1, K], and of domain 0 in domain 1."""


def turns(config: RFPix2pixModel, n0: int, n1: int) -> list[int]:
    """The steps before which pairs are made anew, evenly spread; fewer where that would take more than MOST."""
    if config.pairs_by != "structure":
        return []
    calls = max(STEPS, config.num_inference_steps) if config.adversarial_weight else STEPS
    affordable = int(MOST * 3 * config.train_images / (calls * (n0 + n1)))
    count = min(config.re_pairings, affordable, config.steps - 1)
    return [round((i + 1) * config.steps / (count + 1)) for i in range(count)]


def re_paired(run: Run, codec: Codec, ema: VelocityNet, step: int) -> ckpt.Tensors:
    """For each picture its `structure_candidates` nearest real ones to its translation before `step`."""
    steps = run.config.num_inference_steps if step > run.config.critic_from else STEPS
    start, (domain0, domain1), k = time.monotonic(), run.pictures, run.config.structure_candidates
    real0, made1 = _seen(run, codec, ema, domain0, steps)
    real1, made0 = _seen(run, codec, ema, domain1, steps, 1.0, 0.0)
    near1, near0 = neighbours(made1, real1, k, run.device)[0], neighbours(made0, real0, k, run.device)[0]
    count, seconds = len(domain0) + len(domain1), time.monotonic() - start
    run.report.note(f"re-pairing: {count:,} pictures translated and paired anew in {seconds:.0f} s")
    return {NEAR0: torch.from_numpy(near0), NEAR1: torch.from_numpy(near1)}


def _seen(
    run: Run, codec: Codec, ema: VelocityNet, domain: Domain, steps: int, t0: float = 0.0, t1: float = 1.0
) -> tuple[Tensor, Tensor]:
    """All pictures of a domain, and what the flow makes of them, as vectors: float16 [N, 1280] each."""
    n, own, made = run.config.train_minibatch_size, [], []
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(domain), n):
            numbers = range(first, min(first + n, len(domain)))
            x = run.tensor(np.stack(list(pool.map(lambda i: domain.crop(i, Crop()), numbers))))
            z = integrate_net(ema, encode(codec, x, n), steps, t0, t1)
            own.append(alike(x).half().cpu())
            made.append(alike(decode(codec, z, n).clamp(-1, 1)).half().cpu())
    return torch.cat(own), torch.cat(made)


def alike(x: Tensor) -> Tensor:
    """Edges and pixels, by halves: pictures [B, 3, H, W] in [-1, 1] → unit vectors [B, 1280].

    By pixels alone what is small, as a moon, is lost for good once the flow has lost it.
    """
    return F.normalize(torch.cat([hog(x)[:, :512], pixels(x)], dim=1))


def saved(run: Run) -> ckpt.Tensors:
    """The neighbours beside the checkpoint that the run goes on from; none where there are none, or they do not fit."""
    near = {name: run.resumed_state[name] for name in (NEAR0, NEAR1) if name in run.resumed_state}
    if not near or isinstance(run.domain0, Noise):
        return {}
    n0, n1 = (len(domain) for domain in run.pictures)
    if len(near) == 2 and _fits(near[NEAR0], n1, n0) and _fits(near[NEAR1], n0, n1):
        return near
    run.report.note("re-pairing: the neighbours beside the checkpoint are of other pictures; they are found anew")
    return {}


def _fits(near: Tensor, rows: int, others: int) -> bool:
    """Whether these are indices [rows, K] of `others` pictures: a checkpoint may come from a stranger."""
    whole = near.dim() == 2 and len(near) == rows and near.numel() > 0 and near.dtype == torch.int64
    return whole and int(near.min()) >= 0 and int(near.max()) < others
