"""`rfp split --verify`: is a sorted folder still what the split made it? Changes nothing."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..runtime.errors import MediaError
from ..runtime.media import read_image
from ..runtime.pipeline import parallel
from ..runtime.pixels import Uint8
from .domains import WORKERS, Crop, reduced
from .sorted_folder import FOLDERS, REPORT, SETTINGS, Sorted, name_problem, read_folder
from .split import AHEAD, Classifier, Failure, check_options, folder_of

MARGIN = 1e-3
"""Of probability: another batch or device rounds otherwise."""


class Copy(NamedTuple):
    """A copy that was read again: its SHA-256 and its crop [size, size, 3]."""

    path: Path
    sha256: str
    crop: Uint8


@dataclass
class Verified:
    """How many copies were looked at, and what is wrong."""

    pictures: int = 0
    problems: list[Failure] = field(default_factory=list)


def verify(
    classifier: Classifier,
    output: Path,
    threshold: float | None = None,
    batch: int = 64,
    on_end: Callable[[Path | Failure], None] = lambda ended: None,
) -> Verified:
    """Compare every file of a sorted folder with its name, the report, and what the classifier says now.

    Args:
        threshold: as in `split`; None takes that of the folder.
        on_end: told of every copy and of every problem, in the calling thread.

    Raises:
        UsageError: an option out of range, or not a folder that `split` made.
    """
    check_options(threshold, None, batch)
    held, out = read_folder(output), Verified()
    threshold = float(held.settings["threshold"]) if threshold is None else threshold

    def wrong(path: Path, message: str) -> None:
        out.problems.append(Failure(str(path), f"{path}: {message}"))
        on_end(out.problems[-1])

    if held.settings["classifier"] != classifier.identity:
        wrong(output / SETTINGS, "was made with another classifier than the one given")
    for path in _foreign(output):
        wrong(path, name_problem(path) or "not from rfp split")
    for sha256, row in held.rows.items():
        if sha256 not in held.files:
            wrong(output / row.file, f"is gone; {REPORT} has it from {row.source}")
    first: dict[str, Path] = {}
    with ThreadPoolExecutor(WORKERS, "verify") as pool:
        copies = parallel(pool, lambda path: _read(path, classifier.size), _copies(output), AHEAD)
        while some := list(islice(copies, batch)):
            good = [c for c in some if isinstance(c, Copy)]
            judged = iter(classifier.probabilities(np.stack([c.crop for c in good])) if good else [])
            for copy in some:
                out.pictures += 1
                path = Path(copy.source) if isinstance(copy, Failure) else copy.path
                on_end(path)
                if (other := first.setdefault(path.stem, path)) != path:
                    wrong(path, f"is there twice: {other}")
                if isinstance(copy, Failure):
                    wrong(path, copy.message)
                    continue
                for message in _differs(copy, next(judged), threshold, held):
                    wrong(path, message)
    return out


def _differs(copy: Copy, probability: float, threshold: float, held: Sorted) -> Iterator[str]:
    row = held.rows.get(copy.path.stem)
    if copy.sha256 != copy.path.stem and (row is None or copy.sha256 != row.copy_sha256):
        what = f"its name and {REPORT} say" if row else f"its name says ({REPORT} has no line of it)"
        yield f"holds something else than {what}"
    folder = copy.path.parent.name
    if folder not in {folder_of(probability + d, threshold) for d in (-MARGIN, 0, MARGIN)}:
        now = folder_of(probability, threshold)
        yield f"is judged {now} now: domain 1 at {probability:.1%}, threshold {threshold:g}"


def _copies(output: Path) -> Iterator[Path]:
    for name in FOLDERS:
        folder = output / name
        yield from sorted(p for p in folder.iterdir() if p.is_file() and not name_problem(p)) if folder.is_dir() else ()


def _foreign(output: Path) -> Iterator[Path]:
    for path in sorted(output.iterdir()):
        if path.name in FOLDERS and path.is_dir():
            yield from (p for p in sorted(path.iterdir()) if not p.is_file() or name_problem(p))
        elif path.name not in (REPORT, SETTINGS):
            yield path


def _read(path: Path, size: int) -> Copy | Failure:
    try:
        data = path.read_bytes()
        image = read_image(BytesIO(data), str(path))
    except MediaError as e:
        return Failure(str(path), str(e).removeprefix(f"{path}: "))
    except (OSError, MemoryError) as e:
        return Failure(str(path), f"cannot be read: {e or type(e).__name__}")
    return Copy(path, hashlib.sha256(data).hexdigest(), Crop().apply(reduced(image, size), size))
