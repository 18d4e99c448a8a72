import copy

import pytest
import torch
from rfp.runtime import integrate
from rfp.train.loss import Scales, interpolate, losses, measure_scales, rough_noise, see, size
from rfp.train.net_config import ConvSaliencyNet, ResNetSaliencyNet
from rfp.train.saliency import build_saliency_net
from rfp.train.velocity_net import build_velocity_net
from torch.func import functional_call, jacrev
from trainings import tiny

CONV = ConvSaliencyNet(channels=[8, 8], latent_channels=6)
RESNET = ResNetSaliencyNet(backbone="resnet18", pretrained=False, latent_channels=6)


def classifier(config):
    torch.manual_seed(0)
    return build_saliency_net(config, load_weights=False).double().eval().requires_grad_(False)


def images(n, size=16, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, size, size, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(2)]


def velocity():
    """A net that does something: a new one returns 0."""
    torch.manual_seed(3)
    net = build_velocity_net(tiny()).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize("config", [CONV, RESNET], ids=lambda c: c.type)
def test_see_is_the_explicit_jacobian_times_u(config):
    h, (xt, u) = classifier(config).features, images(2, 8)
    jacobian = torch.stack([jacrev(lambda x: h(x[None])[0])(x) for x in xt])  # [B, D, 3, H, W]
    close(see(h, xt, u), torch.einsum("bdchw,bchw->bd", jacobian, u))


@pytest.mark.parametrize("config", [CONV, RESNET], ids=lambda c: c.type)
def test_the_gradient_through_the_tangent_is_that_of_double_backward(config):
    h, (xt, u) = classifier(config).features, images(2)
    u.requires_grad_()
    (forward,) = torch.autograd.grad(see(h, xt, u).square().sum(), u)
    # J u is the derivative by w of ⟨J u, w⟩ = ⟨Jᵀ w, u⟩, which needs only reverse mode, twice.
    x = xt.clone().requires_grad_()
    features = h(x)
    w = torch.zeros_like(features, requires_grad=True)
    (jt_w,) = torch.autograd.grad(features, x, w, create_graph=True)
    (ju,) = torch.autograd.grad(jt_w, w, u, create_graph=True)
    (backward,) = torch.autograd.grad(ju.square().sum(), u)
    close(forward, backward)


def test_see_takes_pictures_in_any_layout():
    h, (xt, u) = classifier(CONV).features, images(2)
    u.requires_grad_()
    last = [x.to(memory_format=torch.channels_last) for x in (xt, u)]
    close(see(h, *last).detach(), see(h, xt, u).detach())
    grads = [torch.autograd.grad(see(h, *pair).square().sum(), u)[0] for pair in (last, (xt, u))]
    close(*grads)


