"""What a training is asked to do, and what the folder of its run says that it was asked before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import CheckpointError, ConfigError, UsageError
from . import checkpoint as ckpt
from .config import RFPix2pixModel, alike, same_net, to_json, with_folders
from .noise import RANDOM
from .parts import option
from .reading import parse_json, read_json, validate

FREE_TO_CHANGE = frozenset(
    {
        "train_images",
        "max_epochs",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_checkpoints",
        "cache_megabytes",
        "frame_cache_gigabytes",
        "num_inference_steps",
        "train_minibatch_size",
        "channels_last",
        "compile",
        "fused_adamw",
    }
)
"""Config keys that may differ when a run is gone on with."""
NAMED = frozenset({"train_minibatch_size"})
"""Those of them that are a part of the names that runs are given: they were not free from the beginning."""
FREE_IN_PHASE_1 = frozenset({"saliency_max_steps", "saliency_accuracy_threshold"})
"""Those that may differ as long as the classifier is not finished: where its phase ends."""
OPEN_SINCE = frozenset({"adversarial_weight"})
"""Those that older runs spell out and configs leave open by now: open, they are as the run has them."""


@dataclass(frozen=True)
class Job:
    """What to train: everything that a command line says."""

    config: RFPix2pixModel
    inputs0: tuple[Path, ...] | Literal["random"]
    inputs1: tuple[Path, ...]
    folder: Path
    seed: int = 0
    device: str = "auto"
    start: Path | None = None
    """A checkpoint to go on from as long as `folder` has none of its own."""
    only: str | None = None
    """The one phase to run."""
    parts: Mapping[str, Path] = field(default_factory=dict)
    """By phase, another run or checkpoint to take its codec, classifier or first velocity from."""
    log: tuple[str, ...] = ()
    """Loggers besides metrics.jsonl: `tensorboard`, `wandb`."""


def default_run_id(
    config_name: str,
    config: RFPix2pixModel,
    inputs0: Sequence[Path] | Literal["random"],
    inputs1: Sequence[Path],
    seed: int,
    parts: Mapping[str, Path] | None = None,
) -> str:
    """A name that the same command always gives, so that running it again goes on."""
    ends = [x if isinstance(x, str) else x[0].resolve().stem for x in (inputs0, inputs1)]
    stems = [Path(config_name).stem, *ends]
    names = [stem.encode()[:60].decode(errors="ignore") for stem in stems]  # a folder's name has 255 bytes at most
    fixed = {k: v for k, v in to_json(config).items() if k not in FREE_TO_CHANGE - NAMED}
    taken = [{phase: str(path.resolve()) for phase, path in parts.items()}] if parts else []
    identity = json.dumps([fixed, where(inputs0), where(inputs1), seed, *taken])
    return "-".join([*names, hashlib.sha256(identity.encode()).hexdigest()[:6]])


def with_recorded_parts(job: Job) -> Job:
    """The job with the parts that its run was begun with: a command that goes on need not name them again."""
    recorded = {phase: Path(path) for phase, path in read_run(job.folder).get("parts", {}).items()}
    return replace(job, parts=recorded | dict(job.parts))


def describe(job: Job) -> dict[str, Any]:
    """What run.json says: the inputs, the seed, and what was taken from other runs."""
    about = {"domain0": where(job.inputs0), "domain1": where(job.inputs1), "seed": job.seed}
    return about | ({"parts": {k: str(p.resolve()) for k, p in job.parts.items()}} if job.parts else {})


def where(inputs: Sequence[Path] | Literal["random"]) -> list[str] | Literal["random"]:
    """Absolute paths; noise as the word for it, which no list of paths can be taken for."""
    return inputs if isinstance(inputs, str) else [str(p.resolve()) for p in inputs]


def read_run(folder: Path) -> dict[str, Any]:
    """run.json: which folders a run was trained on, its seed, its parts of other runs. Raises CheckpointError."""
    path = folder / "run.json"
    try:
        about = parse_json(path.read_text(encoding="utf-8"), str(path))
        zero, one = (
            RANDOM if about[name] == RANDOM and name == "domain0" else [str(p) for p in about[name]]
            for name in ("domain0", "domain1")
        )
        parts = {str(phase): str(path) for phase, path in dict(about.get("parts", {})).items()}
        if not parts.keys() <= set(ckpt.PHASES):
            raise ValueError(f"parts {[*parts]}")
        return {"domain0": zero, "domain1": one, "seed": int(about["seed"])} | ({"parts": parts} if parts else {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as e:
        raise CheckpointError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or repr(e)}") from e


def config_of(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's config as JSON values; within its run with the folders of its files, as config.json has them.

    Raises:
        CheckpointError, ConfigError: it, or its run's config.json, is damaged.
    """
    config, beside = to_json(ckpt.load(checkpoint).config), checkpoint.parent.parent / "config.json"
    if checkpoint.parent.name != "checkpoints" or not beside.is_file():
        return config
    known: dict[str, Any] = with_folders(config, read_json(beside))
    return known


def same_training(job: Job, resumed: ckpt.Checkpoint) -> None:
    """Raise UsageError where the run in the job's folder, which is at `resumed`, was trained otherwise than it says."""
    free = FREE_TO_CHANGE if resumed.finished("saliency") else FREE_TO_CHANGE | FREE_IN_PHASE_1
    path = job.folder / "config.json"
    trained = validate(read_json(path), str(path))
    old, new = to_json(trained), to_json(job.config)
    for values in (old, new):
        values["codec"].pop("train_minibatch_size", None)  # as free as the other phases'
    free |= {k for k in OPEN_SINCE if new[k] is None}
    free |= {"coupling", "structure_pairing"} if trained.pairs_by == job.config.pairs_by else set()
    if changed := [k for k in new if k not in free and new[k] != old.get(k)]:
        raise UsageError(
            f"{job.folder} was trained with another config ({', '.join(changed)} differ); give the config it has, "
            f"-c {path}, another --run-id, or start anew from its weights with --velocity-checkpoint {job.folder} "
            "--run-id NEW"
        )
    before, now = (about | about.get("parts", {}) for about in (read_run(job.folder), describe(job)))
    if changed := [k for k, v in before.items() if k != "parts" and v != now.get(k, v)]:
        was = "; ".join(f"{option(k) if k in ckpt.PHASES else k}: {before[k]}, now {now[k]}" for k in changed)
        raise UsageError(
            f"{job.folder} was trained otherwise ({was}); give what it was trained with, another --run-id, go on with "
            f"the new from where it is with --checkpoint {job.folder} --run-id NEW, or start "
            f"anew from its weights with --velocity-checkpoint {job.folder} --run-id NEW"
        )


def same_nets(resumed: ckpt.Checkpoint, config: RFPix2pixModel, where: str) -> None:
    """A checkpoint's weights go only into nets like its own. A finished classifier may teach any velocity net."""
    later = resumed.phase != "codec"
    other = [
        (config.codec.net != resumed.config.codec.net, "codec"),
        (
            resumed.phase == "velocity" and not same_net(config.velocity_net, resumed.config.velocity_net),
            "velocity_net",
        ),
        (
            later and config.saliency_loss_weight and not alike(config.saliency_net, resumed.config.saliency_net),
            "saliency_net",
        ),
    ]
    if wrong := next((name for differs, name in other if differs), None):
        raise UsageError(
            f"{where}: its {wrong} is not the config's; give the config that it has, or start anew without --checkpoint"
        )
    if config.saliency_loss_weight and resumed.phase == "velocity" and not resumed.part("saliency_net"):
        raise UsageError(f"{where}: holds no classifier; go on with --set saliency_loss_weight=0, or start anew")
