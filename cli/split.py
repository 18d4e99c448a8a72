"""`rfp split`: uncategorised pictures into two domains, by a trained classifier."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.errors import UsageError
from .paths import path
from .train import require_train

if TYPE_CHECKING:
    from ..train.split import Report
    from ..train.split_verify import Verified


def split(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder or checkpoint whose classifier sorts.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="Folder to sort into.")],
    inputs: Annotated[
        list[Path] | None, typer.Argument(parser=path, help="Folders, images, videos or zips.", metavar="INPUT")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a picture is sorted into a domain; 0.7 if not given.")
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(help="Reduce copies whose longer side has more pixels than this, as upright RGB without alpha."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check an output folder instead; changes nothing.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    batch: Annotated[int, typer.Option(help="Pictures judged at once.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Sort pictures into domain0/, domain1/ and uncertain/ by a trained classifier.

    Copies are named by the SHA-256 of what they hold, and byte for byte like their originals; frames of videos are
    written as PNG. The same content is kept once. OUT/report.csv has a line for every source. Originals are never
    touched, nothing is deleted. What is there already is skipped, so after an interruption the same command goes on.
    Exits with 1 if an input failed, or if --verify finds something wrong.
    """
    require_train()
    from ..runtime.media import paths
    from ..train import split as sorting
    from ..train.split_verify import verify as check

    if verify and (inputs or max_size is not None):
        raise UsageError("--verify looks at --output only: leave out INPUT and --max-size")
    if not verify and not inputs:
        raise UsageError("give INPUT: folders, images, videos or zips (or --verify, to check --output)")
    checkpoint, output, *sources = paths([checkpoint, output, *(inputs or [])])
    classifier = sorting.load_classifier(checkpoint, device)
    if threshold is not None and classifier.taught < threshold <= 1:
        typer.echo(
            f"rfp: this classifier was trained to be no surer than {classifier.taught:.1%} (label smoothing); "
            f"with --threshold {threshold:g} most pictures will be uncertain",
            err=True,
        )
    try:
        with _progress() as on_end:
            if verify:
                verified = check(classifier, output, threshold, batch, on_end)
            else:
                limit = 0.7 if threshold is None else threshold
                report = sorting.split(classifier, sources, output, limit, max_size, batch, on_end)
    except KeyboardInterrupt:
        typer.echo("rfp: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    failed = verified.problems if verify else report.failed
    if as_json:
        typer.echo(json.dumps(_verified_json(verified) if verify else _json(report, output), ensure_ascii=False))
    else:
        typer.echo(_verified_text(verified, output) if verify else _text(report, output))
    if failed:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[object], None]]:
    """A running count where stderr is a terminal, else a line for every thousandth picture."""
    if not sys.stderr.isatty():
        count = 0

        def on_end(ended: object) -> None:
            nonlocal count
            count += 1
            if count % 1000 == 0:
                typer.echo(f"{count} pictures", err=True)

        yield on_end
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.completed} pictures"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda ended: bar.advance(task)


def _text(report: "Report", output: Path) -> str:
    new, total = sum(report.new.values()), sum(report.total.values())
    failures = [f"failed: {failure.message}" for failure in report.failed]
    lines = [f"{'folder':<10} {'new':>9} {'in all':>9} {'share':>7}"]
    lines += [f"{f:<10} {report.new[f]:>9} {n:>9} {n / max(total, 1):>7.1%}" for f, n in report.total.items()]
    counts = f"{new} new, {report.skipped} there already, {report.duplicates} duplicates, {len(report.failed)} failed"
    return "\n".join([*failures, *lines, f"{output}: {counts} in {report.seconds:.1f} s"])


def _json(report: "Report", output: Path) -> dict[str, object]:
    return {
        "folders": {f: {"new": report.new[f], "total": n} for f, n in report.total.items()},
        "skipped": report.skipped,
        "duplicates": report.duplicates,
        "failed": [failure._asdict() for failure in report.failed],
        "report": str(output / "report.csv"),
        "seconds": round(report.seconds, 3),
    }


def _verified_text(verified: "Verified", output: Path) -> str:
    lines = [f"wrong: {problem.message}" for problem in verified.problems]
    return "\n".join([*lines, f"{output}: {verified.pictures} pictures checked, {len(verified.problems)} wrong"])


def _verified_json(verified: "Verified") -> dict[str, object]:
    return {"pictures": verified.pictures, "problems": [problem._asdict() for problem in verified.problems]}
