"""Domain 0 of a generative training: noise in place of pictures."""

from dataclasses import dataclass

from ..runtime.alignment import IDENTITY
from ..runtime.errors import ConfigError
from ..runtime.noise import noise, noises
from ..runtime.pixels import Float
from .config import RFPix2pixModel

RANDOM = "random"
"""What stands for noise in place of the inputs of domain 0: this word exactly, so that no lost folder becomes it."""


@dataclass(frozen=True)
class Noise:
    """x0 ~ N(0, 1) of `shape` [C, H, W], that of what the velocity net moves. The k-th is a function of (seed, k)."""

    seed: int
    shape: tuple[int, int, int]
    name: str = RANDOM

    def draw(self, k: int) -> Float:
        """The x0 of the k-th pair: float32 [C, H, W]. None of them is a noise of `samples`."""
        return noise(self.shape, self.seed, 0, k)

    def samples(self, n: int) -> Float:
        """What the sample grids start from: float32 [n, C, H, W], the noises of `rfp generate` with this seed."""
        return noises(self.shape, self.seed, range(n))


def noise_domain(config: RFPix2pixModel, seed: int) -> Noise:
    """Domain 0 of `--domain0 random`.

    Raises:
        ConfigError: the config asks of noise what only pictures have.
    """
    problems = []
    if config.pairs_by == "structure":
        problems.append(
            "coupling structure (structure_pairing): noise has no structure that a picture could be like; "
            "leave it out, or take coupling minibatch_ot"
        )
    if config.pairs_by == "minibatch_ot" and config.codec.latents:
        problems.append(
            "coupling minibatch_ot: it compares noise of the codec's latents with pixels; take coupling random"
        )
    if config.self_pairing:
        problems.append(
            f"self_pairing {config.self_pairing:g}: the way back from a picture would have to be a noise, which no "
            "loss makes it; set it to 0, and straighten the flow with rfp reflow"
        )
    if config.cutmix:
        problems.append(f"cutmix {config.cutmix:g}: whole pictures are to be made, not patchworks; set it to 0")
    if config.aligned_by != IDENTITY:
        problems.append("alignment: noise is everywhere alike, and is not moved; leave it out")
    if config.adversarial_weight:
        problems.append(
            f"adversarial_weight {config.adversarial_weight:g}: it holds what is made to pairs too, and a "
            "noise is no such end; set it to 0"
        )
    if config.saliency_loss_weight:
        problems.append(
            f"saliency_loss_weight {config.saliency_loss_weight:g}: any few pixels tell noise from a picture, so a "
            "classifier of the two has nothing to teach; set it to 0, for plain flow matching"
        )
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"--domain0 {RANDOM} (noise) does not go with this config; -c generative does\n{lines}")
    return Noise(seed, config.latent_shape)
