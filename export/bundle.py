"""A checkpoint becomes a bundle: the graph, its proof, the manifest; all or nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..runtime.bundle import MANIFEST_FILE, ROLES, Bundle, Graph, Latent, Manifest
from ..runtime.errors import CheckpointError, UsageError
from ..runtime.files import write_folder_aside
from ..runtime.noise import noises
from ..runtime.pixels import Float, to_float
from ..train import checkpoint as ckpt
from ..train.codec import VAE
from ..train.config import to_json
from .onnx import export_codec, export_onnx
from .proof import Parity, as_figures, prove


def export_bundle(
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    licence: str = "",
    provenance: str = "",
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Parity:
    """Write `output`/velocity.onnx and rfp.json from a run folder or a checkpoint, and prove the graph.

    A latent model has three graphs: velocity.onnx, encoder.onnx and decoder.onnx, proven together.

    Raises:
        UsageError: no such run, or the output is there already.
        CheckpointError: the checkpoint is damaged or holds no velocity net.
        ExportError: the graph could not be made or fell below its floor; nothing is left.
    """
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: is there already; give another -o, or --overwrite to replace it")
    if overwrite and output.exists() and not (output / MANIFEST_FILE).is_file():
        raise UsageError(f"{output}: is not a bundle (it has no {MANIFEST_FILE}), so --overwrite leaves it alone")
    path = ckpt.find(source)
    checkpoint = ckpt.load(path)
    net, codec = checkpoint.velocity(), checkpoint.codec()
    starts = _starts(checkpoint, path)
    config = checkpoint.config
    manifest = Manifest(
        name=name or (checkpoint.domains[1] if checkpoint.generative else "-to-".join(checkpoint.domains)),
        image_size=config.max_size,
        multiple=config.multiple,
        default_steps=config.num_inference_steps,
        domains=checkpoint.domains,
        licence=licence,
        provenance=provenance,
        rfp_version=__version__,
        generative=checkpoint.generative,
        latent=Latent(config.codec.latents, config.codec.factor) if config.codec.latents else None,
        training={
            "step": checkpoint.step,
            "images": checkpoint.step * config.train_batch_size,
            "config": to_json(config),
        },
    )
    note(f"exporting {path}")
    with write_folder_aside(output) as folder:
        export_onnx(net, manifest, folder / "velocity.onnx")
        if isinstance(codec, VAE):
            export_codec(codec, manifest, folder / "encoder.onnx", folder / "decoder.onnx")
        models = {role: (folder / f"{role}.onnx").read_bytes() for role in ROLES if (folder / f"{role}.onnx").is_file()}
        note("proving against PyTorch over the whole integration")
        bundle = Bundle(folder / "velocity.onnx", manifest, *(models.get(role, b"") for role in ROLES))
        parity = prove(net, codec, bundle, starts)
        graphs = tuple(
            Graph(f"{role}.onnx", "fp32", hashlib.sha256(m).hexdigest(), len(m), as_figures(parity), role)
            for role, m in models.items()
        )
        (folder / MANIFEST_FILE).write_text(replace(manifest, graphs=graphs).to_json(), encoding="utf-8")
    return parity


def _starts(checkpoint: ckpt.Checkpoint, path: Path) -> tuple[Float, Float]:
    """What a proof starts from at t = 0 and t = 1: the checkpoint's pictures, or noise and pictures."""
    pictures = {name: to_float(x.numpy()) for name, x in checkpoint.part("samples").items()}
    if checkpoint.generative and "domain1" in pictures:
        pictures["domain0"] = noises(checkpoint.config.latent_shape, 0, range(4))
    if {"domain0", "domain1"} - pictures.keys():
        raise CheckpointError(f"{path}: holds no sample pictures to prove an export with; save it again with this rfp")
    return pictures["domain0"], pictures["domain1"]
