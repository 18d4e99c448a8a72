import copy
import json

import pytest
import torch
from rfp.runtime import CheckpointError
from rfp.train import checkpoint as ckpt
from rfp.train.muon import ADAMW, POLYNOMIAL, TURNS, Muon, optimizers, orthogonal
from rfp.train.net_config import DiTConfig, UNetConfig
from rfp.train.run import Interrupted
from rfp.train.training import train
from rfp.train.velocity_net import build_velocity_net
from safetensors.torch import save_file
from test_resume import stop_at
from trainings import assert_same, draw_domains, finish, job, tiny


def by_svd(g):
    """What `orthogonal` computes, on singular values, in float64."""
    u, s, vt = torch.linalg.svd(g.double(), full_matrices=False)
    s = s / s.square().sum().sqrt().clamp_min(1e-20)
    a, b, c = POLYNOMIAL
    for _ in range(TURNS):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("muon")
    draw_domains(work)
    return work


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16), (1, 7), (7, 1)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_singular_values_become_alike_and_their_vectors_stay(shape, scale):
    g = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(g)
    assert (found - by_svd(g)).abs().max() < 1e-4
    assert all(0.67 < s < 1.21 for s in torch.linalg.svdvals(found).tolist())


def test_a_direction_three_hundred_times_smaller_is_followed_as_far():
    u, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    g = u @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.003])) @ u.T
    assert (u.T @ orthogonal(g) @ u).diagonal().min() > 0.6


def test_matrices_of_one_shape_are_each_treated_as_if_alone():
    g = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    assert torch.allclose(orthogonal(g), torch.stack([orthogonal(x) for x in g]), atol=1e-5)


def test_no_gradient_and_one_of_one_direction_leave_numbers():
    assert not orthogonal(torch.zeros(4, 8)).any()
    one = torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 9))
    assert (orthogonal(one) - by_svd(one)).abs().max() < 1e-3


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_two_steps_are_those_of_the_formula(memory):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(6, 3, 3, 3).contiguous(memory_format=memory))
    still = torch.nn.Parameter(torch.ones(2, 2))  # never has a gradient
    optimizer = Muon([w, still], lr=0.1, weight_decay=0.5, momentum=0.9)
    wanted, m = w.detach().double().flatten(1), torch.zeros(6, 27)
    for _ in range(2):
        g = torch.randn(6, 3, 3, 3)
        w.grad = g.contiguous(memory_format=memory)
        optimizer.step()
        m = 0.9 * m + 0.1 * g.flatten(1)
        wanted = wanted * (1 - 0.1 * 0.5) - 0.1 * ADAMW * 27**0.5 * by_svd(0.1 * g.flatten(1) + 0.9 * m)
    assert (w.detach().double().flatten(1) - wanted).abs().max() < 1e-4
    assert still.eq(1).all() and still not in optimizer.state


@pytest.mark.parametrize("net", [UNetConfig(model_channels=32), DiTConfig()])
def test_every_weight_has_one_optimiser_and_matrices_have_muon(net):
    v = build_velocity_net(tiny(velocity_net=net.model_dump()))
    muon, adamw = optimizers(v, "muon", 0.1, 0.0, 16)
    hers, its = ([id(w) for group in o.param_groups for w in group["params"]] for o in (muon, adamw))
    assert isinstance(muon, Muon) and sorted(hers + its) == sorted(id(w) for w in v.parameters())
    assert {id(w) for w in v.parameters() if w.dim() in (2, 4)} == set(hers)
    assert [m.param_groups[0]["momentum"] for m in (muon, optimizers(v, "muon", 0.1, 0.0, 64)[0])] == [0.99, 0.96]
    (alone,) = optimizers(v, "adamw", 0.1, 0.0, 16)
    assert len(alone.param_groups[0]["params"]) == len(hers + its)


def test_moments_of_both_come_back_and_of_another_optimiser_are_refused():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    one, other = (optimizers(n, "muon", 0.1, 0.0, 16) for n in (net, copy.deepcopy(net)))
    net(torch.randn(4, 3)).square().sum().backward()
    for optimizer in one:
        optimizer.step()
    tensors = ckpt.optimizer_tensors(*one)
    names = {f"optimizer.{i}.{n}" for i in (1, 2, 3) for n in ("step", "exp_avg", "exp_avg_sq")}
    assert tensors.keys() == {"optimizer.0.momentum"} | names
    ckpt.restore_optimizers(tensors, *other)
    again = ckpt.optimizer_tensors(*other)
    assert again.keys() == tensors.keys() and all(torch.equal(tensors[k], again[k]) for k in tensors)
    with pytest.raises(CheckpointError, match="of another net"):
        ckpt.restore_optimizers(tensors, *optimizers(net, "adamw", 0.1, 0.0, 16))


@pytest.mark.parametrize("length", [{}, {"train_images": 1000, "max_epochs": 2}])
def test_a_run_from_before_there_was_muon_goes_on_with_adamw(work, tmp_path, length):
    """Also where the few pictures of its domains end it sooner."""
    finish(job(work, tmp_path / "whole", optimizer="adamw", **length))
    with pytest.raises(Interrupted):
        train(job(work, tmp_path / "run", optimizer="adamw", **length), stop_at(("velocity", 3)))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["optimizer"]
    path.write_text(json.dumps(config))
    newest = ckpt.find(tmp_path / "run")
    tensors, about = ckpt._read(newest)
    about = json.loads(about)
    del about["config"]["optimizer"]
    save_file(tensors, newest, {"rfp": json.dumps(about)})
    finish(job(work, tmp_path / "run", optimizer=None, **length))
    assert_same(tmp_path / "run", tmp_path / "whole")
    finish(job(work, tmp_path / "new", optimizer=None, **length))
    assert [ckpt.load(ckpt.find(tmp_path / name)).config.optimizer for name in ("run", "new")] == ["adamw", "muon"]
