"""The frames of videos, decoded once to a cache on disk, where any of them costs a page fault.

$RFP_CACHE/frames/  KEY.rgb   uint8 [T, H, W, 3], every frame that the decoder yields, in the order of their times
                    KEY.json  T, H, W, which video it is, and where its decoding stopped; written last
                    KEY.lock  locked by whoever decodes (alone) or reads (shared) it, as long as that process lives

What is in use is never dropped; what is not goes, least recently used first, when room is needed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from ..runtime.discovery import discover
from ..runtime.errors import MediaError, UsageError
from ..runtime.files import aside, lock, read_small, write_aside, write_json
from ..runtime.frames import look, open_video, read
from ..runtime.media import Media
from ..runtime.pixels import Uint8
from .config import RFPix2pixModel

VERSION = 3
GIGABYTE = 10**9
CHECK_EVERY = GIGABYTE // 4
"""Bytes between looks at the room that is left."""

_held: dict[Path, int] = {}
"""The open locks of the films that this process reads; they go when it ends."""


@dataclass(frozen=True)
class FrameCache:
    """How videos are decoded: every `stride`-th frame, at most `limit` bytes on disk; with `dry_run` not at all.

    No room is made of films among `others`, the inputs of the run's other domain.
    """

    stride: int = 1
    limit: int = 20 * GIGABYTE
    dry_run: bool = False
    others: tuple[Path, ...] = ()

    @classmethod
    def of(cls, config: RFPix2pixModel, dry_run: bool = False) -> "FrameCache":
        """As a training's config has it."""
        return cls(config.frame_stride, int(config.frame_cache_gigabytes * GIGABYTE), dry_run)


class Film(NamedTuple):
    """The frames of a video, uint8 [T, H, W, 3], and what ended its decoding before its end, if anything did."""

    frames: Uint8
    problem: str = ""


class Survey(NamedTuple):
    """What decoding a video would write: about `frames` frames of height × width."""

    frames: int
    height: int
    width: int

    @property
    def bytes(self) -> int:
        return self.frames * self.height * self.width * 3


def cache_folder() -> Path:
    """Where rfp keeps what it can make again: $RFP_CACHE, or the platform's cache folder."""
    if override := os.environ.get("RFP_CACHE"):
        return Path(override).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "rfp/cache"
    if os.uname().sysname == "Darwin":
        return Path.home() / "Library/Caches/rfp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfp"  # an empty one is as none


def open_films(
    videos: Sequence[Media], size: int, cache: FrameCache, tell: Callable[[str], None]
) -> tuple[list[Film | MediaError], int]:
    """The frames of every video, or why it has none; and about how many bytes of them were not in the cache before.

    The room is looked at before the first video is decoded. With `dry_run` those not in the cache are black.

    Raises:
        UsageError: they do not fit, or the cache folder cannot be written.
    """
    folder = cache_folder() / "frames"
    bases = {media: folder / _key(media, size, cache.stride) for media in videos}
    surveys: dict[Media, Survey | MediaError] = {}
    for media, base in bases.items():
        if _cached(base) is None:
            try:
                surveys[media] = survey(media, size, cache.stride)
            except MediaError as e:
                surveys[media] = e
    need = sum(s.bytes for s in surveys.values() if isinstance(s, Survey))
    if need:
        there = {base.with_suffix(".rgb") for media, base in bases.items() if media not in surveys}
        there |= _kept_for_others(folder, size, cache)
        _make_room(folder, need, cache.limit, tell, dry_run=True, wanted=there)
    films: dict[Media, Film | MediaError] = {}
    for media in sorted(videos, key=surveys.__contains__):  # those that are there first, or room would be made of them
        found = surveys.get(media)
        try:
            if isinstance(found, MediaError):
                films[media] = found
            elif cache.dry_run and (film := _cached(bases[media])):
                films[media] = film
            elif cache.dry_run and found:
                films[media] = Film(np.broadcast_to(np.uint8(0), (found.frames, found.height, found.width, 3)))
            else:
                films[media] = _open(media, size, cache, bases[media], found, tell)
        except MediaError as e:
            films[media] = e
    return [films[media] for media in videos], need


