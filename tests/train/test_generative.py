"""Domain 0 as noise: what is drawn, what is refused, and where a training of it goes on."""

import json
import re
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.runtime import ConfigError, UsageError
from rfp.runtime.noise import noise, noises
from rfp.runtime.pixels import to_float
from rfp.train import checkpoint as ckpt
from rfp.train.coupling import batches, noise_pairs
from rfp.train.domains import Crop, open_domain
from rfp.train.job import Job
from rfp.train.noise import Noise, noise_domain
from rfp.train.plan import plan
from rfp.train.reading import load_config
from rfp.train.run import Interrupted
from rfp.train.training import train
from rfp.train.transport import transport_pairs
from test_resume import stop_at
from trainings import Listener, assert_same, draw_domains, finish, tiny

PLAIN = {"saliency_loss_weight": 0}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    draw_domains(work)
    finish(job(work, "whole"))
    return work


def job(work, run, inputs=None, **changes):
    return Job(tiny(**PLAIN | changes), "random", (inputs or work / "bright",), work / run, device="cpu")


def drawn(work, start, stop, seed=0):
    domain = open_domain([work / "bright"], 16)
    zero = Noise(seed, (3, 16, 16))
    return list(batches(zero, domain, noise_pairs(len(domain), seed), 5, start, stop, seed, True))


def test_x0_is_standard_normal_and_no_two_pairs_share_one(work):
    x0 = torch.cat([x0 for x0, *_ in drawn(work, 0, 40)])
    assert x0.shape == (200, 3, 16, 16) and x0.dtype == torch.float32
    n = x0.numel()  # 153,600 values: five standard errors of the mean, the variance and the fourth moment
    assert abs(x0.mean()) < 5 / n**0.5 and abs(x0.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x0**4).mean() - 3) < 5 * (96 / n) ** 0.5
    alike = torch.corrcoef(x0.flatten(1)) - torch.eye(len(x0))
    assert alike.abs().max() < 0.25  # of 768 values: one standard error is 0.036
    assert not (set(x0[:, 0, 0, 0].tolist()) & set(noises((3, 16, 16), 0, range(200))[:, 0, 0, 0].tolist()))


def test_x0_is_a_function_of_seed_and_pair_wherever_a_training_starts(work):
    whole, late, other = drawn(work, 0, 4), drawn(work, 3, 4), drawn(work, 0, 1, seed=1)
    assert torch.equal(whole[3][0], late[0][0]) and torch.equal(whole[3][1], late[0][1])
    assert not torch.equal(whole[0][0], other[0][0])
    np.testing.assert_array_equal(whole[3][0][2], noise((3, 16, 16), 0, 0, 17))


def test_every_picture_of_domain_1_is_drawn_once_an_epoch():
    pair = noise_pairs(9, 4)
    pairs = [pair(k) for k in range(27)]
    assert [i for i, _ in pairs] == list(range(27))
    assert all(sorted(j for _, j in islice(pairs, s, s + 9)) == list(range(9)) for s in (0, 9, 18))


def test_optimal_transport_pairs_noise_with_the_pictures_nearest_to_it(work):
    domain, zero, plain = open_domain([work / "bright"], 16), Noise(0, (3, 16, 16)), noise_pairs(9, 0)
    pair = transport_pairs(zero, domain, plain, 9)
    pictures = [to_float(domain.crop(j, Crop())) for j in range(9)]

    def cost(pair):
        return sum(((zero.draw(i) - pictures[j]) ** 2).sum() for i, j in map(pair, range(9)))

    assert sorted(j for _, j in map(pair, range(9))) == list(range(9)) and cost(pair) < cost(plain)
    assert [i for i, _ in map(pair, range(9, 18))] == list(range(9, 18))


def test_pictures_are_cropped_and_mirrored_and_noise_is_not(work):
    domain, zero = open_domain([work / "bright"], 16), Noise(0, (3, 16, 16))
    pair = noise_pairs(len(domain), 0)
    flipped, straight = (next(iter(batches(zero, domain, pair, 8, 0, 1, 0, flip))) for flip in (True, False))
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(flipped[1], straight[1], strict=True)]
    assert 0 < sum(mirrored) < 8 and torch.equal(flipped[0], straight[0])


