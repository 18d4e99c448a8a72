"""Phase 2: the velocity field learns to follow x1 − x0, looked at through h."""

import copy
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.pixels import Uint8, to_uint8
from ..runtime.sheet import sheet
from . import checkpoint as ckpt
from . import ranks
from .adversarial import BETAS, Critics
from .codec import Codec, decode, encode
from .codec_config import VAEConfig
from .config import RFPix2pixModel
from .coupling import Pair, batches, structure_pairs
from .distill import Ends, distill_losses, goes_forward, perceptual
from .judging import judge
from .loss import Features, Scales, losses, measure_scales, rough_noise
from .muon import optimizers
from .noise import Noise
from .pairing import couple
from .re_pairing import NEAR0, NEAR1, re_paired, saved, turns
from .run import Interrupted, Run
from .saliency import SaliencyNet
from .self_pairing import self_paired
from .sides import mirrored
from .velocity_net import VelocityNet, build_velocity_net, integrate_net

WHOLE_FROM = 0.75
"""The share of the training after which all pictures are whole, as in use, whatever `crop_share`."""


def train_velocity(run: Run, codec: Codec, saliency: SaliencyNet | None) -> None:
    """Train v on `train_images` pairs of what the codec makes of pictures; the averaged weights are exported.

    Raises:
        TrainingError: a loss is not finite.
        Interrupted: after saving.
    """
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
            ckpt.adopt(net, part.part("velocity_ema"))
    if resumed and resumed.phase == "velocity":
        ckpt.adopt(v, resumed.part("velocity_net" if run.resumed_state else "velocity_ema"))
        ckpt.adopt(ema, resumed.part("velocity_ema"))
        if run.resumed_state:
            others = {NEAR0, NEAR1, *ckpt.named(run.resumed_state, "critic")}
            moments = {k: m for k, m in run.resumed_state.items() if k not in others}
            by = "muon" if any(k.endswith("momentum") for k in moments) else "adamw"
            if critics:
                critics.restore(run.resumed_state)
            step, near = resumed.step, saved(run)
    plan = config.learning_rate, config.weight_decay, config.train_batch_size, config.fused_adamw
    training = optimizers(v, by, *plan)
    ckpt.restore_optimizers(moments, *training)
    if step >= config.steps:
        run.report.note(f"already trained: step {step} of {config.steps}")
        return
    if config.compile:
        v.compile()  # in place: weights keep their names, and the average is never compiled
    pairs, h, looks = couple(run, step), saliency.features if saliency else None, perceptual(run)
    for x0, x1, place in coupled(run, codec, ema, pairs, near, step):
        x0, x1, place = (x.to(run.device) for x in (x0, x1, place))
        z0 = x0 if isinstance(run.domain0, Noise) else encode(codec, x0, config.train_minibatch_size)
        z1 = encode(codec, x1, config.train_minibatch_size)
        place = F.adaptive_avg_pool2d(place, (z1.shape[2], z1.shape[3]))  # of latents, what each of them stands for
        z0, z1 = self_paired(config, ema, z0, z1, place, step)
        ends = Ends(goes_forward(run, pairs, step), looks) if config.distill_steps else None
        judged = critics if step >= config.critic_from else None
        if by != optimizer_of(config, step):
            by = optimizer_of(config, step)
            training = optimizers(v, by, *plan)
        figures = velocity_step(run, v, h, training, z0, z1, place, step, ends, judged)
        average(ema, v, config.ema_decay, step)
        step += 1
        judgement = judge(run, codec, ema, step)
        run.log("velocity", step, config.steps, figures | judgement, at_once=bool(judgement))
        if step % config.sample_every == 0 or step == config.steps:
            write_samples(run, codec, ema, step)
        due = run.stop.is_set() or step % config.checkpoint_every == 0 or step == config.steps
        best = run.is_best(judgement)
        if due or best:
            nets = {"codec_ema": codec, "velocity_net": v, "velocity_ema": ema}
            nets |= {"saliency_net": saliency} if saliency else {}
            tensors = {f"{name}.{k}": w for name, net in nets.items() for k, w in net.state_dict().items()}
            if best:
                run.save_best("velocity", step, tensors, judgement)
            if due:
                state = ckpt.optimizer_tensors(*training) | near | (critics.state() if critics else {})
                run.save("velocity", step, tensors, state, run.best)
        if run.stop.is_set() and step < config.steps:
            raise Interrupted


def optimizer_of(config: RFPix2pixModel, step: int) -> str:
    """What trains v in that step: once a critic teaches, whose verdicts soon change, AdamW without momentum."""
    return "adamw" if step >= config.critic_from else config.optimizer or "muon"


