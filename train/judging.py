"""How good the averaged weights are on pictures that training never sees, while it trains (`eval_every`)."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..runtime.distances import kernel_distance
from ..runtime.errors import UsageError
from ..runtime.features import FeatureNet, apart, describe, in_units_of, onnx_features, outlines
from ..runtime.metrics import psnr
from ..runtime.pixels import Uint8, to_uint8
from . import ranks
from .codec import Codec, decode, encode
from .config import RFPix2pixModel
from .domains import Crop, Domain
from .noise import Noise
from .run import Run
from .velocity_net import VelocityNet, integrate_net

MOST = 256
"""Noises that are made into pictures for a judgement."""


def judge(run: Run, codec: Codec, ema: VelocityNet, step: int) -> dict[str, float]:
    """Figures of the held-out pictures, translated, at the steps where they are due; at others nothing.

    `held_out_kid` (×1000) against the held-out pictures of domain 1; `held_out_structure`, 1 − cosine of the edges on
    a 4×4 grid against the input; for paired data `held_out_psnr` against the pair's other half, dB.
    """
    config = run.config
    if run.held_out is None or (step % config.eval_every and step != config.steps):
        return {}
    return ranks.once(lambda: _figures(run, codec, ema))


def _figures(run: Run, codec: Codec, ema: VelocityNet) -> dict[str, float]:
    assert run.held_out is not None
    domain0, domain1 = run.held_out
    n, device = run.config.train_minibatch_size, run.device
    real = _squares(domain1)
    if isinstance(domain0, Noise):
        before, z0 = None, torch.from_numpy(domain0.samples(MOST))
    else:
        before = _squares(domain0)
        z0 = torch.cat([encode(codec, run.tensor(before[i : i + n]), n).cpu() for i in range(0, len(before), n)])
    out = []
    for z in z0.split(n):
        z1 = integrate_net(ema, z.to(device, memory_format=run.memory_format), run.config.num_inference_steps)
        out.append(to_uint8(decode(codec, z1, n).cpu().numpy()))
    made = np.concatenate(out)
    net = eval_net(run.config, device)
    x, y = describe(net, made).vectors, describe(net, real).vectors
    if net is None:
        y, x = in_units_of(y, x)
    figures = {"held_out_kid": 1000 * kernel_distance(x, y).value}
    if before is not None:
        figures["held_out_structure"] = apart(outlines(made), outlines(before))
        if run.config.pairs_by == "paired":
            figures["held_out_psnr"] = psnr(made, real)
    return figures


def _squares(domain: Domain) -> Uint8:
    return np.stack([domain.crop(i, Crop()) for i in range(len(domain))])


def eval_net(config: RFPix2pixModel, device: torch.device) -> FeatureNet | None:
    """The feature network that judges, if the config names one. Raises UsageError, BundleError."""
    if not (config.eval_every and config.eval_features):
        return None
    try:
        return _net(config.eval_features, device.type)
    except UsageError as e:
        raise UsageError(str(e).replace("--features", "eval_features")) from e


@cache
def _net(name: str, device: str) -> FeatureNet:
    from .feature_nets import load_features

    return onnx_features(Path(name).expanduser()) if name.lower().endswith(".onnx") else load_features(name, device)
