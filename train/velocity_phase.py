"""Phase 2: the velocity field learns to follow x1 − x0, looked at through h."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.pixels import Uint8, to_uint8
from ..runtime.sheet import sheet
from . import checkpoint as ckpt
from . import ranks
from .adversarial import Critics
from .codec import Codec, decode, encode
from .config import RFPix2pixModel
from .coupling import Pair, batches, structure_pairs
from .distill import Ends, goes_forward, perceptual
from .judging import judge
from .muon import optimizers
from .noise import Noise
from .pairing import couple
from .re_pairing import NEAR0, NEAR1, re_paired, saved, turns
from .run import Interrupted, Run
from .saliency import SaliencyNet
from .self_pairing import self_paired
from .sides import mirrored
from .velocity_net import VelocityNet, build_velocity_net, integrate_net
from .velocity_step import average, optimizer_of, velocity_step

WHOLE_FROM = 0.75
"""The share of the training after which all pictures are whole, as in use, whatever `crop_share`."""


@dataclass
class Learner:
    """What phase 2 changes from step to step."""

    v: VelocityNet
    ema: VelocityNet
    """v's averaged weights."""
    critics: Critics | None
    by: str
    """Which of `optimizer`'s kinds `training` is."""
    training: list[torch.optim.Optimizer]
    step: int
    near: ckpt.Tensors
    """The neighbours of pairs made anew, once they were."""

    def state(self) -> ckpt.Tensors:
        """What going on needs beside the nets."""
        return ckpt.optimizer_tensors(*self.training) | self.near | (self.critics.state() if self.critics else {})


def train_velocity(run: Run, codec: Codec, saliency: SaliencyNet | None) -> None:
    """Train v on `train_images` pairs of what the codec makes of pictures; the averaged weights are exported.

    Raises:
        TrainingError: a loss is not finite.
        Interrupted: after saving.
    """
    config, now = run.config, begun(run)
    v, ema = now.v, now.ema
    if now.step >= config.steps:
        run.report.note(f"already trained: step {now.step} of {config.steps}")
        return
    if config.compile:
        v.compile()  # in place: weights keep their names, and the average is never compiled
    pairs, h, looks = couple(run, now.step), saliency.features if saliency else None, perceptual(run)
    for pictures in coupled(run, codec, now, pairs):
        x0, x1, place = encoded(run, codec, *pictures)
        x0, x1 = self_paired(config, ema, x0, x1, place, now.step)
        ends = Ends(goes_forward(run, pairs, now.step), looks) if config.distill_steps else None
        judged = now.critics if now.step >= config.critic_from else None
        if now.by != optimizer_of(config, now.step):
            now.by = optimizer_of(config, now.step)
            now.training = built(config, v, now.by)
        figures = velocity_step(run, v, h, now.training, x0, x1, place, now.step, ends, judged)
        average(ema, v, config.ema_decay, now.step)
        now.step += 1
        judgement = judge(run, codec, ema, now.step)
        run.log("velocity", now.step, config.steps, figures | judgement, at_once=bool(judgement))
        if now.step % config.sample_every == 0 or now.step == config.steps:
            write_samples(run, codec, ema, now.step)
        keep(run, now, codec, saliency, judgement)
        if run.stop.is_set() and now.step < config.steps:
            raise Interrupted


def begun(run: Run) -> Learner:
    """The nets and optimizers as the run's checkpoint or another run's part left them; else new ones."""
    config, resumed = run.config, run.resumed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        v = build_velocity_net(config).to(run.device, memory_format=run.memory_format)  # type: ignore[call-overload]
    ema = copy.deepcopy(v).requires_grad_(False).eval()
    by, critics = optimizer_of(config, 0), None
    if config.adversarial_weight:
        critics = Critics(config.channels, config.num_inference_steps, run.seed).to(run.device, run.memory_format)
    step, near, moments = 0, ckpt.Tensors(), ckpt.Tensors()
    if part := run.parts.get("velocity"):
        for net in (v, ema):
            part.give(net, "velocity_ema")
    if resumed and resumed.phase == "velocity":
        resumed.give(v, "velocity_net" if run.resumed_state else "velocity_ema")
        resumed.give(ema, "velocity_ema")
        if run.resumed_state:
            others = {NEAR0, NEAR1, *ckpt.named(run.resumed_state, "critic")}
            moments = {k: m for k, m in run.resumed_state.items() if k not in others}
            by = "muon" if any(k.endswith("momentum") for k in moments) else "adamw"
            if critics:
                critics.restore(run.resumed_state)
            step, near = resumed.step, saved(run)
    training = built(config, v, by)
    ckpt.restore_optimizers(moments, *training)
    return Learner(v, ema, critics, by, training, step, near)


