"""Muon: weight matrices step along the semi-orthogonal matrix nearest to their momentum (Jordan et al. 2024).

A gradient is mostly a few large directions; a step whose directions are all as large learns the small ones as fast:
a badge in a corner, a colour that few pictures have ("The optimiser" in benchmarks/RESULTS.md).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""a, b, c of σ ← aσ + bσ³ + cσ⁵, which in 5 turns takes singular values from 2e-3 on to 0.7 to 1.2."""
TURNS = 5
ADAMW = 0.2
"""Root mean square of AdamW's updates over its rate, given to Muon's (Liu et al. 2025, arXiv:2502.16982, eq. 4)."""
PICTURES = 1600
"""So many the momentum remembers: fewer pairs, some of them wrong, would leave noise in its small directions."""


def orthogonal(g: Tensor) -> Tensor:
    """About U·Vᵀ of g = U·S·Vᵀ [..., m, n], float32: singular values of 2e-3 of ‖g‖ and more become 0.7 to 1.2.

    Newton–Schulz. All turns are taken on the smaller of gᵀg and g·gᵀ, which an odd polynomial of g is a function of
    beside g itself: less than half of the work that g has in every turn, and exact enough in float32.
    """
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g) / g.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-20)
    gram = x @ x.mT
    q = eye = torch.eye(gram.shape[-1], device=g.device, dtype=g.dtype)
    a, b, c = POLYNOMIAL
    for _ in range(TURNS):
        p = a * eye + b * gram + c * (gram @ gram)
        q, gram = p @ q, p @ gram @ p
    u: Tensor = q @ x
    return u.mT if tall else u


class Muon(torch.optim.Optimizer):
    """m ← βm + (1 − β)g; w ← (1 − lr·decay)·w − lr·0.2·√max(rows, columns)·orthogonal((1 − β)g + βm).

    A convolution's weight is a matrix [out, in·kh·kw]. torch.optim.Muon takes no convolutions and computes in
    bfloat16, which on a CPU takes 18 times as long.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all that has a gradient."""
        for group in self.param_groups:
            beta, lr = group["momentum"], group["lr"]
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for w in group["params"]:
                if w.grad is not None:
                    alike[w.flatten(1).shape].append(w)
            for shape, weights in alike.items():  # one after the other they would be thousands of small kernels
                size = lr * ADAMW * max(shape) ** 0.5
                g = torch.stack([self._led(w, beta).flatten(1) for w in weights])
                for w, o in zip(weights, orthogonal(g), strict=True):
                    w.mul_(1 - lr * group["weight_decay"]).sub_(o.view_as(w), alpha=size)

    def _led(self, w: Tensor, beta: float) -> Tensor:
        """Where the momentum, brought up to date, leads (Nesterov)."""
        assert w.grad is not None
        if w not in self.state:
            self.state[w]["momentum"] = torch.zeros_like(w)
        return w.grad.lerp(self.state[w]["momentum"].lerp_(w.grad, 1 - beta), beta)


def optimizers(
    net: nn.Module, name: str, rate: float, decay: float, batch: int, fused: bool = True
) -> list[torch.optim.Optimizer]:
    """`muon`, for the weights of convolutions and linear layers, and AdamW for the rest; or `adamw` for all."""
    layers = (nn.Conv2d, nn.Linear) if name == "muon" else ()
    matrices = [layer.weight for layer in net.modules() if isinstance(layer, layers)]
    taken = {id(w) for w in matrices}
    others = [w for w in net.parameters() if id(w) not in taken]
    adamw = torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=fused)
    momentum = max(0.9, 1 - batch / PICTURES)
    return [Muon(matrices, rate, decay, momentum), adamw] if matrices else [adamw]
