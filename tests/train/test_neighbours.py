import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rfp.train import neighbours
from rfp.train.neighbours import nearest


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (13, 17), (2048, 16384)])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_nearest_is_brute_force_whatever_the_chunks(monkeypatch, rows, columns, k):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    monkeypatch.setattr(neighbours, "COLUMNS", columns)
    a, b = unit(13, 5, 0).half(), unit(17, 5, 1).half()
    wanted = np.argsort(-(a.double() @ b.double().T).numpy(), axis=1)[:, :k]
    assert (nearest(a, b, k) == wanted).all()
