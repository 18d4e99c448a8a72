"""`rfp export`: a run or checkpoint to a bundle that needs no PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import ExportError, MissingExtraError, UsageError
from .train import require_train

if TYPE_CHECKING:
    from ..export.bundle import Outcome


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder (its newest checkpoint) or checkpoint file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="Formats to write, with commas between: onnx, web (onnx and a page for browsers)."
        ),
    ] = "onnx",
    precisions: Annotated[
        str,
        typer.Option(
            "--precision", help="Precisions, with commas between: fp32, fp16, int8. What suits the format if not given."
        ),
    ] = "",
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Euler steps by default, and of the proof; the config's if not given."),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="N|WxH,…", help="Sizes in pixels to prove at; that of training and a taller one if not given."
        ),
    ] = "",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures of domain 0 to calibrate int8 with; the checkpoint's if not given."),
    ] = None,
    allow_below_floor: Annotated[
        bool, typer.Option("--allow-below-floor", help="Keep graphs that fail their proof; the manifest says so.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name in the manifest; made from the domains if not given.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "",
    provenance: Annotated[str, typer.Option(help="Where the training pictures come from, for the manifest.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")] = False,
) -> None:
    """Write graphs that run without PyTorch and their manifest, each proven over the whole integration.

    A graph that does not agree with PyTorch is not kept, and the command exits with 1.
    """
    require_export()
    from ..export.bundle import export_bundle

    outcomes = export_bundle(
        source,
        output,
        formats=_list(formats),
        precisions=_list(precisions),
        steps=steps,
        sizes=[_size(text) for text in _list(sizes)],
        calibration=calibration,
        allow_below_floor=allow_below_floor,
        name=name,
        licence=licence,
        provenance=provenance,
        overwrite=overwrite,
        note=lambda text: typer.echo(text, err=True),
    )
    for outcome in outcomes:
        typer.echo(_said(outcome))
    typer.echo(f"{output}: {sum(len(o.graphs) for o in outcomes)} graphs")
    if (output / "index.html").is_file():
        typer.echo(f"look at its page with: rfp preview {output}")
    if failed := [o.error for o in outcomes if o.error]:
        raise ExportError("\n".join(failed))


def _said(outcome: "Outcome") -> str:
    """One format and precision: its files and its parity."""
    what = f"{outcome.format} {outcome.precision}"
    if outcome.parity is None:
        return f"{what}: not kept"
    files = ", ".join(f"{g.file} ({(g.bytes + (g.data.bytes if g.data else 0)) / 1e6:.1f} MB)" for g in outcome.graphs)
    kept = " BELOW ITS FLOOR, kept as asked:" if outcome.below_floor else ""
    line = (
        f"{what}:{kept} {files}, {outcome.parity.psnr:.1f} dB to PyTorch over {outcome.parity.steps} steps, "
        f"at most {outcome.parity.grey_levels} grey levels apart"
    )
    for graph in outcome.graphs:
        if "left_in_float" in graph.about:
            left, share = graph.about["left_in_float"], graph.about["multiplications_in_float"]
            names = ", ".join(left) or "nothing"
            line += (
                f"\n  {graph.file}: {len(left)} of {graph.about['layers']} layers left in float "
                f"({share:.1%} of the multiplications): {names}"
            )
    return line


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(n) for n in (text.lower().split("x") * 2)[:2])
    except ValueError:
        raise UsageError(
            f"--sizes: {text!r} is no size; wanted pixels, such as 64, or width x height, such as 96x64"
        ) from None
    return width, height


def require_export() -> None:
    """Raise MissingExtraError where the packages for exporting are not installed."""
    from importlib.util import find_spec

    require_train()
    if missing := [m for m in ("onnx", "onnxscript") if find_spec(m) is None]:
        raise MissingExtraError(f"exporting needs {', '.join(missing)}: pip install 'rfp[export]'")
