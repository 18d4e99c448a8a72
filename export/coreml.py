"""A velocity net, or a codec, as Core ML packages, proven by Core ML itself on a Mac and by `mil` elsewhere."""

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.codec import Codec, Identity
from ..runtime.coreml import Package, by_batch
from ..runtime.errors import UsageError
from ..runtime.euler import integrate
from ..runtime.manifest import METADATA_KEY, ROLES
from ..runtime.pixels import Float
from .mil import Program
from .mlpackage import Description, Wanted, write_package
from .proof import Case, Made, Maker
from .sizes import Sizes
from .source import Source

Run = Callable[..., Float]
"""What computes a package: arrays in, its one output."""


@dataclass(frozen=True)
class CoreML:
    """What is asked of Core ML packages besides their precision.

    Args:
        sizes: of pictures; multiples of the net's.
        batch: pictures at once; a package takes no other number.
        author: what Xcode shows.
    """

    sizes: Sizes
    batch: int = 1
    author: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 64:
            raise UsageError(f"--coreml-batch is {self.batch}; wanted 1 to 64")


def coreml_maker(source: Source, asked: CoreML, note: Callable[[str], None]) -> Maker:
    """Writes velocity.mlpackage, and encoder.mlpackage and decoder.mlpackage of a latent model."""

    def make(precision: str, folder: Path, float32_normalisation: bool = False) -> Made:
        nets = _nets(source)
        files = {role: _file(role, precision) for role in nets}
        runs = {}
        for role, (net, inputs, output, factor) in nets.items():
            note(f"making {files[role]}")
            inputs = {k: x.expand(asked.batch, *x.shape[1:]) if x.ndim == 4 else x for k, x in inputs.items()}
            multiple = source.manifest.multiple // factor
            wanted = Wanted(asked.sizes.over(factor), multiple, precision, float32_normalisation)
            said = _description(source, asked, role, list(inputs), output)
            write_package(net, inputs, output, wanted, said, folder / files[role])
            runs[role] = _runner(folder / files[role], {k: x.ndim for k, x in inputs.items()}, output, asked.batch)
        about = _about(source, asked, precision, float32_normalisation)
        latent = source.manifest.latent
        codec: Codec = _Latents(latent.channels, latent.factor, runs) if latent else Identity()
        return Made(
            files,
            lambda x, t: runs["velocity"](x, np.array([t], np.float32)),
            codec,
            dict.fromkeys(files, about),
            takes=lambda case: asked.sizes.take(*case.size),
            otherwise=_otherwise(make, precision, folder, files, float32_normalisation),
        )

    return make


def images_maker(source: Source, asked: CoreML, note: Callable[[str], None]) -> Maker:
    """Writes translate.mlpackage: RGB picture in, RGB picture out, all Euler steps inside.

    Raises:
        UsageError: the model is generative, and so takes noise, not pictures.
    """
    steps = source.manifest.default_steps
    if source.manifest.generative:
        raise UsageError("--coreml-images is for models that translate pictures; this one makes them from noise")
    if source.manifest.alignment:
        raise UsageError(
            "--coreml-images: this model moves pictures before it translates them (its alignment), which an app has to "
            "do itself; leave the option out, or train with --set alignment=[1,0,0,0,1,0]"
        )

    def make(precision: str, folder: Path, float32_normalisation: bool = False) -> Made:
        file = _file("translate", precision)
        note(f"making {file}, {steps} steps inside")
        one = replace(asked, batch=1)  # Core ML's pictures come one by one
        wanted = Wanted(one.sizes, source.manifest.multiple, precision, float32_normalisation, image=True)
        said = _description(source, one, "translation", ["image"], "translation")
        inputs = {"image": torch.zeros(1, 3, 1, 1)}
        write_package(_Translate(source), inputs, "translation", wanted, said, folder / file)
        run = _runner(folder / file, {"image": 4}, "translation", 1, image=True)

        def translate(case: Case) -> Float:
            levels = np.rint((case.x + 1) * np.float32(127.5))
            return (run(levels) / np.float32(127.5) - 1).astype(np.float32)

        about = _about(source, one, precision, float32_normalisation) | {"steps": steps}
        return Made(
            {"translation": file},
            lambda x, t: x,
            Identity(),
            {"translation": about},
            takes=lambda case: case.start == 0 and asked.sizes.take(*case.size),
            translate=translate,
            otherwise=_otherwise(make, precision, folder, {"translation": file}, float32_normalisation),
        )

    return make


def _otherwise(make: Any, precision: str, folder: Path, files: dict[str, str], done: bool) -> Callable[[], Made] | None:
    """The same with normalisations in float32, where that is something else."""
    if done or precision == "fp32":
        return None

    def again() -> Made:
        for file in files.values():
            shutil.rmtree(folder / file)
        made: Made = make(precision, folder, True)
        return made

    return again


