"""The training config: typed, flat, documented; every mistake reported at once.

The models below are the single source of the JSON schema (configs/schema.json) and of the README's table.
"""

import json
import math
import types
from pathlib import PureWindowsPath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, field_validator, model_validator

from ..runtime.alignment import IDENTITY, LENGTHS, Alignment, sensible
from .codec_config import IdentityConfig, VAEConfig
from .net_config import (
    Augmentation,
    Batch,
    ConvSaliencyNet,
    Count,
    DiTConfig,
    DoesNotFit,
    Positive,
    ResNetSaliencyNet,
    Strict,
    UNetConfig,
    Weight,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
FILES = ("weights", "eval_features")
"""How keys end that may name files."""


class RFPix2pixModel(Strict):
    """A whole training: its phases and their nets."""

    type: Literal["RFPix2pixModel"] = "RFPix2pixModel"
    schema_: str | None = Field(None, alias="$schema", description="For editors; ignored.", exclude=True)
    max_size: Annotated[int, Field(ge=1, le=16384)] = Field(
        128, description="Side of the square training crops, pixels."
    )
    sample_batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="Pictures in each sample grid.")
    train_batch_size: Batch = Field(16, description="Pairs per optimiser step, all processes together.")
    train_minibatch_size: Batch = Field(16, description="Pairs in a process's memory at once; gradients add up.")
    train_images: Positive = Field(2_000_000, description="Pairs to train the velocity on, if `max_epochs` allows.")
    max_epochs: Positive | None = Field(
        None,
        description="Times that each picture of the larger domain is drawn, at most: with few pictures a training ends "
        "before it knows their partners by heart; as often again, at most, by a critic. `null` is 12; of few "
        "pictures more, up to 75 for 1,000 steps, and what 500 steps take; of a critic 75, or 4,000 steps if that is "
        "more; from noise and for pairs by name no bound but `train_images`.",
    )
    optimizer: Literal["muon", "adamw"] | None = Field(
        None,
        description="What trains the velocity net. `muon`: its convolutions and linear layers take steps of which all "
        "directions are as large, what is left AdamW's. `null`: `muon`, or what a run that goes on began with.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Of the velocity net; Muon's steps are given the size that AdamW's have by the same rate."
    )
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="`cosine` falls to 1 % of the rate by the last step."
    )
    warmup_images: Count = Field(
        1_000, description="Pairs over which the rate rises from 0; a tenth of the training at most."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of the features inside each block of the velocity net that training leaves out, drawn anew "
        "for every picture: it learns fewer partners by heart. `null` is 0.3 for a UNet of more than 4 million "
        "parameters, and for any net where pictures are drawn more than 50 times; else 0, and always so from noise and "
        "for pairs by name.",
    )
    weight_decay: Weight = Field(0.0, description="Decoupled weight decay.")
    gradient_clip: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest norm of the gradient.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9995, description="Of the averaged weights, per step; shorter in the first steps. The average is exported."
    )
    num_inference_steps: Positive = Field(6, description="Euler steps of samples, and the exported default.")
    timestep_sampling: Literal["logit-normal", "uniform"] = Field(
        "uniform", description="Distribution of t in training."
    )
    timestep_uniform_fraction: Fraction = Field(
        0.1, description="Share of uniform t mixed into logit-normal, which by itself hardly sees t = 0."
    )
    horizontal_flip: bool | None = Field(
        None,
        description="Mirror half of the pairs, both pictures of a pair together. `null`: unless what sets the domains "
        "apart has a side, as light from the left or a mark in a corner has; that is measured on their mean pictures. "
        "Where `match_colours` is on, and nothing is seen there, not.",
    )
    random_crop: bool = Field(
        True, description="Cut squares at random out of the middle one, the same from both; or take it whole."
    )
    crop_share: Fraction = Field(
        0.5,
        description="Share of pairs that are cut so. The others, and all in the last quarter of the training, are "
        "whole, as pictures in use are: what has a place in the picture is learned to stand there.",
    )
    crop_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Side of the smallest of these, of the short side; 0.9 where it would have to be enlarged."
    )
    alignment: Annotated[list[float], Field(min_length=LENGTHS[0], max_length=LENGTHS[1])] | None = Field(
        None,
        description="How pictures of domain 0 are moved before all else, in training and by the bundle, and those that "
        "become of domain 0 moved back: `[a, b, c, d, e, f]` puts at (x, y) what was at (ax + by + c, dx + ey + f), "
        "from the middle to the right and down in halves of the short side; 162 more numbers are a mesh that bends (x, "
        "y) first, to the right and down at 9×9 places. `null`: as makes neighbours of the two domains most alike "
        "where that is clear, as of domains that are taller, slanted, mirrored, elsewhere or bent; else, and from "
        "noise, not at all. Pairs by name are taken as they lie.",
    )
    cutmix: Fraction | None = Field(
        None,
        description="Share of pairs of which a rectangle is taken from another pair, the same in both pictures: what "
        "is learned stays local, and long trainings do not memorise the neighbours. `null` is 0.5, or 0 from noise.",
    )
    bridge_noise: Weight = Field(
        0.0,
        description="Deviation of each grain, 1 to 8 pixels wide, of noise on the middle of each path from x0 to x1, "
        "which has none at its ends, in units of a picture's -1 to 1 (of all together three quarters of that): the net "
        "learns to take away what its own errors leave (arXiv:2303.08797).",
    )
    flow_loss_weight: Weight = Field(1.0, description="Weight of plain flow matching, ‖x1 − x0 − v‖² over its scale.")
    flow_loss_huber: Weight | None = Field(
        None,
        description="c of √(e² + c²) − c, by which that term, and the distance beside a critic, count each pixel, e² "
        "the mean square of its error over the channels, in units of a picture's -1 to 1: where partners disagree "
        "this keeps to the most of them, not to their mean. 0: squares. `null` is 0.01 for pairs of similar "
        "pictures, 0 for other pairs, for latents, and where `match_colours` makes partners agree.",
    )
    saliency_loss_weight: Weight = Field(
        0.0, description="Weight of the §5.3 loss, ‖∇h(x_t)ᵀ(x1 − x0 − v)‖² over its scale; 0 skips phase 1."
    )
    saliency_learning_rate: Annotated[float, Field(gt=0)] = Field(
        5e-5, description="Of the classifier; a pretrained backbone is fine-tuned at a tenth of it."
    )
    saliency_accuracy_threshold: Fraction = Field(
        0.995, description="Accuracy on held-out pictures at which phase 1 ends."
    )
    saliency_warmup_threshold: Fraction = Field(
        0.90, description="Held-out accuracy at which a frozen pretrained backbone is let go."
    )
    saliency_max_steps: Positive = Field(5000, description="Bound on the steps of phase 1.")
    saliency_blend_fraction: Fraction = Field(
        0.0, description="Share of classifier inputs that are blends (1−a)·x0 + a·x1, with soft labels."
    )
    saliency_label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Label mass spread over both domains."
    )
    saliency_augmentations: list[Augmentation] = Field(
        ["color_jitter", "grayscale", "hflip", "random_erasing"], description="Drawn afresh for every picture."
    )
    adversarial_weight: Weight | None = Field(
        None,
        description="Weight of a critic's verdict on what `num_inference_steps` Euler steps make of a picture: the "
        "last part of a training learns from that, and from the distance to the pair's other end, alone. Take 1 or 2 "
        "such steps. 0: no critic. `null`: 1, looking at one step, where domain 0 has no colours and domain 1 has, as "
        "of line art, for colours that nothing tells are averaged to brown by pairs; else 0.",
    )
    adversarial_start: Fraction = Field(0.5, description="Share of the training that comes before the critic.")
    adversarial_learning_rate: Annotated[float, Field(gt=0)] = Field(
        3e-4, description="Of the velocity net and the critic in that part; it falls as `learning_rate` does before."
    )
    coupling: Literal["random", "structure", "minibatch_ot", "paired"] | None = Field(
        None,
        description="Who is paired with whom. `random`; `structure`: each picture with similar ones of the other "
        "domain; `minibatch_ot`: at random, then each batch is paired anew at the least total distance in pixels; "
        "`paired`: with the one of its own name, for data that are pairs. "
        "`null` is `structure`, or `random` where `structure_pairing` is false.",
    )
    structure_pairing: bool | None = Field(
        None,
        description="`true` is the same as `coupling` `structure`; `false` as `random`, unless `coupling` says more.",
    )
    match_colours: bool | None = Field(
        None,
        description="A picture's neighbour of the other domain takes its colours, by one affine map of colours for "
        "each pair: for domains of things in any colour, in any place, of which none has a neighbour that has both "
        "right. `null`: where chance may explain what sets the colours of 200 pictures or more of each domain apart, "
        "and pictures are taken as they lie.",
    )
    self_pairing: Fraction = Field(
        0.0,
        description="Share of each batch whose pictures are paired with what the averaged net itself makes of them, "
        "in both directions, in place of another real picture.",
    )
    self_pairing_start: Fraction = Field(
        0.2, description="Share of the training after which `self_pairing` begins: by then the net makes something."
    )
    structure_candidates: Positive = Field(2, description="Nearest neighbours that a picture is paired with.")
    structure_embedder: Literal[
        "hog", "foreground", "thumbnail", "pixels", "backbone", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"
    ] = Field(
        "hog",
        description="What alike means. `hog`: edges running the same way in the same places (8×8 cells of oriented "
        "gradients), and a little of the layout of colours; `foreground`: something in the same places (distance to "
        "the picture's median colour, 8×8); `thumbnail`: the same layout of colours (8×8, less the mean); `pixels`: "
        "the very same colours (16×16), for domains that share them; `backbone`: the same things in the same places, "
        "to the pretrained backbone of `saliency_net` (its last feature map, 4×4); `dinov2_*`: the same to DINOv2 "
        "(extra `dino`).",
    )
    structure_weights: str | None = Field(
        None,
        description="A file of DINOv2's weights, by torch.hub's or Hugging Face's key names, in place of those in "
        "Hugging Face's cache or on its hub.",
    )
    re_pairings: Count = Field(
        3,
        description="How many times, evenly spread over the training, pictures of a structure coupling are paired "
        "anew, with the real ones nearest to what the averaged net makes of them; fewer where that would take long.",
    )
    distill_steps: Positive | None = Field(
        None,
        description="Euler steps in which the net is to reach the other end of each pair, in place of learning the "
        "velocity between, and `num_inference_steps` with it; `null` trains a flow. `rfp distill` sets it.",
    )
    distill_loss: Literal["l2", "huber"] = Field(
        "huber", description="Distance to that end: squared, or pseudo-Huber (arXiv:2310.14189, section 3.2)."
    )
    distill_perceptual_weight: Weight = Field(
        0.0, description="Weight of the difference in features of `distill_perceptual_backbone` to that end."
    )
    distill_perceptual_backbone: Literal["vgg16", "resnet18", "resnet34", "resnet50", "mobilenet_v2"] = Field(
        "vgg16", description="torchvision's net whose features are compared."
    )
    distill_perceptual_weights: str | None = Field(None, description="Its ImageNet weights: a state-dict file.")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="`bf16` runs the velocity net under autocast; the saliency loss stays in float32."
    )
    channels_last: bool = Field(True, description="Keep the velocity net's pictures and weights in NHWC order.")
    compile: bool = Field(
        False,
        description="Run the velocity net through `torch.compile`; it starts late, and needs a C++ compiler.",
    )
    fused_adamw: bool = Field(True, description="Update all weights that are AdamW's in one kernel.")
    log_every: Positive = Field(50, description="Steps between lines of metrics.jsonl.")
    eval_every: Count = Field(
        0,
        description="Steps between judgements on pictures held out of training (a tenth, 256 at most); the "
        "checkpoint of the lowest KID is kept as best.safetensors. 0: none are held out.",
    )
    eval_features: str | None = Field(
        None, description="Feature network of that KID, as for `rfp evaluate --features`; statistics if null."
    )
    sample_every: Positive = Field(500, description="Steps between sample grids.")
    checkpoint_every: Positive = Field(500, description="Steps between checkpoints.")
    keep_checkpoints: Positive = Field(2, description="Newest checkpoints kept; older ones of the run are replaced.")
    cache_megabytes: Count = Field(
        1024, description="Memory for decoded pictures per domain; what does not fit is decoded again."
    )
    frame_cache_gigabytes: Annotated[float, Field(ge=0, le=1e6)] = Field(
        20.0, description="Disk for decoded videos, of all runs together; frames that nothing uses make room."
    )
    frame_stride: Positive = Field(1, description="Take every n-th frame of videos: 1 takes all.")
    codec: IdentityConfig | VAEConfig = Field(
        default_factory=lambda: IdentityConfig(),
        discriminator="type",
        description="What pictures are turned into before the flow moves them.",
    )
    velocity_net: UNetConfig | DiTConfig = Field(
        default_factory=lambda: UNetConfig(), discriminator="type", description="The velocity net."
    )
    saliency_net: ResNetSaliencyNet | ConvSaliencyNet = Field(
        default_factory=lambda: ResNetSaliencyNet(), discriminator="type", description="The domain classifier."
    )

    @field_validator("velocity_net", mode="before")
    @classmethod
    def _a_unet_unless_said(cls, value: Any) -> Any:
        return {"type": "UNet"} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "RFPix2pixModel":
        problems: list[tuple[tuple[str, ...], str]] = []
        if self.max_size % self.multiple:
            codec = f" times the codec's {self.codec.factor}" if self.codec.factor > 1 else ""
            about = (
                f"max_size {self.max_size} is not a multiple of the velocity net's {self.velocity_net.multiple}{codec}"
            )
            problems.append((("max_size", "velocity_net", "codec"), about))
        if self.train_minibatch_size > self.train_batch_size:
            about = "train_minibatch_size is larger than train_batch_size"
            problems.append((("train_minibatch_size", "train_batch_size"), about))
        net = self.saliency_net
        pretrained = isinstance(net, ResNetSaliencyNet) and (net.pretrained or net.weights is not None)
        if self.pairs_by == "structure" and self.structure_embedder == "backbone" and not pretrained:
            about = (
                "structure_embedder backbone needs a saliency_net with pretrained weights: a ResNetSaliencyNet with "
                '"pretrained": true or "weights": PATH; or choose another structure_embedder'
            )
            problems.append((("structure_embedder", "saliency_net", "structure_pairing", "coupling"), about))
        if self.structure_weights is not None and not self.structure_embedder.startswith("dinov2_"):
            about = f"structure_weights is for dinov2_*, not for structure_embedder {self.structure_embedder}" + (
                "; give saliency_net.weights" if self.structure_embedder == "backbone" else ""
            )
            problems.append((("structure_weights", "structure_embedder"), about))
        if self.alignment is not None and not sensible(self.alignment):
            about = (
                "alignment: pictures moved so would hardly be seen, or folded; wanted are six numbers up to 4, and no "
                f"area of nearly 0; or {LENGTHS[1]}, the rest a mesh that nowhere bends as steeply as 1"
            )
            problems.append((("alignment",), about))
        if self.structure_pairing and self.coupling not in (None, "structure"):
            about = f"coupling {self.coupling} contradicts structure_pairing true: leave out one of the two"
            problems.append((("coupling", "structure_pairing"), about))
        if not self.flow_loss_weight and not self.saliency_loss_weight:
            about = "flow_loss_weight and saliency_loss_weight are both 0: nothing to learn from"
            problems.append((("flow_loss_weight", "saliency_loss_weight"), about))
        if self.distill_steps and (self.pairs_by != "paired" or self.saliency_loss_weight):
            about = "distill_steps wants pairs, and no classifier: coupling paired and saliency_loss_weight 0"
            problems.append((("distill_steps", "coupling", "saliency_loss_weight"), about))
        if self.distill_steps and self.adversarial_weight:
            about = (
                "distill_steps follows another flow, adversarial_weight real pictures: set one of the two to 0 or null"
            )
            problems.append((("distill_steps", "adversarial_weight"), about))
        if self.adversarial_weight and self.match_colours:
            about = "match_colours changes real pictures, from which a critic learns: set one of the two to 0 or null"
            problems.append((("match_colours", "adversarial_weight"), about))
        if self.adversarial_weight and (side := self.latent_shape[-1]) < 8:
            about = f"adversarial_weight: its critic wants a side of 8 or more; max_size {self.max_size} gives {side}"
            problems.append((("adversarial_weight", "max_size", "codec"), about))
        if self.distill_perceptual_weight and (self.distill_perceptual_weights is None or self.codec.latents):
            about = "distill_perceptual_weight needs distill_perceptual_weights: PATH, and codec Identity"
            problems.append((("distill_perceptual_weight", "distill_perceptual_weights", "codec"), about))
        if problems:
            raise DoesNotFit(problems)
        return self

    @property
    def pairs_by(self) -> Literal["random", "structure", "minibatch_ot", "paired"]:
        """The coupling, with `null` resolved."""
        return self.coupling or ("random" if self.structure_pairing is False else "structure")

    @property
    def aligned_by(self) -> Alignment:
        """`alignment`, where `null` is none."""
        return IDENTITY if self.alignment is None else tuple(self.alignment)

    @property
    def moves(self) -> Alignment:
        """By which domain 0 is moved when it is read: pairs by name, as those that a flow made, lie as they should."""
        return IDENTITY if self.pairs_by == "paired" else self.aligned_by

    @property
    def matches_colours(self) -> bool:
        """`match_colours`, where pairs are of neighbours."""
        return bool(self.match_colours) and self.pairs_by == "structure"

    @property
    def cropped(self) -> float:
        """`crop_share`, or 0 without `random_crop`."""
        return self.crop_share if self.random_crop else 0.0

    @property
    def critic_from(self) -> int:
        """The step from which v learns by the critic: `steps` where there is none."""
        return round(self.adversarial_start * self.steps) if self.adversarial_weight else self.steps

    @property
    def steps(self) -> int:
        """Optimiser steps of the velocity phase."""
        return math.ceil(self.train_images / self.train_batch_size)

    def batch_size(self, phase: str) -> int:
        """What an optimiser step of a phase counts: pictures in phase 0, pairs after it."""
        if phase == "codec" and isinstance(self.codec, VAEConfig):
            return self.codec.train_batch_size
        return self.train_batch_size

    @property
    def channels(self) -> int:
        """Channels of what the velocity net moves: those of a picture, or of z."""
        return self.codec.channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of what the velocity net moves in training."""
        side = self.max_size // self.codec.factor
        return self.codec.channels, side, side

    @property
    def multiple(self) -> int:
        """Height and width of pictures must be multiples of this."""
        return self.codec.factor * self.velocity_net.multiple


def nets() -> dict[str, dict[str, type[Strict]]]:
    """For each key that holds one of several nets, their configs by `type`."""
    return {
        name: {model.model_fields["type"].default: model for model in get_args(field.annotation)}
        for name, field in RFPix2pixModel.model_fields.items()
        if field.discriminator
    }


def to_json(config: RFPix2pixModel) -> dict[str, Any]:
    """The whole config as plain JSON values, every default spelled out."""
    return config.model_dump(mode="json", by_alias=True)


def without_folders(values: Any) -> Any:
    """A config's values, files by name alone: what leaves this machine says nothing of its folders."""
    if isinstance(values, dict):
        return {
            k: file_name(v) if k.endswith(FILES) and isinstance(v, str) else without_folders(v)
            for k, v in values.items()
        }
    return values


