"""The velocity field v(x_t, t) as a diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748)."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net_config import DiTConfig
from .unet import timestep_embedding

SPAN = 16.0
"""Length of each axis in the units of the sinusoids, whatever the number of tokens along it."""


def patchify(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] → one token a square of `size` × `size` pixels, row by row: [B, H·W/size², C·size²]."""
    return F.pixel_unshuffle(x, size).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """The reverse of `patchify`, for `height` × `width` tokens: [B, N, C·size²] → [B, C, H, W]."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), size)


def sinusoids(centres: Tensor, channels: int) -> Tensor:
    """Of positions along one axis in units of SPAN: float32 [...] → [..., channels / 2]."""
    quarter = channels // 4
    frequencies = torch.exp(-math.log(10_000) * torch.arange(quarter, device=centres.device) / quarter)
    angles = centres[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def placed(place: Tensor, channels: int) -> Tensor:
    """`positions` of tokens whose centres are known: [B, 2, h, w], row and column in [-1, 1] → [B, h·w, channels]."""
    rows, columns = ((place.float() + 1) * SPAN / 2).unbind(1)
    return torch.cat([sinusoids(rows, channels), sinusoids(columns, channels)], dim=3).flatten(1, 2)


def positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoids of the tokens' places: float32 [height·width, channels], half of the channels for each axis.

    As in Vaswani et al. 2017, section 3.5, of the centres of the tokens in a picture that is `SPAN` long either way.
    So every size and shape of picture is seen through the range of values that training saw, more finely or more
    coarsely: positions are interpolated, never extrapolated (as PixArt-α does, Chen et al. 2023, arXiv:2310.00426).
    """

    def axis(n: int) -> Tensor:
        return sinusoids((torch.arange(n, device=device, dtype=torch.float32) + 0.5) * SPAN / n, channels)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens [B, N, D], shifted and scaled by [B or 1, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


def linear(c_in: int, c_out: int, start: Callable[[Tensor], object] = nn.init.xavier_uniform_) -> nn.Linear:
    """A layer whose bias starts at 0, and whose weight as in the paper's code: Xavier's, or as `start` says."""
    layer = nn.Linear(c_in, c_out)
    start(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Tokens [B, N, D], time features [B or 1, D] → tokens: attention and MLP with adaLN-Zero (section 3.2).

    Time shifts and scales what each of both reads and gates what it adds; the gates start at 0, so a new block is
    the identity.
    """

    def __init__(self, config: DiTConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        width, inner = config.hidden_size, round(config.hidden_size * config.mlp_ratio)
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(linear(width, inner), nn.GELU(approximate="tanh"), linear(inner, width))
        self.modulation = linear(width, 6 * width, nn.init.zeros_)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attend(modulate(self.norm1(x), shift1, scale1))
        widen, bend, narrow = self.mlp
        h = bend(widen(modulate(self.norm2(x), shift2, scale2)))
        if self.training and self.dropout:  # so that no exported graph holds it
            h = F.dropout(h, self.dropout)
        out: Tensor = x + gate2[:, None] * narrow(h)
        return out

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the tokens [B, N, D]."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each [B, heads, N, D / heads]
        a: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return a


class DiT(nn.Module):
    """v(x_t, t): x [B, channels, H, W] and t [B] or [1] in [0, 1] → velocity like x.

    H and W must be multiples of `config.multiple`; `positions` says how sizes other than training's are seen. Crops
    lie where `place` [B, 2, H, W] says, row and column in [-1, 1], as training's do in their pictures.
    A new net returns exactly 0 (zero-initialised output). In training the share `dropout` of the inner features of
    each MLP is left out.
    """

    def __init__(self, config: DiTConfig, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        width, values = config.hidden_size, channels * config.patch_size**2
        self.stem = linear(values, width)
        small = partial(nn.init.normal_, std=0.02)
        self.time = nn.Sequential(linear(width, width, small), nn.SiLU(), linear(width, width, small), nn.SiLU())
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = linear(width, 2 * width, nn.init.zeros_)
        self.head = linear(width, values, nn.init.zeros_)

    def forward(self, x: Tensor, t: Tensor, place: Tensor | None = None) -> Tensor:
        size, width = self.config.patch_size, self.config.hidden_size
        rows, columns = x.shape[2] // size, x.shape[3] // size
        emb = self.time(timestep_embedding(t, width).to(x.dtype))
        where = positions(rows, columns, width, x.device) if place is None else placed(F.avg_pool2d(place, size), width)
        h = self.stem(patchify(x, size)) + where.to(x.dtype)
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.modulation(emb).chunk(2, dim=1)
        return unpatchify(self.head(modulate(self.norm(h), shift, scale)), size, rows, columns)
