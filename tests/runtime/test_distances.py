"""Distances between sets of vectors, against their definitions and against distributions whose distance is known."""

import numpy as np
import pytest
from rfp.runtime.distances import frechet_distance, kernel_distance
from scipy.linalg import sqrtm


def normal(n, d, shift=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def test_kernel_distance_is_the_unbiased_estimate_over_all_pairs():
    x, y = normal(6, 4), normal(9, 4, 0.5, seed=1)

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    within_x = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y).value == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_the_margin_is_that_of_leaving_each_vector_out_in_turn():
    x, y = normal(7, 3), normal(5, 3, 0.5, seed=1)
    variance = 0.0
    for this, other, swap in ((x, y, False), (y, x, True)):
        left = [np.delete(this, i, axis=0) for i in range(len(this))]
        values = np.array([kernel_distance(*((other, a) if swap else (a, other))).value for a in left])
        variance += (len(this) - 1) * values.var()
    assert kernel_distance(x, y).margin == pytest.approx(1.96 * np.sqrt(variance), rel=1e-9)


def test_the_interval_holds_the_true_distance_about_19_times_in_20():
    truth = kernel_distance(normal(1500, 8), normal(1500, 8, 0.4, seed=1)).value
    tries = [kernel_distance(normal(60, 8, seed=s), normal(80, 8, 0.4, seed=1000 + s)) for s in range(60)]
    inside = np.mean([abs(t.value - truth) < t.margin for t in tries])
    assert 0.88 <= inside <= 1
    alike = [kernel_distance(normal(60, 8, seed=s), normal(80, 8, seed=1000 + s)) for s in range(60)]
    assert np.mean([t.value for t in alike]) == pytest.approx(0, abs=np.mean([t.margin for t in alike]) / 3)


@pytest.mark.parametrize(("m", "n", "d"), [(40, 60, 5), (200, 12, 5), (5, 5, 5)])
def test_frechet_distance_is_that_of_its_definition(m, n, d):
    x, y = normal(m, d), normal(n, d, 0.3, 1.5, seed=1)
    cx, cy = np.cov(x.T), np.cov(y.T)
    root = sqrtm(cx @ cy).real
    wanted = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.trace(cx + cy - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)


def test_frechet_distance_of_fewer_vectors_than_numbers_is_exact():
    x, y = normal(6, 3), normal(8, 3, 0.5, seed=1)
    wide = np.linalg.qr(normal(50, 3, seed=2))[0].T  # an isometry into 50 dimensions
    assert frechet_distance(x @ wide, y @ wide) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("of", [kernel_distance, frechet_distance])
def test_too_few_or_unlike_vectors_are_refused(of):
    with pytest.raises(ValueError, match="at least 3"):
        of(normal(2, 4), normal(9, 4))
    with pytest.raises(ValueError, match="at least 3"):
        of(normal(9, 4), normal(9, 5))