def coupled(
    run: Run, codec: Codec, ema: VelocityNet, pairs: Pair, near: ckpt.Tensors, step: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches x0, x1 of pictures, and where they lie in them, from `step` on.

    Now and then pairs are made anew, by the neighbours left in `near`.
    """
    config, noise = run.config, isinstance(run.domain0, Noise)
    mirror, why = ranks.once(lambda: mirrored(config, run.domain0, run.domain1))
    if why:
        run.report.note(why)
    cutmix = (0.0 if noise else 0.5) if config.cutmix is None else config.cutmix
    again, whole = [] if noise else turns(config, *map(len, run.pictures)), round(WHOLE_FROM * config.steps)
    while step < config.steps:
        if step in again:
            near |= ranks.once(partial(re_paired, run, codec, ema, step))
        if near:
            pairs = structure_pairs(near[NEAR1].numpy(), near[NEAR0].numpy(), run.seed)
        stop = min(turn for turn in (*again, whole, config.steps) if turn > step)
        share = config.cropped if step < whole else 0.0
        draws = run.domain0, run.domain1, pairs, config.train_batch_size, step, stop, run.seed, mirror
        yield from batches(*draws, crop_scale=config.crop_scale, crop_share=share, cutmix=cutmix)
        step = stop


def velocity_step(
    run: Run,
    v: VelocityNet,
    h: Features | None,
    training: list[torch.optim.Optimizer],
    x0: Tensor,
    x1: Tensor,
    place: Tensor,
    step: int,
    ends: Ends | None = None,
    critics: Critics | None = None,
) -> dict[str, Tensor | float]:
    """One update of v on coupled x0, x1 [B, C, H, W], pictures or latents, this rank's share; returns what to log.

    `place` [B, 2, H, W] says where in their pictures they lie.
    With `ends` v learns to reach the other end of each pair in the config's few steps; with `critics` to make of each
    picture, in as few, what they take for real; else the velocity between them.
    """
    config, size = run.config, run.config.train_batch_size
    v.train(critics is None)  # what a critic sees is made by the whole net, as it will be in use
    if config.dropout:  # drawn from torch's own generator, which resuming thus finds where it was
        torch.manual_seed(run.rng("velocity", step).initial_seed() + 1 + ranks.rank())
    x0, x1 = (x.to(run.device, memory_format=run.memory_format) for x in (x0, x1))
    t = sample_t(config, size, run.rng("velocity", step))[ranks.share(size)].to(run.device)
    n, z = config.train_minibatch_size, None
    if config.bridge_noise and not critics and not ends:  # of the whole batch: the same however it is split
        rng = torch.Generator(run.device).manual_seed(run.rng("bridge", step).initial_seed())
        z = rough_noise((size, *x0.shape[1:]), config.bridge_noise, rng)[ranks.share(size)]
    h, huber = None if critics else h, 0.0 if ends else config.flow_loss_huber or 0.0
    scales = Scales(*(s * (len(x0) / size) for s in measure_scales(h, x0, x1, t, n, huber)))
    ranks.add(scales)
    names: tuple[str, ...] = ("flow", "saliency")
    weights: tuple[float, ...] = (config.flow_loss_weight, config.saliency_loss_weight)
    if ends:
        names, weights = ("distance", "perceptual"), (1.0, config.distill_perceptual_weight)
    if critics:
        names, weights = ("distance", "told", "critic"), (1.0, config.adversarial_weight or 0.0, 1.0)
    total = torch.zeros(len(names), device=run.device)
    for i, (a0, a1, s, p) in enumerate(zip(x0.split(n), x1.split(n), t.split(n), place.split(n), strict=True)):
        there = partial(v, place=p)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            terms: tuple[Tensor, ...]
            if critics:
                terms = critics.losses(there, a0, a1, step, scales, huber)
            elif ends:
                terms = distill_losses(config, v, ends.part(i * n, len(a0)), a0, a1, p, scales)
            else:
                noise = None if z is None else z[i * n : i * n + len(a0)]
                terms = losses(there, h, a0, a1, s, scales, noise, huber)
            loss = torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()
        share = len(a0) / size
        (loss * share).backward()
        total += torch.stack(terms).detach() * share
    ranks.add([p.grad for p in v.parameters() if p.grad is not None] + [total])
    norm, rate = torch.nn.utils.clip_grad_norm_(v.parameters(), config.gradient_clip), learning_rate(config, step)
    for optimizer in training:
        for group in optimizer.param_groups:
            group["lr"] = rate
            if critics:
                group["betas"] = BETAS
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if critics:
        critics.update(rate)
    figures = dict(zip(names, total if weights[1] else total[:1], strict=False))  # a term without weight says nothing
    return figures | {"gradient": norm, "rate": rate}


def sample_t(config: RFPix2pixModel, n: int, rng: torch.Generator) -> Tensor:
    """Times [n] in [0, 1]: uniform, or σ(N(0, 1)) (Esser et al. 2024, section 3.1) with some uniform ones mixed in."""
    uniform = torch.rand(n, generator=rng)
    if config.timestep_sampling == "uniform":
        return uniform
    normal = torch.randn(n, generator=rng).sigmoid()
    return torch.where(torch.rand(n, generator=rng) < config.timestep_uniform_fraction, uniform, normal)


def learning_rate(config: RFPix2pixModel | VAEConfig, step: int) -> float:
    """The rate of one step: a linear rise over `warmup_images`, then constant or a half cosine down to 1 %.

    Where a critic takes over, the flow's rate has fallen by then, and its own falls from there to the end.
    """
    rate, first, last = config.learning_rate, 0, config.steps
    if isinstance(config, RFPix2pixModel) and step >= config.critic_from:
        rate, first = config.adversarial_learning_rate, config.critic_from
    elif isinstance(config, RFPix2pixModel):
        last = config.critic_from
    seen = (step + 1) * config.train_batch_size
    rise = min(1.0, seen / config.warmup_images) if config.warmup_images else 1.0
    if config.learning_rate_schedule == "constant":
        return rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
    return rate * rise * (0.01 + 0.99 * fall)


@torch.no_grad()
def average(ema: nn.Module, v: nn.Module, decay: float, step: int) -> None:
    """ema ← ema + (1 − d)·(v − ema), with d rising to `decay` so that the first weights are soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(v.parameters()), 1 - d)


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
