"""Many images through a flow: decoding and encoding in a pool of threads beside it, memory flat in their number."""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from .errors import MediaError
from .files import write_aside
from .flow import Flow
from .ledger import Ledger, identify
from .media import alone, lies, open_image, read_image, upright_rgb
from .options import PictureOptions
from .pictures import (
    Frames,
    check_room,
    frames,
    has_frames,
    holds,
    metadata,
    plays,
    save_frames,
    save_picture,
    small,
)
from .pipeline import ahead, parallel
from .pixels import Uint8
from .plan import Job
from .tasks import KEPT, Room, Task
from .upscale import given_back, resized


class HasTarget(Protocol):
    """Something that is to become a file."""

    @property
    def target(self) -> Path: ...


Wanted = TypeVar("Wanted", bound=HasTarget)
Tag = TypeVar("Tag")
Work = tuple[Wanted, Uint8 | MediaError]
"""Something wanted with its pixels [H, W, 3] on the way, or with what went wrong."""

THREADS = min(8, os.cpu_count() or 1)
"""That decode, and twice as many that encode."""
SAVERS = 32
"""Threads that write, most of them asleep until a file is on the disk: a busy disk takes 0.2 s for one and for many."""
SPARE = 6
"""JPEGs are decoded at a half, a quarter or an eighth where that leaves so many times the side that is wanted: a photo
of 9 megapixels to 64 px in 28 ms and not 101, 49 dB from the long way."""
_WAITING = 16
"""Pictures that wait, at most, for others of their size."""


def translate_images(
    jobs: Iterable[Job], flow: Flow, ledger: Ledger, options: PictureOptions, overwrite: bool
) -> Generator[Task, None, None]:
    """Translate every job's image and yield its task when it is written, skipped or has failed.

    Pictures of one size share a batch, so the order of ending is not that of `jobs`.
    """
    with ThreadPoolExecutor(THREADS, "decode") as decoders, ThreadPoolExecutor(SAVERS, "save") as savers:
        kept = Room(KEPT)
        decoded = parallel(decoders, lambda job: _decode(job, flow, ledger, overwrite, kept), jobs, 2 * THREADS)
        works = ahead(_through(decoded, flow), _WAITING, flow.stop)
        room = threading.Semaphore(THREADS if flow.upscale != "none" else 2 * THREADS)
        save = partial(_save, flow=flow, ledger=ledger, options=options, room=room)
        with closing(works), closing(parallel(savers, save, _admitted(works, room), SAVERS)) as saved:
            yield from saved


def _admitted(works: Iterable[Task], room: threading.Semaphore) -> Iterator[Task]:
    """Each task when there is room for its pixels, which `_save` gives back as soon as they are a file."""
    for task in works:
        room.acquire()
        yield task


def save_images(
    pool: Executor, works: Generator[Work[Wanted], None, None], on_end: Callable[[Wanted, MediaError | None], None]
) -> None:
    """Write every picture as it comes and call `on_end`, from this thread, when it is written or has failed."""
    with closing(works), closing(parallel(pool, _save_plain, works, 2 * THREADS)) as saved:
        for wanted, error in saved:
            on_end(wanted, error)


def save_image(pixels: Uint8, target: Path) -> None:
    """Write uint8 [H, W, 3] in the format of the target's suffix, whole or not at all. Raises MediaError."""
    try:
        with write_aside(target) as partial_:
            save_picture(Image.fromarray(pixels), partial_, target.suffix)
    except (OSError, ValueError, RuntimeError, MemoryError) as e:
        raise MediaError(f"{target}: cannot be written: {e or type(e).__name__}") from e


def in_order(pictures: Iterable[tuple[Uint8, Tag]], flow: Flow) -> Generator[tuple[Uint8, Tag], None, None]:
    """Translate pictures uint8 [H, W, 3] one after the other; neighbours of one size share a batch."""
    prepared = ((_fitted(original, flow), original, tag) for original, tag in pictures)

    def runs() -> Iterator[list[tuple[Uint8, Uint8, Tag]]]:
        for shape, same in groupby(prepared, key=lambda item: item[0].shape):
            while run := list(islice(same, flow.batch(shape[1], shape[0]))):
                yield run

    def made(run: list[tuple[Uint8, Uint8, Tag]]) -> list[tuple[Uint8, Tag]]:
        out = flow(np.stack([fitted for fitted, _, _ in run]))
        return [
            (given_back(flow.upscale, original, fitted, pixels), tag)
            for (fitted, original, tag), pixels in zip(run, out, strict=True)
        ]

    for run in flow.side_by_side(made, runs()):
        yield from run


def _fitted(original: Uint8, flow: Flow) -> Uint8:
    height, width = original.shape[:2]
    return resized(original, flow.fit(width, height))


@contextmanager
def _reading(task: Task) -> Iterator[None]:
    """Take down how long the work on a picture's file took, and what was wrong with it."""
    began = time.perf_counter()
    try:
        yield
    except MediaError as e:
        task.error = e
    except (OSError, MemoryError) as e:
        task.error = MediaError(f"{task.job.media}: cannot be read: {e or type(e).__name__}")
    task.seconds += time.perf_counter() - began


