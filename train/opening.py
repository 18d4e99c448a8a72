"""A job becomes a run: its domains are read, its config resolved, its checkpoint loaded. Nothing is trained yet."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.errors import UsageError
from . import checkpoint as ckpt
from . import ranks
from .codec_config import VAEConfig
from .config import RFPix2pixModel
from .device import has_forward_mode, pick_device
from .domains import Domain, hold_out, open_domain, part, whole_pairs
from .embedders import find_weights
from .feature_nets import NAMES
from .frame_cache import FrameCache
from .job import Job, read_run, same_nets, same_training, with_recorded_parts
from .judging import eval_net
from .logs import check_loggers
from .noise import RANDOM, Noise, noise_domain
from .pairing import same_names
from .parts import take_parts
from .resolving import idle, resolved
from .run import Reporter, Run


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
    if job.config.saliency_loss_weight and job.only in (None, "velocity") and not has_forward_mode(device):
        raise UsageError(
            f"saliency_loss_weight: torch {torch.__version__} lacks on {device} the forward-mode derivatives that it "
            "needs; --device cpu, or --set saliency_loss_weight=0"
        )
    if not dry_run or job.config.eval_features not in NAMES:  # of which weights may have to be downloaded
        ranks.once(lambda: bool(eval_net(job.config, device)))
    if job.config.pairs_by == "structure" and (not dry_run or job.config.structure_weights):
        find_weights(job.config)
    for line in idle(job.config):
        report.note(line)
    own = ckpt.checkpoints(job.folder)
    start = own[-1] if own else job.start
    resumed = ckpt.load(start) if start else None
    state = ckpt.load_state(start) if start and ckpt.state_path(start).is_file() else {}
    if resumed and own and (job.folder / "config.json").is_file():
        same_training(job, resumed)  # a folder without checkpoints holds nothing that another config would spoil
    if resumed:
        same_nets(resumed, job.config, f"{start}")
    parts = take_parts(job.config, job.parts, read_run(job.folder).get("parts", {}), job.only, resumed)
    frames = FrameCache.of(job.config, dry_run)
    if isinstance(job.inputs0, str):
        domain0: Domain | Noise = noise_domain(job.config, job.seed)
        if Path(RANDOM).exists():
            report.note(f"domain 0 is noise; {Path(RANDOM).resolve()} is not read (it would be as ./{RANDOM})")
    else:
        domain0 = _open(job, job.inputs0, replace(frames, others=job.inputs1), report)
        if both := {path.resolve() for path in job.inputs0} & {path.resolve() for path in job.inputs1}:
            report.note(f"{', '.join(map(str, sorted(both)))}: is in both domains, which then differ by nothing there")
    domain1 = _open(job, job.inputs1, frames, report)
    if job.config.pairs_by == "paired" and isinstance(domain0, Domain):
        if not dry_run:
            domain0, domain1 = whole_pairs(domain0, domain1)
        if job.only in (None, "velocity"):
            same_names(domain0, domain1)
    held: tuple[Domain | Noise, Domain] | None = None
    if job.config.eval_every:
        domain0, domain1, held = set_aside(job.config, job.seed, domain0, domain1)
    weights = parts.get("velocity", resumed if resumed and resumed.phase == "velocity" else None)
    config = resolved(job.config, domain0, domain1, weights, report.note)
    for domain in (domain0, *(held or ())[:1]):
        if isinstance(domain, Domain):
            domain.align(config.moves)
    if resumed and state and not own and resumed.phase == "velocity" and resumed.step >= config.steps:
        raise UsageError(
            f"{start}: is at the end of its training (step {resumed.step:,} of {config.steps:,}); raise train_images, "
            f"or begin anew from its weights with --velocity-checkpoint {start}"
        )
    if resumed and not state:
        report.note(f"{start}: no training state beside it: starting from its weights, at step 0")
    found = [f"{len(d)} pictures in {d.name}" for d in (domain0, domain1) if isinstance(d, Domain)]
    ranks.agree(f"{job.folder}", [f"{start}", *found])
    run = Run(job.folder, config, job.seed, device, domain0, domain1, report, resumed, state, parts)
    run.held_out = held
    if resumed and state and "best_kid" in resumed.metrics:
        run.best = {"best_kid": resumed.metrics["best_kid"]}
    return run


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
    domain.on_bad = lambda problem: report.note(f"skipped {problem}")
    return domain
