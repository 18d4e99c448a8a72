"""`rfp evaluate`: how good a bundle's translations are, in figures."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .paths import path
from .train import require_train

if TYPE_CHECKING:
    from ..runtime.euler import Solver
    from ..runtime.evaluation import Evaluation
    from ..runtime.judging import Classifier, Figure


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `rfp export` wrote, or its velocity.onnx.")],
    source: Annotated[
        Path | None, typer.Option(parser=path, help="Pictures to translate; none for a bundle that generates.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(parser=path, help="Pictures of the domain that is translated into, any: for realism.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(parser=path, help="What the source should become, by the same names.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Feature network: an ONNX graph, a file of ImageNet weights, a torchvision name, or a run (its "
            "classifier). Statistics of texture and colour if not given.",
        ),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(parser=path, help="Run or checkpoint whose classifier is to be fooled.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Euler steps; the bundle's own number if not given.")] = None,
    solver: Annotated[
        str, typer.Option(help="euler, or heun: two velocity calls a step, nearer at equal calls.")
    ] = "euler",
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Judge domain 1 to domain 0; source and target the other way round too.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Pictures of each folder, spread evenly.")] = 1000,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8, of what the bundle has; fp16 on CUDA, else fp32, if not given."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or coreml.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
) -> None:
    """Measure translations: how real they look, what of the input they keep, how near the truth they are.

    Each figure stands beside that of the untouched input and that of real pictures. Exits with 1 if a picture could
    not be read; the rest is measured.
    """
    from ..runtime.bundle import load_bundle
    from ..runtime.evaluation import evaluate as run
    from ..runtime.judging import Judge

    loaded = load_bundle(bundle, precision, device)
    judge = Judge(_features(features, device), _classifier(classifier, device))
    with _progress() as on_progress:
        result = run(
            loaded,
            source,
            target,
            truth,
            judge=judge,
            steps=steps,
            solver=cast("Solver", solver),
            reverse=reverse,
            limit=limit,
            device=device,
            on_progress=on_progress,
        )
    values = {"bundle": str(bundle), **result.as_json()}
    typer.echo(json.dumps(values, ensure_ascii=False) if as_json else "\n".join(table(result)))
    if result.failed:
        raise typer.Exit(1)


def _features(name: str | None, device: str) -> Any:
    if name is None:
        return None
    from ..runtime.features import onnx_features

    if name.lower().endswith(".onnx"):
        return onnx_features(Path(name).expanduser())
    require_train()
    from ..train.feature_nets import load_features

    return load_features(name, device)


def _classifier(run: Path | None, device: str) -> "Classifier | None":
    if run is None:
        return None
    require_train()
    import numpy as np
    from PIL import Image

    from ..train.split import load_classifier

    judge = load_classifier(run.expanduser(), device)

    def probabilities(pictures: Any) -> Any:
        size = (judge.size, judge.size)
        return judge.probabilities(
            np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pictures])
        )

    return probabilities


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is under way where stderr is a terminal; else nothing."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield on_progress


def table(result: "Evaluation") -> list[str]:
    """The figures as lines of text: a block a group, the three columns, what each figure is."""
    counts = ", ".join(f"{n} {what}" for what, n in result.counts.items())
    lines = [f"{result.steps} steps; {counts}; features: {result.features}"]
    for group, figures in result.groups.items():
        lines += ["", f"{group:<20}{'translated':>16}{'untouched':>11}{'real':>9}  better"]
        lines += [_line(figure) for figure in figures]
    lines += [""] if result.notes or result.failed else []
    lines += [f"note: {note}" for note in result.notes] + [f"failed: {failure}" for failure in result.failed]
    return lines


def _line(figure: "Figure") -> str:
    digits = {"kid": 1, "psnr": 2, "frechet": 3}.get(figure.name, 3)

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    translated = shown(figure.translated) + (f" ± {figure.margin:.{digits}f}" if figure.margin is not None else "")
    others = f"{shown(figure.untouched):>11}{shown(figure.real):>9}"
    return f"  {figure.name:<18}{translated:>16}{others}  {figure.better:<6}  {figure.about}"
