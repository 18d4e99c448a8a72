"""The codecs: pictures x to what the flow moves, and back. Identity, or a KL-regularised autoencoder as in
Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G.

z is normalised: after phase 0 the mean and deviation of each channel are measured over both domains and kept as
buffers, so that encode() gives numbers of the scale of N(0, 1). SD divides by one deviation for all channels; its
followers take one mean and deviation a channel (Karras et al. 2024, arXiv:2312.02696, appendix B.1).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_config import CodecConfig, IdentityConfig, VAEConfig
from .unet import GroupNorm32, zero

LOGVAR_RANGE = (-30.0, 20.0)


class Identity(nn.Module):
    """No codec: z is x."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class VAE(nn.Module):
    """x [B, 3, H, W] in [-1, 1] ↔ z [B, latent_channels, H/factor, W/factor]; H and W are multiples of `factor`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.register_buffer("mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(config.latent_channels, 1, 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the diagonal Gaussian q(z|x), before normalisation."""
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training looks at: the picture of one draw from q(z|x), its mean and its log-variance."""
        mean, logvar = self.posterior(x)
        return self.decoder(mean + (0.5 * logvar).exp() * noise), mean, logvar

    def encode(self, x: Tensor) -> Tensor:
        """The normalised mean of q(z|x)."""
        return (self.posterior(x)[0] - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """The picture of a normalised z; about [-1, 1], not clipped."""
        out: Tensor = self.decoder(z * self.std + self.mean)
        return out


Codec = Identity | VAE


def build_codec(config: CodecConfig) -> Codec:
    """The codec that a config asks for, with weights to start from."""
    match config:
        case IdentityConfig():
            return Identity()
        case VAEConfig():
            return VAE(config)


@torch.no_grad()
def encode(codec: Codec, x: Tensor, minibatch: int) -> Tensor:
    """Pictures [B, 3, H, W] to what the flow moves, `minibatch` of them in memory at once; x itself for Identity."""
    return x if isinstance(codec, Identity) else torch.cat([codec.encode(part) for part in x.split(minibatch)])


@torch.no_grad()
def decode(codec: Codec, z: Tensor, minibatch: int) -> Tensor:
    """The reverse of `encode`."""
    return z if isinstance(codec, Identity) else torch.cat([codec.decode(part) for part in z.split(minibatch)])


@torch.no_grad()
def normalize(codec: VAE, mean: Tensor, std: Tensor) -> None:
    """Let z be (z − mean) / std from here on; `mean` and `std` [C] are those of z before."""
    codec.mean.copy_(mean.view(-1, 1, 1))
    codec.std.copy_(std.view(-1, 1, 1).clamp(min=1e-6))  # a channel that says nothing stays finite


def codec_losses(net: VAE, perceptual: Callable[[Tensor, Tensor], Tensor] | None, x: Tensor, noise: Tensor) -> Tensor:
    """The terms of phase 0 for pictures x [B, 3, H, W] and draws from N(0, 1) [B, C, h, w], before their weights: [3].

    The pixels' mean absolute error; the KL divergence in nats per number of the picture, which makes SD's weight of
    1e-6 mean what it means there; the perceptual difference, or 0.
    """
    y, mean, logvar = net(x, noise)
    l1 = (y - x).abs().mean()
    kl = kl_divergence(mean, logvar).mean() / x[0].numel()
    return torch.stack([l1, kl, perceptual(x, y) if perceptual else l1.new_zeros(())])


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) of each picture, in nats: [B] (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


def encoder(config: VAEConfig) -> nn.Sequential:
    """x [B, 3, H, W] → mean and log-variance [B, 2·latent_channels, H/factor, W/factor]."""
    widths = [config.model_channels * m for m in config.ch_mult]
    c = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(3, c, 3, padding=1)]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            layers.append(ResBlock(c, width))
            c = width
        if level < len(widths) - 1:
            layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
    layers += [*_middle(config, c), GroupNorm32(c), nn.SiLU(), nn.Conv2d(c, 2 * config.latent_channels, 3, padding=1)]
    return nn.Sequential(*layers)


def decoder(config: VAEConfig) -> nn.Sequential:
    """z before normalisation [B, latent_channels, H/factor, W/factor] → x [B, 3, H, W]."""
    widths = [config.model_channels * m for m in config.ch_mult][::-1]
    c = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, c, 3, padding=1), *_middle(config, c)]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks + 1):
            layers.append(ResBlock(c, width))
            c = width
        if level < len(widths) - 1:
            layers += [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(c, c, 3, padding=1)]
    return nn.Sequential(*layers, GroupNorm32(c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))


def _middle(config: VAEConfig, c: int) -> list[nn.Module]:
    return [ResBlock(c, c), *([Attention(c)] if config.mid_attention else []), ResBlock(c, c)]


class ResBlock(nn.Module):
    """x [B, C, H, W] → [B, C', H, W]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            GroupNorm32(c_in),
            nn.SiLU(),
            nn.Conv2d(c_in, c_out, 3, padding=1),
            GroupNorm32(c_out),
            nn.SiLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.body(x)
        return out


class Attention(nn.Module):
    """Self-attention of one head over the H·W positions, added to its input; starts as the identity."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = GroupNorm32(c), nn.Conv2d(c, 3 * c, 1), zero(nn.Conv2d(c, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, 1, c, h * w).transpose(3, 4).unbind(1)  # each [B, 1, H·W, C]
        a = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(a.transpose(2, 3).reshape(b, c, h, w))
        return out
