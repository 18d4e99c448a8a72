"""Many images through a flow: decoding and encoding in a pool of threads beside it, memory flat in their number."""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from .errors import MediaError
from .files import write_aside
from .flow import Flow
from .media import read_image
from .pipeline import ahead, parallel
from .pixels import Uint8
from .plan import Job
from .upscale import given_back, resized


class HasTarget(Protocol):
    """Something that is to become a file."""

    @property
    def target(self) -> Path: ...


Wanted = TypeVar("Wanted", bound=HasTarget)
Work = tuple[Wanted, Uint8 | MediaError]
"""A job with its pixels [H, W, 3] on the way, or with what went wrong."""


class Prepared(NamedTuple):
    """A picture at its own size and at the flow's, uint8 [H, W, 3] both."""

    original: Uint8
    small: Uint8


NOTHING = Prepared(np.empty((0, 0, 3), np.uint8), np.empty((0, 0, 3), np.uint8))

THREADS = min(8, os.cpu_count() or 1)
"""That decode and encode."""
_WAITING = 16
"""Pictures that wait, at most, for others of their size."""

_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}


def translate_images(jobs: Sequence[Job], flow: Flow, on_end: Callable[[Job, MediaError | None], None]) -> None:
    """Translate every job's image and call `on_end` with it, from this thread, when it is written or has failed.

    Pictures of one size share a batch, so the order of ending is not that of `jobs`.
    """
    with ThreadPoolExecutor(THREADS, "images") as pool:
        decoded = parallel(pool, lambda job: _decode(job, flow), jobs, 2 * THREADS)
        made = ahead(_through(decoded, flow), _WAITING, flow.stop)
        with closing(made):
            save_images(pool, parallel(pool, lambda work: _finished(work, flow.upscale), made, 2 * THREADS), on_end)


def save_images(
    pool: Executor, works: Generator[Work[Wanted], None, None], on_end: Callable[[Wanted, MediaError | None], None]
) -> None:
    """Write every picture as it comes and call `on_end`, from this thread, when it is written or has failed."""
    with closing(works), closing(parallel(pool, _save, works, 2 * THREADS)) as saved:
        for wanted, error in saved:
            on_end(wanted, error)


def save_image(pixels: Uint8, target: Path) -> None:
    """Write uint8 [H, W, 3] in the format of the target's suffix, whole or not at all.

    The colour profile and other metadata of the source are not kept: the pixels are taken for sRGB from here on,
    and an orientation tag is applied already. Raises MediaError.
    """
    format_, options = _SAVE[target.suffix.lower()]
    try:
        with write_aside(target) as partial:
            Image.fromarray(pixels).save(partial, format_, **options)
    except (OSError, ValueError, MemoryError) as e:
        raise MediaError(f"{target}: cannot be written: {e or type(e).__name__}") from e


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """An RGB picture as a file of the format that its suffix names."""
    format_, options = _SAVE[suffix.lower()]
    out = BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def _decode(job: Job, flow: Flow) -> tuple[Job, Prepared | MediaError]:
    try:
        image = read_image(job.media)
        original = np.asarray(image)
        return job, Prepared(original, resized(original, flow.fit(*image.size)))
    except MediaError as e:
        return job, e
    except (OSError, MemoryError) as e:
        return job, MediaError(f"{job.media}: cannot be read: {e or type(e).__name__}")


def _through(
    decoded: Iterable[tuple[Job, Prepared | MediaError]], flow: Flow
) -> Generator[tuple[Job, Prepared, Uint8 | MediaError], None, None]:
    """Translate pictures in batches of one size; the group that began first goes when too many wait."""
    groups: dict[tuple[int, ...], list[tuple[Job, Prepared]]] = {}
    for job, picture in decoded:
        if isinstance(picture, MediaError):
            yield job, NOTHING, picture
            continue
        shape = picture.small.shape
        group = groups.setdefault(shape, [])
        group.append((job, picture))
        height, width = shape[:2]
        full = flow.batch(width, height)
        if len(group) >= full:
            yield from _translated(groups.pop(shape), flow)
        elif sum(map(len, groups.values())) > max(_WAITING, full):
            yield from _translated(groups.pop(next(iter(groups))), flow)
    for group in groups.values():
        yield from _translated(group, flow)


def _translated(group: Sequence[tuple[Job, Prepared]], flow: Flow) -> list[tuple[Job, Prepared, Uint8 | MediaError]]:
    try:
        out = flow(np.stack([picture.small for _, picture in group]))
    except MediaError as e:
        return [(job, picture, e) for job, picture in group]
    return [(job, picture, made) for (job, picture), made in zip(group, out, strict=True)]


def _finished(work: tuple[Job, Prepared, Uint8 | MediaError], upscale: str) -> Work[Job]:
    job, picture, made = work
    if isinstance(made, MediaError):
        return job, made
    try:
        return job, given_back(upscale, picture.original, picture.small, made)
    except MemoryError:
        return job, MediaError(f"{job.media}: not enough memory to enlarge its translation; --upscale none needs less")


def _save(work: Work[Wanted]) -> tuple[Wanted, MediaError | None]:
    wanted, pixels = work
    if isinstance(pixels, MediaError):
        return wanted, pixels
    try:
        save_image(pixels, wanted.target)
    except MediaError as e:
        return wanted, e
    return wanted, None
