"""`rfp demo`: the whole road on drawn landscapes, day to night, with nothing to download."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runtime.errors import MediaError
from .export import require_export
from .paths import path

SHOWN = 12
"""Held-out scenes in the gallery."""
CONFIG, PAIRS = "tiny", "train_images=9600"
"""The preset, and so few pairs that it takes minutes: the landscapes need no more."""


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, help="Folder for everything that the demo makes.")
    ] = Path("rfp-demo"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the config, e.g. train_images=20000; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every random draw.")] = 0,
) -> None:
    """Draw two domains, train, export, translate a folder and a film; then compare with the truth.

    Takes a few minutes on two cores. Run it again to go on after an interruption.
    """
    require_export()
    from ..export.bundle import export_bundle
    from ..runtime import translate
    from ..train.job import Job
    from ..train.reading import load_config
    from ..train.run import Interrupted
    from ..train.training import train
    from .demo_data import write_demo_data
    from .train_report import reporter

    seconds: dict[str, float] = {}
    data, run, bundle, results = (output / name for name in ("data", "run", "bundle", "translated"))
    with reporter() as report:
        report.note(f"drawing the landscapes of both domains into {data}")
        with _timed(seconds, "draw"):
            write_demo_data(data, seed=seed)
        config = load_config(CONFIG, [PAIRS, *(overrides or [])])
        job = Job(config, (data / "train" / "day",), (data / "train" / "night",), run, seed)
        try:
            with _timed(seconds, "train"):
                train(job, report)
        except Interrupted:
            report.close()
            typer.echo(f"rfp: interrupted and saved. To go on: rfp demo -o {output}", err=True)
            raise typer.Exit(130) from None
    with _timed(seconds, "export"):
        if not bundle.exists():
            typer.echo(f"exporting to {bundle}, proven against PyTorch", err=True)
            export_bundle(run, bundle, licence="MIT", provenance="drawn by rfp demo")
    with _timed(seconds, "translate"):
        typer.echo("translating the held-out pictures and the film", err=True)
        for name in ("day", "day.mp4"):
            if failed := translate(bundle, [data / "test" / name], results / name).failed:
                raise MediaError("\n".join(event.message for event in failed))
    for line in compare(data / "test" / "day", results / "day", data / "test" / "night", output / "gallery.png"):
        typer.echo(line)
    typer.echo(
        f"\n{config.num_inference_steps} Euler steps; " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
    )
    typer.echo(f"pictures: {output / 'gallery.png'}")
    typer.echo(f"film:     {results / 'day.mp4'}")
    typer.echo(f"yours:    rfp translate {bundle} INPUT -o OUTPUT")


class _timed:
    """Adds the seconds inside to an entry."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *error: Any) -> None:
        self._seconds[self._name] = time.monotonic() - self._start


def compare(inputs: Path, outputs: Path, truths: Path, picture: Path) -> list[str]:
    """Score translations beside the untouched inputs, write the gallery, and return the table's lines."""
    import numpy as np

    from ..runtime.discovery import discover
    from ..runtime.media import read_image
    from ..runtime.metrics import psnr, ssim, texture_energy
    from .gallery import gallery

    columns = [
        np.stack([np.asarray(read_image(media)) for media in discover([folder])])
        for folder in (inputs, outputs, truths)
    ]
    rows = list(zip(*(column[:SHOWN] for column in columns), strict=True))
    gallery(rows, ["input", "ours", "truth"], picture)
    untouched, ours, truth = columns
    lines = [f"{len(truth)} held-out scenes  PSNR (dB)   SSIM   texture energy (1 is right)"]
    for name, images in (("untouched input", untouched), ("ours", ours)):
        figures = psnr(images, truth), ssim(images, truth), texture_energy(images, truth)
        lines.append("{:<18}    {:>6.2f}   {:>6.3f}   {:>6.2f}".format(name, *figures))
    return lines
