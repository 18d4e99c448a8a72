"""`rfp translate`: folders, pictures, videos and zips through an exported bundle."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from ..runtime import Event, Report


def translate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `rfp export` wrote, or its velocity.onnx.")],
    inputs: Annotated[list[Path], typer.Argument(help="Folders, images, videos or zips.", metavar="INPUT...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; or a file, for one input file.")],
    steps: Annotated[int | None, typer.Option(help="Euler steps; the bundle's own number if not given.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|native", help="Pixels of the short side; the size of training if not given."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From domain 1 back to domain 0.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or coreml.")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Pictures at once; fitted to the machine if not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what is there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Translate images and videos with an exported bundle.

    The output mirrors the input's folders, and each file keeps its format (.avi and .mpg become .mp4). What is there
    already is skipped, so after an interruption the same command goes on. Exits with 1 if an input failed.
    """
    from ..runtime import translate as run  # numpy, PyAV and Pillow: not for `rfp --help`

    pixels = _size(size)
    try:
        with _progress() as on_event:
            report = run(
                bundle,
                inputs,
                output,
                steps=steps,
                size=pixels,
                reverse=reverse,
                batch=batch,
                overwrite=overwrite,
                device=device,
                on_event=on_event,
            )
    except KeyboardInterrupt:
        typer.echo("rfp: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(_as_json(report), ensure_ascii=False) if as_json else _summary(report, output))
    if report.failed:
        raise typer.Exit(1)


def _size(text: str | None) -> int | Literal["native"] | None:
    if text is None:
        return None
    if text.strip().lower() == "native":
        return "native"
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--size is {text!r}; wanted a number of pixels, or native") from None


@contextmanager
def _progress() -> Iterator[Callable[["Event"], None]]:
    """A bar that moves where stderr is a terminal, else one line for each input that ended."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_line
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        inputs = bar.add_task("inputs", total=None)
        frames = bar.add_task("frames", total=None, visible=False)

        def on_event(event: "Event") -> None:
            if event.kind == "found":
                bar.update(inputs, total=event.total)
            elif event.kind == "frames":
                name = Path(event.source).name
                bar.update(frames, description=name, completed=event.count, total=event.total, visible=True)
            else:
                bar.update(frames, visible=False)
                bar.advance(inputs)

        yield on_event


def _print_line(event: "Event") -> None:
    if event.kind == "done":
        typer.echo(f"{event.source} -> {event.target}", err=True)
    elif event.kind in ("skipped", "failed"):
        typer.echo(f"{event.kind}: {event.message or event.target}", err=True)


def _summary(report: "Report", output: Path) -> str:
    counts = f"{len(report.done)} translated, {len(report.skipped)} there already, {len(report.failed)} failed"
    notes = [f"note: {event.source}: {event.message}" for event in report.done if event.message]
    failures = [f"failed: {event.message}" for event in report.failed]
    return "\n".join([*notes, *failures, f"{output}: {counts} in {report.seconds:.1f} s"])


def _as_json(report: "Report") -> dict[str, Any]:
    def entries(events: list["Event"]) -> list[dict[str, str | None]]:
        return [
            {"source": e.source, "target": str(e.target) if e.target else None, "message": e.message} for e in events
        ]

    return {
        "done": entries(report.done),
        "skipped": entries(report.skipped),
        "failed": entries(report.failed),
        "seconds": round(report.seconds, 3),
    }
