"""Pairs that a flow makes of real pictures, to train its successor on: a straighter flow, or one of few steps.

Rectified flow's reflow (Liu, Gong, Liu 2022, arXiv:2209.03003, section 2.2), in both directions: three of four pairs
begin at a picture of domain 0, the fourth at one of domain 1, which teaches the way back. They lie as PNGs in zips of
SHARD pairs, in folders with the domains' names,

    pairs/pairs.json  pairs/0/horses/00000.zip …  pairs/1/zebras/00000.zip …

which is data like any other: the successor is trained on it with `coupling` `paired`.
"""

import re
import time
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image

from ..runtime.errors import ConfigError, UsageError
from ..runtime.files import read_small, write_aside, write_json
from ..runtime.pixels import Uint8, to_float, to_uint8
from . import checkpoint as ckpt
from .codec import decode, encode
from .config import RFPix2pixModel, to_json
from .coupling import shuffled
from .distill import BACK
from .domains import Crop, Domain
from .noise import Noise
from .reading import parse_json
from .sides import mirrored
from .velocity_net import integrate_net

SHARD = 128
"""Pairs in a zip: what an interruption undoes at most."""
MOST_PAIRS = 1 << 30
ABOUT = "pairs.json"


class Told(Protocol):
    """Where progress goes."""

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """`step` of `steps` pairs are made."""


@dataclass(frozen=True)
class Source:
    """A trained flow and the pictures that it starts from."""

    path: Path
    checkpoint: ckpt.Checkpoint
    domain0: Domain | Noise
    domain1: Domain
    steps: int
    seed: int

    @cached_property
    def mirror(self) -> bool:
        """Whether training mirrored half of the pairs."""
        return mirrored(self.checkpoint.config, self.domain0, self.domain1)[0]

    def describe(self) -> dict[str, Any]:
        """What makes its pairs what they are."""
        about = {"checkpoint": str(self.path.resolve()), "step": self.checkpoint.step, "steps": self.steps}
        about["domains"] = [_file_name(name) for name in self.checkpoint.domains]
        counts = [len(d) if isinstance(d, Domain) else 0 for d in (self.domain0, self.domain1)]
        return about | {"seed": self.seed, "pictures": counts, "size": self.checkpoint.config.max_size}


