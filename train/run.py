"""A training under way: its folder, its domains and what it writes.

runs/ID/  config.json  run.json  metrics.jsonl  samples/*.png  checkpoints/*.safetensors
"""

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..runtime.errors import TrainingError
from ..runtime.files import write_aside
from ..runtime.pixels import Uint8, to_float
from . import checkpoint as ckpt
from . import ranks
from .config import RFPix2pixModel
from .domains import Crop, Domain
from .logs import Log
from .noise import Noise
from .parts import Parts, finished

STREAMS = {"saliency": 0, "velocity": 1, "codec": 2, "bridge": 3}
"""Each phase's draws, and those of bridge_noise, numbered by age: a new one leaves the others' as they were."""


class Reporter(Protocol):
    """Where training tells what it does."""

    def note(self, text: str) -> None:
        """One line that stays."""

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Progress, after every step; `metrics` is empty except after those that were logged."""


class Silence:
    """The reporter of every rank but the first."""

    def note(self, text: str) -> None:
        """Nothing."""

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Nothing."""


class Interrupted(Exception):
    """Training was asked to stop, and has saved."""


@dataclass
class Run:
    """A training under way. The phases read and drive it; of several ranks only the first writes.

    `asked` is set when this process is asked to stop, `stop` when all ranks are to stop after the present step.
    """

    folder: Path
    config: RFPix2pixModel
    seed: int
    device: torch.device
    domain0: Domain | Noise
    domain1: Domain
    report: Reporter
    resumed: ckpt.Checkpoint | None = None
    resumed_state: ckpt.Tensors = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    held_out: tuple[Domain | Noise, Domain] | None = None
    """Both domains' pictures that no training sees, with `eval_every`."""
    best: dict[str, float] = field(default_factory=dict)
    """`best_kid`: the lowest so far."""
    _clock: tuple[str, float, int] = ("", 0.0, 0)

    def finished(self, phase: str) -> ckpt.Checkpoint | None:
        """The checkpoint that holds the finished codec or classifier: the run's own, or another run's."""
        return finished(phase, self.resumed, self.parts)

    def rng(self, phase: str, step: int) -> torch.Generator:
        """The draws of one step: a function of (seed, phase, step), so there is no state that could be lost."""
        entropy = np.random.SeedSequence([self.seed, STREAMS[phase], step]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(entropy[0] >> 1))

    @property
    def pictures(self) -> tuple[Domain, Domain]:
        """Both domains, for what needs pictures of both: noise_domain() has refused a config that asks it of noise."""
        assert isinstance(self.domain0, Domain)
        return self.domain0, self.domain1

    def samples(self, domain: Domain) -> Uint8:
        """The fixed pictures of the sample grids, evenly spread over a domain: uint8 [N, H, W, 3]."""
        n = self.config.sample_batch_size
        return np.stack([domain.crop(i * len(domain) // n, Crop()) for i in range(n)])

    def log(
        self, phase: str, step: int, steps: int, metrics: Mapping[str, Tensor | float], at_once: bool = False
    ) -> None:
        """Report a step; every `log_every` steps, before each checkpoint and `at_once`, append it to metrics.jsonl.

        Tensors are read only then: reading one waits for the device. Every rank calls this once a step, for here
        they agree on whether to stop.

        Raises:
            TrainingError: one of them is not finite. So no checkpoint holds such weights.
        """
        due = at_once or not step % self.config.log_every or not step % self.config.checkpoint_every or step == steps
        self.report.step(phase, step, steps, self._write(phase, step, metrics) if due else {})
        if not self.stop.is_set() and ranks.any_of(self.asked.is_set()):
            self.stop.set()
            if not due:
                self._write(phase, step, metrics)

    def _write(self, phase: str, step: int, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        now, (timed, then, before) = time.monotonic(), self._clock
        values = {name: float(value) for name, value in metrics.items()}
        if timed == phase:
            values["images_per_second"] = (step - before) * self.config.batch_size(phase) / (now - then)
        self._clock = (phase, now, step)
        if not all(np.isfinite(v) for v in values.values()):
            raise TrainingError(
                f"{phase} phase, step {step}: a loss is not finite ({values}); try a lower learning rate"
            )
        if ranks.first():
            line = json.dumps({"phase": phase, "step": step, **values})
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write(line + "\n")
        for log in self.logs:
            log.figures(phase, step, values)
        return values

    def show(self, phase: str, step: int, name: str, grid: Uint8) -> None:
        """Write a sample grid, uint8 [H, W, 3], to samples/NAME-STEP.png and to the loggers."""
        self.write_sheet(f"{name}-{step:08d}", grid)
        for log in self.logs:
            log.picture(phase, step, "samples", grid)

    def save(
        self, phase: str, step: int, tensors: ckpt.Tensors, state: ckpt.Tensors, metrics: dict[str, float]
    ) -> None:
        """Write a checkpoint and drop the run's oldest of that phase beyond `keep_checkpoints`.

        No rank goes on before it is whole: one that ended meanwhile would take the writing one with it.
        """
        if ranks.first():
            self._save(phase, step, tensors, state, metrics)
        ranks.barrier()

    def _save(
        self, phase: str, step: int, tensors: ckpt.Tensors, state: ckpt.Tensors, metrics: dict[str, float]
    ) -> None:
        target = self.folder / "checkpoints" / f"{phase}-{step:08d}.safetensors"
        ckpt.save(target, self._checkpoint(phase, step, tensors, metrics), state)
        if self.config.eval_every and phase == "velocity":
            ckpt.name_last(target)
        written = [p for p in ckpt.checkpoints(self.folder) if p.name.startswith(phase)]
        for old in written[: -self.config.keep_checkpoints]:
            ckpt.state_path(old).unlink(missing_ok=True)
            old.unlink()

    def _checkpoint(self, phase: str, step: int, tensors: ckpt.Tensors, metrics: dict[str, float]) -> ckpt.Checkpoint:
        names = (self.domain0.name, self.domain1.name)
        generative = isinstance(self.domain0, Noise)
        for place, domain in enumerate((self.domain0, self.domain1)):
            if isinstance(domain, Domain):
                tensors = tensors | {f"samples.domain{place}": torch.from_numpy(self.samples(domain))}
        return ckpt.Checkpoint(self.config, phase, step, self.seed, names, tensors, metrics, generative)

    def is_best(self, judgement: Mapping[str, float]) -> bool:
        """Whether no judgement of this run was better; it is remembered, and saved with each checkpoint."""
        if not judgement or judgement["held_out_kid"] >= self.best.get("best_kid", math.inf):
            return False
        self.best = {"best_kid": judgement["held_out_kid"]}
        return True

    def save_best(self, phase: str, step: int, tensors: ckpt.Tensors, judgement: dict[str, float]) -> None:
        """Write checkpoints/best.safetensors, without the state that going on would need."""
        if ranks.first():
            ckpt.save(self.folder / "checkpoints" / ckpt.BEST, self._checkpoint(phase, step, tensors, judgement), {})
        ranks.barrier()

    def write_sheet(self, name: str, pixels: Uint8) -> None:
        """Write samples/NAME.png from uint8 [H, W, 3]."""
        with write_aside(self.folder / "samples" / f"{name}.png") as partial:
            Image.fromarray(pixels).save(partial, format="PNG")

    def tensor(self, images: Uint8) -> Tensor:
        """uint8 [B, H, W, 3] → float [B, 3, H, W] in [-1, 1] on the device."""
        return torch.from_numpy(to_float(images)).to(self.device, memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the velocity net and its pictures."""
        return torch.channels_last if self.config.channels_last else torch.contiguous_format
