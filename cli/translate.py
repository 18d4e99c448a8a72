"""`rfp translate`: folders, pictures, videos and zips through an exported bundle."""

import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..runtime.errors import UsageError
from ..runtime.euler import Solver
from ..runtime.files import json_text
from ..runtime.options import FilmOptions, FlowOptions, FolderOptions, PictureOptions
from .number import counted, number_or
from .paths import path
from .report import as_json as values
from .report import progress, summary

if TYPE_CHECKING:
    from ..runtime import Report


def translate(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that `rfp export` wrote, or its velocity.onnx.")
    ],
    inputs: Annotated[
        list[Path], typer.Argument(parser=path, help="Folders, images, videos or zips.", metavar="INPUT")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="Folder; or a file, for one input file.")],
    steps: Annotated[int | None, typer.Option(help="Euler steps; the bundle's own number if not given.")] = None,
    solver: Annotated[
        str, typer.Option(help="euler, or heun: two velocity calls a step, nearer at equal calls.")
    ] = "euler",
    size: Annotated[
        str, typer.Option(metavar="N|model|native", help="Pixels of the short side; model is the size of training.")
    ] = "model",
    upscale: Annotated[
        str, typer.Option(help="Back to the input's own size: none, resize, or residual (the input's detail stays).")
    ] = "none",
    tile: Annotated[
        int | None, typer.Option(help="Translate larger pictures in tiles of N px: memory stays flat.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels over which tiles blend; a quarter if not given.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From domain 1 back to domain 0.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or coreml.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8, of what the bundle has; fp16 on CUDA, else fp32, if not given."),
    ] = None,
    steady: Annotated[
        float, typer.Option(help="Against flicker of videos: 0 is off, 0.8 calms what stands still; below 1.")
    ] = 0.0,
    codec: Annotated[
        str | None,
        typer.Option(help="Of videos: h264, hevc, av1, vp9, ffv1, prores, or in hardware such as h264_nvenc."),
    ] = None,
    crf: Annotated[float | None, typer.Option(help="Quality of videos on the codec's scale; lower is better.")] = None,
    pix_fmt: Annotated[str | None, typer.Option(help="Of videos: yuv444p, yuv420p10le, …")] = None,
    start: Annotated[float | None, typer.Option(metavar="S", help="Where to begin in videos, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(metavar="S", help="Where to end in videos, in seconds.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="side|wipe", help="Source beside its translation, in videos.")
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N|auto", help="Threads of the net on the CPU.")] = "auto",
    batch: Annotated[str, typer.Option(metavar="N|auto", help="Pictures at once; auto fits the machine.")] = "auto",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of the pictures: png, jpg, webp, gif, bmp or tiff; each keeps its own if not given."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = 95,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N inputs.")] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Inputs in an order that looks random, the same each time.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts (from 1), split by name.")
    ] = None,
    keep_watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and translate what is new or changed, until Ctrl-C.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Write a page with a slider from before to after."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do again what is there, whoever made it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Translate images and videos with an exported bundle.

    The output mirrors the input's folders, and each file keeps its format (.avi and .mpg become .mp4). What was
    done is skipped, so after an interruption the same command goes on; what this command wrote is done again when the
    input, the model or the options changed (translate.jsonl in OUTPUT keeps account); other files are left alone.
    Exits with 1 if an input failed.
    """
    from ..runtime import translate as run  # numpy and Pillow: not for `rfp --help`
    from ..runtime.watch import SETTLED, watch

    flow = FlowOptions(
        steps=steps,
        solver=cast("Solver", solver),
        size=number_or("size", size, "model", "native"),
        upscale=upscale,
        tile=tile,
        overlap=overlap,
        reverse=reverse,
        batch=number_or("batch", batch, "auto"),
        threads=number_or("threads", threads, "auto"),
        device=device,
        precision=precision,
    )
    film = FilmOptions(codec=codec, crf=crf, pix_fmt=pix_fmt, start=start, end=end, compare=compare)
    pictures = PictureOptions(format_, quality)
    folder = FolderOptions(shard=_shard(shard), shuffle=shuffle, limit=limit, settled=SETTLED if keep_watch else 0.0)
    if page is not None:
        from ..runtime.slider_page import check_page, write_page  # PyAV takes 50 ms to import

        check_page(page)

    def once(again: bool) -> "Report":
        with progress("inputs") as on_event:
            report = run(
                bundle,
                inputs,
                output,
                flow=flow,
                pictures=pictures,
                folder=folder,
                overwrite=again,
                steady=steady,
                film=film,
                on_event=on_event,
            )
        typer.echo(json_text(values(report)) if as_json else summary(report, output, "translated"))
        if page is not None:
            write_page(page, inputs, output, report, {"bundle": str(bundle)}, pictures, folder, film)
        return report

    try:
        if keep_watch:
            failed = _watched(lambda look: watch(inputs, output, look, threading.Event()), once, overwrite, output)
        else:
            failed = bool(once(overwrite).failed)
        raise typer.Exit(1 if failed else 0)
    except KeyboardInterrupt:
        typer.echo("rfp: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def _watched(
    until_stopped: Callable[[Callable[[], None]], None], once: Callable[[bool], "Report"], overwrite: bool, output: Path
) -> bool:
    """Translate again and again until Ctrl-C or SIGTERM; whether an input failed in the last round.

    Raises KeyboardInterrupt where that stops a round half-way.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.echo("rfp: watching; Ctrl-C ends it", err=True)
    done, failed, rounds, busy = 0, 0, 0, False

    def look() -> None:
        nonlocal done, failed, rounds, busy
        busy = True
        ours = done > 0 and output.is_file()  # one file has no ledger that says whose it is
        report = once(ours or (overwrite and rounds == 0))
        done, failed, rounds, busy = done + len(report.done), len(report.failed), rounds + 1, False

    try:
        until_stopped(look)
    except KeyboardInterrupt:
        if busy:
            raise
    counts = f"{done} translated in {counted(rounds, 'round')}, {failed} failed in the last"
    typer.echo(f"rfp: watched {output}: {counts}", err=True)
    return failed > 0


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if found := re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text):
        return int(found[1]), int(found[2])
    raise UsageError(f"--shard is {text!r}; wanted I/N, such as 1/8")
