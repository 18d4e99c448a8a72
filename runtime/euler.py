"""The one integrator: numpy arrays at run time, torch tensors while training."""

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

Solver = Literal["euler", "heun"]
State = TypeVar("State")
"""An array or tensor: anything with `+` and multiplication by a float."""


def integrate(
    velocity: Callable[[State, float], State],
    x: State,
    steps: int,
    t0: float = 0.0,
    t1: float = 1.0,
    on_step: Callable[[int, State], None] | None = None,
    solver: Solver = "euler",
) -> State:
    """Follow dx/dt = v(x, t) from t0 to t1 by `steps` equal Euler steps (arXiv:2209.03003, section 2.2).

    Or by Heun's (arXiv:2206.00364, algorithm 1 without noise): each step calls v at both of its ends and goes by their
    mean.

    Args:
        velocity: v(x, t), of the shape of `x`; `t` is a float in [0, 1].
        x: the state at t0, any shape; it is not changed in place.
        steps: at least 1; of Euler's each is one velocity call, of Heun's two.
        t0, t1: 0 → 1 translates domain 0 to domain 1, 1 → 0 back.
        on_step: called with (steps done, state) after each step.

    Returns:
        The state at t1.

    Raises:
        ValueError: `steps` is below 1, or a solver that is not known.
    """
    if steps < 1:
        raise ValueError(f"integrate() needs at least 1 step, got {steps}")
    if solver not in get_args(Solver):
        raise ValueError(f"integrate() knows the solvers {get_args(Solver)}, got {solver!r}")
    dt = (t1 - t0) / steps
    for k in range(steps):
        v = velocity(x, t0 + k * dt)
        if solver == "heun":
            end = velocity(x + v * dt, t0 + (k + 1) * dt)  # type: ignore[operator,arg-type]
            v = (v + end) * 0.5  # type: ignore[operator]
        x = x + v * dt  # type: ignore[operator,assignment]
        if on_step is not None:
            on_step(k + 1, x)
    return x
