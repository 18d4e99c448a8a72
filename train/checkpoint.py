"""Checkpoints in safetensors: data, never code. The config travels inside; the training state lies beside.

    runs/ID/checkpoints/velocity-00001000.safetensors         nets, config, sample pictures: export needs no more
    runs/ID/checkpoints/velocity-00001000.state.safetensors   optimiser moments and counters: what resuming adds

The state is written first, so a checkpoint that exists can be resumed from.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..runtime.description import PHASES as PHASES
from ..runtime.errors import CheckpointError, ConfigError, UsageError
from ..runtime.files import write_aside
from .codec import VAE, Codec, Identity
from .codec_config import IdentityConfig
from .config import RFPix2pixModel, to_json, without_folders
from .muon import Muon
from .reading import parse_json, validate
from .saliency import SaliencyNet, build_saliency_net
from .velocity_net import VelocityNet, build_velocity_net

FORMAT = 1
BEST, LAST = "best.safetensors", "last.safetensors"
"""The names, beside the numbered checkpoints, of the best by a run's own judgement and of the newest (`eval_every`)."""
Tensors = dict[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """What a training has learned so far.

    `tensors` are named `velocity_net.*`, `velocity_ema.*`, `saliency_net.*`, `codec_net.*` (phase 0 only),
    `codec_ema.*` and `samples.domain0|1` (uint8 [N, H, W, 3], the fixed pictures of the sample grids, with which an
    export is proven).
    """

    config: RFPix2pixModel
    phase: str
    step: int
    seed: int
    domains: tuple[str, str]
    tensors: Tensors = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)
    generative: bool = False
    """Domain 0 is noise, not pictures."""
    path: Path | None = field(default=None, compare=False)
    """The file that it was read from."""

    def part(self, name: str) -> Tensors:
        """The tensors below `name.`, e.g. `velocity_ema`."""
        prefix = name + "."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def finished(self, phase: str) -> bool:
        """Whether what `phase` trains (the codec, the classifier) is as good as it was to become."""
        later = PHASES.index(self.phase) > PHASES.index(phase)
        return later or (self.phase == phase and bool(self.metrics.get("done")))

    def codec(self) -> Codec:
        """The averaged codec, in evaluation mode, on the CPU. Raises CheckpointError."""
        config = self.config.codec
        if isinstance(config, IdentityConfig):
            return Identity()
        return self._net(lambda: VAE(config), "codec_ema")

    def velocity(self) -> VelocityNet:
        """The averaged velocity net, in evaluation mode, on the CPU. Raises CheckpointError."""
        self.need_velocity()
        return self._net(lambda: build_velocity_net(self.config), "velocity_ema")

    def need_velocity(self) -> None:
        """Raise CheckpointError where there is no velocity net yet."""
        if not self.part("velocity_ema"):
            raise CheckpointError(
                f"{self.path}: this checkpoint is from the {self.phase} phase: it holds no velocity net yet; train on"
            )

    def saliency(self) -> SaliencyNet | None:
        """The domain classifier, in evaluation mode, or None where the training has none. Raises CheckpointError."""
        if not self.part(name := "saliency_net"):
            return None
        net, latents = self.config.saliency_net, self.config.codec.latents
        return self._net(lambda: build_saliency_net(net, latents, load_weights=False), name)

    def _net(self, build: Callable[[], Net], name: str) -> Net:
        """Build a net without memory for it, compare it with the tensors below `name.`, then give it those.

        A checkpoint's config may ask for any size: only what the file itself holds is ever allocated.
        """
        with torch.device("meta"):
            net = build()
        self.give(net, name, assign=True)
        return net.requires_grad_(False).eval()

    def give(self, net: nn.Module, name: str, assign: bool = False) -> None:
        """Give a net all tensors below `name.`, as `adopt` does. Raises CheckpointError, which names the file."""
        try:
            adopt(net, self.part(name), assign)
        except CheckpointError as e:
            raise CheckpointError(f"{self.path}: {e}") from e


def adopt(net: nn.Module, state: Tensors, assign: bool = False) -> None:
    """Give a net all of its tensors: copied, or with `assign` as they are. Raises CheckpointError if one differs."""
    wanted = net.state_dict()
    wrong = sorted(set(wanted) ^ set(state)) or sorted(
        k for k, w in wanted.items() if (w.shape, w.dtype) != (state[k].shape, state[k].dtype)
    )
    if wrong:
        raise CheckpointError(f"the checkpoint's tensors do not fit its config: {len(wrong)} differ, e.g. {wrong[0]}")
    net.load_state_dict(state, assign=assign)


def state_path(path: Path) -> Path:
    """Where the training state of a checkpoint lies."""
    return path.with_suffix(".state.safetensors")


def save(path: Path, checkpoint: Checkpoint, state: Tensors) -> None:
    """Write a checkpoint and, before it, its training state if there is one; each whole or not at all.

    Of files that the config names it keeps the names, not their folders: a checkpoint may be given away.
    """
    about = {
        "format": FORMAT,
        "config": without_folders(to_json(checkpoint.config)),
        "phase": checkpoint.phase,
        "step": checkpoint.step,
        "seed": checkpoint.seed,
        "domains": checkpoint.domains,
        "metrics": checkpoint.metrics,
        "generative": checkpoint.generative,
    }
    files = [(state_path(path), state)] if state else []
    for target, tensors in (*files, (path, checkpoint.tensors)):
        whole = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
        with write_aside(target) as partial:
            partial.touch()
            mode = partial.stat().st_mode  # what the umask gives any file; safetensors makes its own for nobody else
            save_file(whole, partial, {"rfp": json.dumps(about)})
            partial.chmod(mode)


