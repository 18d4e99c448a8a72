"""Pairs that a flow makes, and the runs that learn from them: reflow and distillation."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from films import write_video
from PIL import Image
from rfp.cli.main import app
from rfp.runtime import CheckpointError, UsageError
from rfp.runtime.pixels import to_float, to_uint8
from rfp.train import checkpoint as ckpt
from rfp.train import distill, reflow
from rfp.train.config import to_json
from rfp.train.coupling import paired
from rfp.train.distill import BACK, Ends, distill_losses, goes_forward
from rfp.train.domains import Crop, open_domain
from rfp.train.loss import Scales
from rfp.train.noise import Noise
from rfp.train.opening import open_run
from rfp.train.perceptual import Perceptual
from rfp.train.reading import validate
from rfp.train.reflow import SHARD, Source, made_pairs, make_pairs, successor
from rfp.train.resolving import resolved
from rfp.train.saliency import torchvision
from rfp.train.sides import mirrored
from rfp.train.training import train
from rfp.train.velocity_net import build_velocity_net, integrate_net
from trainings import Listener, assert_same, draw_domains, finish, job, tiny
from typer.testing import CliRunner

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A trained flow of a second."""
    work = tmp_path_factory.mktemp("reflow")
    draw_domains(work)
    finish(job(work, "run", saliency_loss_weight=0, train_images=200))
    return work


def source(work, **changes):
    path = ckpt.find(work / "run")
    domains = [open_domain([work / name], 16) for name in ("dark", "bright")]
    return replace(Source(path, ckpt.load(path), *domains, steps=3, seed=0), **changes)


def members(folder):
    with ZipFile(folder / "00000.zip") as archive:
        return {name: np.asarray(Image.open(archive.open(name))) for name in archive.namelist()}


def test_pairs_are_what_the_flow_makes_there_and_back(work, tmp_path):
    flow = source(work)
    sides = make_pairs(flow, tmp_path, 5, CPU, Listener())
    assert sides == (tmp_path / "0" / "dark", tmp_path / "1" / "bright") == made_pairs(tmp_path)
    zero, one = (members(side) for side in sides)
    assert zero.keys() == one.keys() and len(zero) == SHARD
    back = [name for name in zero if name.removesuffix(".png").endswith(BACK)]
    assert len(back) == SHARD // 4
    net = flow.checkpoint.velocity()
    for name in (sorted(zero)[0], back[0]):
        start, end, times = (one, zero, (1.0, 0.0)) if name in back else (zero, one, (0.0, 1.0))
        x = integrate_net(net, torch.from_numpy(to_float(start[name][None])), 3, *times)
        assert np.abs(to_uint8(x.numpy())[0].astype(int) - end[name]).max() <= 1
    assert np.mean([zero[n].mean() for n in zero if n not in back]) < 100 < np.mean([one[n].mean() for n in back])


@pytest.mark.parametrize("flip", [True, False])
def test_starts_are_cut_and_mirrored_as_training_does_it(work, tmp_path, flip):
    """Without random crops each is a whole middle square, as it lies or mirrored."""
    flow = source(work, steps=1)
    config = flow.checkpoint.config.model_copy(update={"random_crop": False, "horizontal_flip": flip})
    flow = replace(flow, checkpoint=replace(flow.checkpoint, config=config))
    zero, one = map(members, make_pairs(flow, tmp_path, 1, CPU, Listener()))
    ways = {True: (zero, flow.domain0), False: (one, flow.domain1)}
    count = 0
    for forward, (side, domain) in ways.items():
        starts = [side[name] for name in side if (BACK not in name) == forward]
        squares = {domain.crop(i, Crop()).tobytes() for i in range(len(domain))}
        straight = sum(start.tobytes() in squares for start in starts)
        assert straight + sum(start[:, ::-1].tobytes() in squares for start in starts) == len(starts)
        count += straight
    assert 0.3 * SHARD < count < 0.7 * SHARD if flip else count == SHARD