def _decode(job: Job, flow: Flow, ledger: Ledger, overwrite: bool, kept: Room) -> Task:
    task, timed = Task(job), flow.stages.timed
    with _reading(task):
        with timed("read"):
            if not overwrite and (why := ledger.why_not(job)) is not None:
                task.skipped = why
                return task
            stream = job.media.open()
            task.source = identify(job.media, stream)
        with open_image(stream, str(job.media)) as image:
            with timed("decode"):  # of a PNG, metadata may follow the pixels
                task.animated, task.known = has_frames(image), metadata(image)
            if task.animated and not holds(job.target, image.format):
                task.animated = False
                what = "page" if image.format == "TIFF" else "frame"
                task.note = f"only the first {what}: {job.target.suffix} holds one"
            if not task.animated:
                task.area = image.width * image.height
                with alone(task.area):
                    fitted = flow.fit(*image.size)
                    if flow.upscale == "none":
                        image.draft("", (SPARE * fitted[0], SPARE * fitted[1]))
                    with timed("decode"):
                        image.load()
                        original = np.asarray(upright_rgb(image))
                    with timed("prepare"):
                        task.small = resized(original, fitted[::-1] if lies(image) else fitted)
                if flow.upscale == "none":
                    task.original = task.small
                elif kept.took(original.nbytes):
                    task.original, task.room = original, kept
    return task


def _through(decoded: Iterable[Task], flow: Flow) -> Generator[Task, None, None]:
    """Translate pictures in batches of one size."""
    for group in flow.side_by_side(partial(_translated, flow=flow), _groups(decoded, flow)):
        yield from group


def _groups(decoded: Iterable[Task], flow: Flow) -> Iterator[list[Task]]:
    """Pictures of one size; the group that began first goes when too many wait. Others are finished, and alone."""
    groups: dict[tuple[int, ...], list[Task]] = {}
    for task in decoded:
        if task.animated and task.error is None:
            yield [_animation(task, flow)]
            continue
        if task.small is None:
            yield [task]
            continue
        shape = task.small.shape
        group = groups.setdefault(shape, [])
        group.append(task)
        full = flow.batch(shape[1], shape[0])
        if len(group) >= full:
            yield groups.pop(shape)
        elif sum(map(len, groups.values())) > max(_WAITING, full):
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


def _translated(group: Sequence[Task], flow: Flow) -> Sequence[Task]:
    began = time.perf_counter()
    if group[0].small is None:
        return group
    try:
        out = flow(np.stack([task.small for task in group if task.small is not None]))
    except MediaError as e:
        for task in group:
            task.error = e
    else:
        for task, pixels in zip(group, out, strict=True):
            task.pixels = pixels
    for task in group:
        task.seconds += (time.perf_counter() - began) / len(group)
    return group


def _animation(task: Task, flow: Flow) -> Task:
    """Decode and translate an animation here, one at a time, since its frames are held until the end."""
    media, suffix = task.job.media, task.job.target.suffix
    shown = Frames()
    with _reading(task):
        with open_image(media.open(), str(media)) as image:
            shown.plays, shown.poster = plays(image), bool(image.info.get("default_image"))
            size = flow.fit(*image.size) if flow.upscale == "none" else image.size
            check_room(str(media), getattr(image, "n_frames", 1), *size)
            decoded = ((np.asarray(frame), duration) for frame, duration in frames(image))
            for pixels, duration in in_order(flow.stages.each("decode", decoded), flow):
                shown.pictures.append(small(Image.fromarray(pixels), suffix))
                shown.durations.append(duration)
        task.shown = shown
    return task


def _save(task: Task, flow: Flow, ledger: Ledger, options: PictureOptions, room: threading.Semaphore) -> Task:
    with ExitStack() as held:
        held.callback(room.release)
        if task.skipped is None:
            _write(task, flow, ledger, options, held)
        task.let_go()
    return task


def _write(task: Task, flow: Flow, ledger: Ledger, options: PictureOptions, held: ExitStack) -> None:
    began, target, timed = time.perf_counter(), task.job.target, flow.stages.timed
    try:
        if task.error is None:
            with write_aside(target) as partial_:
                if task.shown is not None:
                    with timed("encode"):
                        save_frames(task.shown, partial_, target.suffix, options.quality, task.known)
                elif task.pixels is not None and task.small is not None:
                    _finish(task, partial_, flow, options)
                written = time.perf_counter()
                task.let_go()
                held.close()
                ledger.add(task.job, task.source, partial_, task.seconds + written - began)
            flow.stages.add("write", time.perf_counter() - written)  # to the disk, for the most part
    except MediaError as e:
        task.error = e
    except (OSError, ValueError, RuntimeError, MemoryError) as e:
        task.error = MediaError(f"{target}: cannot be written: {e or type(e).__name__}")
    if task.error is not None:
        with suppress(MediaError):  # the first error is the one to tell
            ledger.add(task.job, task.source, None, task.seconds, str(task.error))


def _finish(task: Task, target: Path, flow: Flow, options: PictureOptions) -> None:
    """Give back the translation's pixels and write them; of large pictures one at a time."""
    assert task.small is not None and task.pixels is not None
    original, timed = task.original, flow.stages.timed
    with alone(task.area if flow.upscale != "none" else 0):
        if original is None:
            with timed("decode"):
                original = np.asarray(read_image(task.job.media))
        with timed("finish"):
            image = Image.fromarray(given_back(flow.upscale, original, task.small, task.pixels))
        with timed("encode"):
            save_picture(image, target, task.job.target.suffix, options.quality, task.known)


def _save_plain(work: Work[Wanted]) -> tuple[Wanted, MediaError | None]:
    wanted, pixels = work
    if isinstance(pixels, MediaError):
        return wanted, pixels
    try:
        save_image(pixels, wanted.target)
    except MediaError as e:
        return wanted, e
    return wanted, None
