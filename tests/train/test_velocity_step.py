"""One step of phase 2 against its parts, and what changes from step to step: the rate, the average, the times."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from rfp.train.adversarial import Critics
from rfp.train.domains import open_domain
from rfp.train.loss import losses, measure_scales, rough_noise
from rfp.train.run import Run
from rfp.train.saliency import build_saliency_net
from rfp.train.unet import UNet
from rfp.train.velocity_net import build_velocity_net
from rfp.train.velocity_step import average, learning_rate, sample_t, velocity_step
from trainings import Listener, draw_domains, tiny

STEP = 2


@pytest.fixture
def begin(tmp_path: Path):
    domains = [open_domain([folder], 16) for folder in draw_domains(tmp_path, 1, 1)]

    def begin(**changes: object) -> tuple[Run, UNet, tuple[torch.Tensor, ...]]:
        """A run, a net that does something, and 5 pairs with their places."""
        run = Run(tmp_path, tiny(**changes), 3, torch.device("cpu"), *domains, Listener())
        torch.manual_seed(0)
        v = build_velocity_net(run.config)
        for p in v.parameters():
            torch.nn.init.normal_(p, std=0.2)
        return run, v, tuple(torch.rand(5, channels, 16, 16) * 2 - 1 for channels in (3, 3, 2))

    return begin


@pytest.mark.parametrize(("clip", "noise"), [(1e6, 0.0), (1e6, 0.3), (0.1, 0.3)])
def test_a_step_goes_down_the_weighted_losses_of_the_whole_batch_no_further_than_the_clip(begin, clip, noise):
    """In minibatches of 2, 2 and 1, by plain gradient descent."""
    weights = {"flow_loss_weight": 0.7, "saliency_loss_weight": 0.3}
    run, v, (x0, x1, place) = begin(gradient_clip=clip, bridge_noise=noise, learning_rate=10, **weights)
    h, whole, huber = build_saliency_net(run.config.saliency_net).eval().requires_grad_(False).features, v, 0.1
    v = copy.deepcopy(whole)
    figures = velocity_step(run, v, h, [torch.optim.SGD(v.parameters(), 1.0)], x0, x1, place, STEP)
    t = sample_t(run.config, 5, run.rng("velocity", STEP))
    z = rough_noise(x0.shape, noise, run.rng("bridge", STEP)) if noise else None
    scales = measure_scales(h, x0, x1, t, 5, huber)
    flow, saliency = losses(partial(whole, place=place), h, x0, x1, t, scales, z, huber)
    (0.7 * flow + 0.3 * saliency).backward()
    slope = torch.cat([p.grad.flatten() for p in whole.parameters()])
    moved = torch.cat([(a - b).flatten() for a, b in zip(v.parameters(), whole.parameters(), strict=True)]).detach()
    rate = learning_rate(run.config, STEP)
    wanted = -rate * min(1, clip / float(slope.norm())) * slope
    assert 0.1 < slope.norm() < 1e6
    assert (moved - wanted).norm() < 1e-3 * wanted.norm()
    found = [float(figures[name]) for name in ("flow", "saliency", "gradient", "rate")]
    assert found == pytest.approx([flow.item(), saliency.item(), slope.norm().item(), rate], rel=1e-4)


def test_dropout_leaves_features_out_of_flows_alike_when_done_again_and_of_what_critics_see_none(begin):
    def first(dropout: float, seed: int, judged: bool) -> float:
        run, v, (x0, x1, place) = begin(dropout=dropout, saliency_loss_weight=0)
        critics = Critics(3, 2, 0) if judged else None
        torch.manual_seed(seed)
        descent = [torch.optim.AdamW(v.parameters())]
        figures = velocity_step(run, v, None, descent, x0, x1, place, STEP, critics=critics)
        return float(figures["distance" if judged else "flow"])

    assert first(0.5, 1, False) == first(0.5, 2, False) != first(0.0, 1, False)
    assert first(0.5, 1, True) == first(0.0, 1, True)


def test_the_rate_rises_over_the_first_pairs_and_stays_or_falls_to_a_hundredth():
    config = tiny(learning_rate=1e-2, train_images=500, warmup_images=50)  # 100 steps
    constant = config.model_copy(update={"learning_rate_schedule": "constant"})
    assert [learning_rate(constant, step) for step in (0, 4, 9, 99)] == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2])
    assert [learning_rate(config, step) for step in (50, 99)] == pytest.approx([5.05e-3, 1.02e-4], rel=0.01)
    longer = constant.model_copy(update={"warmup_images": 100_000})  # than the training, whose first tenth it is then
    assert [learning_rate(longer, step) for step in (0, 9, 99)] == pytest.approx([1e-3, 1e-2, 1e-2])
    assert learning_rate(constant.model_copy(update={"warmup_images": 0}), 0) == 1e-2


def test_the_average_soon_forgets_its_beginning_and_then_keeps_its_share():
    ema, v = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for step, kept in ((0, 0.1), (8, 0.5), (10_000, 0.9)):
        for net, value in ((ema, 1.0), (v, 0.0)):
            torch.nn.init.constant_(net.weight, value)
        average(ema, v, 0.9, step)
        assert (ema.weight.item(), v.weight.item()) == (pytest.approx(kept), 0)


def test_times_are_uniform_or_normal_by_their_logits_but_for_a_share():
    """σ(N(0, 1)) is within ¼ of the middle in 72.8 of 100 draws, and below 1/100 in two of a million."""
    for changes, middle, below in (
        ({"timestep_sampling": "uniform"}, 0.5, 0.01),
        ({"timestep_sampling": "logit-normal", "timestep_uniform_fraction": 0.2}, 0.8 * 0.728 + 0.2 * 0.5, 0.002),
    ):
        t = sample_t(tiny(**changes), 200_000, torch.Generator().manual_seed(0))
        assert t.min() >= 0 and t.max() <= 1
        assert ((t - 0.5).abs() < 0.25).float().mean().item() == pytest.approx(middle, abs=0.005)
        assert (t < 0.01).float().mean().item() == pytest.approx(below, abs=0.0008)