def make_pairs(source: Source, folder: Path, count: int, device: torch.device, report: Told) -> tuple[Path, Path]:
    """Make what is missing of `count` pairs (rounded up to whole shards); returns the folders of both sides.

    A shard appears whole or not at all, so the same call goes on after any interruption.

    Raises:
        UsageError: the folder holds pairs of another flow, or another count was asked for before.
        CheckpointError: the flow's net is not as its config says.
    """
    shards = -(-count // SHARD)
    about = source.describe() | {"pairs": shards * SHARD}
    _same(folder, about)
    sides = folder / "0" / about["domains"][0], folder / "1" / about["domains"][1]
    net = source.checkpoint.velocity().to(device)  # which may not be as its config says: before anything is written
    codec = source.checkpoint.codec().to(device)
    write_json(folder / ABOUT, about)

    def follow(pictures: Uint8 | None, numbers: range, forward: bool) -> Uint8:
        n, out = source.checkpoint.config.train_minibatch_size, []
        for i in range(0, len(numbers), n):
            if pictures is None:
                assert isinstance(source.domain0, Noise)
                z = torch.from_numpy(np.stack([source.domain0.draw(k) for k in numbers[i : i + n]])).to(device)
            else:
                z = encode(codec, torch.from_numpy(to_float(pictures[i : i + n])).to(device), n)
            z = integrate_net(net, z, source.steps, *((0.0, 1.0) if forward else (1.0, 0.0)))
            out.append(to_uint8(decode(codec, z, n).cpu().numpy()))
        return np.concatenate(out)

    for shard in range(shards):
        start, zips = time.monotonic(), [side / f"{shard:05}.zip" for side in sides]
        if not zips[1].is_file():  # written last
            for path, pictures in zip(zips, _shard(source, shard, follow), strict=True):
                if pictures:
                    _write(path, pictures)
        rate = {"images_per_second": SHARD / (time.monotonic() - start)}
        report.step("pairs", (shard + 1) * SHARD, shards * SHARD, rate)
    return sides


def _shard(source: Source, shard: int, follow: Any) -> tuple[dict[str, Uint8], dict[str, Uint8]]:
    """Both sides' pictures by name; of noise, which is drawn again when it is needed, none."""
    numbers = range(shard * SHARD, (shard + 1) * SHARD)
    if isinstance(source.domain0, Noise):
        made = follow(None, numbers, True)
        return {}, {f"{k:08}": picture for k, picture in zip(numbers, made, strict=True)}
    ways = {True: [k for k in numbers if k % 4 != 3], False: [k for k in numbers if k % 4 == 3]}
    side0: dict[str, Uint8] = {}
    side1: dict[str, Uint8] = {}
    for forward, chosen in ways.items():
        domain, seed = (source.domain0, source.seed) if forward else (source.domain1, source.seed + 1)
        draw = shuffled(len(domain), seed, 7)
        turns = [k // 4 * 3 + k % 4 if forward else k // 4 for k in chosen]
        starts = np.stack([_crop(source, domain, draw(turn), k) for turn, k in zip(turns, chosen, strict=True)])
        ends = follow(starts, numbers[: len(chosen)], forward)
        for k, start, end in zip(chosen, starts, ends, strict=True):
            name = f"{k:08}" + ("" if forward else BACK)
            side0[name], side1[name] = (start, end) if forward else (end, start)
    return side0, side1


def _crop(source: Source, domain: Domain, index: int, k: int) -> Uint8:
    """As training cuts and mirrors them: the pairs are taken whole from here on."""
    rng, share = np.random.default_rng([source.seed, 8, k]), source.checkpoint.config.cropped
    return domain.crop(index, Crop.draw(rng, source.mirror, share=share))


def _write(path: Path, pictures: dict[str, Uint8]) -> None:
    with write_aside(path) as partial, ZipFile(partial, "w", ZIP_STORED) as archive:
        for name, pixels in pictures.items():
            data = BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            archive.writestr(
                ZipInfo(f"{name}.png"), data.getvalue()
            )  # without the time: the same pairs, the same bytes


def _same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / ABOUT
    try:
        before = parse_json(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return
    except (OSError, ConfigError) as e:
        raise UsageError(f"{path}: cannot be read: {e}") from e
    if wrong := [key for key in about if before.get(key) != about[key]]:
        was = ", ".join(f"{key} {before.get(key)}, now {about[key]}" for key in wrong)
        raise UsageError(f"{folder} holds pairs made otherwise ({was}); give another --run-id or --pairs-from")


def made_pairs(folder: Path) -> tuple[Path, Path]:
    """The sides of pairs that another command made. Raises UsageError unless they are all there."""
    path = folder / ABOUT
    try:
        about = parse_json(read_small(path), str(path))
        count, names = int(about["pairs"]), [_file_name(str(name)) for name in about["domains"]]
        sides = folder / "0" / names[0], folder / "1" / names[1]
        if not 1 <= count <= MOST_PAIRS:
            raise ValueError(f"{count} pairs")
    except (OSError, ValueError, OverflowError, KeyError, TypeError, IndexError, ConfigError) as e:
        raise UsageError(f"{folder}: holds no pairs that `rfp reflow` or `rfp distill` made ({path.name}: {e})") from e
    zips = (sides[1] / f"{s:05}.zip" for s in range(-(-count // SHARD)))
    if missing := next((path for path in zips if not path.is_file()), None):
        raise UsageError(f"{missing}: is missing; end the command that makes the pairs first")
    return sides


def _file_name(name: str) -> str:
    """A domain's name as that of one folder: a checkpoint may come from a stranger."""
    return re.sub(r"[^\w -]", "_", name) or "_"


def successor(teacher: RFPix2pixModel, steps: int, distill: bool, images: int | None) -> dict[str, Any]:
    """The config of the next training, as JSON values: on pairs as they are, at half of the rate that the teacher had.

    They are not mirrored again: where the teacher's were not, a side may be what they teach; and a noise never is.
    """
    images = images or max(1, teacher.train_images // 2)
    return to_json(teacher) | {
        "coupling": "paired",
        "structure_pairing": False,
        "match_colours": teacher.match_colours and False,  # left open where it was
        "random_crop": False,
        "horizontal_flip": False,
        "cutmix": 0.0,
        "dropout": 0.0,
        "bridge_noise": 0.0,
        "flow_loss_weight": 1.0,
        "flow_loss_huber": 0.0,
        "saliency_loss_weight": 0.0,
        "adversarial_weight": 0.0,
        "num_inference_steps": steps,
        "distill_steps": steps if distill else None,
        "train_images": images,
        "learning_rate": teacher.learning_rate / 2,
        "warmup_images": min(teacher.warmup_images, images // 20),
    }
