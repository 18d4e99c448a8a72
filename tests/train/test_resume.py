import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rfp.runtime import CheckpointError, TrainingError, UsageError
from rfp.train import checkpoint as ckpt
from rfp.train.config import alike, to_json, without_folders
from rfp.train.domains import Crop, open_domain
from rfp.train.job import FREE_TO_CHANGE, Job, config_of, default_run_id
from rfp.train.net_config import ResNetSaliencyNet
from rfp.train.noise import noise_domain
from rfp.train.plan import plan
from rfp.train.reading import load_config
from rfp.train.resolving import DROPOUT, EPOCHS, HUBER, LEAST_STEPS, MANY_EPOCHS, MOST_EPOCHS, STEPS, resolved, small
from rfp.train.run import Interrupted
from rfp.train.training import train
from rfp.train.unet import UNet
from trainings import LATENT, TINY, Listener, assert_same, draw_domains, finish, job, noisy, tiny

STRUCTURE = {"structure_pairing": True, "structure_candidates": 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two domains, and a training of them that nobody interrupted: 6 steps of phase 1, 6 of phase 2."""
    work = tmp_path_factory.mktemp("ünï [cödé]")
    draw_domains(work)
    finish(job(work, "whole"))
    return work


def stop_at(*moments):
    """A reporter that presses Ctrl-C after the given steps."""

    def press(phase, step):
        if (phase, step) in moments:
            signal.raise_signal(signal.SIGINT)

    return Listener(press)


def interrupted(job, *moments):
    listener = stop_at(*moments)
    with pytest.raises(Interrupted):
        train(job, listener)
    return listener


def test_a_run_folder_holds_what_it_says(work):
    run = work / "whole"
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "run.json",
        "samples",
    ]
    assert ckpt.validate(json.loads((run / "config.json").read_text())) == tiny()
    assert json.loads((run / "run.json").read_text())["domain0"] == [str(work / "dark")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(e["phase"], e["step"]) for e in lines] == [(p, s) for p in ("saliency", "velocity") for s in range(1, 7)]
    assert lines[5]["accuracy"] >= 0.9 and lines[-1]["rate"] < lines[7]["rate"]
    with Image.open(run / "samples" / "step-00000006.png") as grid:  # 3 pictures in 2 columns of input | output
        assert grid.size == (4 * 16, 2 * 16)
    whole = ckpt.load(ckpt.find(run))
    assert (whole.phase, whole.step, whole.seed, whole.domains) == ("velocity", 6, 0, ("dark", "bright"))
    assert whole.tensors["samples.domain0"].shape == (3, 16, 16, 3)
    assert whole.velocity().training is False and whole.saliency() is not None


@pytest.mark.parametrize(
    "moments",
    [
        [("saliency", 1)],
        [("saliency", 4)],
        [("saliency", 6)],
        [("velocity", 1)],
        [("velocity", 5)],
        [("saliency", 2), ("saliency", 5), ("velocity", 2), ("velocity", 3)],
    ],
    ids=lambda moments: " ".join(f"{p[0]}{s}" for p, s in moments),
)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(work, tmp_path, moments):
    there = Job(tiny(), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")
    for moment in moments:
        listener = interrupted(there, moment)
        assert listener.steps[-1] == moment  # it stops there, and not a step later
    finish(there)
    assert_same(tmp_path / "run", work / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        STRUCTURE,
        {"coupling": "minibatch_ot", "train_batch_size": 6, "train_images": 18},
        {"saliency_loss_weight": 0},
        {"dropout": 0.5},
        {"bridge_noise": 0.5},
        {"max_size": 32, "saliency_net": {"type": "ResNetSaliencyNet", "backbone": "resnet18", "pretrained": False}},
    ],
    ids=["structure pairing", "minibatch transport", "no classifier", "dropout", "bridge", "ResNet"],
)
def test_other_trainings_resume_bit_for_bit_too(work, tmp_path, changes):
    changes = {"saliency_max_steps": 2, "saliency_accuracy_threshold": 0, "train_images": 15} | changes
    finish(Job(tiny(**changes), (work / "dark",), (work / "bright",), tmp_path / "one", device="cpu"))
    other = Job(tiny(**changes), (work / "dark",), (work / "bright",), tmp_path / "other", device="cpu")
    if "saliency_loss_weight" not in changes:
        interrupted(other, ("saliency", 1))
    interrupted(other, ("velocity", 2))
    finish(other)
    assert_same(tmp_path / "one", tmp_path / "other")


def test_a_checkpoint_midway_is_as_good_as_an_interruption(work, tmp_path):
    there = Job(tiny(checkpoint_every=4), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")

    class Crash(Exception):
        pass

    def crash(phase, step):
        if (phase, step) == ("velocity", 6):
            raise Crash

    with pytest.raises(Crash):
        train(there, Listener(crash))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as f:
        f.write('{"phase": "velocity", "st')  # cut off while writing
    listener = finish(there)
    assert listener.steps == [("velocity", 5), ("velocity", 6)]
    assert_same(tmp_path / "run", work / "whole")


def test_the_sample_grid_is_the_averaged_nets_and_the_same_after_resuming(work, tmp_path):
    there = Job(tiny(sample_every=3), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")
    interrupted(there, ("velocity", 4))
    finish(there)
    samples = tmp_path / "run" / "samples"
    assert sorted(p.name for p in samples.iterdir()) == ["step-00000003.png", "step-00000006.png"]
    assert (samples / "step-00000006.png").read_bytes() == (
        work / "whole" / "samples" / "step-00000006.png"
    ).read_bytes()


def test_a_finished_run_says_so_and_changes_nothing(work):
    before = {p: p.read_bytes() for p in (work / "whole").rglob("*") if p.is_file()}
    listener = finish(job(work, "whole"))
    assert "already trained: step 6 of 6" in listener.notes and not listener.steps
    assert {p: p.read_bytes() for p in (work / "whole").rglob("*") if p.is_file()} == before


def test_another_config_seed_or_domain_in_the_same_folder_is_refused_by_name(work):
    with pytest.raises(UsageError, match=r"\(train_batch_size, velocity_net differ\)") as e:
        finish(job(work, "whole", train_batch_size=4, velocity_net=TINY["velocity_net"] | {"num_res_blocks": 2}))
    assert "--run-id" in str(e.value)
    other = Job(tiny(), (work / "dark",), (work / "bright",), work / "whole", seed=1, device="cpu")
    with pytest.raises(UsageError, match=r"\(seed: 0, now 1\)"):
        finish(other)
    swapped = Job(tiny(), (work / "bright",), (work / "dark",), work / "whole", device="cpu")
    with pytest.raises(UsageError, match=r"trained otherwise.*domain0.*domain1"):
        finish(swapped)


def test_a_run_that_has_no_checkpoint_yet_may_be_begun_anew_with_another_config(work, tmp_path):
    def there(**changes):
        return Job(tiny(**changes), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")

    with pytest.raises(UsageError, match="no such file"):
        finish(there(saliency_net={"type": "ResNetSaliencyNet", "backbone": "resnet18", "weights": "nowhere.pth"}))
    assert (tmp_path / "run" / "config.json").is_file()
    finish(there())
    assert_same(tmp_path / "run", work / "whole")


def test_a_blind_classifier_is_kept_and_goes_on_with_a_higher_bound(work, tmp_path, monkeypatch):
    def there(**changes):
        return Job(tiny(**changes), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")

    with monkeypatch.context() as blind:
        blind.setattr("rfp.train.saliency_phase.accuracy", lambda *args: 0.5)
        for _ in range(2):
            with pytest.raises(TrainingError, match=r"after 3 steps.*only 50.0%.*raise saliency_max_steps"):
                finish(there(saliency_max_steps=3))
    assert finish(there()).steps[0] == ("saliency", 4)
    weights = (ckpt.load(ckpt.find(folder)).tensors for folder in (tmp_path / "run", work / "whole"))
    one, other = weights
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
    with pytest.raises(UsageError, match="saliency_max_steps differ"):  # the classifier is finished
        finish(there(saliency_max_steps=9))


def test_a_longer_training_goes_on_in_the_same_folder(work, tmp_path):
    shutil.copytree(work / "whole", tmp_path / "run")
    longer = Job(tiny(train_images=40), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")
    assert finish(longer).steps == [("velocity", 7), ("velocity", 8)]


def branch(work, folder, start="whole", **changes):
    source = ckpt.find(work / start) if isinstance(start, str) else start
    return Job(tiny(**changes), (work / "dark",), (work / "bright",), folder, device="cpu", start=source)


def test_few_pictures_are_drawn_max_epochs_times_and_no_more(work, tmp_path):
    count = max(len(list((work / name).iterdir())) for name in ("dark", "bright"))
    short, domains = tiny(train_images=50 * count, max_epochs=2), ((work / "dark",), (work / "bright",))
    lines = "\n".join(plan(Job(short, *domains, tmp_path / "run", device="cpu"), Listener()))
    assert f"({2 * count} in all, in place of {50 * count}: max_epochs)" in lines
    listener = finish(Job(short, *domains, tmp_path / "run", device="cpu"))
    steps = -(-2 * count // short.train_batch_size)
    assert listener.steps[-1] == ("velocity", steps)
    assert any(f"{2 * count} pairs in place of {50 * count}, since" in note for note in listener.notes)
    assert ckpt.load(ckpt.find(tmp_path / "run")).config.steps == steps  # so the rate has fallen by then
    assert any("already trained" in note for note in finish(Job(short, *domains, tmp_path / "run")).notes)
    longer = tiny(train_images=3 * count)  # the same folder, trained on
    assert finish(Job(longer, *domains, tmp_path / "run", device="cpu")).steps[-1] == ("velocity", longer.steps)


@pytest.mark.parametrize(
    ("n", "batch", "pairs"),
    [
        (2, 5, 5 * LEAST_STEPS),  # 500 steps of 5, though each is drawn 1,250 times
        (15, 1, STEPS),  # fewer than 75 times each
        (90, 1, EPOCHS * 90),  # more than 1,000 steps
        (90, 2, STEPS * 2),
    ],
)
def test_a_training_is_as_long_as_its_pictures_allow(tmp_path, n, batch, pairs):
    domains = [open_domain([folder], 16, 1 << 20) for folder in draw_domains(tmp_path, n, n // 2)]
    config = tiny(train_images=10_000, train_batch_size=batch, train_minibatch_size=1)
    assert resolved(config, *domains).train_images == pairs


def test_only_pairs_of_neighbours_are_kept_from_being_learned_by_heart(work):
    domains = [open_domain([work / name], 16, 1 << 20) for name in ("dark", "bright")]
    noise, n = noise_domain(tiny(saliency_loss_weight=0), 0), max(map(len, domains))

    def ends(domain0=domains[0], **changes):
        found = resolved(tiny(train_images=10_000, dropout=None, **changes), domain0, domains[1])
        return found.train_images, found.dropout

    assert ends(train_batch_size=2, train_minibatch_size=1) == (LEAST_STEPS * 2, DROPOUT)
    assert ends(train_batch_size=1, train_minibatch_size=1) == (min(MOST_EPOCHS * n, STEPS), DROPOUT)
    assert ends(max_epochs=MANY_EPOCHS) == (MANY_EPOCHS * n, 0)
    assert ends(max_epochs=MANY_EPOCHS + 1) == ((MANY_EPOCHS + 1) * n, DROPOUT)
    assert ends(max_epochs=10_000) == (10_000, DROPOUT)
    assert ends(coupling="paired") == (10_000, 0) == ends(noise)
    assert ends(noise, max_epochs=2) == (2 * len(domains[1]), 0)
    # and by large UNets in fewer epochs
    large, little, transformer = (
        {"max_epochs": MANY_EPOCHS, "velocity_net": to_json(load_config(name))["velocity_net"]}
        for name in ("small", "tiny", "dit")
    )
    assert ends(**large)[1] == DROPOUT and ends(**little)[1] == 0 == ends(**transformer)[1]
    assert ends(**large, coupling="paired")[1] == 0 == ends(noise, **large)[1]
    # and only they are outvoted where they are wrong
    alike = {"flow_loss_huber": None, "coupling": "structure", "structure_pairing": None}

    def huber(domain0=domains[0], **changes):
        return resolved(tiny(**alike | changes), domain0, domains[1]).flow_loss_huber

    assert huber() == HUBER and huber(flow_loss_huber=0.5) == 0.5
    assert [huber(noise), huber(coupling="random"), huber(coupling="paired"), huber(**LATENT)] == [0] * 4


def test_a_net_sees_coordinates_where_crops_are_small_or_its_weights_do(work, tmp_path):
    """The pictures are 20 px wide."""

    def sees(value=None, domain0=None, weights=None, **changes):
        config = tiny(velocity_net=TINY["velocity_net"] | {"coordinates": value}, **changes)
        domains = [open_domain([work / name], config.max_size, 1 << 20) for name in ("dark", "bright")]
        zero = noise_domain(tiny(saliency_loss_weight=0), 0) if domain0 else domains[0]
        return resolved(config, zero, domains[1], weights).velocity_net.coordinates

    assert not sees() and sees(True)
    assert sees(max_size=8) and sees(domain0="noise", max_size=8) and not sees(False, max_size=8)
    assert not sees(max_size=8, crop_scale=0.9) and not sees(max_size=8, random_crop=False)
    assert not sees(max_size=8, crop_share=0)
    nets = {v: TINY["velocity_net"] | {"coordinates": v} for v in (None, False, True)}
    weights = {v: SimpleNamespace(config=tiny(velocity_net=net)) for v, net in nets.items()}
    assert sees(weights=weights[True]) and not sees(max_size=8, weights=weights[False])
    # and a run is gone on with as it began, though its own config leaves it open
    open_ = {"velocity_net": nets[None], "saliency_loss_weight": 0}
    whole, parted = (job(work, tmp_path / name, max_size=8, **open_) for name in ("whole", "parted"))
    interrupted(parted, ("velocity", 3))
    finish(parted)
    finish(whole)
    assert ckpt.load(ckpt.find(tmp_path / "whole")).config.velocity_net.coordinates
    assert_same(tmp_path / "whole", tmp_path / "parted")
    finish(replace(job(work, tmp_path / "on", **open_), parts={"velocity": tmp_path / "whole"}))
    assert ckpt.load(ckpt.find(tmp_path / "on")).config.velocity_net.coordinates


@pytest.mark.parametrize(("large", "is_small"), [(17, False), (23, True)])
def test_crops_are_small_where_most_pictures_of_a_folder_are_large(tmp_path, large, is_small):
    """The first ones of 40 are; the crops of the others are as large as they."""
    config = tiny(velocity_net=TINY["velocity_net"] | {"coordinates": None})
    for i in range(40):
        Image.fromarray(noisy(70, i, (40, 40) if i < large else (16, 16))).save(tmp_path / f"{i:02}.png")
    domain = open_domain([tmp_path], 16, 1 << 20)
    assert small(config, domain, domain) == is_small


def test_a_net_is_seamless_unless_told_or_its_weights_are_not(work):
    domains = [open_domain([work / name], 16, 1 << 20) for name in ("dark", "bright")]
    nets = {v: TINY["velocity_net"] | {"seamless": v} for v in (None, False, True)}
    assert [resolved(tiny(velocity_net=n), *domains).velocity_net.seamless for n in nets.values()] == [
        True,
        False,
        True,
    ]
    for value in (False, True):
        weights = SimpleNamespace(config=tiny(velocity_net=nets[value]))
        assert resolved(tiny(velocity_net=nets[None]), *domains, weights).velocity_net.seamless == value


def test_a_net_has_input_gain_unless_told_or_its_weights_have_none(work):
    domains = [open_domain([work / name], 16, 1 << 20) for name in ("dark", "bright")]
    nets = {v: TINY["velocity_net"] | {"input_gain": v} for v in (None, "none", "diagonal", "matrix")}
    weights = {v: SimpleNamespace(config=tiny(velocity_net=net)) for v, net in nets.items()}
    has = [resolved(tiny(velocity_net=net), *domains).velocity_net.input_gain for net in nets.values()]
    assert has == ["matrix", "none", "diagonal", "matrix"]
    for gain in ("none", "diagonal", "matrix"):
        assert resolved(tiny(velocity_net=nets[None]), *domains, weights[gain]).velocity_net.input_gain == gain


@pytest.mark.parametrize("latents", [{}, LATENT])
def test_every_step_tells_the_net_where_its_crops_lie(work, tmp_path, monkeypatch, latents):
    """Those of the batches, pair by pair; of latents the means of what each of them stands for."""
    told, drawn, size, share = [], [], 16, 8 if latents else 16
    forward, draw = UNet.forward, Crop.draw

    def hear(self, x, t, place=None):
        if self.training:
            told.append(place)
        return forward(self, x, t, place)

    def remember(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(UNet, "forward", hear)
    monkeypatch.setattr(Crop, "draw", remember)
    monkeypatch.setattr("rfp.train.coupling.WORKERS", 1)  # in order
    changes = {"saliency_loss_weight": 0, "random_crop": True, "cutmix": 0.0} | latents
    finish(job(work, tmp_path / "run", **changes))
    places = torch.cat(told)
    crops = drawn[-len(places) :]
    wanted = torch.stack([torch.from_numpy(crop.place(size)).permute(2, 0, 1) for crop in crops])
    torch.testing.assert_close(places, torch.nn.functional.avg_pool2d(wanted, size // share))


def test_a_branch_goes_on_from_the_start_and_then_from_its_own_checkpoints(work, tmp_path):
    before = {p: p.read_bytes() for p in (work / "whole").rglob("*") if p.is_file()}
    there = branch(work, tmp_path / "new", train_images=45, learning_rate=0.02)
    interrupted(there, ("velocity", 7))
    assert finish(there).steps == [("velocity", 8), ("velocity", 9)]
    assert {p: p.read_bytes() for p in (work / "whole").rglob("*") if p.is_file()} == before


def test_weights_without_their_training_state_start_at_step_0(work, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lone = tmp_path / "lone.safetensors"
    shutil.copy(ckpt.find(work / "whole"), lone)
    listener = finish(branch(work, tmp_path / "new", lone, train_images=5))
    assert listener.steps == [("velocity", 1)]
    assert any("no training state beside it: starting from its weights, at step 0" in n for n in listener.notes)


def test_weights_go_only_into_nets_like_their_own(work, tmp_path):
    net = TINY["velocity_net"] | {"num_res_blocks": 2}
    with pytest.raises(UsageError, match="its velocity_net is not the config's"):
        finish(branch(work, tmp_path / "new", velocity_net=net))
    with pytest.raises(UsageError, match="its saliency_net is not the config's"):
        finish(branch(work, tmp_path / "new", saliency_net={"type": "ConvSaliencyNet"}))
    finish(job(work, "plain", saliency_loss_weight=0, train_images=5))
    with pytest.raises(UsageError, match="holds no classifier"):
        finish(branch(work, tmp_path / "new", "plain"))
    assert not (tmp_path / "new").exists()
    done = sorted((work / "whole" / "checkpoints").glob("saliency-????????.safetensors"))[-1]
    listener = finish(branch(work, tmp_path / "new", done, velocity_net=net, train_images=5))
    assert listener.steps == [("velocity", 1)]  # a classifier that is done may teach any net


def test_only_the_newest_checkpoints_of_a_phase_are_kept(work, tmp_path):
    there = Job(
        tiny(checkpoint_every=1, keep_checkpoints=2),
        (work / "dark",),
        (work / "bright",),
        tmp_path / "run",
        device="cpu",
    )
    finish(there)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    kept = [f"{phase}-0000000{s}" for phase in ("saliency", "velocity") for s in (5, 6)]
    assert names == sorted(k + suffix for k in kept for suffix in (".safetensors", ".state.safetensors"))
    assert [p.name for p in ckpt.checkpoints(tmp_path / "run")] == [k + ".safetensors" for k in kept]
    assert_same(tmp_path / "run", work / "whole")


def test_one_picture_a_domain_is_enough_without_a_classifier(tmp_path):
    draw_domains(tmp_path, 1, 1)
    for pairing in (False, True):
        finish(job(tmp_path, f"run{pairing}", saliency_loss_weight=0, structure_pairing=pairing, train_images=15))
    assert ckpt.load(ckpt.find(tmp_path / "runTrue")).tensors["samples.domain1"].shape == (3, 16, 16, 3)


def test_a_loss_that_is_not_finite_stops_training(work):
    with pytest.raises(TrainingError, match="not finite"):
        finish(job(work, "nan", learning_rate=1e30, warmup_images=0, saliency_loss_weight=0, train_images=200))


def test_a_dry_run_describes_and_writes_nothing(work):
    before = sorted(work.rglob("*"))
    lines = "\n".join(plan(job(work, "planned"), Listener()))
    for words in (
        "7 pictures in dark",
        "9 pictures in bright",
        "6 steps of 5 pairs",
        "coupling  random",
        "GiB on the cpu",
    ):
        assert words in lines
    assert sorted(work.rglob("*")) == before
    resnet = {"type": "ResNetSaliencyNet", "backbone": "resnet18", "pretrained": False}
    assert "11,4" in "\n".join(plan(job(work, "planned", max_size=32, saliency_net=resnet), Listener()))
    missing = resnet | {"weights": str(work / "none.pth")}
    with pytest.raises(UsageError, match="no such file"):
        plan(job(work, "planned", max_size=32, saliency_net=missing), Listener())
    wanted = job(work, "planned", max_size=32, saliency_net=resnet | {"pretrained": True})
    downloaded = "\n".join(plan(wanted, Listener()))
    assert "weights   to be downloaded from https://download.pytorch.org/" in downloaded or "resnet18" in downloaded
    assert "goes on   from velocity step 6" in "\n".join(plan(job(work, "whole"), Listener()))


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(work, tmp_path):
    """The same command after each kill ends in the same bits as a training that nobody killed."""
    changes = {"saliency_max_steps": 30, "train_images": 400, "checkpoint_every": 3, "log_every": 2}
    (tmp_path / "c.json").write_text(json.dumps(TINY | changes))
    finish(Job(tiny(**changes), (work / "dark",), (work / "bright",), tmp_path / "whole", device="cpu"))
    command = [sys.executable, "-m", "rfp", "train", "-c", "c.json", "-d0", work / "dark", "-d1", work / "bright"]
    command += ["--run-id", "killed", "--runs", ".", "--device", "cpu"]
    rng, killed = random.Random(1), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(3):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as child:
            for line in child.stderr:
                if b"/" in line and (b"saliency" in line or b"velocity" in line):
                    break  # the first steps are done
            time.sleep(rng.uniform(0.05, 0.4))
            child.kill()
        killed += child.returncode == -signal.SIGKILL
        for path in (tmp_path / "killed" / "checkpoints").glob("[!.]*.safetensors"):
            assert ckpt._read(path)[0]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert killed >= 2
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*partial*"))


def test_the_state_of_another_net_is_refused(work, tmp_path):
    shutil.copytree(work / "whole", tmp_path / "run")
    newest = ckpt.find(tmp_path / "run")
    state = ckpt.load_state(newest)
    for damage in ({"optimizer.0.exp_avg": torch.zeros(2)}, {"optimizer.x.step": torch.zeros(1)}, {"a": torch.ones(1)}):
        ckpt.save(newest, ckpt.load(newest), state | damage)
        there = Job(tiny(train_images=40), (work / "dark",), (work / "bright",), tmp_path / "run", device="cpu")
        with pytest.raises(CheckpointError, match="of another net"):
            finish(there)


def test_a_loss_that_is_not_finite_never_reaches_a_checkpoint(work):
    rates = {"learning_rate": 1e30, "gradient_clip": 1e30, "warmup_images": 0}
    wild = job(work, "wild", log_every=1000, checkpoint_every=1, **rates)
    with pytest.raises(TrainingError, match="not finite"):
        finish(wild)
    saved = [ckpt.load(p).tensors for p in ckpt.checkpoints(work / "wild")]
    assert all(bool(t.isfinite().all()) for tensors in saved for t in tensors.values() if t.is_floating_point())


def test_a_checkpoint_tells_no_folder_of_weights_and_its_run_still_knows_them(work):
    weights = str(work / "secret" / "vgg.pth")
    asked = job(work, "filed", distill_perceptual_weights=weights, train_images=10)
    finish(asked)
    newest = ckpt.find(asked.folder)
    for file in (newest, ckpt.state_path(newest)):
        assert b"secret" not in file.read_bytes() and b"vgg.pth" in file.read_bytes()
    assert ckpt.load(newest).config.distill_perceptual_weights == "vgg.pth"
    assert config_of(newest) == to_json(asked.config)
    given_away = work / "given-away.safetensors"
    shutil.copyfile(newest, given_away)
    assert config_of(given_away) == without_folders(to_json(asked.config))
    assert finish(asked).steps == []  # the same command finds nothing changed


def test_nets_are_alike_wherever_their_weights_lie():
    here, there = (ResNetSaliencyNet(weights=f"/{place}/resnet.pth") for place in ("here", "there"))
    assert alike(here, there) and not alike(here, ResNetSaliencyNet(weights="/here/other.pth"))


def test_a_coupling_may_be_said_in_another_way(work):
    """As presets of before said it."""
    interrupted(job(work, "run", structure_pairing=True, coupling=None), ("velocity", 3))
    finish(job(work, "run", structure_pairing=None, coupling="structure"))
    assert ckpt.load(ckpt.find(work / "run")).step == 6
    with pytest.raises(UsageError, match="structure_pairing differ"):
        finish(job(work, "run", structure_pairing=False, coupling=None))


def test_pairs_of_the_same_picture_stop_no_training(work, tmp_path):
    """Nothing is to be learned of them, and no error is measured by their distance, which is none."""
    settings = {"coupling": "paired", "saliency_loss_weight": 0, "train_batch_size": 1, "train_minibatch_size": 1}
    inputs = (work / "dark",)
    finish(Job(tiny(**settings | {"train_images": 4}), inputs, inputs, tmp_path / "same", device="cpu"))
    figures = [json.loads(line) for line in (tmp_path / "same" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["flow"] < 1e-3 for line in figures if "flow" in line)


def test_a_run_goes_on_with_a_smaller_minibatch_and_learns_the_same(work, tmp_path):
    """As where the memory of a GPU does not hold the one that was asked for."""
    whole, half = (job(work, tmp_path / name, saliency_loss_weight=0) for name in ("whole", "half"))
    finish(whole)
    interrupted(half, ("velocity", 3))
    finish(replace(half, config=half.config.model_copy(update={"train_minibatch_size": 1})))
    one, two = (ckpt.load(ckpt.find(tmp_path / name)).part("velocity_net") for name in ("whole", "half"))
    assert all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 39.50 GiB). Tried to allocate 2 GiB on private pool."),
    ],
)
def test_a_full_device_is_said_with_what_to_do(work, tmp_path, monkeypatch, error):
    def full(*args, **options):
        raise error

    monkeypatch.setattr("rfp.train.velocity_phase.velocity_step", full)
    with pytest.raises(TrainingError, match=r"--set train_minibatch_size \(now 2\)"):
        train(job(work, tmp_path / "full", saliency_loss_weight=0), Listener())


def test_another_failure_of_torch_is_not_taken_for_a_full_device(work, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("rfp.train.velocity_phase.velocity_step", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train(job(work, tmp_path / "failed", saliency_loss_weight=0), Listener())


def test_the_size_of_a_minibatch_is_a_part_of_a_runs_name_and_free_to_change(work):
    """Names were made with it before it was free: without it no run of then would be found again."""
    names = {default_run_id("c", tiny(train_minibatch_size=n), (work,), (work,), 0) for n in (1, 2)}
    assert len(names) == 2 and "train_minibatch_size" in FREE_TO_CHANGE
