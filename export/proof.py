"""The proof of an exported graph: the runtime's own code against PyTorch, over the whole integration."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..runtime.bundle import Bundle
from ..runtime.codec import open_codec
from ..runtime.errors import ExportError
from ..runtime.euler import integrate
from ..runtime.pixels import Float, to_uint8
from ..runtime.velocity import Velocity
from ..train.codec import Codec
from ..train.velocity_net import VelocityNet

FLOOR_PSNR = 80.0
"""dB, for a float32 graph, over the range [-1, 1]."""
FLOOR_LEVELS = 1
"""Grey levels by which a float32 graph's pictures may differ anywhere."""


@dataclass(frozen=True)
class Parity:
    """The worst of all cases: PSNR in dB between the final states, and the largest difference in grey levels."""

    psnr: float
    grey_levels: int
    steps: int
    cases: int


def prove(net: VelocityNet, codec: Codec, bundle: Bundle, starts: tuple[Float, Float]) -> Parity:
    """Encode, integrate and decode real pictures by both: two sizes, batch 1 and 4, both directions.

    `starts` are pictures, float32 [N, 3, H, W], of domain 0 and domain 1; where the bundle is generative, noise of the
    shape of what the flow moves in place of domain 0.

    Raises:
        ExportError: below the floor for float32.
    """
    velocity, exported = Velocity(bundle, "cpu"), open_codec(bundle, "cpu")
    manifest, steps = bundle.manifest, bundle.manifest.default_steps

    @torch.no_grad()
    def reference(x: Float, t: float) -> Float:
        v: Float = net(torch.from_numpy(x), torch.full((1,), t)).numpy()
        return v

    psnrs, levels = [], []
    for start, samples in enumerate(starts):
        noise = manifest.generative and start == 0
        for x in cases(samples, manifest.multiple // (exported.factor if noise else 1)):
            want, got = x, x
            if not noise:
                want, got = through(codec.encode, x), exported.encode(x)
            want = through(codec.decode, integrate(reference, want, steps, float(start), 1.0 - start))
            got = exported.decode(integrate(velocity, got, steps, float(start), 1.0 - start))
            error = float(np.mean((want - got).astype(np.float64) ** 2))
            psnrs.append(min(200.0, 10 * np.log10(4 / max(error, 1e-20))) if np.isfinite(error) else 0.0)
            difference = to_uint8(want).astype(int) - to_uint8(got)
            levels.append(int(np.abs(difference).max()))
    parity = Parity(round(min(psnrs), 2), max(levels), steps, len(psnrs))
    if parity.psnr < FLOOR_PSNR or parity.grey_levels > FLOOR_LEVELS:
        what = "velocity.onnx does" if manifest.latent is None else "encoder, velocity and decoder do"
        raise ExportError(
            f"{what} not agree with PyTorch over {steps} steps: {parity.psnr:.1f} dB, up to "
            f"{parity.grey_levels} grey levels apart (wanted {FLOOR_PSNR:.0f} dB, {FLOOR_LEVELS}); nothing was exported"
        )
    return parity


@torch.no_grad()
def through(f: Callable[[Tensor], Tensor], x: Float) -> Float:
    """f in PyTorch, for arrays."""
    y: Float = f(torch.from_numpy(x)).numpy()
    return y


def cases(samples: Float, multiple: int) -> list[Float]:
    """Batches to prove a graph with: up to four samples at once, one alone, and one made taller."""
    x = samples[:4]
    taller = np.concatenate([x[:1], x[:1, :, :multiple]], axis=2)
    return [x, x[:1], taller]


def as_figures(parity: Parity) -> dict[str, float]:
    """For the manifest."""
    return {k: float(v) for k, v in asdict(parity).items()}
