"""One training: its phases one after the other, and where to go on after an interruption."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..runtime.errors import TrainingError
from ..runtime.files import write_json, write_text
from ..runtime.network import memory_ran_out
from . import checkpoint as ckpt
from . import ranks
from .codec_config import VAEConfig
from .codec_phase import train_codec
from .config import to_json
from .job import Job, describe, with_recorded_parts
from .logs import open_logs
from .opening import open_run
from .run import Reporter, Run, Silence
from .saliency_phase import train_saliency
from .velocity_phase import train_velocity


def train(job: Job, report: Reporter) -> Path:
    """Train until done and return the run's folder; going on where a checkpoint left off.

    Raises:
        UsageError, CheckpointError, MediaError: before any work.
        TrainingError: the classifier is blind, a loss is not finite, or the device's memory is full.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    job = with_recorded_parts(job)
    run = open_run(job, report if ranks.first() else Silence())
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
        try:
            codec = train_codec(run)
            if job.only != "codec":
                net = train_saliency(run, codec) if run.config.saliency_loss_weight else None
                if job.only != "saliency":
                    train_velocity(run, codec, net)
        except RuntimeError as e:  # only CUDA's allocator has a kind of its own: not cuBLAS, cuDNN, nor Apple's MPS
            if not memory_ran_out(e):
                raise
            raise TrainingError(_too_large(run)) from e
    return run.folder


def _too_large(run: Run) -> str:
    """What to do where a device's memory does not hold a training."""
    codec = run.config.codec
    if isinstance(codec, VAEConfig) and not run.finished("codec"):
        key, now = "codec.train_minibatch_size", codec.train_minibatch_size
    else:
        key, now = "train_minibatch_size", run.config.train_minibatch_size
    known = ckpt.checkpoints(run.folder)
    return (
        f"{run.device}: its memory does not hold the training; give a smaller --set {key} (now {now}), by which it "
        "learns much the same" + (f", with --checkpoint {run.folder}, which goes on" if known else "")
    )


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
