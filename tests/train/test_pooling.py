import pytest
import torch
import torch.nn.functional as F
from rfp.train import embedders
from rfp.train.adversarial import Critic
from rfp.train.pooling import pooled
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture
def like_mps(monkeypatch):
    """Fake tensors, which need no such device, and the refusal of torch 2.13 there."""
    pool = F.adaptive_avg_pool2d

    def refusing(x, size):
        wanted = (size, size) if isinstance(size, int) else size
        if x.device.type == "mps" and any(n % m and m % n for n, m in zip(x.shape[2:], wanted, strict=True)):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
        return pool(x, size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", refusing)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


@pytest.mark.parametrize(("side", "cells"), [(7, 4), (3, 4), (8, 4), (2, 4)])
def test_means_of_cells_are_taken_on_mps_whatever_the_size(like_mps, side, cells):
    made = pooled(torch.empty(2, 5, side, side, device="mps"), cells)
    assert made.shape == (2, 5, cells, cells) and made.device.type == "mps"


def test_what_pools_while_training_runs_on_mps(like_mps):
    """A backbone's last map of 224 px is 7 cells a side, and crops may be 40 px."""
    assert embedders.grid(torch.empty(2, 8, 7, 7, device="mps")).shape == (2, 4096)
    x = torch.empty(2, 3, 40, 40, device="mps")
    assert embedders.pixels(x).shape == (2, 768)
    critic = Critic(3)
    weights = {name: torch.empty(w.shape, device="mps") for name, w in critic.named_parameters()}
    assert [seen.shape for seen in torch.func.functional_call(critic, weights, x)] == [(2, 400), (2, 25), (2, 1)]


def test_elsewhere_it_is_torchs_own():
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooled(x, 4), F.adaptive_avg_pool2d(x, 4))
