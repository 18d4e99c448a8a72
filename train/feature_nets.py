"""Feature networks in PyTorch, to judge with: torchvision's, EfficientNet-lite0, or a run's classifier."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import CheckpointError, MissingExtraError, UsageError
from ..runtime.features import IMAGENET, FeatureNet
from ..runtime.pixels import Float
from . import checkpoint as ckpt
from .codec import encode
from .device import pick_device
from .saliency import load_weights_file, torchvision

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
WITH_FEATURES = ("mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vgg16")
LITE = "efficientnet_lite0"
NAMES = (*WITH_FEATURES, *RESNETS, LITE)
HALF = (0.5, 0.5, 0.5)
ON_A_CPU = 4
"""Pictures at once there: what layers make of more does not stay in its cache."""


def load_features(name: str, device: str = "auto") -> FeatureNet:
    """A feature network by torchvision's name (its ImageNet weights come from the cache or a download), by a file of
    weights, whose network is recognised by the shapes in it, or by a run or checkpoint whose classifier it is.

    Raises:
        UsageError: neither is there; weights fit no network that is known. MissingExtraError: timm is needed.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".safetensors" and _is_checkpoint(path)):
        return _classifier(path, device)
    if path.is_file():
        recognised, net = _recognise(path)
    elif name in NAMES and name != LITE:
        recognised, net = name, _named(name)
    else:
        raise UsageError(
            f"--features {name}: neither a file, a run, nor a network that is known by name: {', '.join(NAMES[:-1])}; "
            "a file is an ONNX graph, or weights of one of these or of EfficientNet-lite0"
        )
    where = pick_device(device)
    net = net.requires_grad_(False).eval().to(where)
    mean, std = (HALF, HALF) if recognised == LITE else IMAGENET

    @torch.no_grad()
    def maps(x: Float) -> Float:
        seen = torch.from_numpy(x).to(where).contiguous(memory_format=torch.channels_last)
        out: Float = net(seen).float().cpu().numpy()
        return out

    return FeatureNet(recognised, 224, maps, mean, std, ON_A_CPU if where.type == "cpu" else FeatureNet.at_once)


def _is_checkpoint(path: Path) -> bool:
    try:
        ckpt.load(path)
    except CheckpointError:
        return False
    return True


def _classifier(path: Path, device: str) -> FeatureNet:
    """The features h of a run's classifier, which tell the two domains apart and know little else."""
    found = ckpt.find(path)
    checkpoint = ckpt.load(found)
    if (net := checkpoint.saliency()) is None:
        raise UsageError(f"--features {found}: this run has no classifier (saliency_loss_weight 0)")
    where, config = pick_device(device), checkpoint.config
    net, codec = net.to(where), checkpoint.codec().to(where)

    @torch.no_grad()
    def maps(x: Float) -> Float:
        out: Float = (
            net.features(encode(codec, torch.from_numpy(x).to(where), config.train_minibatch_size)).cpu().numpy()
        )
        return out

    return FeatureNet("the run's classifier", config.max_size, maps, HALF, HALF)


def _body(name: str) -> nn.Module:
    """The network without its head: pictures → the last feature map. Raises MissingExtraError."""
    if name == LITE:
        try:
            import timm
        except ImportError as e:
            raise MissingExtraError("EfficientNet-lite0 needs timm: pip install 'rfp[dino]'") from e
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        return nn.Sequential(net.conv_stem, net.bn1, net.blocks, net.conv_head, net.bn2)
    net = getattr(torchvision().models, name)(weights=None)
    return net.features if name in WITH_FEATURES else nn.Sequential(*list(net.children())[:-2])


def _named(name: str) -> nn.Module:
    models = torchvision().models
    weights = models.get_model_weights(name).DEFAULT
    try:
        net = getattr(models, name)(weights=weights)
    except (OSError, RuntimeError) as e:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise UsageError(
            f"--features {name}: its ImageNet weights are not at {cache} and could not be downloaded from "
            f"{weights.url} ({e}); give a file of weights, or leave --features out"
        ) from e
    return net.features if name in WITH_FEATURES else nn.Sequential(*list(net.children())[:-2])


def _recognise(path: Path) -> tuple[str, nn.Module]:
    """The network whose tensors, in their order, have the shapes of those in the file; a head there is left out."""
    state = [v for v in load_weights_file(path).values() if v.ndim]
    found = [tuple(v.shape) for v in state]
    for name in NAMES:
        with torch.device("meta"):
            try:
                net = _body(name)
            except MissingExtraError:
                if tuple(found[0]) == (32, 3, 3, 3) and len(found) > 240:
                    raise
                continue
        own = {k: v for k, v in net.state_dict().items() if v.ndim}
        if found[: len(own)] == [tuple(v.shape) for v in own.values()] and len(found) - len(own) <= 8:
            counters = {k: torch.zeros((), dtype=v.dtype) for k, v in net.state_dict().items() if not v.ndim}
            values: dict[str, Tensor] = dict(zip(own, state[: len(own)], strict=True)) | counters
            net.load_state_dict({k: v.to(net.state_dict()[k].dtype) for k, v in values.items()}, assign=True)
            return name, net
    raise UsageError(
        f"--features {path}: {len(found)} tensors that are of no network known here ({', '.join(NAMES)}); export it as "
        "an ONNX graph of features and give that"
    )
