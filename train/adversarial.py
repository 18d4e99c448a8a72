"""What pairs cannot teach: translations that a critic, which sees real pictures of the other domain, takes for real.

Neighbours are pictures of other things, and a flow between such pairs averages them: tints, fringes and smudges that
no picture of the domain has. So, once the flow makes something, what it makes of a picture in the exported number of
calls is also held against real pictures, as in pix2pix (Isola et al. 2017, arXiv:1611.07004, equation 4): close to the
pair's other end, and not to be told from the domain. The critic's game is the relativistic one with both gradient
penalties (Huang et al. 2024, arXiv:2501.05441, equations 2 and 3), which converges without tricks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.euler import integrate
from . import checkpoint as ckpt
from . import ranks
from .loss import Scales

WIDTH = 32
"""Channels of a critic: half as many in its first layer, four times in its last."""
PENALTY = 1.0
"""γ of both gradient penalties."""
TURN = 4
"""Steps, of which the last looks at the way back. Every second turn is penalised, twice as much (the laziness of Karras
et al. 2020, arXiv:1912.04958, section 3.1)."""
RATE = 1e-3
"""Adam's rate for the critics when the velocity's is at its height; they rise and fall together."""


class Critic(nn.Module):
    """How real pictures [B, C, H, W] look, at three scales: in places of 10 px, of 20 px, and as a whole; H, W ≥ 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width, act = WIDTH, nn.LeakyReLU(0.2)
        self.fine = nn.Sequential(
            *(nn.Conv2d(channels, width // 2, 3, padding=1), act),
            *(nn.Conv2d(width // 2, 2 * width, 4, stride=2, padding=1), act),
        )
        self.coarse = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1), act)
        self.whole = nn.Sequential(nn.Conv2d(4 * width, 4 * width, 3, stride=2, padding=1), act)
        self.fine_out, self.coarse_out = (nn.Conv2d(n * width, 1, 3, padding=1) for n in (2, 4))
        self.whole_out = nn.Sequential(nn.Linear(4 * width, 4 * width), act, nn.Linear(4 * width, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):  # torch's own start lets what is seen fade from layer to layer
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        whole = self.whole(coarse).mean(dim=(2, 3))
        return [self.fine_out(fine).flatten(1), self.coarse_out(coarse).flatten(1), self.whole_out(whole)]


def more_real(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """log(1 + exp(theirs − ours)), each scale's mean over its places, summed over pairs: 0.69 each if alike."""
    return torch.stack([F.softplus(b - a).mean(dim=1) for a, b in zip(ours, theirs, strict=True)]).mean(dim=0).sum()


def critic_loss(critic: Critic, made: Tensor, real: Tensor, penalty: float) -> Tensor:
    """How far real pictures are from looking more real than made ones, and γ/2·‖∇‖² at both, summed over pairs."""
    real, made = (x.detach().requires_grad_(penalty > 0) for x in (real, made))
    theirs, ours = critic(real), critic(made)
    loss = more_real(theirs, ours)
    for x, seen in ((real, theirs), (made, ours)) if penalty else ():
        (slope,) = torch.autograd.grad(sum(a.mean(dim=1).sum() for a in seen), x, create_graph=True)
        loss = loss + penalty / 2 * slope.square().sum()
    return loss


class Critics:
    """One for each domain, in float32, and what trains them; the same on every rank."""

    def __init__(self, channels: int, steps: int, seed: int) -> None:
        self.steps = steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.nets = nn.ModuleList([Critic(channels) for _ in range(2)])
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=RATE, betas=(0.0, 0.99))

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Critics":
        """Where and in which order they keep their weights; before the first update."""
        self.nets.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        return self

    def state(self) -> ckpt.Tensors:
        """What resuming needs."""
        weights = {f"critic.{k}": w for k, w in self.nets.state_dict().items()}
        return weights | {f"critic_{k}": m for k, m in ckpt.optimizer_tensors(self.optimizer).items()}

    def restore(self, state: ckpt.Tensors) -> None:
        """The reverse, of a whole training state. Raises CheckpointError."""
        weights, moments = ckpt.named(state, "critic."), ckpt.named(state, "critic_")
        if weights:
            ckpt.adopt(self.nets, {k.removeprefix("critic."): w for k, w in weights.items()})
            ckpt.restore_optimizer(self.optimizer, {k.removeprefix("critic_"): m for k, m in moments.items()})

    def losses(
        self, v: Callable[[Tensor, Tensor], Tensor], x0: Tensor, x1: Tensor, step: int, scales: Scales
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What v makes in `steps` Euler steps: how far it is from the pairs' other ends, in units of the distance
        between the ends; how surely it is told from real pictures; and the critic's own loss. Means over pairs.

        Args:
            v: velocity net; x0, x1: pairs [B, C, H, W]; scales: `flow` is E‖x1 − x0‖².
        """
        turn, back = step // TURN, step % TURN == TURN - 1
        start, real, times = (x1, x0, (1.0, 0.0)) if back else (x0, x1, (0.0, 1.0))
        critic: Critic = self.nets[0 if back else 1]  # type: ignore[assignment]
        made = integrate(lambda x, t: v(x, torch.full((1,), t, device=x.device)), start, self.steps, *times).float()
        distance = (made - real).square().sum() / scales.flow
        with torch.autocast(x0.device.type, enabled=False):
            real = real.float()
            learning = critic_loss(critic, made.detach(), real, penalty=0.0 if turn % 2 else 2 * PENALTY)
            critic.requires_grad_(False)
            told = more_real(critic(made), critic(real))
            critic.requires_grad_(True)
        return distance / len(x0), told / len(x0), learning / len(x0)

    def update(self, height: float) -> None:
        """One step of Adam by what their losses left; `height`: of the velocity's rate, 0 to 1."""
        gradients = [p.grad for p in self.nets.parameters() if p.grad is not None]
        ranks.add(gradients)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * height
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
