"""`rfp export`: a run or checkpoint to a bundle that needs no PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import ExportError, MissingExtraError, UsageError
from .number import counted
from .paths import path
from .train import require_train

if TYPE_CHECKING:
    from ..export.bundle import Outcome
    from ..runtime.manifest import Graph


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder (its newest checkpoint) or checkpoint file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="Bundle folder to write.")],
    best: Annotated[
        bool,
        typer.Option("--best", help="Of a run with eval_every, the checkpoint of the lowest KID, not the newest."),
    ] = False,
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="Formats to write, with commas between: onnx, coreml, web (onnx and a page for browsers)."
        ),
    ] = "onnx",
    precisions: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Precisions, with commas between: fp32, fp16, int8; palette8, palette6, palette4 for Core ML too. "
            "What suits the format if not given: fp32 for ONNX, fp16 for Core ML.",
        ),
    ] = "",
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Euler steps by default, and of the proof; the config's if not given."),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="N|WxH,…|A..B",
            help="Sizes in pixels to prove at; that of training and a taller one if not given. Core ML packages take "
            "these only: one size, several, or all sides from A to B; that of training if not given.",
        ),
    ] = "",
    coreml_images: Annotated[
        bool,
        typer.Option(
            "--coreml-images", help="A Core ML package too that turns an RGB picture into one, all steps inside."
        ),
    ] = False,
    coreml_batch: Annotated[
        int, typer.Option(min=1, max=64, help="Pictures that a Core ML package takes at once.")
    ] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="DIR",
            help="Pictures of domain 0 to calibrate int8 with; the checkpoint's if not given.",
        ),
    ] = None,
    allow_below_floor: Annotated[
        bool, typer.Option("--allow-below-floor", help="Keep graphs that fail their proof; the manifest says so.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name in the manifest; made from the domains if not given.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "",
    provenance: Annotated[str, typer.Option(help="Where the training pictures come from, for the manifest.")] = "",
    author: Annotated[str, typer.Option(help="Author of the weights, for Core ML packages.")] = "",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a bundle that is there already, unless its folder holds other files too.",
        ),
    ] = False,
) -> None:
    """Write graphs that run without PyTorch and their manifest, each proven over the whole integration.

    A graph that does not agree with PyTorch is not kept, and the command exits with 1.
    """
    require_export(_list(formats))
    from ..export.bundle import export_bundle

    try:
        outcomes = export_bundle(
            source,
            output,
            best=best,
            formats=_list(formats),
            precisions=_list(precisions),
            steps=steps,
            sizes=[_size(text) for text in _list(sizes) if ".." not in text],
            between=_between(sizes),
            coreml_batch=coreml_batch,
            coreml_images=coreml_images,
            author=author,
            calibration=calibration,
            allow_below_floor=allow_below_floor,
            name=name,
            licence=licence,
            provenance=provenance,
            overwrite=overwrite,
            note=lambda text: typer.echo(text, err=True),
        )
    except KeyboardInterrupt:
        typer.echo(f"rfp: interrupted; {output} is as it was before; the same command begins anew", err=True)
        raise typer.Exit(130) from None
    for outcome in outcomes:
        typer.echo(_said(outcome))
    typer.echo(f"{output}: {counted(sum(len(o.graphs) for o in outcomes), 'graph')}")
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
        f"{what}:{kept} {files}, {outcome.parity.psnr:.1f} dB to PyTorch over {counted(outcome.parity.steps, 'step')}, "
        f"at most {counted(outcome.parity.grey_levels, 'grey level')} apart"
    )
    if any(graph.about.get("predicted") is False for graph in outcome.graphs):
        line += "; computed by rfp's evaluator, for Core ML itself needs a Mac"
    return line + "".join(_left(graph) for graph in outcome.graphs if "left_in_float" in graph.about)


def _left(graph: "Graph") -> str:
    """The layers of an int8 graph that are not in 8 bits."""
    left, layers = graph.about["left_in_float"], graph.about["layers"]
    if not left:
        return f"\n  {graph.file}: all {layers} layers in 8 bits"
    return (
        f"\n  {graph.file}: {len(left)} of {layers} layers left in float "
        f"({graph.about['multiplications_in_float']:.1%} of the multiplications): {', '.join(left)}"
    )


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


def _between(text: str) -> tuple[int, int] | None:
    ranges = [part for part in _list(text) if ".." in part]
    try:
        low, high = (int(n) for n in ranges[0].split("..")) if len(ranges) == 1 else (0, 0)
    except ValueError:
        raise UsageError(f"--sizes: {ranges[0]!r} is no range; wanted two sides in pixels, such as 64..512") from None
    if len(ranges) > 1:
        raise UsageError(f"--sizes {text}: wanted one range of sides")
    return (low, high) if ranges else None


def require_export(formats: Sequence[str] = ("onnx",)) -> None:
    """Raise MissingExtraError where the packages for exporting are not installed."""
    from importlib.util import find_spec

    require_train()
    if missing := [m for m in ("onnx", "onnxscript") if find_spec(m) is None]:
        raise MissingExtraError(f"exporting needs {', '.join(missing)}: pip install 'rfp[export]'")
    if "coreml" in formats and find_spec("coremltools") is None:
        raise MissingExtraError("--format coreml needs coremltools: pip install 'rfp[coreml]'")