def test_what_is_there_is_not_made_again_and_another_flows_is_refused(work, tmp_path):
    make_pairs(source(work), tmp_path, 2 * SHARD, CPU, Listener())
    zips = sorted(tmp_path.rglob("*.zip"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in zips}
    zips[-1].unlink()
    make_pairs(source(work), tmp_path, 2 * SHARD, CPU, Listener())
    assert {path: path.read_bytes() for path in zips} == {path: data for path, (_, data) in before.items()}
    assert [p for p in zips if p.stat().st_mtime_ns != before[p][0]] == [p for p in zips if p.name == "00001.zip"]
    with pytest.raises(UsageError, match="steps 3, now 4"):
        make_pairs(source(work, steps=4), tmp_path, 2 * SHARD, CPU, Listener())
    zips[-1].unlink()
    with pytest.raises(UsageError, match=r"00001.zip: is missing"):
        made_pairs(tmp_path)
    with pytest.raises(UsageError, match="holds no pairs"):
        made_pairs(work)


def test_a_domains_name_leads_nowhere_else(work, tmp_path):
    flow = source(work)
    flow = replace(flow, checkpoint=replace(flow.checkpoint, domains=("../../up", "..")))
    sides = make_pairs(flow, tmp_path / "pairs", 1, CPU, Listener())
    assert all(side.parent.parent == tmp_path / "pairs" for side in sides)


def test_noise_has_pairs_one_way_only(work, tmp_path):
    flow = source(work)
    noise = Noise(0, (3, 16, 16))
    sides = make_pairs(replace(flow, domain0=noise), tmp_path, 1, CPU, Listener())
    one = members(sides[1])
    assert not list(sides[0].glob("*")) and len(one) == SHARD and not any(BACK in name for name in one)
    x = integrate_net(flow.checkpoint.velocity(), torch.from_numpy(noise.draw(7)[None]), 3)
    assert np.abs(to_uint8(x.numpy())[0].astype(int) - one["00000007.png"]).max() <= 1


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_the_distance_is_that_of_euler_steps_from_each_pairs_real_end(steps, loss):
    x0, x1 = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    forward = torch.tensor([True, False, True, True, False])
    scales = Scales((x1 - x0).square().sum() / 5, torch.ones(()))

    place = torch.randn(5, 2, 4, 4)

    def v(x, t, place):
        return 0.5 * x + t.view(-1, 1, 1, 1) + place[:, :1]

    total = seen = 0.0
    for a, b, p, there in zip(x0, x1, place, forward, strict=True):
        x, end, dt = (a, b, 1 / steps) if there else (b, a, -1 / steps)
        for k in range(steps):
            x = x + (0.5 * x + p[:1] + (0.0 if there else 1.0) + k * dt) * dt
        square = float((x - end).square().sum())
        seen += float((x - end).abs().mean())
        c = 0.00054 * 48**0.5
        if loss == "l2":
            total += square / float(scales.flow)
        else:
            total += ((square + c * c) ** 0.5 - c) / float(scales.flow) ** 0.5
    config = tiny(distill_steps=steps, distill_loss=loss, coupling="paired", saliency_loss_weight=0)
    distance, difference = distill_losses(config, v, Ends(forward, None), x0, x1, place, scales)
    assert float(distance) == pytest.approx(total / 5, rel=1e-5) and difference == 0
    looks = Ends(forward, lambda made, end: (made - end).abs().mean())
    difference = distill_losses(config, v, looks, x0, x1, place, scales)[1]
    assert float(difference) == pytest.approx(seen / 5, rel=1e-5)


def test_looks_count_where_steps_a_weight_and_a_file_are_given(tmp_path):
    draw_domains(tmp_path, 6, 6)
    torch.save(torchvision().models.mobilenet_v2(weights=None).state_dict(), tmp_path / "w.pt")
    asked = {"distill_steps": 1, "distill_perceptual_weight": 0.1, "distill_perceptual_backbone": "mobilenet_v2"}
    for changes in ({}, {"distill_steps": None}, {"distill_perceptual_weight": 0}):
        config = asked | {"distill_perceptual_weights": str(tmp_path / "w.pt")} | changes
        run = open_run(job(tmp_path, coupling="paired", saliency_loss_weight=0, **config), Listener())
        assert isinstance(distill.perceptual(run), Perceptual) == (not changes)


def test_pairs_begin_at_their_real_end_in_every_step_and_rank(tmp_path, monkeypatch):
    for folder in draw_domains(tmp_path, 6, 6):
        for i in (1, 4):
            (folder / f"{i}.png").rename(folder / f"{i}{BACK}.png")
    run = open_run(job(tmp_path, coupling="paired", distill_steps=1, saliency_loss_weight=0), Listener())
    pairs = paired(6, 3)
    for part in (slice(0, 5), slice(2, 5)):
        monkeypatch.setattr(distill.ranks, "share", lambda n, part=part: part)
        for step in range(4):
            names = [run.domain1.items[pairs(k)[1]].media.path.stem for k in range(5 * step, 5 * step + 5)]
            assert goes_forward(run, pairs, step).tolist() == [not name.endswith(BACK) for name in names[part]]


def test_pairs_keep_together_in_every_epoch_and_each_is_drawn():
    draws = [paired(5, 3)(k) for k in range(10)]
    assert all(i == j for i, j in draws) and sorted(i for i, _ in draws[:5]) == [0, 1, 2, 3, 4]


def test_names_that_differ_are_refused_before_training(tmp_path):
    draw_domains(tmp_path, 4, 5)
    with pytest.raises(UsageError, match="coupling paired: picture none of domain 0 stands beside 4 of domain 1"):
        train(job(tmp_path, coupling="paired", saliency_loss_weight=0), Listener())


def run_command(work, *args):
    return CliRunner().invoke(app, [*map(str, args), "--device", "cpu"])


@pytest.mark.slow
def test_distilling_gets_nearer_in_one_step_than_the_flow_and_goes_on(work):
    curved = work / "curved" / "checkpoints" / "velocity-00000001.safetensors"
    teacher, rng = ckpt.load(ckpt.find(work / "run")), torch.Generator().manual_seed(0)
    bent = {
        k: w + 0.3 * torch.randn(w.shape, generator=rng) if k.startswith("velocity_ema") and w.ndim > 1 else w
        for k, w in teacher.tensors.items()
    }
    teacher = replace(teacher, tensors=bent)
    ckpt.save(curved, teacher, {})
    (work / "curved" / "run.json").write_text((work / "run" / "run.json").read_text())
    args = ["distill", work / "curved", "--steps", 1, "--pairs", 2, "--images", 400, "--making-steps", 8]
    args += ["--set", "learning_rate=0.005", "--set", "checkpoint_every=10"]
    done = run_command(work, *args)
    assert done.exit_code == 0, done.stderr
    folder = work / "curved-distilled-1"
    assert done.stdout.strip() == str(folder)
    student = ckpt.load(ckpt.find(folder))
    assert student.config.num_inference_steps == student.config.distill_steps == 1
    assert student.domains == teacher.domains == ("dark", "bright")
    x = torch.from_numpy(to_float(np.stack([open_domain([work / "dark"], 16).crop(i, Crop()) for i in range(7)])))
    wanted = integrate_net(teacher.velocity(), x, 8).clamp(-1, 1)
    errors = [(integrate_net(c.velocity(), x, 1) - wanted).square().mean() for c in (student, teacher)]
    assert errors[0] < 0.5 * errors[1], errors
    assert run_command(work, *args, "--images", 420).exit_code == 0
    whole = run_command(work, *args, "--images", 420, "--run-id", "whole", "--pairs-from", folder / "pairs")
    assert whole.exit_code == 0, whole.stderr
    assert ckpt.load(ckpt.find(folder)).step == ckpt.load(ckpt.find(work / "whole")).step == 84


@pytest.mark.slow
def test_reflow_is_a_run_of_its_own_on_shared_pairs_that_survives_being_killed(work):
    command = [sys.executable, "-m", "rfp", "reflow", str(work / "run"), "--pairs", "300", "--images", "40"]
    command += ["--device", "cpu", "--run-id", "killed", "--set", "checkpoint_every=2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        for _ in range(6000):  # a busy machine takes long to begin
            if child.poll() is not None or list((work / "killed").rglob("1/bright/[0-9]*.zip")):
                break
            time.sleep(0.02)
        child.kill()
    assert child.returncode == -9
    whole = {path.name for path in (work / "killed").rglob("1/bright/[0-9]*.zip")}  # a shard's second zip
    made = {p: p.read_bytes() for p in (work / "killed").rglob("[0-9]*.zip") if p.name in whole}
    assert made
    assert run_command(work, *command[3:-4], "--run-id", "killed", "--set", "checkpoint_every=2").exit_code == 0
    assert all(path.read_bytes() == data for path, data in made.items())
    other = run_command(work, *command[3:-4], "--run-id", "at once", "--set", "checkpoint_every=2")
    assert other.exit_code == 0, other.stderr
    assert_same(work / "killed", work / "at once")
    config = ckpt.load(ckpt.find(work / "killed")).config
    assert (config.num_inference_steps, config.distill_steps, config.coupling) == (4, None, "paired")


def test_the_successor_keeps_the_net_and_the_data_but_not_what_pairs_of_a_flow_need_no_more():
    teacher = tiny(
        structure_pairing=True,
        cutmix=0.5,
        dropout=0.3,
        bridge_noise=0.2,
        flow_loss_weight=0.5,
        adversarial_weight=0.5,
        train_images=1000,
        warmup_images=100,
    )
    before, found = to_json(teacher), successor(teacher, 4, True, None)
    assert {k: v for k, v in found.items() if before[k] != v} == {
        "coupling": "paired",
        "structure_pairing": False,
        "random_crop": False,
        "horizontal_flip": False,
        "cutmix": 0,
        "dropout": 0,
        "bridge_noise": 0,
        "flow_loss_weight": 1,
        "flow_loss_huber": 0,
        "saliency_loss_weight": 0,
        "adversarial_weight": 0,
        "num_inference_steps": 4,
        "distill_steps": 4,
        "train_images": 500,
        "learning_rate": teacher.learning_rate / 2,
        "warmup_images": 25,
    }
    assert successor(teacher, 4, False, 70)["distill_steps"] is None and before.keys() == found.keys()


def test_a_net_that_learns_a_few_steps_is_sampled_and_exported_for_as_many(work):
    pictures = open_domain([work / "bright"], 16)
    config = tiny(coupling="paired", distill_steps=1, saliency_loss_weight=0, num_inference_steps=6)
    assert resolved(config, pictures, pictures).num_inference_steps == 1


@pytest.mark.parametrize("asked", [None, True])
def test_a_successor_mirrors_no_pair_whose_noise_stays_as_it_is(work, asked):
    teacher = tiny(horizontal_flip=asked)
    pictures = open_domain([work / "bright"], 16)
    for domain0 in (Noise(0, (3, 16, 16)), pictures):
        assert mirrored(teacher, domain0, pictures)[0]
        assert not mirrored(validate(successor(teacher, 2, True, None)), domain0, pictures)[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["distill", "run", "--steps", 3], "--steps is 3; wanted 1, 2 or 4"),
        (["reflow", "run", "--pairs", 0], "--pairs is 0"),
        (["distill", "run", "--run-id", "../x"], "wanted the plain name of one folder in ."),
        (["reflow", "run", "--run-id", ""], "wanted the plain name of one folder in ."),
        (["distill", "nowhere"], "no such run"),
        (["reflow", "run", "--pairs-from", "dark"], "holds no pairs"),
        (["reflow", "run", "--set", "saliency_loss_weight=1", "--set", "distill_steps=1"], "distill_steps wants pairs"),
    ],
)
def test_wrong_usage(work, monkeypatch, args, said):
    monkeypatch.chdir(work)
    done = run_command(work, *args)
    assert done.exit_code == 2 and said in done.stderr, done.stderr


