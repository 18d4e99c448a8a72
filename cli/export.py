"""`rfp export`: a run or checkpoint to a bundle that needs no PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.errors import MissingExtraError
from .train import require_train


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder (its newest checkpoint) or checkpoint file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    name: Annotated[str | None, typer.Option(help="Name in the manifest; made from the domains if not given.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "",
    provenance: Annotated[str, typer.Option(help="Where the training pictures come from, for the manifest.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
) -> None:
    """Write an ONNX velocity graph and its manifest, proven against PyTorch over the whole integration.

    A graph that does not agree with PyTorch is not kept, and the command exits with 1.
    """
    require_export()
    from ..export.bundle import export_bundle

    parity = export_bundle(
        source,
        output,
        name=name,
        licence=licence,
        provenance=provenance,
        overwrite=overwrite,
        note=lambda text: typer.echo(text, err=True),
    )
    files = ", ".join(sorted(p.name for p in output.glob("*.onnx")))
    typer.echo(
        f"{output}: {files}, {parity.psnr:.1f} dB to PyTorch over {parity.steps} steps, "
        f"at most {parity.grey_levels} grey levels apart"
    )


def require_export() -> None:
    """Raise MissingExtraError where the packages for exporting are not installed."""
    from importlib.util import find_spec

    require_train()
    if missing := [m for m in ("onnx", "onnxscript") if find_spec(m) is None]:
        raise MissingExtraError(f"exporting needs {', '.join(missing)}: pip install 'rfp[export]'")
