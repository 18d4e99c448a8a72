"""Sort pictures into two domains by a trained classifier: copies named by content, originals untouched.

Decoding and writing in threads beside the net; what is in memory at once does not grow with the number of pictures.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..runtime.discovery import Made, discover
from ..runtime.errors import CheckpointError, MediaError, UsageError
from ..runtime.files import write_aside
from ..runtime.frames import look, read
from ..runtime.media import MAX_MEMBER_BYTES, Media, read_image
from ..runtime.pictures import encode_image
from ..runtime.pipeline import ahead, parallel
from ..runtime.pixels import Uint8, to_float
from . import checkpoint as ckpt
from .codec import encode
from .device import pick_device
from .domains import WORKERS, Crop, reduced
from .sorted_folder import FOLDERS, Row, Sorted, open_folder

AHEAD = 2 * WORKERS
WAITING_BYTES = 1 << 28
"""Bytes of files that wait, at most, until their batch is full."""


@dataclass(frozen=True)
class Classifier:
    """What tells the domains apart: pictures uint8 [B, size, size, 3] → probabilities of domain 1 [B]."""

    probabilities: Callable[[Uint8], list[float]]
    size: int
    identity: str
    """SHA-256 of its weights: the same in every later checkpoint of a run."""
    taught: float
    """The highest probability that it was trained to give (label smoothing)."""


class Frame(NamedTuple):
    """A frame of a video, uint8 [H, W, 3], with the time in seconds at which it is shown."""

    media: Media
    seconds: float
    pixels: Uint8


class Picture(NamedTuple):
    """A source that was read: what is written of it, and the crop [size, size, 3] by which it is judged.

    Both are empty where the folder holds it and its report says so."""

    source: str
    sha256: str
    suffix: str = ""
    data: bytes = b""
    crop: Uint8 | None = None


class Failure(NamedTuple):
    """A source that could not be read, or whose copy could not be written."""

    source: str
    message: str


Ended = Row | Failure


@dataclass
class Report:
    """What became of the sources. `new` and `total` count the pictures in each folder: by this call, and in all."""

    new: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FOLDERS, 0))
    total: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FOLDERS, 0))
    skipped: int = 0
    duplicates: int = 0
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


def load_classifier(path: Path, device: str = "auto") -> Classifier:
    """The classifier of a run or checkpoint, of either of the last two phases; of latents behind its codec.

    Raises:
        UsageError, CheckpointError: not there, damaged, or trained without a classifier.
    """
    found = ckpt.find(path)
    checkpoint = ckpt.load(found)
    if (net := checkpoint.saliency()) is None:
        why = "it is of the codec phase" if checkpoint.phase == "codec" else "saliency_loss_weight is 0 in its training"
        raise CheckpointError(
            f"{found}: holds no classifier ({why}); train one on pictures of both domains: "
            "rfp train … --only saliency --set saliency_loss_weight=0.1"
        )
    where = pick_device(device)
    net, codec = net.to(where), checkpoint.codec().to(where)
    identity = hashlib.sha256(str(checkpoint.config.max_size).encode())
    for part in ("saliency_net", "codec_ema"):
        for name, tensor in sorted(checkpoint.part(part).items()):
            identity.update(name.encode() + tensor.contiguous().numpy().tobytes())

    @torch.no_grad()
    def probabilities(crops: Uint8) -> list[float]:
        z = encode(codec, torch.from_numpy(to_float(crops)).to(where), checkpoint.config.train_minibatch_size)
        logits: torch.Tensor = net(z)
        return [float(p) for p in logits.cpu().double().softmax(dim=1)[:, 1]]

    taught = 1 - checkpoint.config.saliency_label_smoothing / 2
    return Classifier(probabilities, checkpoint.config.max_size, identity.hexdigest(), taught)


def folder_of(probability: float, threshold: float) -> str:
    """The domain that is at least `threshold` probable, else uncertain."""
    if probability >= threshold:
        return "domain1"
    return "domain0" if 1 - probability >= threshold else "uncertain"


def split(
    classifier: Classifier,
    inputs: Sequence[Path],
    output: Path,
    threshold: float = 0.7,
    max_size: int | None = None,
    batch: int = 64,
    on_end: Callable[[Ended], None] = lambda ended: None,
) -> Report:
    """Copy every picture, and every frame of every video as a PNG, into the folder of its domain.

    The same content is kept once. What the folder holds already is skipped, so that the same call goes on after an
    interruption.

    Args:
        inputs: folders (recursive), images, videos, zips; what lies in `output` is no input.
        threshold: probability from which a picture counts as of a domain, 0.5 to 1.
        max_size: copies with a longer side in px are written reduced to it, as RGB; all others byte for byte.
        on_end: told how each source ended, in the calling thread.

    Raises:
        UsageError: an option out of range, inputs and output that do not go together, or a folder sorted otherwise.
    """
    began, report = time.monotonic(), Report()
    check_options(threshold, max_size, batch)
    bad: list[MediaError] = []
    found = _outside(output, inputs, discover(inputs, bad.append))

    def tell(ended: Ended) -> None:
        if isinstance(ended, Failure):
            report.failed.append(ended)
        on_end(ended)

    settings = {"classifier": classifier.identity, "threshold": threshold, "max_size": max_size}
    with open_folder(output, settings) as (held, lines), ThreadPoolExecutor(WORKERS, "split") as pool:
        for error in bad:
            tell(Failure(str(error).partition(": ")[0], str(error)))
        loaded = parallel(pool, lambda task: _load(task, classifier.size, max_size, held), _tasks(found), AHEAD)
        judged = _judged(loaded, classifier, threshold, batch, held)
        with closing(parallel(pool, lambda work: _write(work, output), judged, AHEAD)) as written:
            for ended in written:
                if isinstance(ended, Row) and not (output / ended.file).exists():
                    ended = Failure(ended.source, f"{ended.source}: its copy {ended.file} could not be written")
                if isinstance(ended, Row):
                    _count(report, ended, held)
                    held.add(ended, lines)
                tell(ended)
        for file in held.files.values():
            report.total[file.partition("/")[0]] += 1
    report.seconds = time.monotonic() - began
    return report


def _count(report: Report, row: Row, held: Sorted) -> None:
    if (row.source, row.sha256) in held.sources:
        report.skipped += 1
    elif row.sha256 in held.rows:
        report.duplicates += 1
    else:
        report.new[row.domain] += 1


def check_options(threshold: float | None, max_size: int | None, batch: int) -> None:
    """Raises UsageError for one out of range."""
    if threshold is not None and not 0.5 <= threshold <= 1:
        raise UsageError(f"--threshold is {threshold}; wanted a probability from 0.5 to 1")
    if max_size is not None and max_size < 1:
        raise UsageError(f"--max-size is {max_size}; wanted a number of pixels, 1 or more")
    if batch < 1:
        raise UsageError(f"--batch is {batch}; wanted 1 or more")


def _outside(output: Path, inputs: Sequence[Path], found: Made[Media]) -> Made[Media]:
    """The media that do not lie in the output folder. Raises UsageError."""
    here = output.resolve()
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; wanted a folder as --output")
    for path in inputs:
        if path.resolve().is_relative_to(here):
            raise UsageError(f"{path}: is in --output {output}, and what lies there is no input; choose another folder")
    if not any(here.is_relative_to(path.resolve()) for path in inputs):
        return found
    return found.kept(lambda media: not media.path.resolve().is_relative_to(here))


def _tasks(found: Iterable[Media]) -> Iterator[Media | Frame | Failure]:
    """Images as they are, videos frame by frame."""
    for media in found:
        if media.kind == "image":
            yield media
            continue
        try:
            with closing(ahead(_frames(media))) as frames:
                yield from frames
        except MediaError as e:
            yield Failure(str(media), str(e))


def _frames(media: Media) -> Generator[Frame, None, None]:
    with media.open() as stream:
        seen = look(media, stream)
        for pts, pixels in read(media, stream, (seen.width, seen.height)):
            assert isinstance(pixels, np.ndarray)  # no audio was asked for
            yield Frame(media, float(pts * seen.time_base), pixels)


def _load(task: Media | Frame | Failure, size: int, max_size: int | None, held: Sorted) -> Picture | Failure:
    """Read, hash and crop one source; in a thread."""
    if isinstance(task, Failure):
        return task
    with nullcontext() if isinstance(task, Frame) else task.room():
        return _picture(task, size, max_size, held)


def _picture(task: Media | Frame, size: int, max_size: int | None, held: Sorted) -> Picture | Failure:
    try:
        if isinstance(task, Frame):
            source, suffix = f"{task.media}@{task.seconds:.3f}s", ".png"
            sha256 = hashlib.sha256(str(task.pixels.shape).encode() + task.pixels.tobytes()).hexdigest()
        else:
            source, suffix = str(task), Path(task.member or task.path.name).suffix
            data = _bytes(task)
            sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in held.rows:
            return Picture(source, sha256)
        image = Image.fromarray(task.pixels) if isinstance(task, Frame) else read_image(BytesIO(data), source)
        if max_size is not None and max(image.size) > max_size:
            image.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
            data = encode_image(image, suffix)
            image = read_image(BytesIO(data), source)  # judged as it is written, so that --verify sees the same
        elif isinstance(task, Frame):
            data = encode_image(image, suffix)
        return Picture(source, sha256, suffix, data, Crop().apply(reduced(image, size), size))
    except MediaError as e:
        return Failure(str(task.media if isinstance(task, Frame) else task), str(e))
    except (OSError, MemoryError) as e:
        return Failure(source, f"{source}: cannot be read: {e or type(e).__name__}")


def _bytes(media: Media) -> bytes:
    if media.member is None and media.path.stat().st_size > MAX_MEMBER_BYTES:
        raise MediaError(f"{media}: larger than {MAX_MEMBER_BYTES >> 20} MiB; not read")
    with media.open() as stream:
        return stream.read()


Judged = tuple[Row, bytes] | Failure


def _judged(
    loaded: Iterable[Picture | Failure], classifier: Classifier, threshold: float, batch: int, held: Sorted
) -> Generator[Judged, None, None]:
    """A row for every source, with the bytes to write where the folder has no file of that content."""
    known: dict[str, Row] = {}
    size = 0
    waiting: dict[str, list[Picture]] = {}  # by content: the first is judged, the others are duplicates of it

    def judge() -> Iterator[Judged]:
        crops = np.stack([p[0].crop for p in waiting.values() if p[0].crop is not None])
        for pictures, probability in zip(waiting.values(), classifier.probabilities(crops), strict=True):
            first = pictures[0]
            there = held.files.get(first.sha256)
            domain = there.partition("/")[0] if there else folder_of(probability, threshold)
            file = there or f"{domain}/{first.sha256}{first.suffix}"
            row = Row(first.source, first.sha256, f"{probability:.6f}", domain, file, _sha256(first.data))
            known[first.sha256] = row
            yield row, b"" if there else first.data
            yield from ((row._replace(source=p.source), b"") for p in pictures[1:])
        waiting.clear()

    for picture in loaded:
        if isinstance(picture, Failure):
            yield picture
        elif row := known.get(picture.sha256) or held.rows.get(picture.sha256):
            yield row._replace(source=picture.source), b""
        else:
            waiting.setdefault(picture.sha256, []).append(picture)
            size += len(picture.data)
            if len(waiting) == batch or size > WAITING_BYTES:
                size = 0
                yield from judge()
    if waiting:
        yield from judge()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(work: Judged, output: Path) -> Ended:
    """Write a copy, whole or not at all; in a thread."""
    if isinstance(work, Failure):
        return work
    row, data = work
    if data:
        try:
            with write_aside(output / row.file) as partial:
                partial.write_bytes(data)
        except OSError as e:
            return Failure(row.source, f"{output / row.file}: cannot be written: {e}")
    return row
