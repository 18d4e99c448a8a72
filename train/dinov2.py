"""DINOv2 (arXiv:2304.07193) through timm, from the files of torch.hub, of Hugging Face's transformers, or of timm."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runtime.errors import MissingExtraError, UsageError
from .saliency import ImageNetNormalize, load_weights_file, torchvision

SIZE, PATCH = 224, 14
NAMES = {"dinov2_vits14": "small", "dinov2_vitb14": "base", "dinov2_vitl14": "large"}
LARGEST_GRID = 128
"""Patches a side, at most, of a file's position embedding; DINOv2's own have 37."""


class Dinov2(nn.Module):
    """Pictures [B, 3, 224, 224] in [-1, 1] → the patch tokens of the last layer as a feature map [B, C, 16, 16]."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.normalize, self.vit = ImageNetNormalize(), vit

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(self.normalize(x))  # type: ignore[operator]
        side = SIZE // PATCH
        features: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return features


def weights_file(name: str, given: str | None) -> Path:
    """Where the weights of `name` lie: `given`, else Hugging Face's cache, else its hub.

    Raises:
        MissingExtraError: timm is not installed.
        UsageError: they are nowhere to be had; the message names the ways out.
    """
    try:
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    except ImportError as e:
        raise MissingExtraError(f"structure_embedder {name} needs timm: pip install 'rfp[dino]'") from e
    ways_out = (
        "connect to the internet once, copy the Hugging Face cache of a machine that has it (HF_HOME says where), or "
        "give the file of torch.hub or Hugging Face with --set structure_weights=PATH; or choose another "
        "structure_embedder, e.g. foreground, which needs none"
    )
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(f"structure_weights: {path}: no such file; {ways_out}")
        return path
    repos = [f"timm/vit_{NAMES[name]}_patch14_dinov2.lvd142m", f"facebook/dinov2-{NAMES[name]}"]
    for repo in repos:
        if isinstance(cached := try_to_load_from_cache(repo, "model.safetensors"), str):
            return Path(cached)
    try:
        return Path(hf_hub_download(repos[0], "model.safetensors"))
    except Exception as e:  # the hub's client and those below it raise dozens of kinds
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(e).__name__}: {_line(e)}"
        raise UsageError(
            f"structure_embedder: the weights of {name} are neither in {constants.HF_HUB_CACHE} ({' or '.join(repos)}) "
            f"nor could be downloaded ({offline}); {ways_out}"
        ) from e


def build_dinov2(name: str, path: Path) -> nn.Module:
    """The net with the weights of a file, in evaluation mode. Nothing is allocated before the file is seen to fit.

    Raises:
        UsageError: the file cannot be read safely, or is not of this net.
    """
    torchvision()  # timm imports it, too
    try:
        import timm
        from timm.layers import resample_abs_pos_embed
    except ImportError as e:
        raise MissingExtraError(f"structure_embedder {name} needs timm: pip install 'rfp[dino]'") from e

    with torch.device("meta"):
        vit = timm.create_model(f"vit_{NAMES[name]}_patch14_dinov2", img_size=SIZE, num_classes=0)
    wanted = {k: v.shape for k, v in vit.state_dict().items()}
    state = timm_names(load_weights_file(path))
    position = state.get("pos_embed", torch.empty(0))
    grid = round(max(position.shape[1] - 1, 0) ** 0.5) if position.ndim == 3 else 0
    shapes = {k: v.shape for k, v in state.items()}
    if 1 < grid <= LARGEST_GRID and position.shape == (1, grid**2 + 1, wanted["pos_embed"][2]):
        shapes["pos_embed"] = wanted["pos_embed"]  # of another size: it is resampled
    if wrong := sorted(k for k in wanted.keys() | shapes.keys() if wanted.get(k) != shapes.get(k)):
        raise UsageError(
            f"{path}: not the weights of {name}: {len(wrong)} tensors are missing, too many or of another shape, "
            f"e.g. {wrong[0]}"
        )
    state["pos_embed"] = resample_abs_pos_embed(position.float(), [SIZE // PATCH] * 2, num_prefix_tokens=1)
    vit.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return Dinov2(vit).requires_grad_(False).eval()


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by timm's names, from torch.hub's (nearly the same) or those of transformers.Dinov2Model."""
    state = {k.removeprefix("dinov2."): v for k, v in state.items()}
    renamed: dict[str, Tensor] = {}
    qkv: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.split(".")[-1] == "mask_token" or key.startswith(("head.", "classifier.")):
            continue  # only of use in DINOv2's own training, or for classes
        for pattern, new in _RENAMED:
            key = re.sub(pattern, new, key)
        if part := re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)", key):
            qkv.setdefault(f"{part[1]}.qkv.{part[3]}", {})[part[2]] = value
        else:
            renamed[key] = value
    for key, parts in qkv.items():
        if len(parts) == 3:
            renamed[key] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed


_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.attention\.attention\.", r"\1.attn."),
    (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layer_scale(\d)\.lambda1$", r"\1.ls\2.gamma"),
    (r"^layernorm\.", "norm."),
)


def _line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
