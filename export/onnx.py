"""A velocity net, or a codec, as ONNX graphs: dynamic batch, height and width; nothing of this machine left in it."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ..runtime.bundle import DATA_SUFFIX, Bundle
from ..runtime.codec import open_codec
from ..runtime.errors import ExportError
from ..runtime.euler import integrate
from ..runtime.manifest import METADATA_KEY, ROLES, Manifest
from ..runtime.norms import PLACE
from ..runtime.velocity import Velocity
from ..train.codec import VAE
from ..train.unet import UNet
from .calibration import trajectories
from .graph import LARGEST, strip, weight_bytes, write
from .half import half
from .int8 import int8
from .proof import Made, Maker, psnr
from .source import Source

OPSET = 20
"""From opset 21 on, GroupNormalization has no CPU kernel in ONNX Runtime and is taken apart: up to 15 % slower."""


def onnx_maker(source: Source, note: Callable[[str], None], calibration: Path | None = None) -> Maker:
    """Writes velocity.onnx, and encoder.onnx and decoder.onnx of a latent model; opens them with the runtime.

    `calibration` is a folder of pictures for int8; None takes the checkpoint's.
    """
    roles = ROLES if source.manifest.latent else ROLES[:1]

    @cache
    def float32() -> dict[str, ModelProto]:
        note("making the ONNX graphs")
        return {role: float32_graph(source, role) for role in roles}

    def make(precision: str, folder: Path) -> Made:
        models, about = float32(), dict[str, dict[str, Any]]()
        if precision == "fp16":
            models = {role: half(model) for role, model in models.items()}
        elif precision == "int8":
            note("calibrating int8, and measuring each layer")
            models, about = quantised(source, models, calibration)
        infix = "" if precision == "fp32" else f".{precision}"
        files = {role: f"{role}{infix}.onnx" for role in roles}
        for role, file in files.items():
            write(models[role], folder / file)
            run = optimised_nodes(folder / file)
            note(f"{file}: {len(models[role].graph.node)} nodes, {run} as ONNX Runtime runs it on this CPU")
        beside = [folder / f"{file}{DATA_SUFFIX}" for file in files.values()]
        made = opened(
            source.manifest,
            {role: (folder / file).read_bytes() for role, file in files.items()},
            {path.name: path.read_bytes() for path in beside if path.is_file()},
        )
        return replace(made, files=files, about=about)

    return make


def quantised(
    source: Source, models: dict[str, ModelProto], calibration: Path | None
) -> tuple[dict[str, ModelProto], dict[str, dict[str, Any]]]:
    """All graphs in 8 bits, and by role what was left in float."""
    if large := [role for role, model in models.items() if weight_bytes(model) > LARGEST]:
        raise ExportError(f"int8: the {large[0]} graph is above 2 GiB, and ONNX Runtime's quantiser takes smaller ones")
    data = {role: model.SerializeToString() for role, model in models.items()}
    made, steps = opened(source.manifest, data), source.manifest.default_steps
    feeds = trajectories(source, made, calibration)
    runs = [(feeds["velocity"][0]["x"], steps, 0.0, 1.0), (feeds["velocity"][steps]["x"], steps, 1.0, 0.0)]
    want = [made.codec.decode(integrate(made.velocity, *run)) for run in runs]

    def quality(model: ModelProto) -> float:
        velocity = opened(source.manifest, data | {"velocity": model.SerializeToString()}).velocity
        ends = [made.codec.decode(integrate(velocity, *run)) for run in runs]
        return min(map(psnr, want, ends))

    done = {role: int8(m, feeds[role], quality if role == "velocity" else None) for role, m in models.items()}
    return {role: model for role, (model, _) in done.items()}, {role: about for role, (_, about) in done.items()}


def opened(manifest: Manifest, graphs: dict[str, bytes], data: dict[str, bytes] | None = None) -> Made:
    """Serialised graphs, by role, as `rfp translate` runs them on the CPU; `data` as in a Bundle."""
    bundle = Bundle(Path("velocity.onnx"), manifest, *(graphs.get(role, b"") for role in ROLES), data=data or {})
    return Made({}, Velocity(bundle, "cpu"), open_codec(bundle, "cpu"))


def optimised_nodes(path: Path) -> int:
    """How many nodes ONNX Runtime's optimiser makes of a graph on this CPU."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # that the result suits this CPU only is why it is not kept
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return len(onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node)


def float32_graph(source: Source, role: str) -> ModelProto:
    """One graph with the manifest in its metadata, dynamic in batch, height and width.

    `velocity` takes `x` [B, C, H, W] float32 and `t` [1] float32, shared by the batch, and gives `velocity` like `x`.
    `encoder` takes `x` [B, 3, H, W] and gives `z` [B, C, H/factor, W/factor]; `decoder` takes `z` and gives `x`.

    Raises:
        ExportError: torch cannot export the net.
    """
    net, codec, manifest = source.net, source.codec, source.manifest
    zero, one = manifest.domains
    if role == "velocity":
        multiple = net.config.multiple
        x = {"x": torch.zeros(2, net.channels, 2 * multiple, 4 * multiple), "t": torch.zeros(1)}
        about = f"Velocity v(x, t) from {zero} to {one}; {manifest.timestep}."
        model = _export(net, x, "velocity", multiple, manifest, about)
        if isinstance(net, UNet) and net.config.coordinates:
            _name_place(model)
        return model
    assert isinstance(codec, VAE)
    factor = codec.config.factor
    if role == "encoder":
        x = {"x": torch.zeros(2, 3, 2 * factor, 4 * factor)}
        return _export(_Encode(codec), x, "z", factor, manifest, f"Latents z of pictures of {zero} and {one}.")
    z = {"z": torch.zeros(2, codec.config.latent_channels, 2, 4)}
    return _export(_Decode(codec), z, "x", 1, manifest, f"Pictures of {zero} and {one} from latents z.")


def _name_place(model: ModelProto) -> None:
    """Give what x is joined with, where its pixels lie, the name by which the runtime tells tiles where they are."""
    (was,) = [n.input[1] for n in model.graph.node if n.op_type == "Concat" and n.input[0] == "x"]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [PLACE if name == was else name for name in names]
    for value in model.graph.value_info:
        if value.name == was:
            value.name = PLACE


class _Encode(nn.Module):
    def __init__(self, codec: VAE) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x: Tensor) -> Tensor:
        return self.codec.encode(x)


class _Decode(_Encode):
    def forward(self, x: Tensor) -> Tensor:
        return self.codec.decode(x)


def _export(
    net: nn.Module, inputs: dict[str, Tensor], output: str, multiple: int, manifest: Manifest, about: str
) -> ModelProto:
    """Height and width of the first input are multiples of `multiple`; other inputs keep their shape."""
    height, width = torch.export.Dim("h"), torch.export.Dim("w")
    sizes = {0: torch.export.Dim("B"), 2: multiple * height, 3: multiple * width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        try:
            program = torch.onnx.export(
                net.eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(sizes if i == 0 else {} for i in range(len(inputs))),
                external_data=False,
                verbose=False,
            )
        except Exception as e:  # torch.onnx raises many kinds
            reason = (str(e) or repr(e)).splitlines()[0]
            raise ExportError(f"torch {torch.__version__} could not export this net: {reason}") from e
    assert program is not None
    model: ModelProto = program.model_proto
    strip(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.to_json()
    model.producer_name, model.producer_version = "rfp", manifest.rfp_version
    model.doc_string = about
    return model
