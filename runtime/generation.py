"""Make pictures from noise with a generative bundle."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .bundle import Bundle, opened
from .codec import open_codec
from .errors import MediaError, UsageError
from .euler import Solver
from .flow import MOST_PIXELS, Flow
from .media import IMAGE_SUFFIXES, paths, read_image
from .options import PICTURE_FORMATS, FlowOptions
from .pipeline import THREADS, ahead
from .report import Event, Report, ended
from .saving import Work, save_image, save_images
from .sheet import sheet
from .velocity import Velocity

MOST = 1_000_000
"""Pictures of one seed: their names have six digits."""
SHEET_SIDE = 4096
"""Pixels of a contact sheet's side, at most; above it the pictures on it are made smaller."""


@dataclass(frozen=True)
class Picture:
    """The picture of a number, and the file that it becomes."""

    number: int
    target: Path


def generate(
    bundle: Bundle | str | Path,
    output: str | Path,
    count: int = 1,
    *,
    seed: int = 0,
    steps: int | None = None,
    solver: Solver = "euler",
    size: int | tuple[int, int] | None = None,
    batch: int | str = "auto",
    threads: int | str = "auto",
    suffix: str = ".png",
    grid: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Write `output`/seed-S-000000.png and so on: picture i starts from a noise that is a function of (seed, i).

    So on the CPU a picture is the same byte for byte whatever the count and the batch. A GPU may round differently
    from batch to batch and from a CPU, as another machine may.

    Args:
        bundle: a loaded bundle, or where it is.
        count: how many pictures, numbered from 0.
        steps: of the solver; None takes the bundle's.
        solver: euler, or heun, which calls the velocity twice a step and at equal calls comes nearer.
        size: pixels, of a square's side or (width, height); None takes the size of training. Another size, another
            noise, another picture.
        batch: pictures at once; "auto" takes as many as suit the device and the memory.
        threads: of the net, on the CPU; "auto" is one for each core.
        suffix: of the files, and so their format.
        grid: write seed-S-grid-COUNT too, a contact sheet of all of them.
        overwrite: make again what is there already.
        device: auto, cpu, cuda or coreml.
        precision: of the graphs, where the bundle has several: fp32, fp16 or int8; None takes what suits the device
            (fp16 on CUDA, fp32 elsewhere). Only where `bundle` is a path.
        on_event: told of everything as it happens, in the calling thread.

    Returns:
        What was done, skipped and failed.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: the bundle translates, or an option is out of range; nothing was written.
    """
    began = time.monotonic()
    loaded = opened(bundle, precision, device)
    if not loaded.manifest.generative:
        zero, one = loaded.manifest.domains
        raise UsageError(
            f"{loaded.path}: turns {zero} into {one}, and needs pictures for it: `rfp translate`. What generates is "
            "trained with --domain0 random"
        )
    options = FlowOptions(steps=steps, solver=solver, batch=batch, threads=threads, device=device)
    flow = Flow(Velocity(loaded, device, threads), open_codec(loaded, device, threads), loaded.manifest, options)
    side = loaded.manifest.image_size
    width, height = (size, size) if isinstance(size, int) else size or (side, side)
    _check(count, seed, width, height, suffix)
    folder = paths([output])[0]
    if not folder.is_dir() and (folder.suffix.lower() in IMAGE_SUFFIXES or folder.exists()):
        raise UsageError(f"{folder}: wanted a folder as --output; the pictures in it are named by seed and number")
    pictures = [Picture(i, folder / f"seed-{seed}-{i:06d}{suffix}") for i in range(count)]
    sheet_file = folder / f"seed-{seed}-grid-{count}{suffix}"

    report = Report(device=flow.device)
    if note := loaded.manifest.other_steps(steps, solver):
        report.notes.append(note)
    tell = report.teller(on_event)
    tell(Event("found", total=count + grid))
    there = set() if overwrite else {p for p in pictures if p.target.exists()}
    for picture in (p for p in pictures if p in there):
        tell(Event("skipped", _name(seed, picture), picture.target))
    todo = [p for p in pictures if p not in there]
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS, "images") as pool:
        made = ahead(_made(flow, seed, todo, width, height), 2, flow.stop)
        save_images(pool, made, lambda p, error: tell(ended(_name(seed, p), p.target, error)))
    report.images = len(report.done)
    if report.images:
        report.images_per_second = report.images / (time.monotonic() - started)
    if grid and sheet_file.exists() and not overwrite:
        tell(Event("skipped", "contact sheet", sheet_file))
    elif grid:
        of_sheet = ended("contact sheet", sheet_file, _contact_sheet([p.target for p in pictures], sheet_file))
        (tell if of_sheet.kind == "failed" else on_event)(of_sheet)  # it is none of the pictures that were made
    report.seconds = time.monotonic() - began
    return report


def _check(count: int, seed: int, width: int, height: int, suffix: str) -> None:
    for name, value, low, high in (
        ("count", count, 1, MOST),
        ("seed", seed, 0, 2**63 - 1),
        ("size", width, 8, 16_384),
        ("size", height, 8, 16_384),
    ):
        if not (isinstance(value, int) and low <= value <= high):
            raise UsageError(f"{name} is {value}; wanted {low} to {high}")
    if width * height > MOST_PIXELS:
        raise UsageError(f"size is {width}×{height}: more pixels than this machine is sure to hold ({MOST_PIXELS:,})")
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"format is {suffix.removeprefix('.')!r}; wanted one of {', '.join(PICTURE_FORMATS)}")


def _name(seed: int, picture: Picture) -> str:
    return f"seed {seed}, picture {picture.number}"


def _made(
    flow: Flow, seed: int, pictures: Sequence[Picture], width: int, height: int
) -> Generator[Work[Picture], None, None]:
    def made(part: slice) -> list[Work[Picture]]:
        group = pictures[part]
        try:
            return list(zip(group, flow.sample(seed, [p.number for p in group], width, height), strict=True))
        except MediaError as e:
            return [(p, e) for p in group]

    for works in flow.side_by_side(made, flow.batches(len(pictures), width, height), flow.at_once(width, height)):
        yield from works


def _contact_sheet(files: Sequence[Path], target: Path) -> MediaError | None:
    """All pictures as they are on disk, each in a cell of the first one's size."""
    try:
        side = SHEET_SIDE // math.ceil(math.sqrt(len(files)))
        first = read_image(files[0])
        first.thumbnail((side, side), Image.Resampling.LANCZOS)
        cells = np.full((len(files), first.height, first.width, 3), 255, np.uint8)
        for cell, file in zip(cells, files, strict=True):
            image = read_image(file)
            small = image if image.size == first.size else image.resize(first.size, Image.Resampling.LANCZOS)
            cell[:] = np.asarray(small)
        save_image(sheet(cells), target)
    except MediaError as e:
        return e
    return None
