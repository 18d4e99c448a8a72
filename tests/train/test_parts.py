"""Phases by themselves, and parts of other runs."""

import json
import shutil
import signal

import pytest
import torch
from rfp.runtime import UsageError
from rfp.train import checkpoint as ckpt
from rfp.train.job import Job, default_run_id
from rfp.train.plan import plan
from rfp.train.run import Interrupted
from rfp.train.training import train
from trainings import TINY, VAE_TINY, Listener, assert_same, draw_domains, finish, tiny

LATENT = {"codec": VAE_TINY}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two domains, and whole trainings of them, on pixels and on latents."""
    work = tmp_path_factory.mktemp("work")
    draw_domains(work)
    finish(start(work, "pixels"))
    finish(start(work, "latents", **LATENT))
    return work


def start(work, run, only=None, parts=None, **changes):
    domains = (work / "dark",), (work / "bright",)
    return Job(tiny(**changes), *domains, work / run, device="cpu", only=only, parts=parts or {})


def interrupted(job, *moment):
    listener = Listener(lambda phase, step: signal.raise_signal(signal.SIGINT) if (phase, step) == moment else None)
    with pytest.raises(Interrupted):
        train(job, listener)


def phase_of(folder):
    return ckpt.load(ckpt.find(folder)).phase


def test_a_classifier_that_the_config_has_not_is_refused_with_the_setting_that_asks_for_one(work):
    with pytest.raises(UsageError, match=r"has velocity; --set saliency_loss_weight=0\.1 asks for a classifier"):
        finish(start(work, "sorter", "saliency", saliency_loss_weight=0))
    finish(start(work, "sorter", "saliency", saliency_loss_weight=0.1))
    assert ckpt.load(ckpt.find(work / "sorter")).saliency() is not None


def test_phases_one_by_one_are_the_whole_training_bit_for_bit(work):
    for phase in ckpt.PHASES:
        steps = finish(start(work, "one by one", phase, **LATENT)).steps
        assert {p for p, _ in steps} == {phase} and phase_of(work / "one by one") == phase
    assert_same(work / "one by one", work / "latents")
    for phase in ckpt.PHASES:
        listener = finish(start(work, "one by one", phase, **LATENT))
        assert not listener.steps and any("already trained" in note for note in listener.notes)


def test_what_only_began_the_whole_command_finishes(work):
    finish(start(work, "begun", "saliency"))
    assert {p for p, _ in finish(start(work, "begun")).steps} == {"velocity"}
    assert_same(work / "begun", work / "pixels")


@pytest.mark.parametrize(
    ("only", "changes", "said"),
    [
        (
            "velocity",
            {},
            "no finished classifier to work with; run --only saliency first, or give --saliency-checkpoint",
        ),
        ("velocity", LATENT, "no finished codec to work with"),
        ("saliency", LATENT, "no finished codec to work with"),
        ("codec", {}, "--only codec: codec is Identity; this config has saliency, velocity"),
        ("saliency", {"saliency_loss_weight": 0}, "--only saliency: saliency_loss_weight is 0"),
        ("all", {}, "--only all: no such phase; this config has saliency, velocity"),
    ],
)
def test_a_phase_without_what_it_needs_is_refused_before_anything_is_written(work, only, changes, said):
    with pytest.raises(UsageError) as e:
        finish(start(work, "refused", only, **changes))
    assert said in str(e.value) and not (work / "refused").exists()


def test_an_unfinished_classifier_is_not_enough(work):
    interrupted(start(work, "unfinished"), "saliency", 2)
    with pytest.raises(UsageError, match="no finished classifier"):
        finish(start(work, "unfinished", "velocity"))
    with pytest.raises(UsageError, match=r"its classifier is not finished \(step 2 of its training\)"):
        finish(start(work, "other", parts={"saliency": work / "unfinished"}))
    assert not (work / "other").exists()


def test_the_velocity_phase_needs_no_classifier_without_its_loss(work):
    assert {p for p, _ in finish(start(work, "plain", "velocity", saliency_loss_weight=0)).steps} == {"velocity"}


def parts_of(work, *phases, run="latents"):
    return dict.fromkeys(phases, work / run)


def test_another_runs_codec_and_classifier_teach_as_its_own_did(work):
    there = start(work, "taught", parts=parts_of(work, "codec", "saliency"), **LATENT)
    listener = finish(there)
    assert {p for p, _ in listener.steps} == {"velocity"}
    one, other = (ckpt.load(ckpt.find(work / run)).tensors for run in ("taught", "latents"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    about = json.loads((work / "taught" / "run.json").read_text())
    assert about["parts"] == {phase: str((work / "latents").resolve()) for phase in ("codec", "saliency")}


def test_another_velocity_net_is_where_training_starts(work):
    there = start(work, "tuned", parts=parts_of(work, "velocity", run="pixels"), learning_rate=1e-12)
    assert [s for s in finish(there).steps if s[0] == "velocity"] == [("velocity", s) for s in range(1, 7)]
    one, other = (ckpt.load(ckpt.find(work / run)).part("velocity_ema") for run in ("tuned", "pixels"))
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


@pytest.mark.parametrize("moment", [("saliency", 2), ("velocity", 3)])
def test_a_run_with_parts_resumes_bit_for_bit_and_needs_the_other_run_no_more_once_taken(work, tmp_path, moment):
    for name in ("source one", "source other"):
        shutil.copytree(work / "latents", tmp_path / name)
    there = [
        start(work, tmp_path / run, parts={"codec": tmp_path / f"source {run}"}, **LATENT) for run in ("one", "other")
    ]
    finish(there[0])
    interrupted(there[1], *moment)
    shutil.rmtree(tmp_path / "source other")
    finish(there[1])  # the same command
    assert_same(tmp_path / "one", tmp_path / "other")
    finish(start(work, tmp_path / "other", **LATENT))  # and a shorter one, which does not name it again
    assert "parts" in json.loads((tmp_path / "other" / "run.json").read_text())


def test_a_velocity_taken_is_found_again_when_phase_1_was_interrupted(work):
    parts = parts_of(work, "velocity", run="pixels")
    finish(start(work, "straight", parts=parts))
    interrupted(start(work, "bent", parts=parts), "saliency", 3)
    finish(start(work, "bent"))
    assert_same(work / "bent", work / "straight")


@pytest.mark.parametrize(
    ("parts", "changes", "said"),
    [
        (("codec",), {}, "--codec-checkpoint: this config has no such phase, only saliency, velocity"),
        (("saliency",), LATENT, "works on the latents of the codec that it was trained with"),
        (("velocity",), LATENT, "works on the latents of the codec that it was trained with"),
        (("saliency",), {}, "its codec is not the config's"),
        (("codec",), {"codec": VAE_TINY | {"latent_channels": 5}}, "its codec is not the config's"),
        (
            ("codec", "saliency"),
            LATENT | {"saliency_net": {"type": "ConvSaliencyNet"}},
            "its saliency_net is not the config's",
        ),
        (
            ("codec", "velocity"),
            LATENT | {"velocity_net": TINY["velocity_net"] | {"num_res_blocks": 2}},
            "its velocity_net is not the config's",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(work, parts, changes, said):
    with pytest.raises(UsageError) as e:
        finish(start(work, "refused", parts=parts_of(work, *parts), **changes))
    assert said in str(e.value) and not (work / "refused").exists()


def test_a_part_that_is_not_there_or_leaves_nothing_to_do_is_refused(work):
    with pytest.raises(UsageError, match="nowhere"):
        finish(start(work, "refused", parts={"saliency": work / "nowhere"}))
    with pytest.raises(UsageError, match="leaves --only saliency nothing to train"):
        finish(start(work, "refused", "saliency", parts=parts_of(work, "saliency", run="pixels")))
    early = sorted((work / "pixels" / "checkpoints").glob("saliency-????????.safetensors"))[-1]
    with pytest.raises(UsageError, match="is from the saliency phase and holds no velocity net"):
        finish(start(work, "refused", parts={"velocity": early}))


def test_another_part_than_the_one_begun_with_is_refused(work):
    there = start(work, "part", parts=parts_of(work, "saliency", run="pixels"), train_images=5)
    finish(there)
    shutil.copytree(work / "pixels", work / "copy")
    with pytest.raises(UsageError, match=r"was trained otherwise \(--saliency-checkpoint: .*pixels, now .*copy\)"):
        finish(start(work, "part", parts={"saliency": work / "copy"}, train_images=5))
    with pytest.raises(UsageError, match="this run has trained its own velocity net"):
        finish(start(work, "part", parts=parts_of(work, "velocity", run="pixels"), train_images=5))


def test_parts_are_part_of_a_runs_name_and_only_is_not(work):
    names = {
        default_run_id("tiny", tiny(), (work / "dark",), (work / "bright",), 0, parts)
        for parts in ({}, {"saliency": work / "pixels"}, {"velocity": work / "pixels"})
    }
    assert len(names) == 3


def test_the_plan_says_what_is_taken(work):
    job = start(work, "planned", "velocity", parts=parts_of(work, "codec", "saliency", "velocity"), **LATENT)
    text = "\n".join(plan(job, Listener()))
    for words in (
        "phase 0   taken as it is: VAE",
        "phase 1   taken as it is: ConvSaliencyNet",
        "phase 2   from other weights: UNet",
        "only      the velocity phase",
    ):
        assert words in text
    assert "phase 1   trained already: " in "\n".join(plan(start(work, "pixels"), Listener()))
