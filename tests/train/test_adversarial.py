"""The critic: its losses by their definitions, its part in training, and that nothing of it is lost."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from films import write_video
from PIL import Image
from rfp.runtime.errors import CheckpointError, ConfigError, UsageError
from rfp.train import adversarial, re_pairing, self_pairing, velocity_phase
from rfp.train import checkpoint as ckpt
from rfp.train.adversarial import Critic, Critics, critic_loss, more_real
from rfp.train.domains import open_domain
from rfp.train.frame_cache import FrameCache
from rfp.train.loss import Scales, measure_scales
from rfp.train.noise import noise_domain
from rfp.train.plan import memory, plan
from rfp.train.resolving import resolved
from rfp.train.run import Interrupted
from rfp.train.training import train
from rfp.train.velocity_step import learning_rate
from test_resume import stop_at
from torch import nn
from trainings import LATENT, Listener, assert_same, draw_domains, final, finish, job, noisy, tiny

WITH = {"adversarial_weight": 0.5, "adversarial_start": 0.25, "saliency_loss_weight": 0, "train_images": 60}
"""12 steps, the critic from step 3 on."""


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(adversarial, "WIDTH", 8)


@pytest.fixture
def work(tmp_path):
    draw_domains(tmp_path)
    return tmp_path


ONE = Scales(torch.ones(()), torch.ones(()))


class Linear(nn.Module):
    """A critic whose gradient is known: ⟨w, x⟩, the same in every view."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return [(x * self.w).sum(dim=(1, 2, 3))[:, None]] * 3


def test_critic_loss_matches_its_equations():
    """‖∇‖² of three equal views is 9‖w‖² at every picture, real or made."""
    w, made, real = torch.randn(3, 8, 8), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    critic = Linear(w)
    margin = (made - real).flatten(1) @ w.flatten()
    expected = F.softplus(margin).sum()
    assert torch.allclose(critic_loss(critic, made, real, 0.0)[0], expected)
    assert torch.allclose(critic_loss(critic, made, real, 0.6)[0], expected + 0.3 * 2 * 4 * 9 * w.square().sum())


def test_alike_is_log_2_and_a_clear_margin_nothing():
    a = [torch.zeros(5, n) for n in (16, 4, 1)]
    assert more_real(a, a).item() == pytest.approx(5 * 0.6931472)
    assert more_real([x + 50 for x in a], a).item() < 1e-6


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (31, 33)])
def test_a_critic_takes_any_size(size):
    critic = Critic(4)
    found = critic(torch.zeros(2, 4, *size))
    assert [len(x) for x in found] == [2, 2, 2] and found[2].shape == (2, 1)
    torch.cat(found, dim=1).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


def test_v_is_pushed_towards_real_and_the_critic_is_not_pushed_by_v():
    """v's share of the loss leaves no gradient in the critic, and the critic's none in v."""
    critics = Critics(3, 2, seed=0)
    shift = torch.zeros(1, requires_grad=True)
    x0, x1 = torch.full((4, 3, 16, 16), -0.5), torch.full((4, 3, 16, 16), 0.5)
    scales = Scales(torch.tensor(768.0), torch.ones(()))
    distance, told, learning = critics.losses(lambda x, t: shift.expand_as(x), x0, x1, 0, scales)
    assert distance.item() == pytest.approx(1.0)  # of the way, none is done
    lengths = measure_scales(None, x0, x1, torch.zeros(4), 2, 0.1)
    assert critics.losses(lambda x, t: shift.expand_as(x), x0, x1, 0, lengths, 0.1)[0].item() == pytest.approx(1.0)
    assert critics.losses(lambda x, t: 0.5 + shift.expand_as(x), x0, x1, 0, lengths, 0.1)[0].item() > 0.4  # half of it
    assert torch.autograd.grad(distance, shift, retain_graph=True)[0] < 0
    assert torch.autograd.grad(told, list(critics.nets.parameters()), allow_unused=True, retain_graph=True) == (
        (None,) * len(list(critics.nets.parameters()))
    )
    assert torch.autograd.grad(learning, shift, allow_unused=True, retain_graph=True) == (None,)
    learning.backward()
    seen = [any(p.grad is not None for p in net.parameters()) for net in critics.nets]
    assert seen == [False, True]  # on the way there, domain 1's


