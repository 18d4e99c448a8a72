"""A velocity net, or a codec, as ONNX graphs: dynamic batch, height and width; nothing of this machine left in it."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runtime.bundle import METADATA_KEY, Manifest
from ..runtime.errors import ExportError
from ..train.codec import VAE
from ..train.velocity_net import VelocityNet

OPSET = 20
"""From opset 21 on, GroupNormalization has no CPU kernel in ONNX Runtime and is taken apart: up to 15 % slower."""


def export_onnx(net: VelocityNet, manifest: Manifest, path: Path) -> None:
    """Write the velocity net to `path` with the manifest in its metadata.

    Inputs `x` [B, C, H, W] float32 and `t` [1] float32, shared by the batch; output `velocity` like `x`.

    Raises:
        ExportError: torch cannot export the net, or the graph does not pass ONNX's checker.
    """
    multiple = net.config.multiple
    x = torch.zeros(2, net.channels, 2 * multiple, 4 * multiple)
    about = f"Velocity v(x, t) from {manifest.domains[0]} to {manifest.domains[1]}; {manifest.timestep}."
    _export(net, {"x": x, "t": torch.zeros(1)}, "velocity", multiple, manifest, about, path)


def export_codec(codec: VAE, manifest: Manifest, encoder: Path, decoder: Path) -> None:
    """Write both ways of a codec, as `export_onnx` does.

    The encoder takes `x` [B, 3, H, W] and gives `z` [B, C, H/factor, W/factor], the decoder takes `z` and gives `x`.
    """
    factor, names = codec.config.factor, " and ".join(manifest.domains)
    x, z = torch.zeros(2, 3, 2 * factor, 4 * factor), torch.zeros(2, codec.config.latent_channels, 2, 4)
    _export(_Encode(codec), {"x": x}, "z", factor, manifest, f"Latents z of pictures of {names}.", encoder)
    _export(_Decode(codec), {"z": z}, "x", 1, manifest, f"Pictures of {names} from latents z.", decoder)


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
    net: nn.Module, inputs: dict[str, Tensor], output: str, multiple: int, manifest: Manifest, about: str, path: Path
) -> None:
    """Height and width of the first input are multiples of `multiple`; other inputs keep their shape."""
    import onnx

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
    model = program.model_proto
    strip(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, manifest.to_json()
    model.producer_name, model.producer_version = "rfp", manifest.rfp_version
    model.doc_string = about
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the graph does not pass ONNX's checker: {e}") from e
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip(model: object) -> None:
    """Remove what the exporter notes about this machine: paths and stack traces on nodes, values and weights."""
    graph = model.graph  # type: ignore[attr-defined]
    for thing in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output, graph):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del model.metadata_props[:]  # type: ignore[attr-defined]
    for function in model.functions:  # type: ignore[attr-defined]
        for node in function.node:
            del node.metadata_props[:]
