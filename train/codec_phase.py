"""Phase 0: an autoencoder learns to put pictures of both domains into latents and back."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..runtime.metrics import psnr
from ..runtime.pixels import Uint8, to_uint8
from ..runtime.sheet import sheet
from . import checkpoint as ckpt
from . import ranks
from .augment import augment, lots
from .codec import VAE, Codec, Identity, codec_losses, decode, encode, normalize
from .codec_config import IdentityConfig, VAEConfig
from .coupling import batches, noise_pairs, random_pairs
from .domains import Crop, Domain, Indices, hold_out
from .noise import Noise
from .perceptual import Perceptual, build_perceptual
from .run import Interrupted, Run
from .velocity_step import average, learning_rate

JUDGED = 32
"""Held-out pictures per domain that are reconstructed to judge the codec, at most."""
MEASURED = 256
"""Pictures per domain over which the latents' mean and deviation are measured, at most."""


def train_codec(run: Run) -> Codec:
    """Train the codec on `codec.train_images` pictures, or take it from the checkpoint that holds it.

    The averaged weights are what comes back, z normalised to mean 0 and deviation 1 in each channel.

    Raises:
        UsageError: a domain of fewer than two pictures: none could be held out; or the perceptual weights do not fit.
        TrainingError: a loss is not finite.
        Interrupted: after saving.
    """
    config, resumed = run.config.codec, run.resumed
    if isinstance(config, IdentityConfig):
        return Identity()
    if source := run.finished("codec"):
        done = source.codec()
        done.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return done
    perceptual = build_perceptual(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        net = VAE(config)
    net.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(net).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=run.config.weight_decay, fused=run.config.fused_adamw
    )
    step, reached = 0, 0.0
    if resumed:
        resumed.give(net, "codec_net" if run.resumed_state else "codec_ema")
        resumed.give(ema, "codec_ema")
        if run.resumed_state:
            ckpt.restore_optimizers(run.resumed_state, optimizer)
            step, reached = resumed.step, resumed.metrics.get("psnr", 0.0)

    def save(done: bool) -> None:
        nets = {"codec_net": net, "codec_ema": ema}
        tensors = {f"{name}.{k}": w for name, n in nets.items() for k, w in n.state_dict().items()}
        metrics = {"psnr": reached, "done": float(done)}
        run.save("codec", step, tensors, ckpt.optimizer_tensors(optimizer), metrics)

    needs = "the codec needs at least 2 in each domain, one of them to judge it by"
    domains = [d for d in (run.domain0, run.domain1) if isinstance(d, Domain)]
    learn, judge = zip(*(hold_out(d, [run.seed, 4, i], needs) for i, d in enumerate(domains)), strict=True)
    judged = np.concatenate([crops(d, indices[:JUDGED]) for d, indices in zip(domains, judge, strict=True)])
    for x in picture_batches(run, learn, config, step):
        figures = codec_step(run, net, perceptual, optimizer, x, step)
        average(ema, net, config.ema_decay, step)
        step += 1
        if step % run.config.sample_every == 0 or step == config.steps:
            reached = ranks.once(lambda: psnr(judged, reconstruct(run, ema, judged)))
            write_samples(run, ema, step)
        run.log("codec", step, config.steps, figures | {"psnr": reached})
        if step == config.steps:
            break
        if run.stop.is_set() or step % run.config.checkpoint_every == 0:
            save(done=False)
        if run.stop.is_set():
            raise Interrupted
    measured = np.concatenate([crops(d, indices[:MEASURED]) for d, indices in zip(domains, learn, strict=True)])
    normalize(ema, *ranks.once(lambda: measure(run, ema, measured)))
    run.report.note(f"codec: held-out pictures come back at {reached:.1f} dB after {step} steps")
    save(done=True)
    if run.stop.is_set():
        raise Interrupted
    return ema