def _file(role: str, precision: str) -> str:
    """fp16 is what Core ML's files are where their names do not say another precision."""
    return f"{role}.mlpackage" if precision == "fp16" else f"{role}.{precision}.mlpackage"


def _nets(source: Source) -> dict[str, tuple[nn.Module, dict[str, Tensor], str, int]]:
    """By role: a net, examples of its inputs, its output, and how much smaller than pictures its first input is."""
    latent = source.manifest.latent
    channels, factor = (latent.channels, latent.factor) if latent else (3, 1)
    state = torch.zeros(1, channels, 1, 1)
    nets: dict[str, tuple[nn.Module, dict[str, Tensor], str, int]] = {
        "velocity": (source.net, {"x": state, "t": torch.zeros(1)}, "velocity", factor)
    }
    if latent:
        nets["encoder"] = (_Encode(source), {"x": torch.zeros(1, 3, 1, 1)}, "z", 1)
        nets["decoder"] = (_Decode(source), {"z": state}, "x", factor)
    return {role: nets[role] for role in ROLES if role in nets}


class _Encode(nn.Module):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self.net, self.codec, self.steps = source.net, source.codec, source.manifest.default_steps

    def forward(self, x: Tensor) -> Tensor:
        return self.codec.encode(x)


class _Decode(_Encode):
    def forward(self, x: Tensor) -> Tensor:
        return self.codec.decode(x)


class _Translate(_Encode):
    """Pictures in [-1, 1] to grey levels from 0 to 255."""

    def forward(self, x: Tensor) -> Tensor:
        z = integrate(lambda x, t: self.net(x, torch.full((1,), t)), self.codec.encode(x), self.steps)
        return ((self.codec.decode(z) + 1) * 127.5).round().clamp(0, 255)


class _Latents:
    """The encoder and decoder packages as a codec."""

    def __init__(self, channels: int, factor: int, runs: dict[str, Run]) -> None:
        self.channels, self.factor = channels, factor
        self.encode, self.decode = runs["encoder"], runs["decoder"]
        self.work = nullcontext


def _runner(path: Path, takes: dict[str, int], gives: str, batch: int, image: bool = False) -> Run:
    """The package as it lies on disk, on any machine."""
    if on_a_mac():
        return Package(path, takes, gives, image=image)
    program = Program(path)

    def run(*inputs: Float) -> Float:
        given = {name: torch.from_numpy(x) for name, x in zip(takes, inputs, strict=True)}
        out: Float = program(**given)[gives].numpy()
        return out

    return lambda x, *shared: by_batch(lambda part: run(part, *shared), x, batch)


def on_a_mac() -> bool:
    """Whether Core ML itself can be asked."""
    return sys.platform == "darwin"


def _about(source: Source, asked: CoreML, precision: str, float32_normalisation: bool) -> dict[str, Any]:
    kept = ["time embedding", *(["normalisations"] if float32_normalisation else [])]
    return {
        "predicted": on_a_mac(),
        "sizes": str(asked.sizes),
        "batch": asked.batch,
        "from": "macOS 14, iOS 17",
        "float32": ["everything"] if precision == "fp32" else kept,
    }


def _description(source: Source, asked: CoreML, role: str, inputs: list[str], output: str) -> Description:
    manifest = source.manifest
    zero, one = manifest.domains
    multiple = manifest.multiple
    state = f"latents, float32 [B, {manifest.latent.channels}, H, W]" if manifest.latent else "RGB in [-1, 1]"
    said = {
        "velocity": (
            f"Velocity v(x, t) of a flow from {zero} (t = 0) to {one} (t = 1): x += v(x, t) · dt, "
            f"{manifest.default_steps} Euler steps by default.",
            {"x": f"The state: {state}.", "t": "Time in [0, 1], of the whole batch."},
            "The velocity, like x.",
        ),
        "encoder": (f"Latents of pictures of {zero} and {one}.", {"x": "Pictures, RGB in [-1, 1]."}, "Their latents."),
        "decoder": (f"Pictures from latents of {zero} and {one}.", {"z": "Latents."}, "Pictures, RGB in [-1, 1]."),
        "translation": (
            f"Turns a picture of {zero} into one of {one}, in {manifest.default_steps} Euler steps.",
            {"image": f"An RGB picture of {zero}."},
            f"The RGB picture of {one}.",
        ),
    }
    about, given, result = said[role]
    sizes = f" Pictures of {asked.sizes} px, multiples of {multiple}." if asked.sizes.between else f" {asked.sizes} px."
    return Description(
        about + (sizes if role in ("velocity", "translation") else ""),
        {name: given[name] for name in inputs},
        {output: result},
        asked.author,
        manifest.licence,
        manifest.rfp_version,
        {METADATA_KEY: manifest.to_json()},
    )
