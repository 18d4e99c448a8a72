"""The folder that `rfp split` fills, and its report.

    OUT/domain0|domain1|uncertain/SHA256.suffix   the pictures, named by what their source holds
    OUT/report.csv                                a line a source, written as they come
    OUT/split.json                                by which classifier and settings; locked while it is written to

What a killed split left is understood: a picture without its line, or half a line at the end.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..runtime.errors import UsageError
from ..runtime.files import lock, write_aside, write_json
from ..runtime.media import IMAGE_SUFFIXES

FOLDERS = ("domain0", "domain1", "uncertain")
REPORT, SETTINGS = "report.csv", "split.json"
FORMAT = 1


class Row(NamedTuple):
    """A line of the report: a source and where its picture is.

    `sha256` is of the source (of a video's frame: its pixels), `probability` that it is of domain 1, and `copy_sha256`
    of the file that was written.
    """

    source: str
    sha256: str
    probability: str
    domain: str
    file: str
    copy_sha256: str


@dataclass
class Sorted:
    """What an output folder holds: `files` by their sha256 (relative paths), and the report's `rows` by theirs."""

    folder: Path
    settings: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    sources: set[tuple[str, str]] = field(default_factory=set)
    """(source, sha256) of every line."""

    def add(self, row: Row, report: TextIO) -> None:
        """Note a source whose picture is in the folder."""
        self.files[row.sha256] = row.file
        self.rows.setdefault(row.sha256, row)
        if (row.source, row.sha256) not in self.sources:
            self.sources.add((row.source, row.sha256))
            csv.writer(report, lineterminator="\n").writerow(row)
            report.flush()


def name_problem(path: Path) -> str | None:
    """Why a file below one of FOLDERS is none of ours, or None."""
    if path.name.startswith(".") and ".partial" in path.name:
        return "left by a split that was killed; run it again, or remove this file"
    if re.fullmatch(r"[0-9a-f]{64}", path.stem) and path.suffix.lower() in IMAGE_SUFFIXES:
        return None
    return "not from rfp split: its name is no SHA-256"


def read_folder(folder: Path) -> Sorted:
    """What lies in an output folder. Raises UsageError where it is none."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or settings["format"] != FORMAT:
            raise ValueError(f"format {FORMAT} was wanted")
    except (OSError, ValueError, KeyError) as e:
        raise UsageError(
            f"{folder}: not a folder that rfp split wrote: {SETTINGS}: {getattr(e, 'strerror', None) or e}"
        ) from e
    out = Sorted(folder, settings)
    for name in FOLDERS:
        for path in sorted((folder / name).iterdir()) if (folder / name).is_dir() else ():
            if not name_problem(path):
                out.files.setdefault(path.stem, f"{name}/{path.name}")
    for row in _rows(folder / REPORT):
        out.rows.setdefault(row.sha256, row)
        out.sources.add((row.source, row.sha256))
    return out


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a report, without one that was cut off."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as f:
        reader = csv.reader(f)
        header, last = next(reader, None), None
        if header is not None and tuple(header) != Row._fields:
            raise UsageError(f"{path}: not a report of rfp split; choose another --output")
        for cells in reader:
            if last is not None:
                yield last
            last = Row(*cells) if len(cells) == len(Row._fields) else None
    if last is not None and _ends_a_line(path):
        yield last


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read() == b"\n"


@contextmanager
def open_folder(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[Sorted, TextIO]]:
    """The folder, and its report to add to. Lines are kept of pictures that are still there, wherever they were moved.

    Raises:
        UsageError: it was filled with other settings, holds a file that we would write, or is being written to.
    """
    settings = {"format": FORMAT, **settings}
    try:
        if not (folder / SETTINGS).exists():
            if (folder / REPORT).exists():
                raise UsageError(f"{folder / REPORT}: is there, but not from rfp split; choose another --output")
            write_json(folder / SETTINGS, settings)
        fd = os.open(folder / SETTINGS, os.O_RDWR)
        try:
            if not lock(fd, shared=False, wait=False):
                raise UsageError(f"{folder}: another rfp split writes to it; wait for it, or choose another --output")
            out = _tidied(folder, settings)
            with (folder / REPORT).open("a", encoding="utf-8", newline="") as report:
                yield out, report
        finally:
            os.close(fd)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be written: {e}") from e


def _tidied(folder: Path, settings: dict[str, Any]) -> Sorted:
    """The folder, its report written anew without what is no longer so."""
    out = read_folder(folder)
    if changed := [k for k in settings if settings[k] != out.settings.get(k)]:
        raise UsageError(
            f"{folder} was sorted otherwise ({', '.join(f'{k}: {out.settings.get(k)}' for k in changed)}); "
            "nothing is sorted twice: choose another --output, or look with --verify at what would change"
        )
    rows = [row for row in _rows(folder / REPORT) if row.sha256 in out.files]
    out.rows, out.sources = {}, set()
    with write_aside(folder / REPORT) as partial, partial.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f, lineterminator="\n").writerow(Row._fields)
        for row in rows:
            file = out.files[row.sha256]
            out.add(row._replace(file=file, domain=file.partition("/")[0]), f)
    return out
