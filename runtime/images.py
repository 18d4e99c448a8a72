"""Many images through a flow: decoding and encoding in a pool of threads beside it, memory flat in their number."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image

from .errors import MediaError
from .flow import Flow
from .ledger import Ledger, identify
from .media import alone, lies, open_image, upright_rgb
from .options import PictureOptions
from .pictures import (
    Frames,
    check_room,
    frames,
    has_frames,
    holds,
    metadata,
    plays,
    small,
)
from .pipeline import THREADS, ahead, parallel
from .pixels import Uint8
from .plan import Job
from .saving import SAVERS, save
from .tasks import KEPT, Room, Task
from .upscale import resized

Tag = TypeVar("Tag")
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
        write = partial(save, flow=flow, ledger=ledger, options=options, room=room)
        with closing(works), closing(parallel(savers, write, _admitted(works, room), SAVERS)) as saved:
            yield from saved


def _admitted(works: Iterable[Task], room: threading.Semaphore) -> Iterator[Task]:
    """Each task when there is room for its pixels, which `_save` gives back as soon as they are a file."""
    for task in works:
        room.acquire()
        yield task


def in_order(pictures: Iterable[tuple[Uint8, Tag]], flow: Flow) -> Generator[tuple[Uint8, Tag], None, None]:
    """Translate pictures uint8 [H, W, 3] one after the other; neighbours of one size share a batch."""
    prepared = ((_fitted(original, flow), original, tag) for original, tag in pictures)

    def runs() -> Iterator[list[tuple[Uint8, Uint8, Tag]]]:
        run: list[tuple[Uint8, Uint8, Tag]] = []
        try:
            for item in prepared:
                shape = item[0].shape
                if run and shape != run[0][0].shape:
                    yield run
                    run = []
                run.append(item)
                if len(run) >= flow.batch(shape[1], shape[0]):
                    yield run
                    run = []
        except Exception:  # after those before it
            if run:
                yield run
            raise
        if run:
            yield run

    def made(run: list[tuple[Uint8, Uint8, Tag]]) -> list[tuple[Uint8, Tag]]:
        out = flow(np.stack([fitted for fitted, _, _ in run]))
        return [
            (flow.given_back(original, fitted, pixels), tag)
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
    with _reading(task), job.media.room():
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
        with media.room(), open_image(media.open(), str(media)) as image:
            shown.plays, shown.poster = plays(image), bool(image.info.get("default_image"))
            size = flow.fit(*image.size) if flow.upscale == "none" else image.size
            check_room(str(media), getattr(image, "n_frames", 1), *size)
            decoded = ((np.asarray(frame), duration) for frame, duration in frames(image))
            for pixels, duration in in_order(flow.stages.each("decode", decoded), flow):
                shown.pictures.append(small(Image.fromarray(pixels), suffix))
                shown.durations.append(duration)
        task.shown = shown
    return task
