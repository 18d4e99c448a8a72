"""One training: its folder, its domains, its phases, and where to go on after an interruption.

runs/ID/  config.json  run.json  metrics.jsonl  samples/*.png  checkpoints/*.safetensors
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..runtime.alignment import IDENTITY
from ..runtime.errors import TrainingError, UsageError
from ..runtime.files import write_aside, write_json, write_text
from ..runtime.pixels import Uint8, to_float
from . import checkpoint as ckpt
from . import ranks
from .alignment import find_alignment
from .codec_config import VAEConfig
from .config import RFPix2pixModel, to_json
from .coupling import least_crop
from .device import pick_device
from .domains import Crop, Domain, hold_out, open_domain, part
from .embedders import find_weights
from .frame_cache import GIGABYTE, FrameCache
from .job import Job, describe, read_run, same_nets, same_training, with_recorded_parts
from .logs import Log, check_loggers, open_logs
from .net_config import UNetConfig
from .noise import RANDOM, Noise, noise_domain
from .parts import Parts, finished, take_parts
from .sides import colourfulness

STREAMS = {"saliency": 0, "velocity": 1, "codec": 2, "bridge": 3}
"""Each phase's draws, and those of bridge_noise, numbered by age: a new one leaves the others' as they were."""
EPOCHS, MOST_EPOCHS = 12, 75
"""So often is a picture drawn, and so often at most for `STEPS` or by a critic: more is learned by heart."""
DROPOUT, MANY_EPOCHS = 0.3, 50
"""What is left out of the net in trainings of more epochs than that: shorter ones do not gain by it."""
HUBER = 0.01
"""c of the flow term for pairs of neighbours, some of which are wrong ("Partners that do not fit" in RESULTS.md)."""
SMALL, LOOKED_AT = 0.75, 16
"""Crops of a smaller side than that, of the short side, in most of so many pictures of each domain, are `small`."""
COLOURLESS, COLOURED = 0.02, 0.06
"""Colourfulness below which a domain has no colours, and from which it has: 0 is grey, 2 pure red, green or blue."""
STEPS, LEAST_STEPS = 1000, 500
"""So many a net needs to learn well, and to learn anything, however few the pictures."""
CRITIC_STEPS = 4000
"""So many a critic may take, however few the pictures: after 3,750 it was still getting better."""


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


def open_run(job: Job, report: Reporter, dry_run: bool = False) -> Run:
    """Read the domains and any checkpoint to go on from. Writes nothing but the frame cache; with `dry_run` not that.

    Raises:
        UsageError, CheckpointError, MediaError: before any work.
    """
    job = with_recorded_parts(job)
    device = pick_device(job.device)
    ranks.fits(job.config.train_batch_size)
    if isinstance(job.config.codec, VAEConfig):
        ranks.fits(job.config.codec.train_batch_size // 2)
    check_loggers(job.log)
    if job.config.mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise UsageError("mixed_precision bf16: this GPU does not compute in it; --set mixed_precision=no")
    own = ckpt.checkpoints(job.folder)
    start = own[-1] if own else job.start
    resumed = ckpt.load(start) if start else None
    state = ckpt.load_state(start) if start and ckpt.state_path(start).is_file() else {}
    if resumed and own and (job.folder / "config.json").is_file():
        same_training(job, resumed)  # a folder without checkpoints holds nothing that another config would spoil
    if resumed:
        same_nets(resumed, job.config, f"{start}")
    parts = take_parts(job.config, job.parts, read_run(job.folder).get("parts", {}), job.only, resumed)
    frames = FrameCache(job.config.frame_stride, int(job.config.frame_cache_gigabytes * GIGABYTE), dry_run)
    if isinstance(job.inputs0, str):
        domain0: Domain | Noise = noise_domain(job.config, job.seed)
        if Path(RANDOM).exists():
            report.note(f"domain 0 is noise; {Path(RANDOM).resolve()} is not read (it would be as ./{RANDOM})")
    else:
        domain0 = _open(job, job.inputs0, frames, report)
    domain1 = _open(job, job.inputs1, frames, report)
    held: tuple[Domain | Noise, Domain] | None = None
    if job.config.eval_every:
        domain0, domain1, held = set_aside(job.config, job.seed, domain0, domain1)
    weights = parts.get("velocity", resumed if resumed and resumed.phase == "velocity" else None)
    config = resolved(job.config, domain0, domain1, weights, report.note)
    for domain in (domain0, *(held or ())[:1]):
        if isinstance(domain, Domain):
            domain.align(config.moves)
    if resumed and not state:
        report.note(f"{start}: no training state beside it: starting from its weights, at step 0")
    found = [f"{len(d)} pictures in {d.name}" for d in (domain0, domain1) if isinstance(d, Domain)]
    ranks.agree(f"{job.folder}", [f"{start}", *found])
    run = Run(job.folder, config, job.seed, device, domain0, domain1, report, resumed, state, parts)
    run.held_out = held
    if resumed and state and "best_kid" in resumed.metrics:
        run.best = {"best_kid": resumed.metrics["best_kid"]}
    return run


def resolved(
    config: RFPix2pixModel,
    domain0: Domain | Noise,
    domain1: Domain,
    weights: ckpt.Checkpoint | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> RFPix2pixModel:
    """The config with what it leaves to the data.

    That keeps pairs from being learned by heart, `dropout` and fewer `train_images`, and from being averaged,
    `flow_loss_huber`: pairs of noise are never the same, and pairs by name are right, so of these only what the config
    says itself. And what a UNet leaves open: as the net has it that the first `weights` are of, else `coordinates`
    where crops are `small`, `input_gain` and `seamless`; likewise the `optimizer` and the `alignment`, which is else
    measured.
    """
    if config.adversarial_weight is None:
        config = config.model_copy(update=_critic(config, domain0, domain1, weights, note))
    free = isinstance(domain0, Noise) or config.pairs_by == "paired"
    n = max(len(d) for d in (domain0, domain1) if isinstance(d, Domain))
    batch = config.train_batch_size
    most = max(EPOCHS * n, min(STEPS * batch, MOST_EPOCHS * n), LEAST_STEPS * batch)
    judged = max(MOST_EPOCHS * n, CRITIC_STEPS * batch)
    if config.max_epochs is not None:
        most = judged = config.max_epochs * n
    elif free:
        most = judged = config.train_images
    changes: dict[str, Any] = {}
    if config.adversarial_weight:
        asked = round(config.adversarial_start * config.train_images)
        flow = min(asked, most)
        most = flow + min(config.train_images - flow, judged)
        if (flow, most) != (asked, config.train_images):
            changes["adversarial_start"] = flow / most
    else:
        flow = min(config.train_images, most)
    if config.optimizer is None:
        changes["optimizer"] = weights.config.optimizer if weights else "muon"
    if config.alignment is None:
        found, why = weights.config.aligned_by if weights else IDENTITY, ""
        if not weights and not isinstance(domain0, Noise) and config.pairs_by == "structure":
            found, why = ranks.once(partial(find_alignment, domain0, domain1))
        changes["alignment"] = [*found]
        if why:
            note(why)
    if most < config.train_images:
        changes |= {"train_images": most, "warmup_images": min(config.warmup_images, most // 10)}
    if config.dropout is None:
        changes["dropout"] = DROPOUT if flow > MANY_EPOCHS * n and not free else 0.0
    if config.flow_loss_huber is None:
        squares = free or config.pairs_by != "structure" or config.codec.latents
        changes["flow_loss_huber"] = 0.0 if squares else HUBER
    net = config.velocity_net
    if isinstance(net, UNetConfig):
        theirs = weights and weights.config.velocity_net
        if not isinstance(theirs, UNetConfig):
            seen = net.coordinates is None and small(config, domain0, domain1)
            theirs = UNetConfig(coordinates=seen, input_gain="matrix", seamless=True)
        changes["velocity_net"] = net.settled(theirs)
    return config.model_copy(update=changes)


def _critic(
    config: RFPix2pixModel,
    domain0: Domain | Noise,
    domain1: Domain,
    weights: ckpt.Checkpoint | None,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """What to change where the config leaves open whether a critic ends the training; as it was where it goes on."""
    if weights:
        before = weights.config.adversarial_weight or 0.0
        return {"adversarial_weight": before} | (
            {"num_inference_steps": weights.config.num_inference_steps} if before else {}
        )
    if isinstance(domain0, Noise) or config.pairs_by != "structure" or config.codec.latents or config.max_size < 8:
        return {"adversarial_weight": 0.0}
    if not (colourfulness(domain0) < COLOURLESS and colourfulness(domain1) >= COLOURED):
        return {"adversarial_weight": 0.0}
    note("a critic ends the training, and one step will do: domain 0 has no colours, and pairs would average them")
    return {"adversarial_weight": 1.0, "num_inference_steps": 1}


def small(config: RFPix2pixModel, domain0: Domain | Noise, domain1: Domain) -> bool:
    """Whether the smallest crops of most pictures show so little of them that they do not say where they are."""
    if not config.cropped:
        return False
    domains = [d for d in (domain0, domain1) if isinstance(d, Domain)]
    looked_at = [[d.read(i * len(d) // LOOKED_AT).size for i in range(LOOKED_AT)] for d in domains]
    least = [least_crop(config.crop_scale, config.max_size, *sizes) for sizes in zip(*looked_at, strict=True)]
    return float(np.median(least)) < SMALL


def set_aside(
    config: RFPix2pixModel, seed: int, domain0: Domain | Noise, domain1: Domain
) -> tuple[Domain | Noise, Domain, tuple[Domain | Noise, Domain]]:
    """Both domains without the pictures that judge, and those. Of paired domains, whole pairs.

    Raises:
        UsageError: too few pictures.
    """
    kept: list[Domain | Noise] = []
    held: list[Domain | Noise] = []
    for place, domain in enumerate((domain0, domain1)):
        if isinstance(domain, Noise):
            kept.append(domain)
            held.append(domain)
            continue
        if len(domain) < 30:
            raise UsageError(
                f"{domain.name}: {len(domain)} pictures; eval_every holds a tenth of them out, and needs 30 or more; "
                "or set it to 0"
            )
        learn, judge = hold_out(domain, [seed, 6] if config.pairs_by == "paired" else [seed, 6, place], "eval_every")
        kept.append(part(domain, learn))
        held.append(part(domain, judge))
    assert isinstance(kept[1], Domain) and isinstance(held[1], Domain)
    return kept[0], kept[1], (held[0], held[1])


def _open(job: Job, inputs: Sequence[Path], frames: FrameCache, report: Reporter) -> Domain:
    with ranks.in_turn():  # rank 0 fills the frame cache
        domain = open_domain(inputs, job.config.max_size, job.config.cache_megabytes << 20, report.note, frames)
    for problem in domain.skipped:
        report.note(f"skipped {problem}")
    return domain


def train(job: Job, report: Reporter) -> Path:
    """Train until done and return the run's folder; going on where a checkpoint left off.

    Raises:
        UsageError, CheckpointError, MediaError: before any work.
        TrainingError: the classifier is blind, or a loss is not finite.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    from .codec_phase import train_codec
    from .saliency_phase import train_saliency
    from .velocity_phase import train_velocity

    job = with_recorded_parts(job)
    run = open_run(job, report if ranks.first() else Silence())
    if run.config.pairs_by == "structure":
        find_weights(run.config)
    if ranks.first():
        report.note(f"run: {run.folder}")
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.config.train_images < job.config.train_images:
            report.note(
                f"{run.config.train_images:,} pairs in place of {job.config.train_images:,}, since more of so few "
                "pictures would be learned by heart; --set max_epochs=N draws each N times"
            )
        write_json(run.folder / "config.json", to_json(job.config))
        write_json(run.folder / "run.json", describe(job))
        _forget_metrics_after(run)
        run.logs = open_logs(job.log, run.folder, to_json(run.config), _last(run))
    with _signals(run.asked), ExitStack() as ending:
        for log in run.logs:
            ending.callback(log.close)
        if job.only and job.only != "velocity" and run.finished(job.only):
            run.report.note(f"already trained: the {job.only} phase")
        codec = train_codec(run)
        if job.only != "codec":
            net = train_saliency(run, codec) if run.config.saliency_loss_weight else None
            if job.only != "saliency":
                train_velocity(run, codec, net)
    return run.folder


def _last(run: Run) -> tuple[str, int]:
    """The phase and step that a training goes on after."""
    return (run.resumed.phase, run.resumed.step) if run.resumed and run.resumed_state else ("", 0)


def _forget_metrics_after(run: Run) -> None:
    """Drop the lines of steps that an interruption undid, so that metrics.jsonl tells one story."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return
    last = (ckpt.PHASES.index(run.resumed.phase), run.resumed.step) if run.resumed and run.resumed_state else (-1, -1)
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            if (ckpt.PHASES.index(entry["phase"]), entry["step"]) <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # cut off in the middle of writing
    write_text(path, "".join(line + "\n" for line in kept))


@contextmanager
def _signals(asked: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second one stops at once.

    Not with several ranks: the launcher may send a second one itself, and kills after 30 seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and ranks.count() == 1:
            raise KeyboardInterrupt
        asked.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