def test_a_checkpoint_without_a_velocity_is_refused(work, tmp_path):
    draw_domains(tmp_path)
    finish(replace(job(tmp_path, "c", train_images=5), only="saliency"))
    with pytest.raises(CheckpointError, match="no velocity net"):
        ckpt.load(ckpt.find(tmp_path / "c")).velocity()
    done = run_command(tmp_path, "distill", tmp_path / "c", "--pairs", 1)
    assert done.exit_code == 2 and "no velocity net" in done.stderr
    assert json.loads((tmp_path / "c" / "run.json").read_text())["seed"] == 0


def test_what_has_no_velocity_is_named_before_anything_is_written(work, tmp_path):
    draw_domains(tmp_path)
    finish(replace(job(tmp_path, "c", train_images=5), only="saliency"))
    for command in ("distill", "reflow"):
        done = run_command(tmp_path, command, tmp_path / "c", "--run-id", tmp_path / "none")
        assert done.exit_code == 2 and f"rfp: {ckpt.find(tmp_path / 'c')}: this checkpoint is from" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_flow_that_is_not_as_its_config_says_is_named_before_anything_is_written(work, tmp_path, monkeypatch):
    """And its net is built once, where the pairs are made, not to find out that there is one."""
    shutil.copytree(work / "run", tmp_path / "c")
    path = ckpt.find(tmp_path / "c")
    whole, built = ckpt.load(path), []
    ckpt.save(path, replace(whole, tensors=whole.tensors | {"velocity_ema.more": torch.ones(1)}), {})
    monkeypatch.setattr(ckpt, "build_velocity_net", lambda config: built.append(1) or build_velocity_net(config))
    done = run_command(tmp_path, "distill", tmp_path / "c", "--pairs", 1)
    assert done.exit_code == 2 and f"rfp: {path}: the checkpoint's tensors do not fit" in done.stderr, done.stderr
    assert built == [1] and not (tmp_path / "c-distilled-1").exists()


