"""The domain classifiers whose features h the §5.3 loss looks through."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import TrainingError, UsageError
from . import net_config as c
from .unet import GroupNorm32


class SaliencyNet(nn.Module):
    """stem → backbone → features h → two logits. x [B, C, H, W]: pictures in [-1, 1], or latents.

    `pretrained` says whether the backbone holds weights worth keeping frozen at first; the stem learns from the start.
    """

    def __init__(
        self, stem: nn.Module, backbone: nn.Module, channels: int, latent_channels: int, pretrained: bool
    ) -> None:
        super().__init__()
        self.stem, self.backbone, self.pretrained = stem, backbone, pretrained
        self.latent = nn.Sequential(nn.Linear(channels, latent_channels), nn.SiLU())
        self.classifier = nn.Linear(latent_channels, 2)

    def features(self, x: Tensor) -> Tensor:
        """h(x): [B, C, H, W] → [B, latent_channels]."""
        h: Tensor = self.latent(self.backbone(self.stem(x)))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Logits of domain 0 and domain 1: [B, 2]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class ImageNetNormalize(nn.Module):
    """[-1, 1] → the mean and deviation that ImageNet backbones were trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.mean) / self.std


def build_saliency_net(
    config: c.ResNetSaliencyNet | c.ConvSaliencyNet, latents: int | None = None, load_weights: bool = True
) -> SaliencyNet:
    """A classifier as configured; `load_weights=False` leaves the backbone random (a checkpoint follows).

    It looks at pictures, or at latents of so many channels. A ResNet for latents has another stem, of one convolution
    that keeps their size: the codec has done what the ResNet's own stem does, to make pictures four times smaller.

    Raises:
        UsageError: the backbone's weights are neither at `weights`, nor cached, nor to be downloaded.
    """
    match config:
        case c.ConvSaliencyNet():
            backbone = _conv_backbone(latents or 3, config.channels)
            return SaliencyNet(nn.Identity(), backbone, config.channels[-1], config.latent_channels, False)
        case c.ResNetSaliencyNet():
            resnet = getattr(torchvision().models, config.backbone)(weights=None)
            width = resnet.fc.in_features
            wanted = config.weights is not None or config.pretrained
            if wanted and load_weights:
                resnet.load_state_dict(_load_resnet_weights(config, resnet))
            resnet.fc = nn.Identity()
            if latents is None:
                backbone = nn.Sequential(ImageNetNormalize(), resnet)
                return SaliencyNet(nn.Identity(), backbone, width, config.latent_channels, wanted)
            stem = nn.Sequential(nn.Conv2d(latents, 64, 3, padding=1), GroupNorm32(64), nn.ReLU())
            layers = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
            backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return SaliencyNet(stem, backbone, width, config.latent_channels, wanted)


def _conv_backbone(c_in: int, channels: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(c_in, width, 3, stride=2, padding=1), GroupNorm32(width), nn.SiLU()]
        c_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torchvision() -> ModuleType:
    """torchvision, also beside a CPU build of torch.

    PyPI's torchvision is compiled for CUDA. Beside a CPU torch its operators cannot load, and its import stops at
    the missing schemas of two of them, box suppression, which rfp never calls: declaring them is enough.
    """
    try:
        import torchvision.models
    except RuntimeError as e:
        if "torchvision::nms" not in str(e):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.models
    module: ModuleType = torchvision
    return module


WAYS_OUT = (
    'give the file with "weights" (--set saliency_net.weights=PATH), connect to the internet once, or train the '
    'classifier from scratch with "pretrained": false'
)


def resnet_weights(config: c.ResNetSaliencyNet) -> str | None:
    """Where the ImageNet weights of the backbone are, or will be downloaded from; None if it begins without any.

    Raises:
        UsageError: there is no file at `weights`.
    """
    if config.weights is not None:
        path = Path(config.weights).expanduser()
        if not path.is_file():
            raise UsageError(f"saliency_net.weights: {path}: no such file; {WAYS_OUT}")
        return str(path)
    if not config.pretrained:
        return None
    url = torchvision().models.get_model_weights(config.backbone).DEFAULT.url
    cache = _cached(url)
    return str(cache) if cache.is_file() else f"to be downloaded from {url}"


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _load_resnet_weights(config: c.ResNetSaliencyNet, resnet: nn.Module) -> dict[str, Any]:
    if config.weights is None:
        weights = torchvision().models.get_model_weights(config.backbone).DEFAULT
        try:
            state: dict[str, Any] = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as e:
            raise UsageError(
                f"saliency_net: the ImageNet weights of {config.backbone} are not at {_cached(weights.url)} and could "
                f"not be downloaded from {weights.url} ({e}); {WAYS_OUT}"
            ) from e
        return state
    path = Path(resnet_weights(config) or "")
    state = load_weights_file(path)
    own = resnet.state_dict()
    state = {k: own[k] if k.startswith("fc.") else v for k, v in state.items()}  # the ImageNet head is not used
    needed = [k for k in own if not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    if wrong := [k for k in needed if k not in state or state[k].shape != own[k].shape]:
        raise UsageError(
            f"saliency_net.weights: {path} does not fit {config.backbone}: "
            f"{len(wrong)} tensors missing or of another shape, e.g. {wrong[0]}"
        )
    return own | {k: v for k, v in state.items() if k in own}


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a .pt/.pth read without running code in it. Raises UsageError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damaged files raise a dozen kinds, and torch advises to run their code
        raise UsageError(
            f"{path}: not a state dict of tensors that can be read without running its code ({type(e).__name__})"
        ) from e
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    return state


def soft_cross_entropy(logits: Tensor, share: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against soft labels: `share` [B] of domain 1 in each picture, then label smoothing."""
    target = torch.stack([1 - share, share], dim=1) * (1 - smoothing) + smoothing / 2
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


@torch.no_grad()
def accuracy(net: SaliencyNet, domain0: Tensor, domain1: Tensor, batch: int = 64) -> float:
    """Share of pictures put in their own domain, the mean of both domains. Inputs [N, 3, H, W] in [-1, 1]."""
    net.eval()
    right = [
        torch.cat([net(x).argmax(dim=1) == label for x in images.split(batch)]).float().mean()
        for label, images in enumerate((domain0, domain1))
    ]
    return float(torch.stack(right).mean())


def require_features(value: float, threshold: float, steps: int) -> str | None:
    """What to say when phase 1 ends by its bound: None if all is well, a warning, or TrainingError if h is blind."""
    if value >= threshold:
        return None
    ways_out = "raise saliency_max_steps, lower saliency_accuracy_threshold, or look for pictures in the wrong folder"
    if value < 0.75:
        raise TrainingError(
            f"saliency phase: after {steps} steps the classifier tells the domains apart in only {value:.1%} "
            f"of held-out pictures (wanted {threshold:.1%}); its features would teach nothing. Set "
            f"saliency_loss_weight to 0 to train without it; or {ways_out}"
        )
    return f"held-out accuracy {value:.1%} after {steps} steps, below {threshold:.1%}: going on with it ({ways_out})"
