"""Trainings on a GPU that is not there: `python simulated_gpu.py WORK`, which test_device.py runs as a process.

Tensors say that they are on `gpu:0` and are computed on the CPU, but what a GPU refuses is refused: operations on
tensors of both, and random numbers there from a generator here.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parents[1]))

from rfp.train import opening
from trainings import VAE_TINY, finish, job

INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""What takes indices from either side."""
COPYING = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
GPU = torch.device("cpu")
"""The device, once it is registered."""


class Backend(_DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a kind of device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def synchronize(self, *device: Any) -> None:
        pass


class There(torch.Tensor):
    """A tensor on the GPU; `here` has its numbers."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        about = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made: There = torch.Tensor._make_wrapper_subclass(cls, here.size(), **about, device=GPU)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Simulated(TorchDispatchMode):
    """Sends what makes tensors on the GPU there, which no argument tells."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs), on the side where its tensors lie. Raises RuntimeError where they lie on both."""
    flat, spec = tree_flatten((args, kwargs))
    tensors = [a for a in flat if isinstance(a, torch.Tensor)]
    there, name, device = [t for t in tensors if isinstance(t, There)], func._schema.name, kwargs.get("device")
    asked = None if device is None else torch.device(device).type == GPU.type
    if not there and not asked:
        return func(*args, **kwargs)
    if name in COPYING:
        goes = asked if asked is not None else isinstance(args[0], There)
    else:
        goes = asked is not False
        indexed = name in INDEXING and isinstance(args[0], There)
        if not indexed and any(not isinstance(t, There) and t.dim() for t in tensors):
            raise RuntimeError(f"{name}: tensors on {GPU} and on the CPU")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: a generator of the CPU for tensors on {GPU}")
    plain = [a.here if isinstance(a, There) else torch.device("cpu") if a == GPU else a for a in flat]
    args, kwargs = tree_unflatten(plain, spec)
    same = {id(t.here): t for t in there}

    def placed(out: Any) -> Any:
        if not isinstance(out, torch.Tensor) or id(out) in same:
            return same.get(id(out), out)
        return There(out) if goes else out

    return tree_map(placed, func(*args, **kwargs))


def tensor(values: Any, *, device: Any = None, of: Any = torch.tensor, **about: Any) -> torch.Tensor:
    """torch.tensor, whose numbers no dispatch sees on their way."""
    made: torch.Tensor = of(values, **about)
    return made if device is None else made.to(device)


PLAIN: dict[str, Any] = {"saliency_loss_weight": 0, "structure_pairing": True, "train_images": 20}
CASES: dict[str, dict[str, Any]] = {
    "re-pairing, self-pairing": {"re_pairings": 1, "self_pairing": 0.5, "dropout": 0.3, "alignment": None},
    "critic": {"adversarial_weight": 1.0, "adversarial_start": 0.5, "optimizer": "adamw"},
    "latent": {"codec": VAE_TINY},
    "transport": {"structure_pairing": None, "coupling": "minibatch_ot", "eval_every": 2},
}


def main(work: Path) -> None:
    global GPU
    _setup_privateuseone_for_python_backend("gpu", backend_module=Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # a module's tensors change their kind when they move
    GPU = torch.device("gpu", 0)
    torch.tensor = tensor  # type: ignore[assignment]
    opening.pick_device = lambda name: GPU
    for name, changes in CASES.items():
        with Simulated():
            finish(job(work, name, **PLAIN | changes))
        print("done", name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