def test_every_fourth_step_looks_at_the_way_back():
    critics = Critics(3, 2, seed=0)
    times = []

    def v(x, t):
        times.append(t.item())
        return torch.zeros_like(x, requires_grad=True)

    x = torch.zeros(2, 3, 16, 16)
    for step in range(8):
        critics.losses(v, x, x + 1, step, ONE)
    assert times[::2] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_every_fourth_look_each_way_is_penalised_four_times_as_much():
    """Nothing is told apart, which is log 2; the penalty is that of three equal views, as above."""
    critics, w, x = Critics(3, 1, seed=0), torch.randn(3, 8, 8), torch.zeros(2, 3, 8, 8)
    critics.nets = nn.ModuleList([Linear(w), Linear(w)])
    learning = [critics.losses(lambda x, t: x * 0, x, x, step, ONE)[2].item() for step in range(20)]
    penalties = [(found - math.log(2)) / (9 * w.square().sum().item()) for found in learning]
    assert penalties == pytest.approx([4 if step in (0, 2, 4, 8, 12, 16, 18) else 0 for step in range(20)], abs=1e-3)


def test_critics_begin_as_their_seed_says_and_take_steps_of_the_rate():
    """Adam's first moves every weight that has a gradient by as much."""
    critics, again, other = (Critics(3, 1, seed) for seed in (0, 0, 1))
    before, same, different = (
        nn.utils.parameters_to_vector(c.nets.parameters()).detach() for c in (critics, again, other)
    )
    assert torch.equal(before, same) and not torch.equal(before, different)
    critics.losses(lambda x, t: x * 0, torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), 0, ONE)[2].backward()
    critics.update(1e-2)
    moved = (nn.utils.parameters_to_vector(critics.nets.parameters()) - before).abs()
    assert moved.max().item() == pytest.approx(1e-2, rel=1e-3)


def test_a_critic_learns_to_tell_and_then_nothing_is_told():
    """Bright against dark: told apart at once; what looks like the real ones is not."""
    critics = Critics(3, 2, seed=0)
    rng = torch.Generator().manual_seed(0)
    for step in range(0, 120, 4):
        x0, x1 = (torch.randn(8, 3, 16, 16, generator=rng) * 0.1 + level for level in (-0.5, 0.5))
        critics.losses(lambda x, t: x * 0, x0, x1, step, ONE)[2].backward()
        critics.update(1e-3)
    assert critics.losses(lambda x, t: x * 0, x0, x1, 0, ONE)[1] > 2
    assert critics.losses(lambda x, t: x * 0 + 1.0, x0, x1, 0, ONE)[1] < 1.2


def test_the_critic_takes_over_at_its_start_and_its_figures_are_logged(work):
    finish(job(work, **WITH))
    metrics = [m for m in final(work / "run")[2] if m["phase"] == "velocity"]
    assert [("critic" in m) for m in metrics] == [("flow" not in m) for m in metrics] == [False] * 3 + [True] * 9
    assert all(m["told"] > 0 and m["distance"] > 0 for m in metrics[3:])


def test_both_rates_fall_to_a_hundredth_over_their_own_part():
    config = tiny(**WITH | {"learning_rate": 1e-3, "warmup_images": 0, "train_images": 60_000})
    first, second = config.critic_from, config.steps
    ends = [learning_rate(config, step) for step in (0, first - 1, first, second - 1)]
    assert ends == pytest.approx([1e-3, 1e-5, 3e-4, 3e-6], rel=1e-4)
    assert learning_rate(tiny(**WITH | {"adversarial_weight": 0, "learning_rate": 1e-3}), 11) > 1e-5


def test_v_has_no_momentum_once_the_critic_teaches(work, monkeypatch):
    step, betas = velocity_phase.velocity_step, []

    def watched(*args):
        figures = step(*args)
        betas.append(args[3][-1].param_groups[0]["betas"])
        return figures

    monkeypatch.setattr(velocity_phase, "velocity_step", watched)
    finish(job(work, **WITH))
    assert betas == [(0.9, 0.999)] * 3 + [(0.0, 0.99)] * 9


def test_no_flow_is_followed_once_the_critic_teaches(work, monkeypatch):
    """Both keys that weigh the flow's losses, and self-pairing, say nothing from then on."""
    monkeypatch.setattr("rfp.train.velocity_step.losses", lambda *args: pytest.fail("a loss of the flow"))
    monkeypatch.setattr(self_pairing, "integrate_net", lambda *args: pytest.fail("a pair joined by the flow"))
    finish(job(work, **WITH | {"adversarial_start": 0, "self_pairing": 0.5, "self_pairing_start": 0}))


