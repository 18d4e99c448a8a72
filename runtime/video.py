"""One video through a flow: decode → velocity → encode in three threads, with memory that does not grow.

The picture is made first, in segments that outlive an interruption (segments.py); then these are joined without
encoding them again, with every other stream of the source (joining.py, streams.py). Kept: every frame with its
timestamp (constant rate or not), the pixel aspect, upright pictures in place of a rotation tag, all audio, subtitles,
chapters, metadata and cover art that the container takes. The picture is written in limited range, BT.709 or BT.601 by
its height, and tagged so.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from .compare import compared
from .cut import cut_of
from .encoders import Encoder, add_video, choose, to_frame
from .errors import DamagedError, MediaError
from .files import write_aside
from .flow import Flow
from .frames import Item, Look, look, read
from .joining import Film, join
from .media import Media
from .options import AS_IT_IS, FilmOptions
from .pipeline import ahead
from .pixels import Uint8
from .segments import SEGMENT, Segment, Work, delay_of, work_on
from .stages import Stages
from .steady import Steady
from .upscale import resized
from .whole import missing_bytes

Made = tuple[int, Uint8, "tuple[Any, Any] | None"]
"""pts, the picture that is written, and at the end of a segment what the next one's frames need of this one's."""


def translate_video(
    media: Media,
    target: Path,
    flow: Flow,
    on_frames: Callable[[int, int | None], None],
    steady: float = 0.0,
    film: FilmOptions = AS_IT_IS,
    key: dict[str, Any] | None = None,
) -> str:
    """Write the translation of `media` to `target`, whole or not at all.

    An interrupted call leaves its finished segments beside the target; one with the same source and key goes on there.

    Args:
        flow: chooses the size; an odd side gets its last row or column once more.
        on_frames: called with (frames written, frames expected or None).
        steady: how much of the last frame's displacement is carried on where nothing moves, in [0, 1).
        key: JSON values that say which model and settings these are.

    Returns:
        What was left out or changed, for a person to read; empty for nothing.

    Raises:
        UsageError: the encoder is not to be had.
        MediaError: the source cannot be read, or the target not be written. Where the source is damaged half-way, the
            part before it is written to `target` first, and the message says so.
    """
    encoder = choose(film, target.suffix.lower())
    damage: DamagedError | None = None
    with media.open() as stream:
        seen = look(media, stream)
        with work_on(target, _key(media, encoder, film, steady, key), encoder.segment) as work:
            try:
                _make_segments(media, stream, seen, flow, encoder, film, steady, work, on_frames)
            except DamagedError as e:
                damage = e
            except (av.FFmpegError, OSError, ValueError) as e:
                raise MediaError(f"{target}: cannot be written: {e}{_kept(work)}") from e
            if not work.segments:
                raise damage or MediaError(f"{media}: holds no frame between --start and --end")
            try:
                with flow.stages.timed("join"):
                    notes, missing = join(Film(media, stream, seen, encoder, film, work, damage is not None), target)
            except (av.FFmpegError, OSError, ValueError) as e:
                raise MediaError(f"{target}: cannot be written: {e}{_kept(work)}") from e
            work.remove()
        lacks = missing_bytes(stream) if film.end is None else 0
    if (missing or lacks) and not damage:
        at = float((work.last or 0) * seen.time_base)
        where = f"{missing:.0f} s" if missing else f"{lacks:,} bytes"
        damage = DamagedError(f"{media}: ends at {at:.3f} s, {where} before what it says: it is cut short")
    if damage:
        raise DamagedError(f"{damage}; {target} holds the {work.frames} frames before it") from damage
    return "; ".join(notes)


def _kept(work: Work) -> str:
    return f" (the same command goes on after {work.frames} frames)" if work.segments else ""


def _key(
    media: Media, encoder: Encoder, film: FilmOptions, steady: float, key: dict[str, Any] | None
) -> dict[str, Any]:
    stat = media.path.stat()
    begins = None if film.start is None else ["the frame shown at", film.start]  # once the next one after it
    return {
        "source": [str(media), stat.st_size, stat.st_mtime_ns],
        "encoder": [encoder.name, encoder.pix_fmt, encoder.options, av.ffmpeg_version_info],
        "film": [begins, film.end, film.compare, steady, SEGMENT],
        "flow": key or {},
    }


def _make_segments(
    media: Media,
    stream: BinaryIO,
    seen: Look,
    flow: Flow,
    encoder: Encoder,
    film: FilmOptions,
    steady: float,
    work: Work,
    on_frames: Callable[[int, int | None], None],
) -> None:
    fitted = flow.fit(seen.width, seen.height)
    size = flow.output_size(seen.width, seen.height)
    at_once = max(flow.lanes, flow.at_once(*fitted))
    expected = _expected(seen, film)
    shift = cut_of(media, stream, film).shift
    frames = read(media, stream, size, skip=work.frames, start=film.start, end=film.end)
    seconds = float(shift), float(seen.time_base)
    decoded = flow.stages.each("decode", frames)
    through = _through(ahead(decoded, at_once), flow, fitted, steady, film.compare, work.carried(), seconds)
    with closing(ahead(through, 2 * at_once, flow.stop)) as made:
        while True:
            more = _segment(made, encoder, seen, work, flow.stages, lambda n: on_frames(n, expected))
            if not more:
                return


def _segment(
    made: Iterable[Made],
    encoder: Encoder,
    seen: Look,
    work: Work,
    stages: Stages,
    on_frame: Callable[[int], None],
) -> bool:
    """Write the next SEGMENT frames, or those that there are, to a file of their own; False where none follow.

    Raises DamagedError after writing what came before the damage.
    """
    first = next(iter(made), None)
    if first is None:
        return False
    count, last, carried, damage = 0, work.last, None, None
    order: list[int] = []

    def rest() -> Iterator[Made]:
        nonlocal damage
        yield first
        try:
            yield from islice(made, SEGMENT - 1)
        except DamagedError as e:
            damage = e

    with write_aside(work.next_file()) as partial, av.open(f"file:{partial}", "w", format=work.form) as out:
        video = None
        for pts, pixels, kept in rest():
            with stages.timed("encode"):
                if video is None:
                    video = add_video(out, encoder, seen, pixels.shape[1], pixels.shape[0])
                frame = to_frame(pixels, encoder.pix_fmt)
                last = pts if last is None else max(pts, last + 1)  # a muxer refuses time that stands still
                frame.pts, frame.time_base = last, seen.time_base
                _mux(out, video, frame, order)
            count, carried = count + 1, kept
            on_frame(work.frames + count)
        with stages.timed("encode"):
            _mux(out, video, None, order)
        out.close()  # writes what is held back, before the file is renamed
    assert last is not None
    work.add(Segment(count, last, delay_of(order)), carried)
    if damage:
        raise damage
    return count == SEGMENT


def _mux(out: Any, video: Any, frame: Any, order: list[int]) -> None:
    for packet in video.encode(frame):
        order.append(packet.pts)
        out.mux(packet)


def _through(
    items: Iterable[Item],
    flow: Flow,
    fitted: tuple[int, int],
    steady: float,
    compare: str | None,
    carried: tuple[Any, Any] | None,
    seconds: tuple[float, float],
) -> Generator[Made, None, None]:
    """Frames translated; after an error those before it, too."""
    steadied = Steady(steady) if steady else None
    if steadied and carried:
        steadied.state = carried
    count = 0

    def made(batch: list[Item]) -> tuple[list[Item], Uint8, Uint8]:
        with flow.stages.timed("prepare"):
            frames = np.stack([resized(pixels, fitted) for _, pixels in batch])
        return batch, frames, flow(frames)

    batches = _batches(items, lambda: flow.batch(*fitted))
    for batch, frames, out in flow.side_by_side(made, batches, flow.at_once(*fitted)):
        count += len(batch)
        with flow.stages.timed("finish"):
            out = steadied(flow.beside(frames), out) if steadied else out
        kept = steadied.state if steadied and count % SEGMENT == 0 else None
        for (pts, pixels), small, result in zip(batch, frames, out, strict=True):
            with flow.stages.timed("finish"):
                result = flow.given_back(pixels, small, result)
                if compare:
                    result = compared(pixels, result, compare, pts * seconds[1] - seconds[0])
            yield pts, result, kept


def _batches(items: Iterable[Item], size: Callable[[], int]) -> Iterator[list[Item]]:
    """So many frames at a time, none of them across two segments; after an error those before it, too."""
    waiting: list[Item] = []
    damage: DamagedError | None = None
    source, count = iter(items), 0
    while True:
        try:
            item = next(source, None)
        except DamagedError as e:
            item, damage = None, e
        if item is None:
            break
        waiting.append(item)
        count += 1
        if len(waiting) >= size() or count % SEGMENT == 0:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
    if damage:
        raise damage


def _expected(seen: Look, film: FilmOptions) -> int | None:
    if film.end is None and film.start is None:
        return seen.frames
    if seen.frames is None and film.end is None:
        return None
    start = round((film.start or 0) * seen.rate)
    end = seen.frames if film.end is None else round(film.end * seen.rate)
    return max(0, min(end or 0, seen.frames or end or 0) - start)
