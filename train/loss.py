"""The loss of arXiv:2209.03003 section 5.3, beside flow matching (equation 1), both in units of their scale."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""h: images [B, C, H, W] → features [B, D]."""


class Scales(NamedTuple):
    """What the two terms are divided by: E‖x1 − x0‖² (or its `size`) and E‖∇h(x_t)ᵀ(x1 − x0)‖², per pair."""

    flow: Tensor
    saliency: Tensor


def rough_noise(shape: Sequence[int], deviation: float, rng: torch.Generator) -> Tensor:
    """Noise of a shape [B, C, H, W], grains of 1, 2, 4 and 8 pixels alike, on the device of `rng`, which draws it.

    Coarse grains blend into one another, so about three quarters of `deviation` are left.
    """
    (b, c, *sides), grains = shape, (1, 2, 4, 8)
    coarse = [torch.randn(b, c, *(-(-s // g) for s in sides), generator=rng, device=rng.device) for g in grains]
    whole = torch.stack([F.interpolate(z, tuple(sides), mode="bilinear") for z in coarse])
    return deviation / math.sqrt(len(grains)) * whole.sum(dim=0)


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 − t)·x0 + t·x1 for images [B, C, H, W] and times [B]."""
    t = t[:, None, None, None]
    return (1 - t) * x0 + t * x1


def see(h: Features, xt: Tensor, u: Tensor) -> Tensor:
    """∇h(x_t)ᵀ u: how the features at x_t [B, C, H, W] change along u [B, C, H, W] → [B, D].

    Forward mode: one pass for all D features, and the gradient flows through the tangent u. In float32 at least:
    in bfloat16 its gradient keeps a cosine of only .96 to the exact one.
    """
    exact = torch.promote_types(xt.dtype, torch.float32)
    # channels_last stops the forward mode of group_norm.
    xt, u = (a.to(exact, memory_format=torch.contiguous_format) for a in (xt, u))
    with torch.autocast(xt.device.type, enabled=False):
        tangent: Tensor = torch.func.jvp(h, (xt,), (u,))[1]
    return tangent


def size(e: Tensor, c: float) -> Tensor:
    """‖e‖² of errors [B, C, H, W]; with c > 0 the sum over pixels of √(|e|² + c²) − c, |e|² a pixel's mean square.

    The pseudo-Huber distance (Charbonnier et al. 1997, "Deterministic edge-preserving regularization"), pixel by
    pixel: where partners disagree, the mean is between them, and this is least near the most of them.
    """
    if not c:
        return e.square().sum()
    return ((e.square().mean(dim=1) + c * c).sqrt() - c).sum()


@torch.no_grad()
def measure_scales(h: Features | None, x0: Tensor, x1: Tensor, t: Tensor, minibatch: int, huber: float = 0.0) -> Scales:
    """Scales over the whole batch, so that gradients accumulated over minibatches equal the batch's own."""
    y = x1 - x0
    flow = size(y, huber) / len(y)
    if h is None:
        return Scales(flow, torch.ones_like(flow))
    xt = interpolate(x0, x1, t)
    parts = [see(h, a, b).square().sum() for a, b in zip(xt.split(minibatch), y.split(minibatch), strict=True)]
    return Scales(flow, torch.stack(parts).sum() / len(y))


def losses(
    v: Callable[[Tensor, Tensor], Tensor],
    h: Features | None,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    scales: Scales,
    z: Tensor | None = None,
    huber: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The flow-matching and the saliency loss of the pairs, each averaged over them.

    With noise z the path is x_t = (1 − t)·x0 + t·x1 + γ(t)·z, γ(t) = 4t(1 − t), and v learns its velocity
    x1 − x0 + γ′(t)·z (Albergo et al. 2023, arXiv:2303.08797, section 2): on the way in, what errors of its own
    would look like; on the way out, how to take them away.

    Args:
        v: velocity net; h: classifier features, or None for no saliency term.
        x0, x1: coupled images [B, C, H, W] in [-1, 1]; t: times [B] in [0, 1].
        scales: by `measure_scales` with the same `huber`: a velocity of 0 gives each loss the value 1, without noise.
        z: noise [B, C, H, W], or None for straight paths between the pictures.
        huber: c of the flow term's `size`; 0 is the paper's square.
    """
    xt, y = interpolate(x0, x1, t), x1 - x0
    if z is not None:
        s = t[:, None, None, None]
        xt, y = xt + 4 * s * (1 - s) * z, y + 4 * (1 - 2 * s) * z
    error = y - v(xt, t)
    flow = size(error, huber) / len(x0) / scales.flow
    saliency = flow.new_zeros(()) if h is None else see(h, xt, error).square().sum() / len(x0) / scales.saliency
    return flow, saliency
