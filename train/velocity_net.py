"""The velocity nets: one built from its config, any of them called as v(x_t, t)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..runtime.euler import integrate
from .config import RFPix2pixModel
from .dit import DiT
from .net_config import DiTConfig, UNetConfig
from .unet import UNet

VelocityNet = UNet | DiT
"""x [B, channels, H, W] and t [B] or [1] in [0, 1] → velocity like x; H and W multiples of `config.multiple`.

`place` [B, 2, H, W] says where in its picture each pixel of crops lies; without it these are whole pictures."""


def build_velocity_net(config: RFPix2pixModel) -> VelocityNet:
    """The velocity net that a config asks for, with weights to start from."""
    dropout = config.dropout or 0.0
    match config.velocity_net:
        case UNetConfig() as net:
            return UNet(net, config.channels, dropout)
        case DiTConfig() as net:
            return DiT(net, config.channels, dropout)


def parameters(net: nn.Module) -> int:
    """How many numbers a net learns."""
    return sum(p.numel() for p in net.parameters())


def follow(v: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, t0: float = 0.0, t1: float = 1.0) -> Tensor:
    """Where `steps` Euler steps of the net take x [B, C, H, W], pictures or latents; the gradient goes through all."""
    return integrate(lambda x, t: v(x, torch.full((1,), t, device=x.device)), x, steps, t0, t1)


integrate_net = torch.no_grad()(follow)
"""The same without a gradient."""
