"""What is exported: the nets of a checkpoint, the manifest, and the pictures that a proof starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..runtime.alignment import IDENTITY
from ..runtime.errors import CheckpointError, UsageError
from ..runtime.manifest import Latent, Manifest
from ..runtime.pixels import Uint8
from ..train import checkpoint as ckpt
from ..train.codec import Codec
from ..train.config import to_json, without_folders
from ..train.velocity_net import VelocityNet
from .sizes import Between, sides_to_prove

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Source:
    """Averaged nets in evaluation mode, float32, on the CPU; the manifest without its graphs.

    `pictures` uint8 [N, H, W, 3] of domain 0 and 1; of domain 0 there are none where the model is generative. `sizes`
    are those to prove at, the first one first of all; Core ML graphs take these and no others.
    """

    net: VelocityNet
    codec: Codec
    manifest: Manifest
    pictures: tuple[Uint8, Uint8]
    sizes: tuple[Size, ...]


def open_source(
    path: Path,
    *,
    best: bool = False,
    name: str | None = None,
    licence: str = "",
    provenance: str = "",
    steps: int | None = None,
    sizes: Sequence[Size] = (),
    between: Between | None = None,
) -> Source:
    """From a checkpoint, or the newest one of a run folder, or its `best`. `steps` None takes the config's.

    `between` two sides are sizes to prove at, before `sizes`.

    Raises:
        UsageError: no such run, none of its checkpoints is its best, or a size that the net cannot take.
        CheckpointError: the checkpoint is damaged, or holds no velocity net or no sample pictures.
    """
    path = ckpt.find(path, best)
    checkpoint = ckpt.load(path)
    config = checkpoint.config
    side, multiple = config.max_size, config.multiple
    if between is not None:
        sizes = [*sides_to_prove(between, side, multiple), *sizes]
    if wrong := [s for s in sizes if any(not 8 <= n <= 16384 or n % multiple for n in s)]:
        width, height = wrong[0]
        raise UsageError(
            f"--sizes {width}x{height}: wanted multiples of {multiple} from 8 to 16384 (pixels) for this net"
        )
    manifest = Manifest(
        name=name or (checkpoint.domains[1] if checkpoint.generative else "-to-".join(checkpoint.domains)),
        image_size=side,
        multiple=multiple,
        default_steps=config.num_inference_steps if steps is None else steps,
        domains=checkpoint.domains,
        licence=licence,
        provenance=provenance,
        rfp_version=__version__,
        generative=checkpoint.generative,
        alignment=None if config.aligned_by == IDENTITY else config.aligned_by,
        latent=Latent(config.codec.latents, config.codec.factor) if config.codec.latents else None,
        training={
            "step": checkpoint.step,
            "images": checkpoint.step * config.train_batch_size,
            "config": without_folders(to_json(config)),
        },
    )
    return Source(
        checkpoint.velocity(),
        checkpoint.codec(),
        manifest,
        _pictures(checkpoint, path),
        tuple(dict.fromkeys(sizes)) or ((side, side), (side, side + multiple)),
    )


def _pictures(checkpoint: ckpt.Checkpoint, path: Path) -> tuple[Uint8, Uint8]:
    found = checkpoint.part("samples")
    if not all(x.dtype == torch.uint8 and x.ndim == 4 and x.shape[3] == 3 and x.numel() for x in found.values()):
        raise CheckpointError(f"{path}: its sample pictures are damaged; wanted uint8 [N, H, W, 3]")
    samples = {name: x.numpy() for name, x in found.items()}
    if checkpoint.generative and "domain1" in samples:
        samples["domain0"] = samples["domain1"][:0]
    if {"domain0", "domain1"} - samples.keys():
        raise CheckpointError(f"{path}: holds no sample pictures to prove an export with; save it again with this rfp")
    return samples["domain0"], samples["domain1"]


def resized(pictures: Uint8, size: Size) -> Uint8:
    """uint8 [N, H, W, 3] at another size, stretched where the aspect differs."""
    if pictures.shape[2:0:-1] == size:
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures])
