"""Where a training computes."""

import torch
import torch.nn.functional as F

from ..runtime.errors import UsageError
from . import ranks


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a device by name must be there. Raises UsageError.

    Of several ranks on a machine each takes a GPU of its own.
    """
    alone = ranks.count() == 1
    there = {"cuda": torch.cuda.is_available(), "mps": alone and torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(d for d, yes in there.items() if yes)
    if name not in there:
        raise UsageError(f"--device {name}: not one of auto, cpu, cuda, mps")
    if not there[name]:
        raise UsageError(
            f"--device {name}: not available to torch {torch.__version__} on this machine; use --device auto or cpu"
        )
    if name == "cuda" and not alone:
        gpus, mine = torch.cuda.device_count(), ranks.local_rank()
        if mine >= gpus:
            raise UsageError(
                f"--device cuda: rank {mine} of this machine has no GPU, there are {gpus}; start {gpus} ranks"
            )
        torch.cuda.set_device(mine)
        return torch.device("cuda", mine)
    return torch.device(name)


def has_forward_mode(device: torch.device) -> bool:
    """Whether torch has the forward-mode derivatives there that the saliency loss is made of.

    On Apple's MPS linear layers and max pooling are kernels of their own, which lack them (pytorch/pytorch#137720).
    """
    x = torch.zeros(1, 1, 2, 2, device=device)
    try:
        torch.func.jvp(lambda x: F.linear(F.max_pool2d(x, 2), torch.ones(1, 1, device=device)), (x,), (x,))
    except NotImplementedError:
        return False
    return True
