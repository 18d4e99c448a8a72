"""Which input becomes which output file, settled before any work begins."""

import mimetypes
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .discovery import Made, discover
from .errors import MediaError, UsageError
from .media import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Media

WRITABLE_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Containers that are written; a source in another one becomes .mp4: .avi keeps no times, .mpg no H.264."""

_SAME = {".jpeg": ".jpg", ".tif": ".tiff", ".apng": ".png"}


@dataclass(frozen=True)
class Job:
    """One picture or video and the file that its translation becomes."""

    media: Media
    target: Path


def plan(
    inputs: Sequence[Path],
    output: Path,
    on_bad: Callable[[MediaError], None] | None = None,
    suffix: str | None = None,
    may_be_empty: bool = False,
) -> Made[Job]:
    """Pair every input with its target, in the order of discovery.

    One input file and an `output` with a known suffix: that file. Otherwise `output` is a folder, below which each
    input's tree is mirrored. What lies in `output` already is no input, so `output` may be inside an input folder.

    Args:
        on_bad: called with each zip that cannot be read, and each file of a folder that would become the same output
            as another (a.png and a.jpg, both as png); without it the first one is raised.
        suffix: of every picture's output; None keeps each one's own.
        may_be_empty: folders that hold nothing are no error, as of those that are watched.

    Raises:
        UsageError: an input that is not there or holds nothing; an output that is an input, is of the wrong kind,
            or belongs to two inputs.
    """
    here = real(output)
    for path in inputs:
        if real(path) == here:
            raise UsageError(f"{output}: is an input too, and inputs are never overwritten; choose another --output")
    found = discover(inputs, on_bad, may_be_empty)
    known = output.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    one_file = len(inputs) == 1 and inputs[0].is_file() and inputs[0].suffix.lower() not in ARCHIVE_SUFFIXES
    if one_file and known and not os.path.isdir(output):  # noqa: PTH112 (pathlib's raises for a name too long)
        target = _checked_file(found[0], output, suffix)
        jobs = found.into(lambda media: Job(media, target))
    elif os.path.lexists(output) and not os.path.isdir(output):  # noqa: PTH112
        raise UsageError(f"{output}: is a file; several inputs, a folder or a zip need a folder as --output")
    else:
        if output.suffix and not os.path.isdir(output) and (known or _of_a_file(output)):  # noqa: PTH112
            raise UsageError(_no_folder(output, one_file))
        if any(path.is_dir() and here.is_relative_to(real(path)) for path in inputs):
            found = found.kept(lambda media: not real(media.path).is_relative_to(here))
        jobs = found.into(lambda media: Job(media, output / _writable(media, suffix)))
    return _distinct(jobs, on_bad)


def _of_a_file(output: Path) -> bool:
    """Whether the name is one of a picture or a film of a kind that is not written, by the system's table of them."""
    kind = mimetypes.guess_type(output.name, strict=False)[0] or ""
    return kind.startswith(("image/", "video/"))


def _no_folder(output: Path, one_file: bool) -> str:
    """Why a name that looks like a picture's or a film's is none for the output."""
    if one_file:
        written = ", ".join(sorted(IMAGE_SUFFIXES | WRITABLE_VIDEOS))
        return f"{output}: is not written as {output.suffix}; wanted {written}, or a folder"
    return f"{output}: is the name of a file; several inputs, a folder or a zip need a folder as --output"


def _checked_file(media: Media, output: Path, wanted_suffix: str | None) -> Path:
    suffix = output.suffix.lower()
    if suffix not in (IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS):
        wanted = ", ".join(sorted(IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS))
        raise UsageError(f"{output}: {media} is {_a(media.kind)}, and cannot be written as {suffix}; wanted {wanted}")
    if media.kind == "image" and wanted_suffix and _SAME.get(suffix, suffix) != wanted_suffix:
        raise UsageError(f"{output}: ends in {suffix}, and format is {wanted_suffix[1:]}; leave one of the two out")
    return output


def selected(jobs: Made[Job], shard: tuple[int, int] | None, shuffle: bool, limit: int | None) -> Made[Job]:
    """The jobs of one of n parts, in another order, not more than so many.

    Part and place depend on the input's name alone: an input more or less changes nothing for the others.
    """
    if shard is not None:
        i, n = shard
        jobs = jobs.kept(lambda job: _name_hash(job, b"shard") % n == i - 1)
    if shuffle:
        hashes = np.fromiter((_name_hash(job, b"order") for job in jobs), np.uint64, len(jobs))
        jobs = jobs.at(np.argsort(hashes, kind="stable").tolist())
    return jobs[:limit]


def _name_hash(job: Job, purpose: bytes) -> int:
    return _hash(job.media.relative.as_posix(), purpose)


def _hash(text: str, purpose: bytes = b"") -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=purpose).digest(), "big")


def _writable(media: Media, suffix: str | None) -> Path:
    relative = Path(*media.relative.parts)
    if media.kind == "image" and suffix is not None:
        return relative.with_suffix(suffix)
    if media.kind == "video" and relative.suffix.lower() not in WRITABLE_VIDEOS:
        return relative.with_suffix(".mp4")
    return relative


def _distinct(jobs: Made[Job], on_bad: Callable[[MediaError], None] | None) -> Made[Job]:
    """The jobs but for those whose target an earlier one has; paths are compared by 64 bits of hash, 8 bytes each."""
    if not jobs:
        return jobs
    sources = np.sort(_hashes(real(job.media.path) for job in jobs))
    written = _hashes(real(job.target) for job in jobs)
    clash = np.flatnonzero(sources[np.searchsorted(sources, written) % len(sources)] == written)
    if len(clash):
        target = jobs[int(clash[0])].target
        raise UsageError(f"{target}: is an input too, and inputs are never overwritten; choose another --output")
    targets = _hashes(job.target for job in jobs)
    order = np.argsort(targets, kind="stable")
    ordered = targets[order]
    doubles = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    for i in doubles.tolist():
        job, other = jobs[i], jobs[int(order[np.searchsorted(ordered, targets[i])])].media
        if on_bad is None or other.relative == job.media.relative:
            raise UsageError(
                f"{other} and {job.media} would both become {job.target}; "
                "rename one, or translate them into different folders"
            )
        on_bad(MediaError(f"{job.media}: would become {job.target}, as {other} does; rename one"))
    return jobs.at(np.delete(np.arange(len(jobs)), doubles).tolist()) if len(doubles) else jobs


def _hashes(paths: Iterable[Path]) -> npt.NDArray[np.uint64]:
    return np.fromiter((_hash(os.path.normcase(path)) for path in paths), np.uint64)


def real(path: Path) -> Path:
    """The path without links; one that goes round in a circle, at which pathlib raises, stays as it is."""
    return Path(os.path.realpath(path))


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"
