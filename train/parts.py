"""Which phases a training runs, and the parts that it takes from other runs."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..runtime.errors import UsageError
from . import checkpoint as ckpt
from .config import RFPix2pixModel, alike, same_net

NAMES = {"codec": "codec", "saliency": "classifier", "velocity": "velocity net"}
"""What each phase trains."""
NETS = {"codec": "codec_ema", "saliency": "saliency_net", "velocity": "velocity_ema"}
"""Under which name a checkpoint holds it."""
Parts = dict[str, ckpt.Checkpoint]
"""By phase, another run's checkpoint that holds what the phase would train, or starts from."""


def phases(config: RFPix2pixModel) -> list[str]:
    """The phases that a config asks for, in their order."""
    asked = {"codec": bool(config.codec.latents), "saliency": bool(config.saliency_loss_weight), "velocity": True}
    return [phase for phase in ckpt.PHASES if asked[phase]]


def option(phase: str) -> str:
    """How the command line calls a phase's part."""
    return f"--{phase}-checkpoint"


def take_parts(
    config: RFPix2pixModel,
    given: Mapping[str, Path],
    recorded: Mapping[str, str],
    only: str | None,
    resumed: ckpt.Checkpoint | None,
) -> Parts:
    """Load the parts that the run does not hold itself by now, and check all that can be before any work.

    Args:
        given: runs or checkpoints by phase; `recorded` those that run.json names already.
        only: the one phase to run, or None for all.
        resumed: what the run goes on from. Each checkpoint holds the finished parts of the phases before it, so what
            was taken once is taken from there, whatever became of the other run.

    Raises:
        UsageError, CheckpointError: a part that is not finished, of another net, or that this training has no use for.
    """
    wanted, parts = phases(config), Parts()
    if only is not None and only not in wanted:
        why = "codec is Identity" if only == "codec" else "saliency_loss_weight is 0" if only == "saliency" else ""
        remedy = "; --set saliency_loss_weight=0.1 asks for a classifier" if only == "saliency" else ""
        raise UsageError(f"--only {only}: {why or 'no such phase'}; this config has {', '.join(wanted)}{remedy}")
    for phase, path in given.items():
        if phase not in wanted:
            raise UsageError(f"{option(phase)}: this config has no such phase, only {', '.join(wanted)}")
        if only == phase != "velocity":
            raise UsageError(
                f"{option(phase)} takes a finished {NAMES[phase]}, which leaves --only {only} nothing to train; to "
                f"train that one on, give --checkpoint {path} --run-id NEW"
            )
        begun = resumed is not None and ckpt.PHASES.index(resumed.phase) >= ckpt.PHASES.index(phase)
        if begun and phase not in recorded:
            raise UsageError(f"{option(phase)}: this run has trained its own {NAMES[phase]}; give another --run-id")
        if not begun:
            file = ckpt.find(path)
            parts[phase] = _checked(ckpt.load(file), config, phase, f"{option(phase)} {file}")
    _same_codec(parts, resumed, given)
    if only is not None:
        for phase in wanted[: wanted.index(only)]:
            if finished(phase, resumed, parts) is None:
                raise UsageError(
                    f"--only {only}: this run has no finished {NAMES[phase]} to work with; run --only {phase} first, "
                    f"or give {option(phase)}"
                )
    return parts


def finished(phase: str, resumed: ckpt.Checkpoint | None, parts: Parts) -> ckpt.Checkpoint | None:
    """The checkpoint that holds what `phase` trains, finished: this run's own, or another's."""
    return resumed if resumed and resumed.finished(phase) else parts.get(phase)


def _checked(checkpoint: ckpt.Checkpoint, config: RFPix2pixModel, phase: str, where: str) -> ckpt.Checkpoint:
    theirs = checkpoint.config
    if not checkpoint.part(NETS[phase]):
        raise UsageError(f"{where}: is from the {checkpoint.phase} phase and holds no {NAMES[phase]}")
    if phase != "velocity" and not checkpoint.finished(phase):
        raise UsageError(
            f"{where}: its {NAMES[phase]} is not finished (step {checkpoint.step:,} of its training); go on with that "
            "run first"
        )
    differ = {
        "codec": theirs.codec.net != config.codec.net,
        "saliency_net": phase == "saliency" and not alike(theirs.saliency_net, config.saliency_net),
        "velocity_net": phase == "velocity" and not same_net(config.velocity_net, theirs.velocity_net),
    }
    if wrong := [name for name, differs in differ.items() if differs]:
        raise UsageError(f"{where}: its {wrong[0]} is not the config's; give the config that it has")
    return checkpoint


def _same_codec(parts: Parts, resumed: ckpt.Checkpoint | None, given: Mapping[str, Path]) -> None:
    """Nets that work on latents work on those of one codec only."""
    codec = finished("codec", resumed, parts)
    for phase, part in parts.items():
        if phase == "codec" or not (theirs := part.part("codec_ema")):
            continue
        ours = codec.part("codec_ema") if codec else {}
        if theirs.keys() != ours.keys() or not all(torch.equal(theirs[k], ours[k]) for k in theirs):
            raise UsageError(
                f"{option(phase)} {given[phase]}: its {NAMES[phase]} works on the latents of the codec that it was "
                f"trained with, and this run's is another; give --codec-checkpoint {given[phase]} too"
            )
