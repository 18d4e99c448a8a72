import signal

import pytest
import torch
from rfp.runtime import ConfigError
from rfp.train import checkpoint as ckpt
from rfp.train import self_pairing
from rfp.train.noise import noise_domain
from rfp.train.run import Interrupted
from rfp.train.self_pairing import self_paired
from rfp.train.training import train
from trainings import VAE_TINY, Listener, assert_same, draw_domains, finish, job, tiny

DARK, BRIGHT = torch.full((8, 3, 4, 4), -0.5), torch.full((8, 3, 4, 4), 0.25)


class Constant(torch.nn.Module):
    """v = 0.3 at place 0: what it makes of x0 is x0 + 0.3, and of x1 going back x1 − 0.3."""

    def forward(self, x, t, place):
        return torch.full_like(x, 0.3) + place[:, :1]


def paired(step=100, x0=DARK, x1=BRIGHT, place=None, **changes):
    config = tiny(train_batch_size=8, train_minibatch_size=3, train_images=800, **changes)
    return self_paired(config, Constant(), x0, x1, x0[:, :2] * 0 if place is None else place, step)


def means(x):
    return [round(float(m), 4) for m in x.mean(dim=(1, 2, 3))]


def test_half_of_the_pairs_are_joined_by_the_flow_by_turns_and_keep_a_real_end():
    x0, x1 = paired(self_pairing=0.5)
    assert means(x0) == [-0.5, -0.05, -0.5, -0.5, -0.5, -0.05, -0.5, -0.5]  # 0.25 − 0.3, where x1 is real
    assert means(x1) == [0.25, 0.25, 0.25, -0.2, 0.25, 0.25, 0.25, -0.2]  # −0.5 + 0.3, where x0 is real


def test_made_ends_are_pictures_and_a_share_of_one_takes_all():
    x0, x1 = paired(self_pairing=1.0, x0=DARK + 1.4, x1=BRIGHT)
    assert means(x0) == [-0.05, 0.9] * 4 and means(x1) == [0.25, 1.0] * 4
    assert means(paired(self_pairing=1.0, x0=DARK + 1.4, codec=VAE_TINY)[1]) == [0.25, 1.2] * 4  # latents may be any


def test_what_is_joined_is_joined_where_it_lies():
    place = torch.arange(8)[:, None, None, None].expand(8, 2, 4, 4) / 100
    x0, x1 = paired(self_pairing=1.0, place=place)
    assert means(x0)[::2] == [-0.05, -0.07, -0.09, -0.11] and means(x1)[1::2] == [-0.19, -0.17, -0.15, -0.13]


def test_nothing_changes_before_its_start_or_without_it():
    for changes, step in (({"self_pairing": 1.0, "self_pairing_start": 0.5}, 49), ({}, 99)):
        x0, x1 = paired(step, **changes)
        assert x0.equal(DARK) and x1.equal(BRIGHT)
    assert not paired(50, self_pairing=1.0, self_pairing_start=0.5)[0].equal(DARK)


def test_shares_of_ranks_are_those_of_the_whole_batch(monkeypatch):
    whole = paired(self_pairing=0.6)
    parts = []
    for part in (slice(0, 3), slice(3, 8)):
        monkeypatch.setattr(self_pairing.ranks, "share", lambda n, part=part: part)
        parts.append(paired(self_pairing=0.6, x0=DARK[part], x1=BRIGHT[part]))
    for side in (0, 1):
        assert torch.cat([part[side] for part in parts]).equal(whole[side])


def test_a_training_with_it_differs_and_goes_on_bit_for_bit(tmp_path):
    draw_domains(tmp_path)
    changes = {"self_pairing": 0.5, "saliency_loss_weight": 0, "self_pairing_start": 0.3}
    finish(job(tmp_path, "whole", **changes))
    finish(job(tmp_path, "plain", **(changes | {"self_pairing": 0.0})))
    weights = [ckpt.load(ckpt.find(tmp_path / name)).part("velocity_net") for name in ("whole", "plain")]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    def press(phase, step):
        if (phase, step) == ("velocity", 4):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(job(tmp_path, "stopped", **changes), Listener(press))
    finish(job(tmp_path, "stopped", **changes))
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_noise_is_no_end_that_a_flow_could_make():
    with pytest.raises(ConfigError, match=r"self_pairing 0\.5: the way back"):
        noise_domain(tiny(self_pairing=0.5, saliency_loss_weight=0), 0)
