"""`translate.jsonl` beside the outputs: a line for each input that ended, by which a later run knows what to do again.

A line holds `source` and `output` (below the input and the output folder), `place` (a hash of where the input was on
that machine, not its name), `input` and `result` (SHA-256 of both), `input_stat` and `result_stat` ([bytes, mtime in
ns]), `model` (SHA-256 of the graphs), `settings`, `seconds`, `error`.
A shard writes `translate.I-of-N.jsonl`; all such files of the folder are read, so they merge by lying side by side. A
picture's line is written before the file gets its name, so that a killed run leaves none that the ledger does not know.

In memory a line costs 16 bytes: where it stands, under a hash of its output.
"""

import hashlib
import json
import os
import re
import threading
from array import array
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .bundle import Bundle
from .errors import DamagedError, MediaError, UsageError
from .media import Media
from .plan import Job

_NAME = re.compile(r"translate(\.\d+-of-\d+)?\.jsonl")
_LONGEST = 1 << 20
"""Bytes of the longest line that is read."""
_NEUTRAL = {"batch", "threads", "device", "precision"}
"""Options that change how something is computed and not what; the precision shows in the model's hash."""
Stat = list[int]


class Ledger:
    """What was written below `folder`, by which model and settings.

    Args:
        folder: the output folder; None for a single output file, which has no ledger.
        shard: (i, n), for the name of the file that is written.
        model, settings: of this run.
    """

    def __init__(
        self, folder: Path | None, shard: tuple[int, int] | None, model: str, settings: dict[str, Any]
    ) -> None:
        self._folder, self._model = folder, model
        self._settings = json.loads(json.dumps(settings))  # as it reads back: tuples are lists
        name = "translate.jsonl" if shard is None else f"translate.{shard[0]}-of-{shard[1]}.jsonl"
        self.file = folder / name if folder else None
        self._lock = threading.Lock()
        self._files: list[Path] = []
        if folder and os.path.isdir(folder):  # noqa: PTH112 (pathlib's raises for a name too long)
            self._files = sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_file())
        keys, places = array("Q"), array("Q")
        for number, file in enumerate(self._files):
            _index(file, number, keys, places)
        order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable") if keys else np.array([], np.int64)
        self._keys = np.frombuffer(keys, np.uint64)[order] if keys else np.array([], np.uint64)
        self._places = np.frombuffer(places, np.uint64)[order] if places else np.array([], np.uint64)

    def why_not(self, job: Job) -> str | None:
        """Why this job needs no doing, where its target is there; None where it is to be done.

        What this ledger wrote and nobody changed is done again when the input, the model or the settings are others.
        What anyone else made, or changed, stays as it is; so does what another input of that name became, from another
        folder.

        Raises:
            DamagedError: that input is damaged, and what came before the damage is there already.
        """
        if not os.path.lexists(job.target):
            return None
        if self._folder is None:
            return "there already; --overwrite does it again"
        line = self._writer_of(job.target)
        if line is None:
            known = len(self._lines(self._output(job.target)))
            whose = "changed since rfp wrote it" if known else "not in rfp's ledger"
            return f"there already, {whose}; --overwrite replaces it"
        moved = line.get("place") not in (None, _place(job.media))
        same = not moved and line.get("input_stat") == stat_of(job.media.path)
        if not same:
            with job.media.open() as stream:
                same = line.get("input") == sha256(stream)
        if moved and not same:
            return "there already, made of another input of that name; --overwrite replaces it"
        if not same or line.get("model") != self._model or line.get("settings") != self._settings:
            return None
        if line.get("error"):
            raise DamagedError(line["error"])
        return ""

    def add(
        self, job: Job, source: tuple[str, Stat] | None, result: Path | None, seconds: float, error: str | None = None
    ) -> None:
        """Append a line; `result` is the output under its temporary name, None where there is none."""
        if self.file is None:
            return
        made = None
        if result is not None:
            with result.open("rb") as stream:
                made = sha256(stream)
        line = {
            "source": job.media.relative.as_posix(),
            "place": _place(job.media),
            "output": self._output(job.target),
            "input": source and source[0],
            "result": made,
            "input_stat": source and source[1],
            "result_stat": result and stat_of(result),
            "model": self._model,
            "settings": self._settings,
            "seconds": round(seconds, 4),
            "error": error,
        }
        text = json.dumps(line) + "\n"
        try:
            with self._lock:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab") as f:
                    torn = f.tell() and not _ends_with_newline(self.file)  # a line that a killed run left
                    f.write((b"\n" if torn else b"") + text.encode("ascii"))
        except OSError as e:
            raise MediaError(f"{self.file}: cannot be written: {e}") from e

    def _output(self, target: Path) -> str:
        assert self._folder is not None
        return target.relative_to(self._folder).as_posix()

    def _writer_of(self, target: Path) -> dict[str, Any] | None:
        """The line whose output stands there now, as it was written."""
        lines = [line for line in self._lines(self._output(target)) if line.get("result")]
        try:
            now = stat_of(target)
            for line in reversed(lines):
                if line.get("result_stat") == now:
                    return dict(line)
            if not lines:
                return None
            with target.open("rb") as stream:
                found = sha256(stream)
        except OSError:
            return None
        for line in reversed(lines):
            if line["result"] == found:
                return dict(line)
        return None

    def _lines(self, output: str) -> list[dict[str, Any]]:
        key = np.uint64(_key(output))
        first, last = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
        found = []
        for place in self._places[first:last].tolist():
            with self._files[place >> 48].open("rb") as f:
                f.seek(place & ((1 << 48) - 1))
                line = _parsed(f.readline(_LONGEST))
            if line is not None and line["output"] == output:
                found.append(line)
        return found


