"""Pictures to files, whole or not at all, by threads that mostly wait for the disk."""

import errno
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from .errors import MediaError
from .files import write_aside
from .flow import Flow
from .ledger import Ledger
from .media import alone, read_image
from .options import PictureOptions
from .pictures import save_frames, save_picture
from .pipeline import THREADS, parallel
from .pixels import Uint8
from .tasks import Task


class HasTarget(Protocol):
    """Something that is to become a file."""

    @property
    def target(self) -> Path: ...


Wanted = TypeVar("Wanted", bound=HasTarget)
Work = tuple[Wanted, Uint8 | MediaError]
"""Something wanted with its pixels [H, W, 3] on the way, or with what went wrong."""

SAVERS = 32
"""Threads that write, most of them asleep until a file is on the disk: a busy disk takes 0.2 s for one and for many."""
_FULL = threading.Lock()
"""Of pictures that found the disk full one at a time is tried again: what others had half written is gone."""


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


def _save_plain(work: Work[Wanted]) -> tuple[Wanted, MediaError | None]:
    wanted, pixels = work
    if isinstance(pixels, MediaError):
        return wanted, pixels
    try:
        save_image(pixels, wanted.target)
    except MediaError as e:
        return wanted, e
    return wanted, None


def save(task: Task, flow: Flow, ledger: Ledger, options: PictureOptions, room: threading.Semaphore) -> Task:
    """Write what became of a task, to its target and the ledger, and give back the room that it took."""
    with ExitStack() as held:
        held.callback(room.release)
        if task.skipped is None:
            _write(task, flow, ledger, options, held)
        task.let_go()
    return task


def _write(task: Task, flow: Flow, ledger: Ledger, options: PictureOptions, held: ExitStack) -> None:
    began, target = time.perf_counter(), task.job.target
    put = partial(_put, task, flow, ledger, options, held, began)
    try:
        if task.error is None:
            try:
                put()
            except OSError as e:
                if e.errno != errno.ENOSPC or (task.pixels is None and task.shown is None):
                    raise
                with _FULL:
                    put()
    except MediaError as e:
        task.error = e
    except (OSError, ValueError, RuntimeError, MemoryError) as e:
        task.error = MediaError(f"{target}: cannot be written: {e or type(e).__name__}")
    if task.error is not None:
        with suppress(MediaError):  # the first error is the one to tell
            ledger.add(task.job, task.source, None, task.seconds, str(task.error))


def _put(task: Task, flow: Flow, ledger: Ledger, options: PictureOptions, held: ExitStack, began: float) -> None:
    target, timed = task.job.target, flow.stages.timed
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


def _finish(task: Task, target: Path, flow: Flow, options: PictureOptions) -> None:
    """Give back the translation's pixels and write them; of large pictures one at a time."""
    assert task.small is not None and task.pixels is not None
    original, timed = task.original, flow.stages.timed
    room = task.job.media.room() if original is None else nullcontext()  # first, as where pictures are decoded
    with room, alone(task.area if flow.upscale != "none" else 0):
        if original is None:
            with timed("decode"):
                original = np.asarray(read_image(task.job.media))
        with timed("finish"):
            image = Image.fromarray(flow.given_back(original, task.small, task.pixels))
        with timed("encode"):
            save_picture(image, target, task.job.target.suffix, options.quality, task.known)