@pytest.mark.parametrize("step", [2, 7])
def test_interrupted_and_resumed_is_uninterrupted(work, monkeypatch, step):
    monkeypatch.setattr(re_pairing, "MOST", 100.0)
    changes = WITH | {"structure_pairing": True, "structure_candidates": 2, "re_pairings": 2}
    finish(job(work, "whole", **changes))
    with pytest.raises(Interrupted):
        train(job(work, "run", **changes), stop_at(("velocity", step)))
    finish(job(work, "run", **changes))
    assert_same(work / "run", work / "whole")


def test_the_checkpoint_to_give_away_holds_no_critic(work):
    finish(job(work, **WITH))
    newest = ckpt.find(work / "run")
    assert not ckpt.named(ckpt.load(newest).tensors, "critic") and ckpt.named(ckpt.load_state(newest), "critic.")


@pytest.mark.parametrize("name", ["critic.0.fine_out.weight", "critic.nothing", "critic_optimizer.0.exp_avg"])
def test_a_critic_of_another_shape_is_refused(name):
    critics = Critics(3, 1, seed=0)
    critics.losses(lambda x, t: x * 0, torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), 0, ONE)[2].backward()
    critics.update(3e-4)
    critics.restore(critics.state())
    with pytest.raises(CheckpointError):
        critics.restore(critics.state() | {name: torch.zeros(7)})


def test_the_plan_says_so_and_counts_its_memory(work):
    assert "critic    from step 3; Euler steps it looks at: 2" in plan(job(work, **WITH), Listener())
    assert memory(tiny(**WITH)) > 2 * memory(tiny(**WITH | {"adversarial_weight": 0}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distill_steps": 1, "coupling": "paired"}, "set one of the two"),
        ({"max_size": 4, "velocity_net": {"type": "UNet", "ch_mult": [1]}}, "side of 8 or more"),
    ],
)
def test_what_does_not_go_together_is_said(change, said):
    with pytest.raises(ConfigError, match=said):
        tiny(**WITH | {"structure_pairing": False} | change)


def test_noise_has_no_other_end():
    with pytest.raises(ConfigError, match="adversarial_weight 0"):
        noise_domain(tiny(**WITH), 0)


