"""What `rfp translate` and `rfp generate` show while they work, and what they print in the end."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..runtime import Event, Report


@contextmanager
def progress(what: str) -> Iterator[Callable[["Event"], None]]:
    """A bar that moves where stderr is a terminal, else one line for each input that ended."""
    if not sys.stderr.isatty():
        yield _print_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        inputs = bar.add_task(what, total=None)
        frames = bar.add_task("frames", total=None, visible=False)

        def on_event(event: "Event") -> None:
            if event.kind == "found":
                bar.update(inputs, total=event.total)
            elif event.kind == "frames":
                name = one_line(Path(event.source).name)
                bar.update(frames, description=name, completed=event.count, total=event.total, visible=True)
            else:
                bar.update(frames, visible=False)
                bar.advance(inputs)

        yield on_event


def _print_line(event: "Event") -> None:
    if event.kind == "done":
        typer.echo(one_line(f"{event.source} -> {event.target}"), err=True)
    elif event.kind == "skipped":
        typer.echo(one_line(f"skipped: {event.target}{': ' if event.message else ''}{event.message}"), err=True)
    elif event.kind == "failed":
        typer.echo(one_line(f"failed: {event.message}"), err=True)


def summary(report: "Report", output: Path, verb: str) -> str:
    """Notes, failures, and one line of counts."""
    counts = f"{len(report.done)} {verb}, {len(report.skipped)} there already, {len(report.failed)} failed"
    notes = [f"note: {note}" for note in report.notes]
    notes += [f"note: {event.source}: {event.message}" for event in report.done if event.message]
    left: dict[str, list[Path | None]] = {}
    for event in report.skipped:
        left.setdefault(event.message, []).append(event.target)
    left.pop("", None)
    notes += [f"note: {first}{' and others' if more else ''}: {why}" for why, (first, *more) in left.items()]
    failures = [f"failed: {event.message}" for event in report.failed]
    where = f" on {report.device}" if report.device else ""
    return "\n".join(map(one_line, [*notes, *failures, f"{output}: {counts} in {report.seconds:.1f} s{where}"]))


def one_line(text: str) -> str:
    """Text for a terminal: a name may hold newlines, control codes, or bytes that are no UTF-8; they become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_json(report: "Report") -> dict[str, Any]:
    """The report as JSON values: how many inputs ended in which way, and the messages of the first thousand."""

    notes = [{"source": "", "message": note} for note in report.notes]
    notes += [{"source": e.source, "message": e.message} for e in (*report.skipped, *report.done) if e.message]
    return {
        "done": len(report.done),
        "skipped": len(report.skipped),
        "failed": len(report.failed),
        "failures": [{"source": e.source, "message": e.message} for e in report.failed],
        "notes": notes,
        "images_per_second": round(report.images_per_second, 2),
        "device": report.device,
        "seconds": {"total": round(report.seconds, 3)} | {k: round(v, 3) for k, v in report.stages.items()},
    }
