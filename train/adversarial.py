"""What pairs cannot teach: translations that a critic, which sees real pictures of the other domain, takes for real.

Neighbours are pictures of other things, and a flow between such pairs averages them: tints, fringes and smudges that
no picture of the domain has. So, once the flow has learned what pairs can teach, its training ends as that of a
generator of a few Euler steps: what it makes is to be close to the pair's other end, and not to be told from the
domain, as in pix2pix (Isola et al. 2017, arXiv:1611.07004, equation 4). The critic's game is the relativistic one with
both gradient penalties (Huang et al. 2024, arXiv:2501.05441, equations 2 and 3), which converges without tricks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoint as ckpt
from . import ranks
from .loss import Scales, size
from .pooling import pooled
from .velocity_net import follow

WIDTH = 32
"""Channels of a critic's first layer; four times as many in its last."""
PENALTY = 1.0
"""γ of both gradient penalties."""
TURN = 4
"""Steps, of which the first is penalised, so many times as much, and the third looks at the way back; every fourth of
these is penalised likewise (the laziness of Karras et al. 2020, arXiv:1912.04958, section 3.1)."""
BETAS = (0.0, 0.99)
"""Adam's, for both sides of the game: no momentum, since what one side learns turns with the other."""


class Critic(nn.Module):
    """How real pictures [B, C, H, W] look: in places of 10 px, in places of 36 px, and as a whole; H, W ≥ 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.2)

        def halve(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 4, stride=2, padding=1), act]

        def keep(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, padding=1), act]

        one, two, four = WIDTH, 2 * WIDTH, 4 * WIDTH
        self.fine = nn.Sequential(*keep(channels, one), *halve(one, two), *keep(two, two))
        self.coarse = nn.Sequential(*halve(two, four), *keep(four, four), *halve(four, four))
        self.fine_out, self.coarse_out = nn.Conv2d(two, 1, 1), nn.Conv2d(four, 1, 1)
        # The first, where once the pooling was, keeps the names that the weights have in training states.
        self.whole_out = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(four * 16, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return [self.fine_out(fine).flatten(1), self.coarse_out(coarse).flatten(1), self.whole_out(pooled(coarse, 4))]


def more_real(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """log(1 + exp(theirs − ours)), mean of places, then of all views, summed over pairs: 0.69 each if alike."""
    return torch.stack([F.softplus(b - a).mean(dim=1) for a, b in zip(ours, theirs, strict=True)]).mean(dim=0).sum()


def critic_loss(critic: Critic, made: Tensor, real: Tensor, penalty: float) -> tuple[Tensor, list[Tensor]]:
    """How far real pictures are from looking more real than made ones, and γ/2·‖∇‖² at both, summed over pairs.

    Also how the real ones look, without a gradient.
    """
    real, made = (x.detach().requires_grad_(penalty > 0) for x in (real, made))
    theirs, ours = critic(real), critic(made)
    loss = more_real(theirs, ours)
    for x, seen in ((real, theirs), (made, ours)) if penalty else ():
        (slope,) = torch.autograd.grad(sum(a.mean(dim=1).sum() for a in seen), x, create_graph=True)
        loss = loss + penalty / 2 * slope.square().sum()
    return loss, [a.detach() for a in theirs]


class Critics:
    """One for each domain, in float32, and what trains them; the same on every rank."""

    def __init__(self, channels: int, steps: int, seed: int) -> None:
        self.steps = steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.nets = nn.ModuleList([Critic(channels) for _ in range(2)])
        self.optimizer = torch.optim.Adam(self.nets.parameters(), betas=BETAS)

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
            ckpt.restore_optimizers({k.removeprefix("critic_"): m for k, m in moments.items()}, self.optimizer)

    def losses(
        self,
        v: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        x1: Tensor,
        step: int,
        scales: Scales,
        huber: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What v makes in `steps` Euler steps: how far it is from the pairs' other ends, in units of the distance
        between the ends; how surely it is told from real pictures; and the critic's own loss. Means over pairs.

        Args:
            v: velocity net; x0, x1: pairs [B, C, H, W]; scales: by `measure_scales` with the same `huber`, its c.
        """
        turn, back = step // TURN, step % TURN == TURN // 2  # never what is logged where log_every is even
        start, real, times = (x1, x0, (1.0, 0.0)) if back else (x0, x1, (0.0, 1.0))
        critic: Critic = self.nets[0 if back else 1]  # type: ignore[assignment]
        made = follow(v, start, self.steps, *times).float()
        distance = size(made - real, huber) / scales.flow
        with torch.autocast(x0.device.type, enabled=False):
            due = (turn if back else step) % TURN == 0
            learning, theirs = critic_loss(critic, made.detach(), real.float(), TURN * PENALTY if due else 0.0)
            critic.requires_grad_(False)
            told = more_real(critic(made), theirs)
            critic.requires_grad_(True)
        return distance / len(x0), told / len(x0), learning / len(x0)

    def update(self, rate: float) -> None:
        """One step of Adam at `rate`, by what their losses left."""
        ranks.add([p.grad for p in self.nets.parameters() if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
