"""Pairs made anew by what the flow makes of pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.train import checkpoint as ckpt
from rfp.train import re_pairing, velocity_phase
from rfp.train.codec import Identity
from rfp.train.config import RFPix2pixModel
from rfp.train.coupling import structure_pairs
from rfp.train.opening import open_run
from rfp.train.plan import plan
from rfp.train.re_pairing import NEAR0, NEAR1, alike, re_paired, saved, turns
from rfp.train.run import Interrupted
from rfp.train.training import train
from test_resume import stop_at
from trainings import Listener, assert_same, draw_domains, finish, job

STRUCTURE = {"structure_pairing": True, "structure_candidates": 2, "saliency_loss_weight": 0}
OFTEN = STRUCTURE | {"train_images": 60, "re_pairings": 3}
"""12 steps, and made anew before steps 3, 6 and 9 where MOST allows it."""


@pytest.fixture
def work(tmp_path):
    draw_domains(tmp_path)
    return tmp_path


def config(**changes):
    return RFPix2pixModel(**({"train_images": 64_000, "train_batch_size": 64} | changes))


def test_turns_are_spread_evenly_and_bounded_by_what_they_cost():
    assert turns(config(), 500, 500) == [250, 500, 750]
    assert turns(config(re_pairings=1), 500, 500) == [500]
    assert turns(config(re_pairings=0), 500, 500) == []
    for n in (10, 1_000, 3_000, 5_000, 10_000, 100_000):
        cost = len(turns(config(re_pairings=50), n, n)) * re_pairing.STEPS * 2 * n
        assert cost <= re_pairing.MOST * 3 * 64_000
    assert len(turns(config(), 4_000, 4_000)) == 1 and turns(config(), 5_000, 5_000) == []
    assert turns(config(train_images=64 * 3, re_pairings=9), 1, 1) == [1, 2]  # never before the first step


@pytest.mark.parametrize("coupling", ["random", "paired", "minibatch_ot"])
def test_other_couplings_stay_as_they_are(coupling):
    assert turns(config(coupling=coupling), 10, 10) == []


def test_a_flow_that_is_right_finds_the_true_partner(tmp_path, monkeypatch):
    """Domain 1 is the negative of domain 0, shuffled: as they are, each picture's nearest is another's."""
    order = np.random.default_rng(0).permutation(12)
    for name in ("dark", "bright"):
        (tmp_path / name).mkdir()
    for i in range(12):
        halves = np.random.default_rng(i).integers(0, 256, (1, 2, 3), np.uint8)
        image = np.repeat(np.repeat(halves, 16, axis=0), 8, axis=1)
        Image.fromarray(image).save(tmp_path / "dark" / f"{i}.png")
        Image.fromarray(255 - image).save(tmp_path / "bright" / f"{order[i]}.png")
    run = open_run(job(tmp_path, **STRUCTURE), Listener())
    ways = []

    def negative(v, x, steps, t0, t1):
        ways.append((t0, t1))
        return -x

    monkeypatch.setattr(re_pairing, "integrate_net", negative)
    near = re_paired(run, Identity(), None, 0)
    assert near[NEAR1].shape == near[NEAR0].shape == (12, 2)
    assert near[NEAR1][:, 0].tolist() == order.tolist() and near[NEAR0][order, 0].tolist() == list(range(12))
    assert set(ways) == {(0.0, 1.0), (1.0, 0.0)}
    monkeypatch.setattr(re_pairing, "integrate_net", lambda v, x, *rest: x)
    near = re_paired(run, Identity(), None, 0)
    assert not (near[NEAR1][:, 0].numpy() == order).any()


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(re_pairing, "MOST", 100.0)


def test_each_turn_changes_the_pairs_from_its_step_on(work, often, monkeypatch):
    segments, made = [], []

    def batches(domain0, domain1, pairs, size, step, stop, seed, mirror, **options):
        segments.append((step, stop, pairs(0), pairs(1)))
        x = torch.zeros(5, 3, 16, 16)
        yield from ((x, x + 1, x[:, :2]) for _ in range(step, stop))

    def anew(run, codec, ema, step):
        n = len(made)
        made.append({NEAR1: torch.full((7, 2), n), NEAR0: torch.full((9, 2), n)})
        return made[-1]

    monkeypatch.setattr(velocity_phase, "batches", batches)
    monkeypatch.setattr(velocity_phase, "re_paired", anew)
    finish(replace(job(work, **OFTEN), seed=4))
    assert [s[:2] for s in segments] == [(0, 3), (3, 6), (6, 9), (9, 12)] and len(made) == 3
    for n, (_, _, even, odd) in enumerate(segments[1:]):
        pair = structure_pairs(np.full((7, 2), n), np.full((9, 2), n), 4)
        assert (even, odd) == (pair(0), pair(1)) and even[1] == odd[0] == n


@pytest.mark.parametrize("step", [2, 3, 5, 6, 11])
def test_interrupted_before_at_and_after_a_turn_is_uninterrupted(work, often, step):
    notes = finish(job(work, "whole", **OFTEN)).notes
    assert sum("paired anew" in note for note in notes) == 3
    with pytest.raises(Interrupted):
        train(job(work, "run", **OFTEN), stop_at(("velocity", step)))
    finish(job(work, "run", **OFTEN))
    assert_same(work / "run", work / "whole")


def test_the_plan_says_when(work, often):
    assert "coupling  2 nearest by hog, anew before step 3, 6, 9" in plan(job(work, **OFTEN), Listener())
    assert "coupling  2 nearest by hog" in plan(job(work, **OFTEN | {"re_pairings": 0}), Listener())


def test_the_training_state_holds_the_neighbours_and_the_checkpoint_does_not(work, often):
    finish(job(work, **OFTEN))
    newest = ckpt.find(work / "run")
    assert {NEAR0, NEAR1} <= ckpt.load_state(newest).keys()
    assert not {NEAR0, NEAR1} & ckpt.load(newest).tensors.keys()


@pytest.mark.parametrize(
    "change",
    [
        {NEAR1: torch.zeros(6, 2, dtype=torch.int64)},
        {NEAR1: torch.full((7, 2), 9)},
        {NEAR0: torch.full((9, 2), -1)},
        {NEAR0: torch.zeros(9, 0, dtype=torch.int64)},
        {NEAR0: torch.zeros(9, 2)},
        {NEAR0: torch.zeros(9, dtype=torch.int64)},
    ],
    ids=["rows", "too high", "negative", "empty", "floats", "flat"],
)
def test_neighbours_that_do_not_fit_are_found_anew(work, change):
    listener = Listener()
    run = open_run(job(work, **STRUCTURE), listener)
    good = {NEAR1: torch.full((7, 2), 8), NEAR0: torch.full((9, 2), 6)}
    run.resumed_state = good | {"optimizer.0.step": torch.zeros(())}
    assert saved(run).keys() == good.keys() and not listener.notes
    run.resumed_state = good | change
    assert saved(run) == {} and any("found anew" in note for note in listener.notes)
    run.resumed_state = {NEAR1: good[NEAR1]}
    assert saved(run) == {}


def test_the_steps_that_a_critic_looks_at_are_those_of_pairs_made_anew_after_it_began(work, monkeypatch):
    """And their cost counts: of three times that could be afforded two are left."""
    critic = {"adversarial_weight": 1.0, "num_inference_steps": 16}
    assert [len(turns(config(**more), 500, 500)) for more in ({}, critic)] == [3, 2]
    run = open_run(job(work, **STRUCTURE, **critic, adversarial_start=0.5), Listener())
    seen = []
    monkeypatch.setattr(re_pairing, "integrate_net", lambda v, x, steps, *rest: seen.append(steps) or x)
    for step, steps in ((run.config.critic_from, re_pairing.STEPS), (run.config.critic_from + 1, 16)):
        re_paired(run, Identity(), None, step)
        assert {*seen} == {steps}
        seen.clear()


def test_edges_count_as_much_as_pixels():
    """Fine stripes, upright and lying, of which thumbnails show the mean grey alone."""
    stripes = torch.tensor([-0.2, -0.2, 0.8, 0.8]).repeat(16).expand(1, 3, 64, 64)
    upright, lying = alike(stripes), alike(stripes.mT)
    assert (upright @ upright.T).item() == pytest.approx(1, abs=1e-5)
    assert (upright @ lying.T).item() == pytest.approx(0.5, abs=0.01)