def with_folders(values: Any, known: Any) -> Any:
    """The reverse, for files that `known`, the values of a whole config, has in the same places by the same names."""
    if isinstance(values, dict) and isinstance(known, dict):
        return {k: with_folders(v, known.get(k)) for k, v in values.items()}
    return known if isinstance(values, str) and isinstance(known, str) and file_name(known) == values else values


def same_net(wanted: Strict, found: Strict) -> bool:
    """Whether weights of the net `found` fit one that is `wanted`: what that leaves open is as it is found."""
    if isinstance(wanted, UNetConfig) and isinstance(found, UNetConfig):
        wanted = wanted.settled(found)
    return wanted == found


def alike(one: Strict, other: Strict) -> bool:
    """Whether two parts of a config agree, wherever their files lie."""
    return bool(without_folders(one.model_dump()) == without_folders(other.model_dump()))


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name  # which knows both kinds of slashes


def schema() -> dict[str, Any]:
    """The JSON schema of configs/*.json, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | RFPix2pixModel.model_json_schema(by_alias=True)


def table() -> str:
    """The README's table of config keys, in Markdown."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    models: list[tuple[str, str, type[Strict]]] = [("", "", RFPix2pixModel)]
    models += [(f"{key}.", tag, model) for key, choices in nets().items() for tag, model in choices.items()]
    for prefix, tag, model in models:
        if prefix:
            about = (model.__doc__ or "").strip().splitlines()[0]
            rows.append(f"| **{prefix}** `{tag}` | | {about} |")
        for name, field in model.model_fields.items():
            if name in ("type", "schema_") or field.discriminator:
                continue
            choices = _choices(field.annotation)
            rows.append(f"| `{prefix}{name}` | `{json.dumps(field.default)}` | {field.description}{choices} |")
    return "\n".join(rows) + "\n"


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next((a for a in get_args(annotation) if get_origin(a) is Literal), None)
    if get_origin(annotation) is not Literal:
        return ""
    values = get_args(annotation)
    return " One of " + ", ".join(f"`{json.dumps(v)}`" for v in values) + "." if len(values) > 1 else ""