@pytest.mark.parametrize("command", ["distill", "reflow"])
def test_ctrl_c_while_pairs_are_made_says_what_is_kept_and_how_to_go_on(work, monkeypatch, command):
    write, args = reflow._write, [command, work / "run", "--pairs", 300, "--run-id", f"stopped-{command}"]

    def stopped(path, pictures):
        if path.name == "00001.zip":
            raise KeyboardInterrupt
        write(path, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(reflow, "_write", stopped)
        done = run_command(work, *args, "--images", 10)
    pairs = work / f"stopped-{command}" / "pairs"
    assert done.exit_code == 130 and [path.name for path in pairs.rglob("1/*/*")] == ["00000.zip"]
    assert f"rfp: interrupted; pairs, all but the last 128 at most, are kept in {pairs}; the same" in done.stderr
    assert run_command(work, *args, "--images", 10).exit_code == 0


def test_pairs_are_made_of_the_frames_that_the_flow_was_trained_on(tmp_path):
    """They were of every frame, decoded anew, whatever `frame_stride` and `frame_cache_gigabytes` said."""
    draw_domains(tmp_path)
    film = write_video(tmp_path / "film.mp4", range(0, 400, 40))
    flow = replace(job(tmp_path, "run", saliency_loss_weight=0, train_images=5, frame_stride=4), inputs0=(film,))
    finish(flow)
    done = run_command(tmp_path, "distill", tmp_path / "run", "--pairs", 1, "--making-steps", 1, "--images", 5)
    assert done.exit_code == 0, done.stderr
    about = json.loads((tmp_path / "run-distilled-1" / "pairs" / "pairs.json").read_text())
    assert about["pictures"] == [3, 9] and "decoding" not in done.stderr


def test_one_that_is_made_longer_rises_as_it_began(work):
    """`--images` may be raised, though the rate's rise is a share of them."""
    args = ["distill", work / "run", "--steps", 1, "--pairs", 2, "--making-steps", 2, "--run-id", work / "longer"]
    for images in (40, 80):
        done = run_command(work, *args, "--images", images)
        assert done.exit_code == 0, done.stderr
    config = ckpt.load(ckpt.find(work / "longer")).config
    assert (config.train_images, config.warmup_images) == (80, 2)


@pytest.mark.parametrize("text", ['{"pairs": 1e15', '{"pairs": 1e400', '{"pairs": 0', "[" * 200_000, '{"pairs": 300'])
def test_pairs_that_someone_else_described_end_in_one_line(tmp_path, text):
    (tmp_path / "pairs.json").write_text(text + (', "domains": ["a", "b"]}' if text.startswith("{") else ""))
    with pytest.raises(UsageError):
        made_pairs(tmp_path)
