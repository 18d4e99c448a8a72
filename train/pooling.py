"""Pictures as the means of a grid of cells, on every device."""

import torch.nn.functional as F
from torch import Tensor


def pooled(x: Tensor, cells: int) -> Tensor:
    """`F.adaptive_avg_pool2d`: [B, C, H, W] → [B, C, cells, cells].

    Apple's MPS has it for sizes that divide only (pytorch/pytorch#96056); of others the CPU takes the means for it.
    """
    divides = all(side % cells == 0 or cells % side == 0 for side in x.shape[2:])
    there = x.cpu() if x.device.type == "mps" and not divides else x
    return F.adaptive_avg_pool2d(there, cells).to(x.device)
