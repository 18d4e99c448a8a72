import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rfp.runtime import UsageError
from rfp.train import neighbours as module
from rfp.train.neighbours import nearest, neighbours, require_index


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (13, 17), (2048, 16384)])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_nearest_is_brute_force_whatever_the_chunks(monkeypatch, rows, columns, k):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "COLUMNS", columns)
    a, b = unit(13, 5, 0).half(), unit(17, 5, 1).half()
    wanted = np.argsort(-(a.double() @ b.double().T).numpy(), axis=1)[:, :k]
    found, cosines = nearest(a, b, k)
    assert (found == wanted).all()
    assert np.allclose(cosines, np.take_along_axis((a.double() @ b.double().T).numpy(), wanted, axis=1), atol=1e-3)


def brute_force(e0, e1, k):
    """Equation 2 of arXiv:1710.04087, with all similarities in memory."""
    s = (e0.double() @ e1.double().T).numpy()
    r0, r1 = (np.sort(x, axis=1)[:, -10:].mean(axis=1) for x in (s, s.T))
    csls = 2 * s - r0[:, None] - r1[None]
    return np.argsort(-csls, axis=1)[:, :k], np.argsort(-csls.T, axis=1)[:, :k]


def test_neighbours_are_those_of_the_equation_where_the_pool_holds_everybody():
    e0, e1 = unit(40, 6, 0), unit(50, 6, 1)
    for found, wanted in zip(neighbours(e0, e1, 3), brute_force(e0, e1, 3), strict=True):
        assert (found == wanted).all()


def test_a_hub_is_not_everybodys_neighbour():
    """e1[0] lies nearer to all of domain 0 than their own partners do; by cosine alone they would all take it."""
    own = F.pad(torch.eye(20), (0, 1))
    e0 = F.normalize(own + 1.5 * F.one_hot(torch.tensor(20), 21))
    e1 = F.normalize(torch.cat([F.one_hot(torch.tensor([20]), 21).float(), own]))
    assert (nearest(e0, e1, 1)[0] == 0).all()
    assert neighbours(e0, e1, 1)[0][:, 0].tolist() == list(range(1, 21))


def groups(n, seed, of=40, d=64):
    """Unit vectors in float16 around `of` centres, as pictures of so many kinds."""
    centres = unit(of, d, 9)
    return F.normalize(centres[torch.arange(n) % of] + 0.7 * unit(n, d, seed), dim=1).half()


@pytest.fixture
def few(monkeypatch):
    """The index is taken from one picture on, and looks into few of its cells."""
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)
    monkeypatch.setattr(module, "PROBES", 4)


def test_the_index_finds_nearly_what_comparing_all_with_all_does(few, monkeypatch):
    a, b = groups(1500, 1), groups(4000, 2)
    found = nearest(a, b, 8)[0]
    monkeypatch.setattr(module, "EXACT_UP_TO", 10**9)
    truth = nearest(a, b, 8)[0]
    assert found.shape == truth.shape == (1500, 8) and found.dtype == truth.dtype
    assert not (found == truth).all()  # it did not compare all with all
    recall = np.mean([len(set(f) & set(t)) / 8 for f, t in zip(found, truth, strict=True)])
    assert recall > 0.95
    alike = [(a.float()[:, None] * b.float()[torch.from_numpy(i)]).sum(dim=2) for i in (found, truth)]
    assert (alike[0].diff(dim=1) <= 1e-3).all()  # nearest first
    assert (alike[1] - alike[0]).mean() < 0.005


def test_the_index_is_the_same_each_time_it_is_built(few):
    a, b = groups(300, 1), groups(3000, 2)
    assert (nearest(a, b, 8)[0] == nearest(a, b, 8)[0]).all()


@pytest.mark.parametrize("n", [1, 3, 90])
def test_the_index_of_few_or_equal_vectors_still_gives_all_candidates(few, n):
    for b in (groups(n, 2), groups(1, 2).expand(n, -1), torch.zeros(n, 64).half()):
        found = nearest(groups(50, 1), b, 8)[0]
        assert found.shape == (50, min(n, 8)) and found.min() >= 0 and all(len(set(row)) == min(n, 8) for row in found)


def test_whoever_finds_too_few_in_the_cells_is_compared_with_all(few, monkeypatch):
    monkeypatch.setattr(module, "PROBES", 1)  # of two cells
    a, b = groups(50, 1), groups(90, 2)
    found, cosines = nearest(a, b, 80)
    assert found.min() >= 0 and all(len({*row}) == 80 for row in found.tolist())
    np.testing.assert_allclose(cosines, np.take_along_axis((a.float() @ b.float().T).numpy(), found, 1), atol=1e-3)


def test_a_missing_index_is_said_before_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    require_index(200_000)
    with pytest.raises(UsageError, match=re.escape("200,001 pictures needs faiss-cpu: pip install 'rfp[ann]'")):
        require_index(200_001)
