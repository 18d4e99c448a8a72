"""`rfp generate`: pictures out of noise, by a bundle that was trained with `--domain0 random`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from ..runtime.errors import UsageError
from ..runtime.euler import Solver
from ..runtime.files import json_text
from ..runtime.options import picture_format
from .number import number_or
from .paths import path
from .report import as_json as values
from .report import progress, summary


def generate(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that `rfp export` wrote, or its velocity.onnx.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="Folder for the pictures.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many pictures.")] = 1,
    seed: Annotated[int, typer.Option(help="Picture i is a function of the seed and i alone.")] = 0,
    grid: Annotated[bool, typer.Option("--grid", help="A contact sheet of all of them, too.")] = False,
    steps: Annotated[int | None, typer.Option(help="Euler steps; the bundle's own number if not given.")] = None,
    solver: Annotated[
        str, typer.Option(help="euler, or heun: two velocity calls a step, nearer at equal calls.")
    ] = "euler",
    size: Annotated[
        str | None, typer.Option(metavar="N|WxH", help="Pixels; a square of the size of training if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or coreml.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8, of what the bundle has; fp16 on CUDA, else fp32, if not given."),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N|auto", help="Threads of the net on the CPU.")] = "auto",
    batch: Annotated[str, typer.Option(metavar="N|auto", help="Pictures at once; auto fits the machine.")] = "auto",
    format_: Annotated[str, typer.Option("--format", help="png, jpg, webp, gif, bmp or tiff.")] = "png",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make again what is there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Make pictures from noise with a generative bundle.

    On one machine's CPU the same seed gives the same pictures, whatever their number and the batch. They are named by
    seed and number, and what is there already is skipped, so after an interruption the same command goes on. Exits
    with 1 if a picture failed.
    """
    from ..runtime import generate as run  # numpy and Pillow: not for `rfp --help`

    pixels = _size(size)
    try:
        with progress("pictures") as on_event:
            report = run(
                bundle,
                output,
                count,
                seed=seed,
                steps=steps,
                solver=cast("Solver", solver),
                size=pixels,
                batch=number_or("batch", batch, "auto"),
                threads=number_or("threads", threads, "auto"),
                suffix=f".{picture_format(format_)}",
                grid=grid,
                overwrite=overwrite,
                device=device,
                precision=precision,
                on_event=on_event,
            )
    except KeyboardInterrupt:
        typer.echo("rfp: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(json_text(values(report)) if as_json else summary(report, output, "made"))
    if report.failed:
        raise typer.Exit(1)


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    match sides:
        case [side]:
            return side
        case [width, height]:
            return width, height
        case _:
            raise UsageError(f"--size is {text!r}; wanted a number of pixels, or width x height such as 96x64")