def settings(bundle: Bundle, *options: Any) -> dict[str, Any]:
    """The values that change what comes out, by name: the options that are not at their default, and the steps."""
    given = {
        f.name: getattr(group, f.name)
        for group in options
        for f in fields(group)
        if f.name not in _NEUTRAL and getattr(group, f.name) != f.default
    }
    defaults = {"steps": bundle.manifest.default_steps, "size": bundle.manifest.image_size}
    return defaults | {name: value for name, value in given.items() if value is not None}


def model_hash(bundle: Bundle) -> str:
    """SHA-256 of the velocity graph, as in rfp.json; where other graphs or weights belong to it, of all; of Core ML
    packages, of what rfp.json says of each."""
    digest = hashlib.sha256(bundle.model)
    for part in (bundle.encoder, bundle.decoder, *(bundle.data[name] for name in sorted(bundle.data))):
        digest.update(part)
    sums = {graph.file: graph.sha256 for graph in bundle.manifest.graphs}
    for role in sorted(bundle.packages):
        digest.update(sums[bundle.packages[role].name].encode())
    return digest.hexdigest()


def identify(media: Media, stream: BinaryIO) -> tuple[str, Stat]:
    """SHA-256 of an open input, which is rewound, with its file's size and time."""
    found = sha256(stream), stat_of(media.path)
    stream.seek(0)
    return found


def _place(media: Media) -> str:
    name = os.path.realpath(media.path) + f"::{media.member or ''}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def stat_of(path: Path) -> Stat:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _index(file: Path, number: int, keys: "array[int]", places: "array[int]") -> None:
    ours = some = False
    with file.open("rb") as f:
        offset = 0
        while line := f.readline(_LONGEST):
            some = some or bool(line.strip())
            if (parsed := _parsed(line)) is not None:
                ours = True
                keys.append(_key(parsed["output"]))
                places.append(number << 48 | offset)
            offset = f.tell()
    if some and not ours:
        raise UsageError(f"{file}: has the name of rfp's ledger and is none; rename it, or choose another --output")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("output"), str) else None


def _key(output: str) -> int:
    return int.from_bytes(hashlib.blake2b(output.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as f:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b"\n"
