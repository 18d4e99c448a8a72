"""Few steps: the net learns to reach, in n Euler steps, where a flow of many steps ended (`rfp distill`)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import ranks
from .config import RFPix2pixModel
from .coupling import Pair
from .loss import Scales
from .perceptual import Perceptual, load_perceptual
from .run import Run
from .velocity_net import follow

BACK = "-back"
"""Ends the name of a pair whose x0 the flow made out of a picture of domain 1, in place of the other way round."""
HUBER = 0.00054
"""c of the pseudo-Huber distance, per √(number of values) (Song and Dhariwal 2023, arXiv:2310.14189, section 3.2)."""


class Ends(NamedTuple):
    """Which pairs are followed forwards, bool [B], the others backwards; and the perceptual loss, if any."""

    forward: Tensor
    looks: Perceptual | None

    def part(self, i: slice) -> "Ends":
        """Those of a minibatch."""
        return Ends(self.forward[i], self.looks)


def perceptual(run: Run) -> Perceptual | None:
    """The perceptual loss that the config asks for. Raises UsageError."""
    config = run.config
    if not config.distill_steps or not config.distill_perceptual_weight or config.distill_perceptual_weights is None:
        return None
    name, weights = config.distill_perceptual_backbone, config.distill_perceptual_weights
    return load_perceptual(name, weights, "distill_perceptual_weight").to(run.device)


def goes_forward(run: Run, pairs: Pair, step: int) -> Tensor:
    """Which of this rank's pairs of a step begin at a real picture (or noise) of domain 0: bool [B]."""
    size, items = run.config.train_batch_size, run.domain1.items
    numbers = range(step * size, (step + 1) * size)[ranks.share(size)]
    return torch.tensor([not items[pairs(k)[1]].media.relative.stem.endswith(BACK) for k in numbers])


def distill_losses(
    config: RFPix2pixModel,
    v: Callable[..., Tensor],
    ends: Ends,
    x0: Tensor,
    x1: Tensor,
    place: Tensor,
    scales: Scales,
) -> tuple[Tensor, Tensor]:
    """How far `distill_steps` Euler steps end from the pairs' ends: a distance and a difference in features.

    Each pair is followed from its real end. The distance is a mean over pairs, in units of that between the ends.

    Args:
        v: velocity net, v(x, t, place=…); ends: those of these pairs.
        x0, x1: pairs [B, C, H, W]; place: where they lie in their pictures [B, 2, H, W]; scales: `flow` is E‖x1 − x0‖².
    """
    assert config.distill_steps is not None
    steps = config.distill_steps
    distance, difference = scales.flow.new_zeros(()), scales.flow.new_zeros(())
    for way, (start, end), times in ((ends.forward, (x0, x1), (0.0, 1.0)), (~ends.forward, (x1, x0), (1.0, 0.0))):
        if not way.any():
            continue
        mine = way.to(x0.device)
        got = follow(partial(v, place=place[mine]), start[mine], steps, *times)
        error = (got - end[mine]).float().flatten(1).square().sum(dim=1)
        if config.distill_loss == "huber":
            c = HUBER * x0[0].numel() ** 0.5
            distance = distance + ((error + c * c).sqrt() - c).sum() / scales.flow.sqrt()
        else:
            distance = distance + error.sum() / scales.flow
        if ends.looks is not None:
            difference = difference + ends.looks(got.float(), end[mine]) * len(got)
    return distance / len(x0), difference / len(x0)