def grey(x):
    return np.repeat(x.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


@pytest.fixture
def drawn(tmp_path):
    """Folders of grey pictures, of coloured ones and of their like."""
    for name, edit, seed in (("dark", grey, 0), ("bright", lambda x: x, 1), ("dim", lambda x: x // 2, 2)):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.fromarray(edit(noisy(120, 10 * seed + i) // 4 + np.uint8([100, 20 * seed, 0]))).save(
                tmp_path / name / f"{i}.png"
            )
    return tmp_path


OPEN = {"adversarial_weight": None, "coupling": "structure", "structure_pairing": None, "saliency_loss_weight": 0}


def test_a_critic_ends_trainings_from_no_colours_to_colours_unless_told(drawn):
    domains = {name: open_domain([drawn / name], 16, 1 << 20) for name in ("dark", "bright", "dim")}

    def found(zero, one, weights=None, **changes):
        made = resolved(tiny(**OPEN | {"num_inference_steps": 6} | changes), domains[zero], domains[one], weights)
        return made.adversarial_weight, made.num_inference_steps

    assert found("dark", "bright") == (1.0, 1)
    assert found("bright", "dark") == found("dim", "bright") == found("dark", "dark") == (0.0, 6)
    assert found("dark", "bright", coupling="random") == found("dark", "bright", coupling="paired") == (0.0, 6)
    assert found("dark", "bright", adversarial_weight=0) == (0.0, 6)
    assert found("dark", "bright", adversarial_weight=0.5, num_inference_steps=2) == (0.5, 2)
    for weight, steps in ((0.0, 4), (0.7, 2)):  # a run that goes on does so as it began
        weights = SimpleNamespace(config=tiny(adversarial_weight=weight, num_inference_steps=steps))
        assert found("dark", "bright", weights) == (weight, steps if weight else 6)


def test_a_tinge_is_neither_no_colours_nor_colours_and_latents_and_tiny_pictures_have_no_critic(drawn):
    (drawn / "tinged").mkdir()
    for i in range(8):
        tinged = grey(noisy(120, i)) // 2 + np.uint8([5, 0, 0])  # a gap of 5 levels of 127.5
        Image.fromarray(tinged).save(drawn / "tinged" / f"{i}.png")
    domains = {name: open_domain([drawn / name], 16, 1 << 20) for name in ("dark", "tinged", "bright")}

    def weight(zero, one, **changes):
        return resolved(tiny(**OPEN | changes), domains[zero], domains[one]).adversarial_weight

    assert weight("dark", "bright") == weight("dark", "bright", max_size=8) == 1
    assert weight("tinged", "bright") == weight("dark", "tinged") == 0
    assert weight("dark", "bright", max_size=4) == weight("dark", "bright", **LATENT) == 0


def test_frames_that_a_plan_leaves_black_are_not_taken_for_pictures_without_colours(drawn):
    film, bright = write_video(drawn / "v.mp4", range(0, 400, 40)), open_domain([drawn / "bright"], 16, 1 << 20)
    for cache in (FrameCache(dry_run=True), FrameCache()):  # as the training then sees it
        assert resolved(tiny(**OPEN), open_domain([film], 16, cache=cache), bright).adversarial_weight == 0


def test_weights_of_a_run_with_a_critic_bring_none_where_none_can_be(drawn):
    """What their config says is taken over where `null` leaves it open; not what this training would refuse if told."""
    domains = [open_domain([drawn / name], 16, 1 << 20) for name in ("dark", "bright")]
    weights = SimpleNamespace(config=tiny(adversarial_weight=1, num_inference_steps=1, saliency_loss_weight=0))

    def weight(domain0=domains[0], **changes):
        return resolved(tiny(**OPEN | changes), domain0, domains[1], weights).adversarial_weight

    assert weight() == weight(coupling="paired") == 1
    assert weight(coupling="paired", distill_steps=2) == 0
    assert weight(max_size=4) == 0
    noise = {"coupling": "random", "alignment": None}
    assert weight(noise_domain(tiny(**OPEN | noise), 0), **noise) == 0


def test_such_a_training_says_so_and_goes_on_as_it_began(drawn):
    about = OPEN | {"train_images": 30}
    whole, parted = (job(drawn, name, **about) for name in ("whole", "parted"))
    listener = finish(whole)
    assert any("a critic ends the training" in note for note in listener.notes)
    with pytest.raises(Interrupted):
        train(parted, stop_at(("velocity", 4)))
    assert not any("a critic ends" in note for note in finish(parted).notes)
    assert_same(drawn / "whole", drawn / "parted")
    config = ckpt.load(ckpt.find(drawn / "whole")).config
    assert (config.adversarial_weight, config.num_inference_steps, config.critic_from) == (1.0, 1, 3)


def test_a_run_from_before_trainings_decided_goes_on_without_a_critic(drawn):
    before = job(drawn, "run", **OPEN | {"train_images": 30, "adversarial_weight": 0.0})
    with pytest.raises(Interrupted):
        train(before, stop_at(("velocity", 4)))
    finish(job(drawn, "run", **OPEN | {"train_images": 30}))
    config = ckpt.load(ckpt.find(drawn / "run")).config
    assert (config.adversarial_weight, config.num_inference_steps) == (0.0, 2)
    with pytest.raises(UsageError, match="adversarial_weight differ"):
        finish(job(drawn, "run", **OPEN | {"train_images": 30, "adversarial_weight": 1.0}))


def test_a_critic_may_go_on_as_long_as_the_flow(drawn):
    domains = [open_domain([drawn / name], 16, 1 << 20) for name in ("dark", "bright")]

    def pairs(**changes):
        about = {"train_images": 10_000, "max_epochs": 60, "dropout": None} | changes
        made = resolved(tiny(**OPEN | about), *domains)
        return made.train_images, made.critic_from * made.train_batch_size, made.dropout

    assert pairs(adversarial_weight=0) == (480, 480, 0.3)
    assert pairs(adversarial_weight=1) == (960, 480, 0.3)
    assert pairs(adversarial_weight=1, adversarial_start=0) == (480, 0, 0.0)
    assert pairs(adversarial_weight=1, adversarial_start=0.1, train_images=4_000) == (880, 400, 0.0)
    assert pairs(adversarial_weight=1, max_epochs=45) == (720, 360, 0.0)
    assert pairs(adversarial_weight=1, max_epochs=None) == (10_000, 2_500, 0.3)  # 500 steps, then up to 4,000
    assert pairs(adversarial_weight=1, max_epochs=None, train_images=40_000) == (22_500, 2_500, 0.3)
    assert pairs(adversarial_weight=1, max_epochs=None, train_images=1_000) == (1_000, 500, 0.3)
