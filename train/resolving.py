"""What a config leaves to the data, decided by looking at it: lengths, the critic, the net's open points."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..runtime.alignment import IDENTITY
from . import checkpoint as ckpt
from . import ranks
from .alignment import find_alignment
from .codec_config import VAEConfig
from .config import RFPix2pixModel
from .coupling import least_crop
from .domains import Domain
from .net_config import UNetConfig
from .noise import Noise
from .sides import colourfulness, same_colours
from .velocity_net import build_velocity_net, parameters

EPOCHS, MOST_EPOCHS = 12, 75
"""So often is a picture drawn, and so often at most for `STEPS` or by a critic: more is learned by heart."""
DROPOUT, MANY_EPOCHS, LARGE_NET = 0.3, 50, 4_000_000
"""What is left out of a UNet of more parameters than that, or of any net in more epochs: others do not gain by it."""
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
    where crops are `small`, `input_gain` and `seamless`; likewise the `optimizer`, and the `alignment` and
    `match_colours`, which are else measured; noise and pairs by name are taken as they lie. A net that learns to
    arrive in `distill_steps` is sampled, judged and exported for as many.
    """
    if config.adversarial_weight is None:
        config = config.model_copy(update=_critic(config, domain0, domain1, weights, note))
    free = isinstance(domain0, Noise) or config.pairs_by == "paired"
    n = max(len(d) for d in (domain0, domain1) if isinstance(d, Domain))
    changes, flow = _lengths(config, n, free)
    if config.distill_steps:
        changes["num_inference_steps"] = config.distill_steps
    if config.optimizer is None:
        changes["optimizer"] = weights.config.optimizer if weights else "muon"
    if config.alignment is None:
        found, why = weights.config.aligned_by if weights and not free else IDENTITY, ""
        if not weights and not isinstance(domain0, Noise) and config.pairs_by == "structure":
            found, why = ranks.once(partial(find_alignment, domain0, domain1))
        changes["alignment"] = [*found]
        if why:
            note(why)
    if config.match_colours is None and config.pairs_by == "structure":
        as_they_lie = tuple(changes.get("alignment", config.aligned_by)) == IDENTITY
        changes["match_colours"] = as_they_lie and _matched(config, domain0, domain1, weights, note)
    if config.flow_loss_huber is None:
        agreed = changes.get("match_colours", config.match_colours)
        squares = free or config.pairs_by != "structure" or config.codec.latents or agreed
        changes["flow_loss_huber"] = 0.0 if squares else HUBER
    net = config.velocity_net
    if isinstance(net, UNetConfig):
        theirs = weights and weights.config.velocity_net
        if not isinstance(theirs, UNetConfig):
            seen = net.coordinates is None and small(config, domain0, domain1)
            theirs = UNetConfig(coordinates=seen, input_gain="matrix", seamless=True)
        changes["velocity_net"] = net.settled(theirs)
    config = config.model_copy(update=changes)
    if config.dropout is None:
        by_heart = not free and (flow > MANY_EPOCHS * n or _large(config))
        config = config.model_copy(update={"dropout": DROPOUT if by_heart else 0.0})
    return config


def _large(config: RFPix2pixModel) -> bool:
    with torch.device("meta"):
        return isinstance(config.velocity_net, UNetConfig) and parameters(build_velocity_net(config)) > LARGE_NET


def idle(config: RFPix2pixModel) -> list[str]:
    """What the config says to no effect, a line each."""
    codec, steps = config.codec, config.distill_steps
    vae = isinstance(codec, VAEConfig) and codec.perceptual_weights and not codec.perceptual_weight
    by_eye = config.distill_perceptual_weights and not config.distill_perceptual_weight
    found = {
        "match_colours: pairs are not of neighbours": config.match_colours and not config.matches_colours,
        "bridge_noise: there is no path between pairs with distill_steps": steps and config.bridge_noise,
        "flow_loss_huber: distill_loss is the distance with distill_steps": steps and config.flow_loss_huber,
        "distill_perceptual_weight: distill_steps is null": config.distill_perceptual_weight and not steps,
        "distill_perceptual_weights: distill_perceptual_weight is 0": by_eye,
        "codec.perceptual_weights: codec.perceptual_weight is 0": vae,
        "eval_features: eval_every is 0": config.eval_features and not config.eval_every,
    }
    return [f"without effect here, {why}" for why, so in found.items() if so]


def _lengths(config: RFPix2pixModel, n: int, free: bool) -> tuple[dict[str, Any], int]:
    """What to change so that n pictures are not drawn too often, and the pairs that come before any critic."""
    batch, asked, flow = config.train_batch_size, config.train_images, config.train_images
    most = max(EPOCHS * n, min(STEPS * batch, MOST_EPOCHS * n), LEAST_STEPS * batch)
    judged = max(MOST_EPOCHS * n, CRITIC_STEPS * batch)
    if config.max_epochs is not None:
        most = judged = config.max_epochs * n
    elif free:
        most = judged = asked
    changes: dict[str, Any] = {}
    if config.adversarial_weight:
        before = round(config.adversarial_start * asked)
        flow = min(before, most)
        most = flow + min(asked - flow, judged)
        if (flow, most) != (before, asked):
            changes["adversarial_start"] = flow / most
    if most < asked:
        changes["train_images"] = most
    return changes, min(flow, most)


def _critic(
    config: RFPix2pixModel,
    domain0: Domain | Noise,
    domain1: Domain,
    weights: ckpt.Checkpoint | None,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """What to change where the config leaves open whether a critic ends the training; as it was where it goes on."""
    if isinstance(domain0, Noise) or config.distill_steps or config.latent_shape[-1] < 8 or config.match_colours:
        return {"adversarial_weight": 0.0}  # as its check allows no other there
    if weights:
        before = weights.config.adversarial_weight or 0.0
        return {"adversarial_weight": before} | (
            {"num_inference_steps": weights.config.num_inference_steps} if before else {}
        )
    if domain0.undecoded or config.pairs_by != "structure" or config.codec.latents:  # black, in a plan
        return {"adversarial_weight": 0.0}
    if not (colourfulness(domain0) < COLOURLESS and colourfulness(domain1) >= COLOURED):
        return {"adversarial_weight": 0.0}
    note("a critic ends the training, and one step will do: domain 0 has no colours, and pairs would average them")
    return {"adversarial_weight": 1.0, "num_inference_steps": 1}


def _matched(
    config: RFPix2pixModel,
    domain0: Domain | Noise,
    domain1: Domain,
    weights: ckpt.Checkpoint | None,
    note: Callable[[str], None],
) -> bool:
    """Whether neighbours are to take each other's colours; as it was where a training goes on."""
    if isinstance(domain0, Noise) or config.adversarial_weight:
        return False
    if weights:
        return bool(weights.config.match_colours)
    if domain0.undecoded or domain1.undecoded or not ranks.once(partial(same_colours, domain0, domain1)):
        return False
    note("match_colours: neighbours take each other's colours, for the domains' own differ by no more than chance")
    return True


def small(config: RFPix2pixModel, domain0: Domain | Noise, domain1: Domain) -> bool:
    """Whether the smallest crops of most pictures show so little of them that they do not say where they are."""
    if not config.cropped:
        return False
    domains = [d for d in (domain0, domain1) if isinstance(d, Domain)]
    looked_at = [[d.read(i * len(d) // LOOKED_AT).size for i in range(LOOKED_AT)] for d in domains]
    least = [least_crop(config.crop_scale, config.max_size, *sizes) for sizes in zip(*looked_at, strict=True)]
    return float(np.median(least)) < SMALL
