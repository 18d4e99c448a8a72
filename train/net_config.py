"""The typed configs of the nets: what each may be told, and what it refuses."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Augmentation = Literal["color_jitter", "grayscale", "hflip", "random_erasing"]
Positive = Annotated[int, Field(ge=1, le=1 << 40)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Batch = Annotated[int, Field(ge=1, le=1 << 20)]
Weight = Annotated[float, Field(ge=0)]
Channels = Annotated[int, Field(ge=1, le=16384)]
"""Bounded, like every size of a net: a config comes with a checkpoint, which may come from a stranger."""


class DoesNotFit(ValueError):
    """Keys that are right by themselves and do not go together: for each mistake the keys, and what is wrong."""

    def __init__(self, mistakes: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(text for _, text in mistakes))
        self.mistakes = mistakes


class Strict(BaseModel):
    """Unknown keys are errors, and so are numbers written as strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class UNetConfig(Strict):
    """The velocity field v(x_t, t): a UNet with FiLM time conditioning and a zero-initialised output."""

    type: Literal["UNet"] = "UNet"
    model_channels: Channels = Field(64, description="Channels of the first level.")
    ch_mult: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 4, 4],
        min_length=1,
        max_length=8,
        description="Channels of each level as a multiple of `model_channels`.",
    )
    num_res_blocks: Annotated[int, Field(ge=1, le=16)] = Field(2, description="Residual blocks per level.")
    normalization: Literal["GroupNorm32", "LayerNorm"] = Field(
        "GroupNorm32", description="Up to 32 groups of 8 or more channels, or one group (LayerNorm over C, H, W)."
    )
    activation: Literal["SiLU", "GELU", "ReLU"] = Field("SiLU", description="Nonlinearity of every block.")
    zero_res_blocks: bool = Field(False, description="Start every residual block as the identity.")
    attention_resolutions: list[Positive] = Field(
        [], description="Downsampling factors at which levels get self-attention, e.g. `[8, 16]`."
    )
    num_attention_heads: Positive = Field(8, description="Heads of each self-attention.")
    patch_size: Literal[1, 2, 4] = Field(
        1, description="Pixels per side folded into channels at the door: 2 makes a step about 4× cheaper."
    )
    fine_channels: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="Channels of a last block of whole pixels, after the patches and beside x itself: without it what "
        "patches disagree about shows as a grid. For `patch_size` 2 or 4; 0: none.",
    )
    seamless: bool | None = Field(
        None,
        description="No lines where a picture ends or where patches meet: what is beyond the border looks to the first "
        "level as the border does and not as zeros, and with `fine_channels` each pixel is made of the patches around "
        "it and not by channels of its own. `null`: so, unless the net that it goes on from is not.",
    )
    coordinates: bool | None = Field(
        None,
        description="Show the net where each pixel lies in its picture, in training in the picture that the crop is "
        "of: so what belongs to a place, as a badge in a corner, is learned from crops too. `null`: where crops may "
        "show little of most pictures, as of pictures larger than `max_size`.",
    )
    input_gain: Literal["none", "diagonal", "matrix"] | None = Field(
        None,
        description="Add to what the net gives its input x times a map that it gives besides, of a factor for each "
        "channel (`diagonal`) or of whole matrices, which mix channels: so it can cover a place without a copy of what "
        "is under it, and turn colours without losing what they are of. `null`: `matrix`.",
    )

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(self.patch_size * 2 ** (len(self.ch_mult) - 1))

    def settled(self, found: "UNetConfig") -> "UNetConfig":
        """With what it leaves open, which is for training to know, as `found` has it."""
        return self.model_copy(update={key: getattr(found, key) for key, value in self if value is None})

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "UNetConfig":
        factors = [self.patch_size * 2**level for level in range(len(self.ch_mult))]
        heads: tuple[str, ...] = (
            "num_attention_heads",
            "model_channels",
            "ch_mult",
            "attention_resolutions",
            "patch_size",
        )
        problems = [
            (
                heads,
                f"num_attention_heads {self.num_attention_heads} does not divide the {self.model_channels * m} "
                f"channels at 1/{factor}",
            )
            for factor, m in zip(factors, self.ch_mult, strict=True)
            if factor in self.attention_resolutions and self.model_channels * m % self.num_attention_heads
        ]
        if self.fine_channels and self.patch_size == 1:
            about = f"fine_channels {self.fine_channels}: with patch_size 1 all is done in whole pixels already; use 0"
            problems.append((("fine_channels", "patch_size"), about))
        if unknown := [r for r in self.attention_resolutions if r not in factors]:
            about = f"attention_resolutions {unknown}: this net has the downsampling factors {factors}"
            problems.append((("attention_resolutions", "ch_mult", "patch_size"), about))
        if problems:
            raise DoesNotFit(problems)
        return self


class DiTConfig(Strict):
    """The velocity field v(x_t, t): a diffusion transformer with adaLN-Zero time conditioning."""

    type: Literal["DiT"] = "DiT"
    patch_size: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="Pixels per side of a token: half of it makes four times the tokens."
    )
    hidden_size: Channels = Field(384, description="Width of a token.")
    depth: Annotated[int, Field(ge=1, le=128)] = Field(12, description="Transformer blocks.")
    num_attention_heads: Positive = Field(6, description="Heads of each self-attention.")
    mlp_ratio: Annotated[float, Field(ge=0.25, le=64)] = Field(
        4.0, description="Width of each block's MLP as a multiple of `hidden_size`."
    )

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch_size

    @model_validator(mode="after")
    def _widths_divide(self) -> "DiTConfig":
        problems: list[tuple[tuple[str, ...], str]] = []
        if self.hidden_size % 4:
            about = f"hidden_size {self.hidden_size} is not a multiple of 4: a sine and a cosine for each axis"
            problems.append((("hidden_size",), about))
        if self.hidden_size % self.num_attention_heads:
            about = f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            problems.append((("num_attention_heads", "hidden_size"), about))
        if problems:
            raise DoesNotFit(problems)
        return self


class ResNetSaliencyNet(Strict):
    """The domain classifier with an ImageNet backbone; h is its `latent_channels` features."""

    type: Literal["ResNetSaliencyNet"] = "ResNetSaliencyNet"
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = Field(
        "resnet50", description="torchvision's ResNet."
    )
    num_classes: Literal[2] = Field(2, description="The two domains.")
    pretrained: bool = Field(True, description="Start from ImageNet weights: torchvision's cache, or its download.")
    weights: str | None = Field(None, description="A state-dict file to start from instead, e.g. on a machine offline.")
    latent_channels: Channels = Field(512, description="Features h, the input of the last linear layer.")


class ConvSaliencyNet(Strict):
    """A small domain classifier trained from scratch, for small images and CPUs."""

    type: Literal["ConvSaliencyNet"] = "ConvSaliencyNet"
    channels: list[Channels] = Field(
        [32, 64, 128],
        min_length=1,
        max_length=8,
        description="Channels of its strided convolutions, each half the last one's size.",
    )
    num_classes: Literal[2] = Field(2, description="The two domains.")
    latent_channels: Channels = Field(128, description="Features h, the input of the last linear layer.")
