"""A velocity net, or a codec, as ONNX graphs: dynamic batch, height and width; nothing of this machine left in it."""

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ..runtime.bundle import Bundle
from ..runtime.codec import open_codec
from ..runtime.errors import ExportError
from ..runtime.manifest import METADATA_KEY, ROLES, Manifest
from ..runtime.velocity import Velocity
from ..train.codec import VAE
from .proof import Made, Maker
from .source import Source

OPSET = 20
"""From opset 21 on, GroupNormalization has no CPU kernel in ONNX Runtime and is taken apart: up to 15 % slower."""


def onnx_maker(source: Source, note: Callable[[str], None]) -> Maker:
    """Writes velocity.onnx, and encoder.onnx and decoder.onnx of a latent model; opens them with the runtime."""

    def make(precision: str, folder: Path) -> Made:
        files = {role: f"{role}.onnx" for role in (ROLES if source.manifest.latent else ROLES[:1])}
        note("making the ONNX graphs in fp32")
        for role, file in files.items():
            write(float32_graph(source, role), folder / file)
        return read_back(source.manifest, folder, files)

    return make


def read_back(manifest: Manifest, folder: Path, files: dict[str, str]) -> Made:
    """What was written, opened by the runtime as `rfp translate` does."""
    models = [(folder / files[role]).read_bytes() if role in files else b"" for role in ROLES]
    bundle = Bundle(folder / files["velocity"], manifest, *models)
    return Made(files, Velocity(bundle, "cpu"), open_codec(bundle, "cpu"))


def float32_graph(source: Source, role: str) -> onnx.ModelProto:
    """One graph with the manifest in its metadata, dynamic in batch, height and width.

    `velocity` takes `x` [B, C, H, W] float32 and `t` [1] float32, shared by the batch, and gives `velocity` like `x`.
    `encoder` takes `x` [B, 3, H, W] and gives `z` [B, C, H/factor, W/factor]; `decoder` takes `z` and gives `x`.

    Raises:
        ExportError: torch cannot export the net, or the graph does not pass ONNX's checker.
    """
    net, codec, manifest = source.net, source.codec, source.manifest
    zero, one = manifest.domains
    if role == "velocity":
        multiple = net.config.multiple
        x = {"x": torch.zeros(2, net.channels, 2 * multiple, 4 * multiple), "t": torch.zeros(1)}
        about = f"Velocity v(x, t) from {zero} to {one}; {manifest.timestep}."
        return _export(net, x, "velocity", multiple, manifest, about)
    assert isinstance(codec, VAE)
    factor = codec.config.factor
    if role == "encoder":
        x = {"x": torch.zeros(2, 3, 2 * factor, 4 * factor)}
        return _export(_Encode(codec), x, "z", factor, manifest, f"Latents z of pictures of {zero} and {one}.")
    z = {"z": torch.zeros(2, codec.config.latent_channels, 2, 4)}
    return _export(_Decode(codec), z, "x", 1, manifest, f"Pictures of {zero} and {one} from latents z.")


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
) -> onnx.ModelProto:
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
    model: onnx.ModelProto = program.model_proto
    strip(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.to_json()
    model.producer_name, model.producer_version = "rfp", manifest.rfp_version
    model.doc_string = about
    check(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Raises ExportError where the graph does not pass ONNX's checker."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the graph does not pass ONNX's checker: {e}") from e


def write(model: onnx.ModelProto, path: Path) -> None:
    """The same graph gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about this machine: paths and stack traces on nodes, values and weights."""
    graph = model.graph
    for thing in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output, graph):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
