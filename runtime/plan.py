"""Which input becomes which output file, settled before any work begins."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from .errors import MediaError, UsageError
from .media import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Media, discover

WRITABLE_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Containers that are written; a source in another one becomes .mp4: .avi keeps no times, .mpg no H.264."""


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
) -> list[Job]:
    """Pair every input with its target, in the order of discovery.

    One input file and an `output` with a known suffix: that file. Otherwise `output` is a folder, below which each
    input's tree is mirrored. What lies in `output` already is no input, so `output` may be inside an input folder.

    Args:
        on_bad: called with each zip that cannot be read, and each file of a folder that would become the same output
            as another (a.png and a.jpg, both as png); without it the first one is raised.
        suffix: of every picture's output; None keeps each one's own.

    Raises:
        UsageError: an input that is not there or holds nothing; an output that is an input, is of the wrong kind,
            or belongs to two inputs.
    """
    here = real(output)
    for path in inputs:
        if real(path) == here:
            raise UsageError(f"{output}: is an input too, and inputs are never overwritten; choose another --output")
    found = discover(inputs, on_bad)
    known = output.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    one_file = len(inputs) == 1 and inputs[0].is_file() and inputs[0].suffix.lower() not in ARCHIVE_SUFFIXES
    if one_file and known and not os.path.isdir(output):  # noqa: PTH112 (pathlib's raises for a name too long)
        jobs = [Job(found[0], _checked_file(found[0], output))]
    elif os.path.lexists(output) and not os.path.isdir(output):  # noqa: PTH112
        raise UsageError(f"{output}: is a file; several inputs, a folder or a zip need a folder as --output")
    else:
        inside = [path for path in inputs if path.is_dir() and here.is_relative_to(real(path))]
        found = [m for m in found if not (inside and real(m.path).is_relative_to(here))]
        jobs = [Job(m, output / _writable(m, suffix)) for m in found]
    return _distinct(jobs, on_bad)


def _checked_file(media: Media, output: Path) -> Path:
    suffix = output.suffix.lower()
    if suffix not in (IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS):
        wanted = ", ".join(sorted(IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS))
        raise UsageError(f"{output}: {media} is {_a(media.kind)}, and cannot be written as {suffix}; wanted {wanted}")
    return output


def selected(jobs: list[Job], shard: tuple[int, int] | None, shuffle: bool, limit: int | None) -> list[Job]:
    """The jobs of one of n parts, in another order, not more than so many.

    Part and place depend on the input's name alone: an input more or less changes nothing for the others.
    """
    if shard is not None:
        i, n = shard
        jobs = [job for job in jobs if _name_hash(job, b"shard") % n == i - 1]
    if shuffle:
        jobs = sorted(jobs, key=lambda job: _name_hash(job, b"order"))
    return jobs[:limit]


def _name_hash(job: Job, purpose: bytes) -> int:
    name = job.media.relative.as_posix().encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8, person=purpose).digest(), "big")


def _writable(media: Media, suffix: str | None) -> Path:
    relative = Path(*media.relative.parts)
    if media.kind == "image" and suffix is not None:
        return relative.with_suffix(suffix)
    if media.kind == "video" and relative.suffix.lower() not in WRITABLE_VIDEOS:
        return relative.with_suffix(".mp4")
    return relative


def _distinct(jobs: Sequence[Job], on_bad: Callable[[MediaError], None] | None) -> list[Job]:
    sources = {real(job.media.path) for job in jobs}
    taken: dict[Path, Media] = {}
    distinct: list[Job] = []
    for job in jobs:
        if real(job.target) in sources:
            raise UsageError(
                f"{job.target}: is an input too, and inputs are never overwritten; choose another --output"
            )
        if (other := taken.setdefault(job.target, job.media)) is job.media:
            distinct.append(job)
        elif on_bad is None or other.relative == job.media.relative:
            raise UsageError(
                f"{other} and {job.media} would both become {job.target}; "
                "rename one, or translate them into different folders"
            )
        else:
            on_bad(MediaError(f"{job.media}: would become {job.target}, as {other} does; rename one"))
    return distinct


def real(path: Path) -> Path:
    """The path without links; one that goes round in a circle, at which pathlib raises, stays as it is."""
    return Path(os.path.realpath(path))


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"
