"""The one integrator, against equations whose discrete answers are known."""

import bundles
import numpy as np
import pytest
import torch
from PIL import Image
from rfp.runtime import UsageError, translate
from rfp.runtime.euler import integrate
from rfp.runtime.options import FlowOptions


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("of", [np.asarray, torch.tensor])
def test_decay_shrinks_by_each_methods_own_factor(n, of):
    x, h = of([2.0, -3.0]), 1 / n
    for solver, factor in (("euler", 1 - h), ("heun", 1 - h + h * h / 2)):
        got = integrate(lambda x, t: -x, x, n, solver=solver)
        assert got.tolist() == pytest.approx([2 * factor**n, -3 * factor**n], rel=1e-6)


@pytest.mark.parametrize("n", [1, 4])
def test_heun_is_the_trapezium_rule_where_velocity_depends_on_time_alone_there_and_back(n):
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        got = float(integrate(lambda x, t: np.array(3 * t * t), np.array(0.0), n, t0, t1, solver="heun"))
        assert got == pytest.approx((t1 - t0) * (1 + 1 / (2 * n * n)))


def test_heun_calls_the_velocity_twice_a_step_at_its_ends():
    times = []
    integrate(lambda x, t: times.append(t) or x, np.zeros(1), 2, solver="heun")
    assert times == [0, 0.5, 0.5, 1]


def test_no_step_and_no_such_solver_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        integrate(lambda x, t: x, np.zeros(1), 0)
    with pytest.raises(ValueError, match="solvers"):
        integrate(lambda x, t: x, np.zeros(1), 1, solver="rk9")  # type: ignore[arg-type]


def test_a_bundle_is_followed_by_the_solver_that_was_asked_for(tmp_path):
    bundle = bundles.write_bundle(tmp_path / "b", bundles.towards(0.0))
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(tmp_path / "white.png")
    for solver, factor in (("euler", 0.25), ("heun", (1 - 0.5 + 0.125) ** 2)):
        target = tmp_path / f"{solver}.png"
        assert not translate(
            bundle, [tmp_path / "white.png"], target, flow=FlowOptions(steps=2, solver=solver, device="cpu")
        ).failed
        assert abs(int(np.asarray(Image.open(target))[0, 0, 0]) - 127.5 * (1 + factor)) <= 0.6
    with pytest.raises(UsageError, match="wanted euler or heun"):
        FlowOptions(solver="rk4")  # type: ignore[arg-type]