def test_see_computes_in_float32_under_autocast():
    h, (xt, u) = build_saliency_net(CONV).requires_grad_(False).features, [x.float() for x in images(2)]
    exact = see(h, xt, u)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(see(h, xt, u), exact)
    assert see(h, xt.bfloat16(), u.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("huber", [0.0, 0.1])
@pytest.mark.parametrize("n", [2, 5])
def test_a_velocity_of_zero_gives_each_loss_the_value_1(n, huber):
    h, (x0, x1), t = classifier(CONV).features, images(n), torch.linspace(0, 1, n, dtype=torch.float64)
    scales = measure_scales(h, x0, x1, t, 2, huber)
    still = losses(lambda x, t: torch.zeros_like(x), h, x0, x1, t, scales, huber=huber)
    close(torch.stack(still), torch.ones(2).double())


def test_the_flow_term_by_hand():
    x0, x1 = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    t = torch.tensor([0.25, 0.5])
    assert interpolate(x0, x1, t).flatten().tolist() == [0.25, 0.5, 1.5, 2.0]
    # ‖x1 − x0‖² = 5 and 25, their mean 15; v = x_t leaves .75·(1, 2) and .5·(3, 4): 2.8125 and 6.25.
    flow, saliency = losses(lambda x, t: x, None, x0, x1, t, measure_scales(None, x0, x1, t, 1))
    assert flow.item() == pytest.approx((2.8125 + 6.25) / 2 / 15, rel=1e-6) and saliency.item() == 0


def test_the_size_of_errors_by_hand():
    e = torch.tensor([[3.0, 5.0, 0.0], [4.0, 12.0, 0.0]]).reshape(1, 2, 1, 3)  # |e| = 5/√2, 13/√2 and 0 at three pixels
    assert size(e, 0.0).item() == 25 + 169
    by_hand = ((12.5 + 0.49) ** 0.5 - 0.7) + ((84.5 + 0.49) ** 0.5 - 0.7)
    assert size(e, 0.7).item() == pytest.approx(by_hand, rel=1e-6)
    assert 2e4 * size(e.double(), 1e4).item() == pytest.approx((25 + 169) / 2, rel=1e-3)  # small e: squares


@pytest.mark.parametrize(("huber", "rests"), [(0.0, 0.2), (0.1, -0.911)], ids=["squares", "huber"])
def test_partners_that_disagree_are_averaged_by_squares_and_outvoted_by_huber(huber, rests):
    """Of five partners three are at -1 and two at 2. Huber rests where 3d/√(d² + c²) = 2 nearly, d the way from -1."""
    x0, x1 = torch.zeros(5, 3, 2, 2).double(), torch.tensor([-1.0, -1, -1, 2, 2]).double()
    x1 = x1[:, None, None, None].expand(5, 3, 2, 2)
    v, t = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True), torch.zeros(5).double()
    descent = torch.optim.LBFGS([v], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        scales = measure_scales(None, x0, x1, t, 5, huber)
        found = losses(lambda x, t: v.expand_as(x), None, x0, x1, t, scales, huber=huber)[0]
        found.backward()
        return found

    descent.step(loss)
    assert v.detach().mean().item() == pytest.approx(rests, abs=1e-3) and v.detach().std() < 1e-3


def test_noise_on_the_path_is_followed_by_its_own_velocity():
    """x_t by finite differences along t, at fixed x0, x1 and z; at both ends of the path there is no noise."""
    x0, x1, z = *images(3, 8), images(3, 8, seed=5)[0]
    seen, scales = [], measure_scales(None, x0, x1, torch.zeros(3), 3)

    def at(times, v=None):
        losses(lambda x, t: seen.append(x) or (torch.zeros_like(x) if v is None else v), None, x0, x1, times, scales, z)
        return seen[-1]

    close(at(torch.zeros(3).double()), x0)
    close(at(torch.ones(3).double()), x1)
    t, d = torch.tensor([0.2, 0.5, 0.9]).double(), 1e-4
    velocity = (at(t + d) - at(t - d)) / (2 * d)
    flow, _ = losses(lambda x, t: velocity, None, x0, x1, t, scales, z)
    assert flow < 1e-20
    assert (at(t) - interpolate(x0, x1, t)).square().sum() > 0.1


def test_the_classifier_looks_from_where_the_noise_led():
    """Features x²/2, so that ∇h(x_t)ᵀu = x_t·u."""
    x0, x1, z = *images(3, 8), images(3, 8, seed=5)[0]
    t, one = torch.tensor([0.2, 0.5, 0.9]).double(), torch.ones(())
    h = lambda x: x.square().flatten(1) / 2  # noqa: E731
    _, saliency = losses(lambda x, t: 0 * x, h, x0, x1, t, Scales(one, one), z)
    s = t[:, None, None, None]
    xt, y = (1 - s) * x0 + s * x1 + 4 * s * (1 - s) * z, x1 - x0 + 4 * (1 - 2 * s) * z
    close(saliency, (xt * y).square().sum() / 3)


def test_the_net_that_takes_the_noise_away_comes_from_the_middle_to_the_end():
    """Where x0 = x1 the noise is all there is to learn, and v = γ′/γ·(x_t − x0) is exact: Euler steps end at x1."""
    x1, z = images(2, 8)
    t = torch.tensor([0.6, 0.8]).double()

    def v(x, t):
        s = t[:, None, None, None]
        return (1 - 2 * s) / (s * (1 - s)) * (x - x1)

    assert losses(v, None, x1, x1, t, measure_scales(None, x1, -x1, t, 2), z)[0] < 1e-20
    end = integrate(lambda x, t: v(x, torch.full((2,), t).double()), x1 + z, 400, 0.5, 1)
    assert (end - x1).abs().max() < 0.01 * z.abs().max()


def test_rough_noise_has_three_quarters_of_its_deviation_and_coarse_grains():
    shape = (64, 3, 32, 32)
    z = rough_noise(shape, 0.3, torch.Generator().manual_seed(0))
    assert z.shape == shape and torch.equal(z, rough_noise(shape, 0.3, torch.Generator().manual_seed(0)))
    assert z.mean().abs() < 0.01 and z.std().item() == pytest.approx(0.75 * 0.3, rel=0.06)

    def alike(apart):
        return ((z[..., apart:] * z[..., :-apart]).mean() / z.square().mean()).item()

    assert 0.3 < alike(1) < 0.7 and alike(8) > 0.03  # white noise: 0
    assert abs(alike(16)) < 0.03  # two of the largest grains away
    assert rough_noise((1, 2, 4, 3), 1, torch.Generator()).shape == (1, 2, 4, 3)


@pytest.mark.parametrize(("term", "huber"), [(0, 0.0), (0, 0.1), (1, 0.0)], ids=["flow", "huber", "saliency"])
@pytest.mark.parametrize(("n", "minibatch"), [(4, 2), (5, 2), (5, 1)])
def test_gradients_summed_over_minibatches_are_those_of_the_whole_batch(term, huber, n, minibatch):
    h, (x0, x1), t = classifier(CONV).features, images(n, 8), torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    whole = velocity()
    parts = copy.deepcopy(whole)
    losses(whole, h, x0, x1, t, measure_scales(h, x0, x1, t, n, huber), None, huber)[term].backward()
    scales = measure_scales(h, x0, x1, t, minibatch, huber)
    for a0, a1, s in zip(x0.split(minibatch), x1.split(minibatch), t.split(minibatch), strict=True):
        (losses(parts, h, a0, a1, s, scales, None, huber)[term] * len(a0) / n).backward()
    close(
        torch.cat([p.grad.flatten() for p in parts.parameters()]),
        torch.cat([p.grad.flatten() for p in whole.parameters()]),
    )


def test_the_saliency_term_does_not_move_the_classifier_and_moves_the_velocity():
    h, (x0, x1), t = classifier(CONV), images(2, 8), torch.tensor([0.2, 0.7]).double()
    v = velocity()
    losses(v, h.features, x0, x1, t, measure_scales(h.features, x0, x1, t, 2))[1].backward()
    assert all(p.grad is None for p in h.parameters())
    assert sum(p.grad.abs().sum() for p in v.parameters()) > 0


def test_the_gradient_flows_through_the_tangent_alone():
    """x_t takes part in the loss as a constant: d/dθ of the loss by functional differences agrees."""
    h, (x0, x1), t = classifier(CONV).features, images(2, 8), torch.tensor([0.2, 0.7]).double()
    v = velocity()
    scales = measure_scales(h, x0, x1, t, 2)
    parameters = {k: p.detach() for k, p in v.named_parameters()}
    way = {k: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)).double() for k, p in parameters.items()}

    def loss(p):
        return losses(lambda x, t: functional_call(v, p, (x, t)), h, x0, x1, t, scales)[1]

    loss({k: p.requires_grad_() for k, p in parameters.items()}).backward()
    slope = sum((p.grad * way[k]).sum() for k, p in parameters.items())
    step = 1e-6
    ends = [loss({k: (p + sign * step * way[k]).detach() for k, p in parameters.items()}).item() for sign in (1, -1)]
    assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_integrating_tensors_is_integrating_arrays():
    x = images(2, 4)[0]
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        tensor = integrate(lambda x, t: 3 * t**2 - x, x, 7, t0, t1)
        array = integrate(lambda x, t: 3 * t**2 - x, x.numpy(), 7, t0, t1)
        assert (tensor.numpy() == array).all()


def test_euler_meets_the_cubic_and_the_exponential():
    n = 8
    assert integrate(lambda x, t: 3 * t**2, 0.0, n) == pytest.approx((n - 1) * (2 * n - 1) / (2 * n**2))
    assert integrate(lambda x, t: x, 1.0, n) == pytest.approx((1 + 1 / n) ** n)
    assert integrate(lambda x, t: 1.0, 5.0, 3, 1.0, 0.0) == pytest.approx(4.0)
    x = torch.ones(2)
    integrate(lambda x, t: x, x, 2)
    assert x.tolist() == [1, 1]
