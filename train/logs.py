"""Where figures and sample grids go besides metrics.jsonl and samples/: TensorBoard and Weights & Biases, if asked for.

A run that goes on continues in the same place, and the steps that an interruption undid are not shown twice.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..runtime.errors import MissingExtraError, UsageError
from ..runtime.files import write_text
from ..runtime.pixels import Uint8
from .checkpoint import PHASES

LOGGERS = ("tensorboard", "wandb")
PATIENCE = 20
"""Seconds that Weights & Biases gets to answer before the run is logged on disk alone."""


class Log(Protocol):
    """One more place to log to."""

    def figures(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """What metrics.jsonl gets."""

    def picture(self, phase: str, step: int, name: str, grid: Uint8) -> None:
        """A picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Nothing more will come."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise UsageError for a name that is none, MissingExtraError for packages that are not installed."""
    from importlib.util import find_spec

    for name in names:
        if name not in LOGGERS:
            raise UsageError(f"--log {name}: not one of {', '.join(LOGGERS)} (metrics.jsonl is always written)")
        if find_spec(name) is None:
            raise MissingExtraError(f"--log {name} needs {name}: pip install 'rfp[{name}]'")


def open_logs(names: Sequence[str], folder: Path, config: Mapping[str, Any], last: tuple[str, int]) -> list[Log]:
    """The loggers by name for a run that goes on after `last`, a phase and its step."""
    return [TensorBoard(folder, last) if name == "tensorboard" else Wandb(folder, config) for name in names]


class TensorBoard:
    """runs/ID/tensorboard/PHASE: a folder a phase, since each counts its steps from 1."""

    def __init__(self, folder: Path, last: tuple[str, int]) -> None:
        self._folder, self._last = folder / "tensorboard", last
        self._writers: dict[str, Any] = {}

    def _writer(self, phase: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if phase not in self._writers:
            done = self._last[1] if phase == self._last[0] else 0
            # What an interruption undid is purged by the reader, by this mark.
            self._writers[phase] = SummaryWriter(str(self._folder / phase), purge_step=done + 1)
        return self._writers[phase]

    def figures(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars, on disk at once."""
        writer = self._writer(phase)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def picture(self, phase: str, step: int, name: str, grid: Uint8) -> None:
        """An image, on disk at once."""
        writer = self._writer(phase)
        writer.add_image(name, grid, step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """End the event files."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """A run of Weights & Biases, its id kept in runs/ID/wandb-id so that it goes on; offline where it has to be.

    Its rows are numbered by the lines of metrics.jsonl, which an interruption takes back: the server ignores a row
    that it has.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, self._metrics = wandb, folder / "metrics.jsonl"
        path = folder / "wandb-id"
        if not path.is_file():
            write_text(path, secrets.token_hex(4) + "\n")
        said: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "rfp"),
            "id": path.read_text(encoding="utf-8").strip(),
            "name": folder.name,
            "dir": str(folder),
            "resume": "allow",
            "config": dict(config),
            "settings": wandb.Settings(console="off", silent=True, init_timeout=PATIENCE),
        }
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        try:
            self._run = wandb.init(mode=mode, **said)
        except wandb.Error:
            self._run = wandb.init(mode="offline", **said)  # no network, or none that answers
        for phase in PHASES:
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def _row(self) -> int:
        with self._metrics.open("rb") as f:
            return sum(1 for _ in f)

    def figures(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        named = {f"{phase}/{name}": value for name, value in values.items()}
        self._run.log(named | {f"{phase}/step": step}, step=self._row())

    def picture(self, phase: str, step: int, name: str, grid: Uint8) -> None:
        """A picture in the row of its step."""
        self._run.log({f"{phase}/{name}": self._wandb.Image(grid), f"{phase}/step": step}, step=self._row())

    def close(self) -> None:
        """Send or write what is left."""
        self._run.finish()