def _kept_for_others(folder: Path, size: int, cache: FrameCache) -> set[Path]:
    """The frames of the other domain's films that are there; they count as used from now on, but in a `dry_run`."""
    found = discover(cache.others, lambda error: None) if cache.others else ()
    bases = [folder / _key(media, size, cache.stride) for media in found if media.kind == "video"]
    there = [base for base in bases if _cached(base)]
    for base in there if not cache.dry_run else ():
        if base not in _held:
            fd = os.open(base.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
            if lock(fd, shared=True, wait=False):
                _held[base] = fd
            else:
                os.close(fd)  # another process is about to drop it
    return {base.with_suffix(".rgb") for base in there}


def survey(media: Media, size: int, stride: int) -> Survey:
    """Count a video's packets (headers lie about the number of frames) and look at its first frame.

    Raises:
        MediaError: not a video, or its first frame cannot be decoded.
    """
    with media.open() as stream:
        first = look(media, stream)
        scale = min(1.0, 1.25 * size / min(first.height, first.width))
        count = 0
        with open_video(media, stream) as (container, video), suppress(av.FFmpegError, OSError):
            count = sum(1 for packet in container.demux(video) if packet.size)
    return Survey(max(1, -(-count // stride)), round(first.height * scale), round(first.width * scale))


def _key(media: Media, size: int, stride: int) -> str:
    stat = media.path.stat()
    identity = f"{VERSION}|{media.path.resolve()}|{media.member}|{stat.st_size}|{stat.st_mtime_ns}|{size}|{stride}"
    return hashlib.md5(identity.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _cached(base: Path) -> Film | None:
    """The film at `base`, or None where it is not (wholly) there."""
    try:
        about = json.loads(read_small(base.with_suffix(".json")))
        shape = int(about["frames"]), int(about["height"]), int(about["width"]), 3
        if not base.with_suffix(".rgb").is_file():
            return None
        frames = np.memmap(base.with_suffix(".rgb"), np.uint8, mode="r")
        return Film(frames.reshape(shape), str(about["problem"]))
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _open(
    media: Media, size: int, cache: FrameCache, base: Path, found: Survey | None, tell: Callable[[str], None]
) -> Film:
    """Map a film, after decoding it where nobody else has. Raises MediaError, UsageError."""
    folder = base.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if base not in _held:
            _held[base] = os.open(base.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        while True:
            if not lock(_held[base], shared=True, wait=False):
                tell(f"waiting for another process that decodes {media}")
                lock(_held[base], shared=True)
            if film := _cached(base):
                os.utime(base.with_suffix(".rgb"))
                return film
            lock(_held[base], shared=False)
            if not _cached(base):
                _decode(media, found or survey(media, size, cache.stride), cache, base, tell)
    except BaseException as e:
        if base in _held:
            os.close(_held.pop(base))  # or others who want the film would wait until this process ends
        if isinstance(e, OSError):
            raise UsageError(f"{folder}: the frames of {media} cannot be kept there: {e}; {_WAYS_OUT}") from e
        raise


def _decode(media: Media, found: Survey, cache: FrameCache, base: Path, tell: Callable[[str], None]) -> None:
    """Write a film's frames as they come: its length takes no memory. Whoever calls this has its lock alone."""
    folder, need = base.parent, found.bytes
    for left in (base.with_suffix(".rgb"), aside(base.with_suffix(".rgb"))):  # by a process that was killed
        left.unlink(missing_ok=True)  # it would take the room of this one
    _make_room(folder, need, cache.limit, tell)
    tell(f"decoding about {found.frames:,} frames of {media}: {need / GIGABYTE:.2f} GB in {folder}")
    count, written, problem = 0, 0, ""
    with write_aside(base.with_suffix(".rgb")) as partial, partial.open("wb") as out, media.open() as stream:
        frames = read(media, stream, (found.width, found.height), cache.stride)
        while True:
            try:
                item = next(frames, None)
            except MediaError as e:
                problem = str(e)  # the frames before the damage are good
                break
            if item is None:
                break
            written += out.write(item[1])  # type: ignore[arg-type]  # no audio was asked for
            count += 1
            if written // CHECK_EVERY > (written - found.height * found.width * 3) // CHECK_EVERY:
                _make_room(folder, max(need - written, 0), cache.limit, tell)
        if not count:
            raise MediaError(problem or f"{media}: holds no frame that can be decoded")
    shape = {"frames": count, "height": found.height, "width": found.width}
    write_json(base.with_suffix(".json"), {"video": str(media), "stride": cache.stride, **shape, "problem": problem})


_WAYS_OUT = (
    "raise frame_cache_gigabytes, point $RFP_CACHE to a disk with more room, take every n-th frame (frame_stride), "
    "or train at a smaller max_size"
)


def _make_room(
    folder: Path,
    need: int,
    limit: int,
    tell: Callable[[str], None],
    dry_run: bool = False,
    wanted: Container[Path] = (),
) -> None:
    """Drop films that nobody uses, the least recently used first, until `need` more bytes fit; with `dry_run` none.
    Those that are `wanted` stay.

    Raises:
        UsageError: they would not fit even so; then none is dropped.
    """
    stats: list[tuple[Path, os.stat_result]] = []
    for path in folder.glob("*.rgb"):  # the hidden ones, which are being written, too
        with suppress(FileNotFoundError):  # another process drops films too
            stats.append((path, path.stat()))
    used = sum(stat.st_size for _, stat in stats)
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    over, idle = max(used + need - limit, need - free), dict[Path, int]()
    try:
        for path, stat in sorted(stats, key=lambda entry: entry[1].st_mtime_ns):
            if over > 0 and path not in wanted and (fd := _idle(path)) is not None:
                idle[path] = fd
                over -= stat.st_size
        if over > 0:
            raise UsageError(
                f"{folder}: the frames of the videos take about {need / GIGABYTE:.2f} GB more; there are "
                f"{used / GIGABYTE:.2f} GB of frame_cache_gigabytes {limit / GIGABYTE:g} in use and "
                f"{free / GIGABYTE:.2f} GB free on the disk; {_WAYS_OUT}"
            )
        for path in idle if not dry_run else ():
            tell(f"dropping frames that nothing uses: {path}")
            path.with_name(f"{_stem(path)}.json").unlink(missing_ok=True)
            path.unlink()
    finally:
        for fd in idle.values():
            os.close(fd)


def _stem(path: Path) -> str:
    """KEY of KEY.rgb, and of .KEY.partial.rgb, which is being written or was left by a process that was killed."""
    return path.name.strip(".").partition(".")[0]


def _idle(path: Path) -> int | None:
    """The lock of a film that no process uses, taken, or None."""
    fd = os.open(path.with_name(f"{_stem(path)}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    if lock(fd, shared=False, wait=False):
        return fd
    os.close(fd)
    return None
