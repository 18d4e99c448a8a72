"""The coupling that improves itself: pictures paired with what the flow, as far as it has come, makes of them.

A step of online iterative Markovian fitting (De Bortoli et al. 2024, arXiv:2409.09347, algorithm 1; Shi et al. 2023,
arXiv:2303.16852) without its noise: the flow learns from pairs that it joins itself, of which one end is always real.
Neighbours in the other domain are pictures of something else; what the flow makes of a picture is of the same thing.
"""

from functools import partial

import torch
from torch import Tensor

from . import ranks
from .config import RFPix2pixModel
from .velocity_net import VelocityNet, integrate_net

STEPS = 3
"""Euler steps from one end of such a pair to the other."""


def self_paired(
    config: RFPix2pixModel, ema: VelocityNet, x0: Tensor, x1: Tensor, place: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """x0, x1 [B, C, H, W], this rank's share of coupled pairs, with `self_pairing` of them joined by the flow instead.

    `place` [B, 2, H, W] says where in their pictures they lie.

    By turns x0 becomes what `ema` makes of x1 going back, and x1 what it makes of x0. Which pairs these are is a
    function of their place in the whole batch, spread evenly, so that every number of ranks draws the same ones.
    """
    share = config.self_pairing
    judged = config.adversarial_weight and step >= config.critic_from  # by a critic that would take it for real
    if not share or step < config.self_pairing_start * config.steps or judged:
        return x0, x1
    places = torch.arange(config.train_batch_size)[ranks.share(config.train_batch_size)]
    before, after = (places * share).floor(), ((places + 1) * share).floor()
    turn = torch.where(after > before, before.long() % 2, torch.tensor(-1)).to(x0.device)
    x0, x1, back, forth = x0.clone(), x1.clone(), turn == 0, turn == 1
    made0 = _joined(config, ema, x1[back], place[back], 1.0, 0.0)
    x1[forth] = _joined(config, ema, x0[forth], place[forth], 0.0, 1.0)
    x0[back] = made0
    return x0, x1


@torch.no_grad()
def _joined(config: RFPix2pixModel, ema: VelocityNet, x: Tensor, place: Tensor, t0: float, t1: float) -> Tensor:
    """The other end of the flow through x, in the range of pictures unless these are latents."""
    if not len(x):
        return x
    n = config.train_minibatch_size
    parts = zip(x.split(n), place.split(n), strict=True)
    made = torch.cat([integrate_net(partial(ema, place=there), part, STEPS, t0, t1) for part, there in parts])
    return made if config.codec.latents else made.clamp(-1, 1)