@pytest.mark.parametrize("moments", [[1], [5], [2, 3]])
@pytest.mark.parametrize("coupling", ["random", "minibatch_ot"])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(work, tmp_path, moments, coupling):
    there, whole = (job(tmp_path, name, coupling=coupling, inputs=work / "bright") for name in ("run", "whole"))
    for step in moments:
        with pytest.raises(Interrupted):
            train(there, stop_at(("velocity", step)))
    finish(there)
    finish(whole)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_run_says_that_domain_0_is_noise_and_keeps_no_pictures_of_it(work):
    run = work / "whole"
    assert json.loads((run / "run.json").read_text())["domain0"] == "random"
    saved = ckpt.load(ckpt.find(run))
    assert saved.generative and saved.domains == ("random", "bright") and saved.phase == "velocity"
    assert [k for k in saved.tensors if k.startswith("samples")] == ["samples.domain1"]
    assert not [k for k in saved.tensors if k.startswith("saliency")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {e["phase"] for e in lines} == {"velocity"} and not any("saliency" in e for e in lines)


def test_the_grid_shows_what_the_first_noises_of_rfp_generate_become(work):
    from rfp.runtime import integrate
    from rfp.runtime.pixels import to_uint8

    net = ckpt.load(ckpt.find(work / "whole")).velocity()
    x0 = torch.from_numpy(noises((3, 16, 16), 0, range(3)))
    with torch.no_grad():
        want = to_uint8(integrate(lambda x, t: net(x, torch.full((1,), t)), x0, 2).numpy())
    with Image.open(work / "whole" / "samples" / "step-00000006.png") as image:
        grid = np.asarray(image)
    assert grid.shape == (32, 32, 3) and (grid[16:, 16:] == 255).all()
    np.testing.assert_array_equal(grid[:16, :16], want[0])
    np.testing.assert_array_equal(grid[16:, :16], want[2])


def test_what_noise_has_not_is_refused_with_the_reason_all_at_once():
    with pytest.raises(ConfigError) as e:
        noise_domain(tiny(structure_pairing=True), 0)
    for words in ("noise has no structure", "saliency_loss_weight 0.1: any few pixels tell", "-c generative does"):
        assert words in str(e.value)
    assert noise_domain(tiny(**PLAIN), 7) == Noise(7, (3, 16, 16))


def test_noise_in_place_of_pictures_under_a_runs_name_is_refused_and_the_reverse(work):
    pictures = Job(tiny(**PLAIN), (work / "dark",), (work / "bright",), work / "whole", device="cpu")
    with pytest.raises(UsageError, match=r"trained otherwise \(domain0: random, now \['.*dark'\]"):
        train(pictures, Listener())
    train(Job(tiny(**PLAIN), (work / "dark",), (work / "bright",), work / "pictures", device="cpu"), Listener())
    with pytest.raises(UsageError, match=r"trained otherwise \(domain0: \['.*dark'\], now random"):
        train(job(work, "pictures"), Listener())


def test_a_dry_run_says_that_domain_0_is_noise(work):
    lines = "\n".join(plan(job(work, "planned"), Listener()))
    assert "domain 0  noise, N(0, 1) of shape 3×16×16" in lines and "9 pictures in bright" in lines
    assert re.search(r"phase 1 +none", lines)


def test_the_preset_is_plain_flow_matching_from_noise():
    config = load_config("generative")
    assert noise_domain(config, 0).shape == (3, 64, 64)


def test_a_checkpoint_from_before_there_was_noise_is_of_pictures(work, tmp_path, monkeypatch):
    saved = ckpt.load(ckpt.find(work / "whole"))
    dumps = json.dumps
    monkeypatch.setattr(
        "rfp.train.checkpoint.json.dumps", lambda about: dumps({k: v for k, v in about.items() if k != "generative"})
    )
    ckpt.save(tmp_path / "old.safetensors", saved, {})
    assert ckpt.load(tmp_path / "old.safetensors").generative is False