def name_last(path: Path) -> None:
    """Let last.safetensors beside a checkpoint be that checkpoint: the same file where the system can, else a copy."""
    with write_aside(path.with_name(LAST)) as partial:
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, partial)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError: not there, damaged, not rfp's, or of a newer format."""
    tensors, text = _read(path)
    if text is None:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of rfp (no 'rfp' entry in its metadata)"
        )
    try:
        about = parse_json(text, str(path))
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path}: checkpoint format {about['format']}, this rfp reads {FORMAT}; update rfp")
        zero, one = (str(d) for d in about["domains"])
        if min(about["step"], about["seed"]) < 0:
            raise ValueError(f"step {about['step']}, seed {about['seed']}")
        about["config"].setdefault("optimizer", "adamw")  # checkpoints from before there was Muon do not say
        net = about["config"]["velocity_net"]
        if net["type"] == "UNet":
            net.setdefault("coordinates", False)  # checkpoints from before there were any do not say
            net.setdefault("seamless", False)
            gain = net.setdefault("input_gain", False)
            net["input_gain"] = {False: "none", True: "diagonal"}.get(gain, gain)  # once it was one or the other
        return Checkpoint(
            validate(about["config"], f"the config inside {path}"),
            PHASES[PHASES.index(about["phase"])],
            int(about["step"]),
            int(about["seed"]),
            (zero, one),
            tensors,
            {str(k): float(v) for k, v in about["metrics"].items()},
            about.get("generative", False) is True,  # checkpoints from before there was noise do not say
            path,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ConfigError) as e:
        raise CheckpointError(f"{path}: its description is damaged: {e}") from e


def load_state(path: Path) -> Tensors:
    """The training state beside a checkpoint. Raises CheckpointError."""
    return _read(state_path(path))[0]


def _read(path: Path) -> tuple[Tensors, str | None]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as f:
            # Copies, as aligned as tensors of torch's own: kernels round differently on the file's odd addresses.
            tensors = {k: f.get_tensor(k).clone() for k in f.keys()}  # noqa: SIM118
            return tensors, (f.metadata() or {}).get("rfp")
    except (SafetensorError, OSError, ValueError, MemoryError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file: {e or type(e).__name__}") from e


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that can be read, oldest first, by the phase and step written inside them."""
    found = []
    for path in (run / "checkpoints").glob("*.safetensors"):
        if path.name.endswith(".state.safetensors") or path.name.startswith(".") or path.name in (BEST, LAST):
            continue
        try:
            about = json.loads(_about(path))
            found.append(((PHASES.index(about["phase"]), int(about["step"])), path))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # not one of ours
    return [path for _, path in sorted(found)]


def _about(path: Path) -> str:
    """A checkpoint's description as it is written inside it. Raises as `safe_open`; KeyError where there is none."""
    with safe_open(path, framework="pt") as f:
        return str((f.metadata() or {})["rfp"])


def find(path: Path, best: bool = False) -> Path:
    """A checkpoint file as it is; for a run folder its newest one, or the best by its own judgement.

    Raises:
        UsageError: not there; or the best is asked of what has none.
        CheckpointError: a folder without checkpoints.
    """
    if os.path.isdir(path):  # noqa: PTH112
        if not (found := checkpoints(path)):
            raise CheckpointError(
                f"{path}: a folder without checkpoints/*.safetensors; give a run folder or a checkpoint"
            )
        if best and not (found[-1].with_name(BEST)).is_file():
            raise UsageError(f"{path}: has no {BEST}, which runs with eval_every keep; leave out --best for its newest")
        return found[-1].with_name(BEST) if best else found[-1]
    if not os.path.exists(path):  # noqa: PTH110 (pathlib's raises for a name too long)
        raise UsageError(f"{path}: no such run folder or checkpoint")
    if best:
        raise UsageError(f"{path}: is one checkpoint; --best chooses among those of a run folder")
    if path.name == LAST and (found := checkpoints(path.parent.parent)) and _about(path) == _about(found[-1]):
        return found[-1]  # whose training state goes by its number
    return path


def named(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose names begin with `prefix`."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(*optimizers: torch.optim.Optimizer) -> Tensors:
    """The moments of optimisers as flat tensors, by place of the parameter; rates come from the config and the step."""
    found: Tensors = {}
    first = 0
    for optimizer in optimizers:
        state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
        for i, entry in state.items():
            found |= {f"optimizer.{first + i}.{name}": torch.as_tensor(moment) for name, moment in entry.items()}
        first += len(_parameters(optimizer))
    return found


def restore_optimizers(tensors: Tensors, *optimizers: torch.optim.Optimizer) -> None:
    """The reverse of `optimizer_tensors`. Raises CheckpointError where names or shapes differ."""
    places = [(o, i, p) for o in optimizers for i, p in enumerate(_parameters(o))]
    states: dict[torch.optim.Optimizer, dict[int, dict[str, Tensor]]] = {o: {} for o in optimizers}
    try:
        for key, value in tensors.items():
            _, place, name = key.split(".")
            optimizer, i, p = places[int(place)]
            if value.shape != (torch.Size() if name == "step" else p.shape):
                raise ValueError
            # Files hold NCHW; the fused kernel takes memory as it lies, whatever the strides.
            moment = value if name == "step" else torch.empty_like(p.detach(), device="cpu").copy_(value)
            states[optimizer].setdefault(i, {})[name] = moment
        # Parameters that never had a gradient have no moments.
        same = all(e.keys() == _moments(o) for o, state in states.items() for e in state.values())
    except (ValueError, IndexError):
        same = False
    if not same:
        raise CheckpointError("the training state beside the checkpoint is of another net")
    for optimizer, state in states.items():
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> set[str]:
    return {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
