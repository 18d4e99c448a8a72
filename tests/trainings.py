"""Trainings that take a second: two folders of 20 px pictures, nets of a few channels, one thread."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rfp.train import checkpoint as ckpt
from rfp.train.codec import VAE, normalize
from rfp.train.config import RFPix2pixModel
from rfp.train.job import Job
from rfp.train.reading import validate
from rfp.train.training import train
from rfp.train.velocity_net import build_velocity_net

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "structure_pairing": False,
    "type": "RFPix2pixModel",
    "max_size": 16,
    "sample_batch_size": 3,
    "train_batch_size": 5,
    "train_minibatch_size": 2,
    "train_images": 30,
    "optimizer": "muon",
    "learning_rate": 0.01,
    "warmup_images": 10,
    "dropout": 0.0,
    "alignment": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "adversarial_weight": 0.0,
    "flow_loss_huber": 0.1,
    "ema_decay": 0.5,
    "num_inference_steps": 2,
    "log_every": 1,
    "saliency_loss_weight": 0.1,
    "saliency_learning_rate": 0.02,
    "saliency_accuracy_threshold": 0.9,
    "saliency_max_steps": 6,
    "saliency_blend_fraction": 0.2,
    "velocity_net": {
        "type": "UNet",
        "model_channels": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "coordinates": True,
        "input_gain": "matrix",
        "seamless": True,
    },
    "saliency_net": {"type": "ConvSaliencyNet", "channels": [8, 8], "latent_channels": 8},
}

VAE_TINY: dict[str, Any] = {
    "type": "VAE",
    "latent_channels": 3,
    "model_channels": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "train_batch_size": 4,
    "train_minibatch_size": 3,
    "train_images": 24,
    "learning_rate": 0.01,
    "warmup_images": 4,
    "ema_decay": 0.5,
}
"""A codec whose z is half the pictures' size; 6 steps of phase 0."""
LATENT: dict[str, Any] = {"codec": VAE_TINY | {"mid_attention": True}}


def tiny(**changes: Any) -> RFPix2pixModel:
    return validate(TINY | changes)


def noisy(level: int, seed: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """uint8 [H, W, 3] around one grey level."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)


def draw_domains(root: Path, n0: int = 7, n1: int = 9) -> tuple[Path, Path]:
    """Folders of dark and of bright pictures."""
    for name, level, n in (("dark", 70, n0), ("bright", 190, n1)):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(noisy(level, i)).save(root / name / f"{i}.png")
    return root / "dark", root / "bright"


class Listener:
    """A reporter that keeps what it was told, and calls `on_step(phase, step)`."""

    def __init__(self, on_step: Any = None) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.on_step = on_step

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        self.steps.append((phase, step))
        if self.on_step:
            self.on_step(phase, step)


def job(work: Path, run: str = "run", **changes: Any) -> Job:
    return Job(tiny(**changes), (work / "dark",), (work / "bright",), work / run, device="cpu")


def finish(job: Job) -> Listener:
    listener = Listener()
    train(job, listener)
    return listener


def final(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The newest checkpoint's tensors, its training state, and the metrics without the clock's."""
    newest = ckpt.find(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]
    return ckpt.load(newest).tensors, ckpt.load_state(newest), metrics


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: weights, averages, moments, metrics."""
    for a, b in zip(final(one), final(other), strict=True):
        if isinstance(a, list):
            assert a == b
            continue
        assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []


def write_run(root: Path, phase: str = "velocity", generative: bool = False, **changes: Any) -> Path:
    """A run folder with a checkpoint of nets that do something."""
    config = tiny(**changes)
    torch.manual_seed(1)
    nets = [build_velocity_net(config) for _ in range(2)]
    for p in nets[0].parameters():
        torch.nn.init.normal_(p, std=0.15)
    tensors = {f"velocity_ema.{k}": v for k, v in nets[0].state_dict().items()}
    tensors |= {f"velocity_net.{k}": v for k, v in nets[1].state_dict().items()}
    if config.codec.latents:
        codec = VAE(config.codec)
        normalize(codec, torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.5, 0.7, 0.9]))
        tensors |= {f"codec_ema.{k}": v for k, v in codec.state_dict().items()}
    if phase == "saliency":
        tensors = {}
    size = (config.max_size, config.max_size)
    for place, level in enumerate((70, 190)):
        tensors[f"samples.domain{place}"] = torch.from_numpy(np.stack([noisy(level, i, size) for i in range(3)]))
    if generative:
        del tensors["samples.domain0"]
    domains = ("random" if generative else "dark", "bright")
    path = root / "checkpoints" / f"{phase}-00000009.safetensors"
    ckpt.save(path, ckpt.Checkpoint(config, phase, 9, 0, domains, tensors, generative=generative), {})
    return root
