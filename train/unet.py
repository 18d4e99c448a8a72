"""The velocity field v(x_t, t) as a UNet: FiLM time conditioning, optional attention, zero-initialised output."""

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net_config import UNetConfig


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of 1000·t: [B] in [0, 1] → [B, channels] (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = 1000 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def whole(x: Tensor) -> Tensor:
    """Where the pixels of whole pictures [B, C, H, W] lie: row and column, [1, 2, H, W] in [-1, 1].

    From -1 to 1 over the middle square, which is what training cuts its crops from; beyond it, the nearest there.
    """
    rows, columns = (torch.arange(n, device=x.device).to(torch.float32) + 0.5 for n in x.shape[2:])
    shorter = torch.minimum(rows[-1:], columns[-1:]) + 0.5  # a tensor: exporters would freeze the min of two sizes
    rows, columns = (((2 * a - a[-1:] - 0.5) / shorter).clamp(-1, 1) for a in (rows, columns))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


Beyond = Literal["zeros", "replicate"]
"""What a convolution sees beyond the border."""


class GroupNorm32(nn.GroupNorm):
    """Up to 32 groups of 8 or more channels, in float32 at least: fewer channels a group would erase what one says."""

    def __init__(self, channels: int) -> None:
        groups = max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 8 or g == 1))
        super().__init__(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


def norm(config: UNetConfig, channels: int) -> nn.Module:
    return GroupNorm32(channels) if config.normalization == "GroupNorm32" else nn.GroupNorm(1, channels)


def activation(config: UNetConfig) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {"SiLU": nn.SiLU, "GELU": nn.GELU, "ReLU": nn.ReLU}
    return kinds[config.activation]()


def zero(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """x [B, C, H, W], time features [B, E] → [B, C', H, W]; time enters by FiLM (Perez et al. 2018)."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, emb: int, dropout: float, beyond: Beyond) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1, self.act = norm(config, c_in), activation(config)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode=beyond)
        self.film = nn.Linear(emb, 2 * c_out)
        self.norm2 = norm(config, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, padding_mode=beyond)
        if config.zero_res_blocks:
            zero(self.conv2)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.act(h)
        if self.training and self.dropout:  # so that no exported graph holds it
            h = F.dropout(h, self.dropout)
        h = self.conv2(h)
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention over the H·W positions, added to its input; starts as the identity."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.norm = norm(config, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()  # attention is fast only in this layout
        tokens = tokens.view(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = tokens.permute(2, 0, 3, 1, 4)  # each [B, heads, H·W, C/heads]
        a = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(a.transpose(2, 3).reshape(b, c, h, w))
        return out


class Level(nn.Module):
    """One residual block, with attention where the config asks for it."""

    def __init__(
        self, config: UNetConfig, emb: int, dropout: float, c_in: int, c_out: int, attention: bool, beyond: Beyond
    ) -> None:
        super().__init__()
        self.res = ResBlock(config, c_in, c_out, emb, dropout, beyond)
        self.attention = Attention(config, c_out) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.attention(self.res(x, emb))
        return out


class UNet(nn.Module):
    """v(x_t, t): x [B, channels, H, W] and t [B] or [1] in [0, 1] → velocity like x.

    H and W must be multiples of `config.multiple`. A new net returns exactly 0 (zero-initialised output). In training
    the share `dropout` of what each residual block adds up last is left out, as in Ho et al. 2020 (arXiv:2006.11239).
    With `fine_channels` a block of whole pixels ends it, which sees x beside what the patches gave. `seamless`: to the
    first level's convolutions what is beyond the border is as at it, where deeper ones see zeros, and so where it is
    (Islam et al. 2020, arXiv:2001.08248); and from patches to whole pixels the way is that from level to level, copies
    and a convolution (Odena et al. 2016, https://doi.org/10.23915/distill.00003). With `coordinates` it sees where each
    pixel lies (Liu et al. 2018, arXiv:1807.03247): `place` [B, 2, H, W] in [-1, 1] for crops, as conditioning on
    augmentations keeps them from leaking (Karras et al. 2022, arXiv:2206.00364, section 5), and `whole` where nothing
    is said. With `input_gain` v = y + A·x, A made beside y, for each pixel a matrix or its diagonal: to cover a place y
    need not hold a copy of what is there (as Pumarola et al. 2018, arXiv:1807.09251, equation 1), and a change of
    colours keeps what they are of (Gharbi et al. 2017, arXiv:1707.02880, section 3.4).
    """

    def __init__(self, config: UNetConfig, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        base, p = config.model_channels, config.patch_size
        widths = [base * m for m in config.ch_mult]
        attends = [p * 2**level in config.attention_resolutions for level in range(len(widths))]
        emb = 4 * base
        block = partial(Level, config, emb, dropout)
        beyond: Beyond = "replicate" if config.seamless else "zeros"
        fine = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=beyond)
        borders: list[Beyond] = ["zeros" if level else beyond for level in range(len(widths))]
        self.time = nn.Sequential(
            nn.Linear(2 * (base // 2), emb), activation(config), nn.Linear(emb, emb), activation(config)
        )
        self.patch = nn.PixelUnshuffle(p)
        self.stem = fine((channels + (2 if config.coordinates else 0)) * p * p, base)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        c, skips = base, []
        for level, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(config.num_res_blocks):
                blocks.append(block(c, width, attends[level], borders[level]))
                c = width
                skips.append(c)
            self.down.append(blocks)
            deepest = level == len(widths) - 1
            self.shrink.append(nn.Identity() if deepest else nn.Conv2d(c, c, 3, stride=2, padding=1))

        self.mid = nn.ModuleList([block(c, c, attends[-1], "zeros"), block(c, c, False, "zeros")])

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList()
            for _ in range(config.num_res_blocks):
                blocks.append(block(c + skips.pop(), width, attends[level], borders[level]))
                c = width
            self.up.append(blocks)
            self.grow.append(nn.Conv2d(c, c, 3, padding=1) if level else nn.Identity())

        columns = {"diagonal": 1, "matrix": channels}.get(config.input_gain or "none", 0)
        f, made = config.fine_channels, channels * (1 + columns)
        smooth = bool(f and config.seamless)
        self.unpatch = nn.Identity() if smooth else nn.PixelShuffle(p)
        finer = [nn.Upsample(scale_factor=p)] if smooth else []
        last = fine(c, f if smooth else (f or made) * p * p)
        self.head = nn.Sequential(norm(config, c), activation(config), *finer, last if f else zero(last))
        if f:
            self.fine_stem, self.fine = fine(channels, f), ResBlock(config, 2 * f, f, emb, dropout, beyond)
            self.fine_head = nn.Sequential(norm(config, f), activation(config), zero(fine(f, made)))

    def forward(self, x: Tensor, t: Tensor, place: Tensor | None = None) -> Tensor:
        emb = self.time(timestep_embedding(t, 2 * (self.config.model_channels // 2)).to(x.dtype))
        seen = x
        if self.config.coordinates:
            place = (whole(x) if place is None else place).to(x.dtype)
            seen = torch.cat([x, place.expand(x.shape[0], -1, -1, -1)], dim=1)
        h = self.stem(self.patch(seen))
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, emb)
                skips.append(h)
            h = shrink(h)
        for block in self.mid:
            h = block(h, emb)
        for level, (blocks, grow) in enumerate(zip(self.up, self.grow, strict=True)):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
            if level < len(self.up) - 1:
                h = grow(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.unpatch(self.head(h))
        if self.config.fine_channels:
            out = self.fine_head(self.fine(torch.cat([out, self.fine_stem(x)], dim=1), emb))
        out, *columns = out.split(self.channels, dim=1)
        for j, a in enumerate(columns):
            out = out + a * (x if self.config.input_gain == "diagonal" else x[:, j : j + 1])
        return out
