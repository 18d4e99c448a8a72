"""Many images through a flow: decoding and encoding in a pool of threads beside it, memory flat in their number."""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .errors import MediaError
from .files import write_aside
from .flow import Flow
from .media import read_image
from .pipeline import ahead, parallel
from .pixels import Uint8
from .plan import Job

Work = tuple[Job, Uint8 | MediaError]
"""A job with its pixels [H, W, 3] on the way, or with what went wrong."""

_THREADS = min(8, os.cpu_count() or 1)
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
    with ThreadPoolExecutor(_THREADS, "images") as pool:
        decoded = parallel(pool, lambda job: _decode(job, flow), jobs, 2 * _THREADS)
        with (
            closing(ahead(_through(decoded, flow), _WAITING, flow.stop)) as translated,
            closing(parallel(pool, _save, translated, 2 * _THREADS)) as saved,
        ):
            for job, error in saved:
                on_end(job, error)


def save_image(pixels: Uint8, job: Job) -> None:
    """Write uint8 [H, W, 3] in the format of the target's suffix, whole or not at all.

    The colour profile and other metadata of the source are not kept: the pixels are taken for sRGB from here on,
    and an orientation tag is applied already. Raises MediaError.
    """
    format_, options = _SAVE[job.target.suffix.lower()]
    try:
        with write_aside(job.target) as partial:
            Image.fromarray(pixels).save(partial, format_, **options)
    except (OSError, ValueError, MemoryError) as e:
        raise MediaError(f"{job.target}: cannot be written: {e or type(e).__name__}") from e


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """An RGB picture as a file of the format that its suffix names."""
    format_, options = _SAVE[suffix.lower()]
    out = BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def _decode(job: Job, flow: Flow) -> Work:
    try:
        image = read_image(job.media)
        size = flow.fit(*image.size)
        return job, np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
    except MediaError as e:
        return job, e
    except (OSError, MemoryError) as e:
        return job, MediaError(f"{job.media}: cannot be read: {e or type(e).__name__}")


def _through(decoded: Iterable[Work], flow: Flow) -> Generator[Work, None, None]:
    """Translate pictures in batches of one size; the group that began first goes when too many wait."""
    groups: dict[tuple[int, ...], list[tuple[Job, Uint8]]] = {}
    for job, pixels in decoded:
        if isinstance(pixels, MediaError):
            yield job, pixels
            continue
        group = groups.setdefault(pixels.shape, [])
        group.append((job, pixels))
        height, width = pixels.shape[:2]
        full = flow.batch(width, height)
        if len(group) >= full:
            yield from _translated(groups.pop(pixels.shape), flow)
        elif sum(map(len, groups.values())) > max(_WAITING, full):
            yield from _translated(groups.pop(next(iter(groups))), flow)
    for group in groups.values():
        yield from _translated(group, flow)


def _translated(group: Sequence[tuple[Job, Uint8]], flow: Flow) -> list[Work]:
    try:
        out = flow(np.stack([pixels for _, pixels in group]))
    except MediaError as e:
        return [(job, e) for job, _ in group]
    return [(job, pixels) for (job, _), pixels in zip(group, out, strict=True)]


def _save(work: Work) -> tuple[Job, MediaError | None]:
    job, pixels = work
    if isinstance(pixels, MediaError):
        return job, pixels
    try:
        save_image(pixels, job)
    except MediaError as e:
        return job, e
    return job, None