def picture_batches(run: Run, learn: Sequence[Indices], config: VAEConfig, start: int) -> Iterator[Tensor]:
    """Batches from `start` on of the pictures to learn from [B, 3, H, W]: both domains in turn, or domain 1 alone.

    Of several ranks each gets its share of every batch.
    """
    if isinstance(run.domain0, Noise):
        draw, size = noise_pairs(len(learn[0]), run.seed), config.train_batch_size
    else:
        draw, size = random_pairs(len(learn[0]), len(learn[1]), run.seed), config.train_batch_size // 2

    def pair(k: int) -> tuple[int, int]:
        i, j = draw(k)
        return i if isinstance(run.domain0, Noise) else int(learn[0][i]), int(learn[-1][j])

    for x0, x1, _ in batches(run.domain0, run.domain1, pair, size, start, config.steps, run.seed, flip=False):
        yield x1 if isinstance(run.domain0, Noise) else torch.stack([x0, x1], dim=1).flatten(0, 1)


def codec_step(
    run: Run, net: VAE, perceptual: Perceptual | None, optimizer: torch.optim.Optimizer, x: Tensor, step: int
) -> dict[str, Tensor | float]:
    """One update on pictures x [B, 3, H, W], augmented one by one; gradients summed over minibatches and ranks.

    x is this rank's share of the batch; what is drawn is drawn for the whole batch.
    """
    config, rng, size = net.config, run.rng("codec", step), net.config.train_batch_size
    each = 1 if isinstance(run.domain0, Noise) else 2  # pictures that stay together
    pairs = ranks.share(size // each)
    mine = slice(each * pairs.start, each * pairs.stop)
    x = augment(x, config.augmentations, lots(size, rng)[mine]).to(run.device, memory_format=torch.channels_last)
    noise = torch.randn(size, *run.config.latent_shape, generator=rng)[mine].to(run.device)
    if perceptual:
        perceptual.to(run.device)
    n = config.train_minibatch_size
    weights = torch.tensor([config.l1_weight, config.kl_weight, config.perceptual_weight], device=run.device)
    total = torch.zeros(3, device=run.device)
    for part, part_noise in zip(x.split(n), noise.split(n), strict=True):
        terms = codec_losses(net, perceptual, part, part_noise) * (len(part) / size)
        (weights * terms).sum().backward()
        total += terms.detach()
    ranks.add([p.grad for p in net.parameters() if p.grad is not None] + [total])
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), run.config.gradient_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    l1, kl, difference = total
    figures = {"l1": l1, "kl": kl, "gradient": norm, "rate": learning_rate(config, step)}
    return figures | ({"perceptual": difference} if perceptual else {})


def crops(domain: Domain, indices: Indices) -> Uint8:
    """The pictures' centre crops: uint8 [N, size, size, 3]."""
    return np.stack([domain.crop(int(i), Crop()) for i in indices])


def reconstruct(run: Run, codec: VAE, pictures: Uint8) -> Uint8:
    """Pictures uint8 [N, H, W, 3] through the codec and back."""
    n = codec.config.train_minibatch_size
    return to_uint8(decode(codec, encode(codec, run.tensor(pictures), n), n).cpu().numpy())


def measure(run: Run, codec: VAE, pictures: Uint8) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of z over pictures uint8 [N, H, W, 3]: [C] each."""
    z = encode(codec, run.tensor(pictures), codec.config.train_minibatch_size).cpu().double()
    return z.mean(dim=(0, 2, 3)).float(), z.std(dim=(0, 2, 3), correction=0).float()


def write_samples(run: Run, codec: VAE, step: int) -> None:
    """samples/codec-N.png: the run's fixed pictures beside what the codec makes of them."""
    if not ranks.first():
        return
    pictures = np.concatenate([run.samples(d) for d in (run.domain0, run.domain1) if isinstance(d, Domain)])
    pairs = np.concatenate([pictures, reconstruct(run, codec, pictures)], axis=2)
    run.show("codec", step, "codec", sheet(pairs, columns=2))
