"""The typed configs of the codecs: what a picture is turned into before the flow moves it, and how that is learned."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .net_config import Augmentation, Batch, Channels, Count, DoesNotFit, Positive, Strict, Weight


class IdentityConfig(Strict):
    """No codec: the flow moves the pixels themselves."""

    type: Literal["Identity"] = "Identity"

    net: ClassVar[tuple[object, ...]] = ()
    """No weights."""
    latents: ClassVar[int | None] = None
    """No latents."""

    @property
    def channels(self) -> int:
        """Channels of what the flow moves."""
        return 3

    @property
    def factor(self) -> int:
        """Pixels per side of one position of what the flow moves."""
        return 1


class VAEConfig(Strict):
    """A variational autoencoder, trained in phase 0: the flow moves its latents, smaller than pictures."""

    type: Literal["VAE"] = "VAE"
    latent_channels: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Channels of z.")
    model_channels: Channels = Field(64, description="Channels of the first level.")
    ch_mult: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 4],
        min_length=1,
        max_length=7,
        description="Channels of each level as a multiple of `model_channels`. Each level after the first halves "
        "height and width: three make z 4× smaller.",
    )
    num_res_blocks: Annotated[int, Field(ge=1, le=16)] = Field(
        2, description="Residual blocks per level of the encoder; the decoder has one more."
    )
    mid_attention: bool = Field(
        False,
        description="Self-attention at the smallest size, as in SD; memory grows with the square of the pixels.",
    )
    l1_weight: Weight = Field(1.0, description="Weight of the mean absolute error of the pixels.")
    kl_weight: Weight = Field(
        1e-6, description="Weight of the KL divergence of z from N(0, 1), in nats per number of the picture."
    )
    perceptual_weight: Weight = Field(
        0.0, description="Weight of the difference in features of `perceptual_backbone`; it needs `perceptual_weights`."
    )
    perceptual_backbone: Literal["vgg16", "resnet18", "resnet34", "resnet50", "mobilenet_v2"] = Field(
        "vgg16", description="torchvision's net whose features are compared."
    )
    perceptual_weights: str | None = Field(None, description="Its ImageNet weights: a state-dict file.")
    train_batch_size: Annotated[int, Field(ge=2, le=1 << 20, multiple_of=2)] = Field(
        32, description="Pictures per optimiser step of phase 0, half of them from each domain."
    )
    train_minibatch_size: Batch = Field(16, description="Pictures in memory at once; gradients are summed up.")
    train_images: Positive = Field(1_000_000, description="Pictures to train the codec on, in all.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="AdamW's rate for the codec.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="`cosine` falls to 1 % of the rate by the last step."
    )
    warmup_images: Count = Field(
        5000, description="Pictures over which the rate rises from 0; a tenth of `train_images` at most."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Of the codec's averaged weights, per step. The average is what later phases use."
    )
    augmentations: list[Augmentation] = Field(
        ["hflip"], description="Drawn afresh for every picture of phase 0, before it is encoded."
    )

    @property
    def channels(self) -> int:
        """Channels of what the flow moves."""
        return self.latent_channels

    @property
    def latents(self) -> int:
        """Channels of z."""
        return self.latent_channels

    @property
    def factor(self) -> int:
        """Pixels per side of one position of z."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def net(self) -> tuple[object, ...]:
        """What the net is made of: two configs that agree here can share weights."""
        return (self.latent_channels, self.model_channels, *self.ch_mult, self.num_res_blocks, self.mid_attention)

    @property
    def steps(self) -> int:
        """Optimiser steps of phase 0."""
        return math.ceil(self.train_images / self.train_batch_size)

    @model_validator(mode="after")
    def _fits_together(self) -> "VAEConfig":
        problems: list[tuple[tuple[str, ...], str]] = []
        sizes, weights = ("train_minibatch_size", "train_batch_size"), ("l1_weight", "perceptual_weight")
        if self.train_minibatch_size > self.train_batch_size:
            problems.append((sizes, "train_minibatch_size is larger than train_batch_size"))
        if not self.l1_weight and not self.perceptual_weight:
            problems.append((weights, "l1_weight and perceptual_weight are both 0: nothing to learn from"))
        if self.perceptual_weight and self.perceptual_weights is None:
            about = (
                f"perceptual_weight {self.perceptual_weight} needs the ImageNet weights of {self.perceptual_backbone}: "
                'give the file with "perceptual_weights" (--set codec.perceptual_weights=PATH; torchvision has it at '
                "https://docs.pytorch.org/vision/stable/models.html), or set perceptual_weight to 0"
            )
            problems.append((("perceptual_weight", "perceptual_weights"), about))
        if problems:
            raise DoesNotFit(problems)
        return self


CodecConfig = IdentityConfig | VAEConfig
