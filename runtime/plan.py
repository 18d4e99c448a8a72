"""Which input becomes which output file, settled before any work begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def plan(inputs: Sequence[Path], output: Path, on_bad: Callable[[MediaError], None] | None = None) -> list[Job]:
    """Pair every input with its target, in the order of discovery.

    One input file and an `output` with a known suffix: that file. Otherwise `output` is a folder, below which each
    input's tree is mirrored. What lies in `output` already is no input, so `output` may be inside an input folder.

    Args:
        on_bad: called with each zip that cannot be read; without it the first one is raised.

    Raises:
        UsageError: an input that is not there or holds nothing; an output that is an input, is of the wrong kind,
            or belongs to two inputs.
    """
    here = output.resolve()
    for path in inputs:
        if path.resolve() == here:
            raise UsageError(f"{output}: is an input too, and inputs are never overwritten; choose another --output")
    found = discover(inputs, on_bad)
    known = output.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    one_file = len(inputs) == 1 and inputs[0].is_file() and inputs[0].suffix.lower() not in ARCHIVE_SUFFIXES
    if one_file and known and not output.is_dir():
        jobs = [Job(found[0], _checked_file(found[0], output))]
    elif output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; several inputs, a folder or a zip need a folder as --output")
    else:
        inside = [path for path in inputs if path.is_dir() and here.is_relative_to(path.resolve())]
        found = [m for m in found if not (inside and m.path.resolve().is_relative_to(here))]
        jobs = [Job(m, output / _writable(m)) for m in found]
    _check_distinct(jobs)
    return jobs


def _checked_file(media: Media, output: Path) -> Path:
    suffix = output.suffix.lower()
    if suffix not in (IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS):
        wanted = ", ".join(sorted(IMAGE_SUFFIXES if media.kind == "image" else WRITABLE_VIDEOS))
        raise UsageError(f"{output}: {media} is {_a(media.kind)}, and cannot be written as {suffix}; wanted {wanted}")
    return output


def _writable(media: Media) -> Path:
    relative = Path(*media.relative.parts)
    if media.kind == "video" and relative.suffix.lower() not in WRITABLE_VIDEOS:
        return relative.with_suffix(".mp4")
    return relative


def _check_distinct(jobs: Sequence[Job]) -> None:
    sources = {job.media.path.resolve() for job in jobs}
    taken: dict[Path, Media] = {}
    for job in jobs:
        if job.target.resolve() in sources:
            raise UsageError(
                f"{job.target}: is an input too, and inputs are never overwritten; choose another --output"
            )
        if (other := taken.setdefault(job.target, job.media)) is not job.media:
            raise UsageError(
                f"{other} and {job.media} would both become {job.target}; "
                "rename one, or translate them into different folders"
            )


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"
