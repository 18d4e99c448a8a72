"""The perceptual loss of phase 0: pictures compared by the features of an ImageNet net, its weights by path.

LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1) with all channels weighted alike: no weights but the net's own.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import UsageError
from .codec_config import VAEConfig
from .saliency import ImageNetNormalize, load_weights_file, torchvision

STAGES = {
    "vgg16": (4, 9, 16, 23, 30),  # after the last ReLU before each pooling
    "mobilenet_v2": (2, 4, 7, 14, 18),  # before each halving
}


class Perceptual(nn.Module):
    """Two batches of pictures [B, 3, H, W] in [-1, 1] → how much their features differ, a mean over the batch."""

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.normalize, self.stages = ImageNetNormalize(), nn.ModuleList(stages)
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """One [B, C, h, w] a stage, each position a unit vector."""
        x, out = self.normalize(x), []
        for stage in self.stages:
            x = stage(x)
            out.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt())
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).sum()


def build_perceptual(config: VAEConfig) -> Perceptual | None:
    """The loss that a config asks for, or None. Raises UsageError where its weights are missing or do not fit."""
    if not config.perceptual_weight or config.perceptual_weights is None:
        return None
    return load_perceptual(config.perceptual_backbone, config.perceptual_weights, "codec.perceptual_weight")


def load_perceptual(name: str, weights: str, key: str) -> Perceptual:
    """The loss in a backbone's features. `key` is the config's for its weight, for messages. Raises UsageError."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UsageError(f"{key}s: {path}: no such file; give the ImageNet weights of {name}, or set {key} to 0")
    with torch.device("meta"):  # no memory, and no time, for weights that the file replaces
        net = getattr(torchvision().models, name)(weights=None)
    body = net.features if name in STAGES else net
    _load(body, load_weights_file(path), f"{key}s: {path}", name)
    return Perceptual(_stages(name, body))


def _stages(name: str, body: Any) -> list[nn.Module]:
    """The net cut where its features are looked at."""
    if name in STAGES:
        cuts = STAGES[name]
        return [body[a:b] for a, b in zip((0, *cuts), cuts, strict=False)]
    stem = nn.Sequential(body.conv1, body.bn1, nn.ReLU())
    return [stem, nn.Sequential(body.maxpool, body.layer1), body.layer2, body.layer3, body.layer4]


def _load(body: Any, state: dict[str, Tensor], where: str, name: str) -> None:
    """Give the net its tensors: by torchvision's names, or in their order where that fits every shape.

    Files of the same net under other names are common; the order of a .pt file is that in which it was saved.
    """
    body.fc = None  # a ResNet's ImageNet head is not used
    own = body.state_dict()
    named = {k.removeprefix("features."): v for k, v in state.items()}
    needed = [k for k in own if not k.endswith("num_batches_tracked")]
    if [v.shape for v in state.values()] == [v.shape for v in own.values()]:
        named = dict(zip(own, state.values(), strict=True))
    if all(k in named and named[k].shape == own[k].shape for k in needed):
        counters = {k: torch.zeros_like(v, device="cpu") for k, v in own.items()}
        body.load_state_dict(counters | {k: named[k].to(own[k].dtype) for k in needed}, assign=True)
        return
    wrong = [k for k in needed if k not in named or named[k].shape != own[k].shape]
    raise UsageError(f"{where} does not fit {name}: {len(wrong)} tensors missing or of another shape, e.g. {wrong[0]}")
