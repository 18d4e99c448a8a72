"""One step of phase 2: pairs, times and points between them, v's error through h, one update."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from . import ranks
from .adversarial import BETAS, Critics
from .codec_config import VAEConfig
from .config import RFPix2pixModel
from .distill import Ends, distill_losses
from .loss import Features, Scales, losses, measure_scales, rough_noise
from .run import Run
from .velocity_net import VelocityNet


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
    config, size, n = run.config, run.config.train_batch_size, run.config.train_minibatch_size
    h, huber = None if critics else h, 0.0 if ends else config.flow_loss_huber or 0.0
    v.train(critics is None)  # what a critic sees is made by the whole net, as it will be in use
    if config.dropout:  # drawn from torch's own generator, which resuming thus finds where it was
        torch.manual_seed(run.rng("velocity", step).initial_seed() + 1 + ranks.rank())
    x0, x1 = (x.to(run.device, memory_format=run.memory_format) for x in (x0, x1))
    t = sample_t(config, size, run.rng("velocity", step))[ranks.share(size)].to(run.device)
    z = noise_between(run, x0, step) if config.bridge_noise and not critics and not ends else None
    scales = Scales(*(s * (len(x0) / size) for s in measure_scales(h, x0, x1, t, n, huber)))
    ranks.add(scales)
    scales = Scales(*(s.where(s > 0, torch.ones_like(s)) for s in scales))  # 0 where all pairs are of the same picture

    def terms(i: slice) -> tuple[Tensor, ...]:
        there, a0, a1 = partial(v, place=place[i]), x0[i], x1[i]
        if critics:
            return critics.losses(there, a0, a1, step, scales, huber)
        if ends:
            return distill_losses(config, v, ends.part(i), a0, a1, place[i], scales)
        return losses(there, h, a0, a1, t[i], scales, None if z is None else z[i], huber)

    names: tuple[str, ...] = ("flow", "saliency")
    weights: tuple[float, ...] = (config.flow_loss_weight, config.saliency_loss_weight)
    if ends:
        names, weights = ("distance", "perceptual"), (1.0, config.distill_perceptual_weight)
    if critics:
        names, weights = ("distance", "told", "critic"), (1.0, config.adversarial_weight or 0.0, 1.0)
    total = gradients(run, v, terms, weights, len(x0))
    figures = dict(zip(names, total if weights[1] else total[:1], strict=False))  # a term without weight says nothing
    return figures | update(config, v, training, step, critics)


def noise_between(run: Run, x0: Tensor, step: int) -> Tensor:
    """This rank's share of the noise on the paths, which is drawn for the whole batch: the same however it is split."""
    size = run.config.train_batch_size
    rng = torch.Generator(run.device).manual_seed(run.rng("bridge", step).initial_seed())
    return rough_noise((size, *x0.shape[1:]), run.config.bridge_noise, rng)[ranks.share(size)]


def gradients(
    run: Run, v: VelocityNet, terms: Callable[[slice], tuple[Tensor, ...]], weights: Sequence[float], pairs: int
) -> Tensor:
    """Leave the gradients of the weighted sum of `terms`, minibatch by minibatch; returns those terms' means, [N]."""
    config, n = run.config, run.config.train_minibatch_size
    total = torch.zeros(len(weights), device=run.device)
    for first in range(0, pairs, n):
        part = slice(first, min(first + n, pairs))
        with torch.autocast(run.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            found = terms(part)
            loss = torch.stack([w * term for w, term in zip(weights, found, strict=True)]).sum()
        share = (part.stop - part.start) / config.train_batch_size
        (loss * share).backward()
        total += torch.stack(found).detach() * share
    ranks.add([p.grad for p in v.parameters() if p.grad is not None] + [total])
    return total


def update(
    config: RFPix2pixModel, v: VelocityNet, training: list[torch.optim.Optimizer], step: int, critics: Critics | None
) -> dict[str, Tensor | float]:
    """One step of the optimizers, and of the critics' own, by the gradients left to them."""
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
    return {"gradient": norm, "rate": rate}


def optimizer_of(config: RFPix2pixModel, step: int) -> str:
    """What trains v in that step: once a critic teaches, whose verdicts soon change, AdamW without momentum."""
    return "adamw" if step >= config.critic_from else config.optimizer or "muon"


def sample_t(config: RFPix2pixModel, n: int, rng: torch.Generator) -> Tensor:
    """Times [n] in [0, 1]: uniform, or σ(N(0, 1)) (Esser et al. 2024, section 3.1) with some uniform ones mixed in."""
    uniform = torch.rand(n, generator=rng)
    if config.timestep_sampling == "uniform":
        return uniform
    normal = torch.randn(n, generator=rng).sigmoid()
    return torch.where(torch.rand(n, generator=rng) < config.timestep_uniform_fraction, uniform, normal)


def learning_rate(config: RFPix2pixModel | VAEConfig, step: int) -> float:
    """The rate of one step: a linear rise over `warmup_images`, or the training's first tenth if that is less, then
    constant or a half cosine down to 1 %.

    Where a critic takes over, the flow's rate has fallen by then, and its own falls from there to the end.
    """
    rate, first, last = config.learning_rate, 0, config.steps
    if isinstance(config, RFPix2pixModel) and step >= config.critic_from:
        rate, first = config.adversarial_learning_rate, config.critic_from
    elif isinstance(config, RFPix2pixModel):
        last = config.critic_from
    seen = (step + 1) * config.train_batch_size
    rise = min(1.0, seen / max(1, min(config.warmup_images, config.train_images // 10)))
    if config.learning_rate_schedule == "constant":
        return rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
    return rate * rise * (0.01 + 0.99 * fall)


@torch.no_grad()
def average(ema: nn.Module, v: nn.Module, decay: float, step: int) -> None:
    """ema ← ema + (1 − d)·(v − ema), with d rising to `decay` so that the first weights are soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(v.parameters()), 1 - d)