def built(config: RFPix2pixModel, v: VelocityNet, by: str) -> list[torch.optim.Optimizer]:
    """New optimizers of that kind for v."""
    return optimizers(v, by, config.learning_rate, config.weight_decay, config.train_batch_size, config.fused_adamw)


def encoded(run: Run, codec: Codec, x0: Tensor, x1: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch on the device, as what the codec makes of it; noise, which needs none, as it is."""
    x0, x1, place = (x.to(run.device) for x in (x0, x1, place))
    n = run.config.train_minibatch_size
    z0 = x0 if isinstance(run.domain0, Noise) else encode(codec, x0, n)
    z1 = encode(codec, x1, n)
    return z0, z1, F.adaptive_avg_pool2d(place, (z1.shape[2], z1.shape[3]))  # of latents, what each stands for


def keep(run: Run, now: Learner, codec: Codec, saliency: SaliencyNet | None, judgement: dict[str, float]) -> None:
    """Write the checkpoints that are due after this step: the best yet, and what to go on from."""
    due = run.stop.is_set() or now.step % run.config.checkpoint_every == 0 or now.step == run.config.steps
    best = run.is_best(judgement)
    if not due and not best:
        return
    nets: dict[str, nn.Module] = {"codec_ema": codec, "velocity_net": now.v, "velocity_ema": now.ema}
    nets |= {"saliency_net": saliency} if saliency else {}
    tensors = {f"{name}.{k}": w for name, net in nets.items() for k, w in net.state_dict().items()}
    if best:
        run.save_best("velocity", now.step, tensors, judgement)
    if due:
        run.save("velocity", now.step, tensors, now.state(), run.best)


def coupled(run: Run, codec: Codec, now: Learner, pairs: Pair) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches x0, x1 of pictures, and where they lie in them, from the present step on.

    Now and then pairs are made anew, by the neighbours left in `near`.
    """
    step = now.step
    config, noise = run.config, isinstance(run.domain0, Noise)
    mirror, why = ranks.once(lambda: mirrored(config, run.domain0, run.domain1))
    if why:
        run.report.note(why)
    cutmix = (0.0 if noise else 0.5) if config.cutmix is None else config.cutmix
    again, whole = [] if noise else turns(config, *map(len, run.pictures)), round(WHOLE_FROM * config.steps)
    while step < config.steps:
        if step in again:
            now.near |= ranks.once(partial(re_paired, run, codec, now.ema, step))
        if now.near:
            pairs = structure_pairs(now.near[NEAR1].numpy(), now.near[NEAR0].numpy(), run.seed)
        stop = min(turn for turn in (*again, whole, config.steps) if turn > step)
        share = config.cropped if step < whole else 0.0
        draws = run.domain0, run.domain1, pairs, config.train_batch_size, step, stop, run.seed, mirror
        yield from batches(
            *draws,
            crop_scale=config.crop_scale,
            crop_share=share,
            cutmix=cutmix,
            match_colours=config.matches_colours,
        )
        step = stop


def write_samples(run: Run, codec: Codec, ema: VelocityNet, step: int) -> None:
    """samples/step-N.png by the averaged weights: input | output for the run's fixed pictures, or fixed noises' own."""
    if not ranks.first():
        return
    if isinstance(run.domain0, Noise):
        z0 = torch.from_numpy(run.domain0.samples(run.config.sample_batch_size)).to(run.device)
        grid = sheet(sample(run, codec, ema, z0))
    else:
        pictures = run.samples(run.domain0)
        z0 = encode(codec, run.tensor(pictures), run.config.train_minibatch_size)
        grid = sheet(np.concatenate([pictures, sample(run, codec, ema, z0)], axis=2), columns=2)
    run.show("velocity", step, "step", grid)


def sample(run: Run, codec: Codec, ema: VelocityNet, z0: Tensor) -> Uint8:
    """What the codec made of pictures, or noise [N, C, H, W], moved to domain 1: uint8 [N, H, W, 3]."""
    z1 = integrate_net(ema, z0, run.config.num_inference_steps)
    return to_uint8(decode(codec, z1, run.config.train_minibatch_size).cpu().numpy())
