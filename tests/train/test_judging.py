"""`eval_every`: judged on pictures held out of training; the best and the last checkpoint kept and named."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from onnx import helper
from rfp.runtime import UsageError
from rfp.runtime.distances import kernel_distance
from rfp.runtime.features import apart, describe, in_units_of, outlines
from rfp.runtime.metrics import psnr
from rfp.runtime.pixels import to_float, to_uint8
from rfp.train import checkpoint as ckpt
from rfp.train import judging
from rfp.train.codec import Identity
from rfp.train.domains import Crop, open_domain
from rfp.train.opening import open_run, set_aside
from rfp.train.plan import plan
from rfp.train.run import Interrupted
from rfp.train.training import train
from trainings import Listener, assert_same, draw_domains, finish, job, tiny

JUDGED = {
    "eval_every": 2,
    "checkpoint_every": 3,
    "keep_checkpoints": 1,
    "train_images": 50,
    "saliency_loss_weight": 0,
    "structure_pairing": True,
    "structure_embedder": "foreground",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("judging")
    draw_domains(work, 31, 40)
    finish(job(work, "whole", **JUDGED))
    return work


def judged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["held_out_kid"] for e in lines if "held_out_kid" in e}


def test_best_and_last_are_kept_and_named_beside_the_newest(work):
    kids = judged(work / "whole")
    assert list(kids) == [2, 4, 6, 8, 10]
    folder = work / "whole" / "checkpoints"
    best, last = ckpt.load(folder / "best.safetensors"), ckpt.load(folder / "last.safetensors")
    assert best.step == min(kids, key=kids.__getitem__) and best.metrics["held_out_kid"] == min(kids.values())
    newest = ckpt.find(work / "whole")
    assert last.step == 10 and newest.name == "velocity-00000010.safetensors"
    assert (folder / "last.safetensors").read_bytes() == newest.read_bytes()
    assert [p.name for p in ckpt.checkpoints(work / "whole")] == [newest.name]
    assert best.velocity() and not (folder / "best.state.safetensors").exists()


def test_no_picture_that_judges_is_trained_on(work):
    run = open_run(job(work, "look", **JUDGED), Listener())
    held0, held1 = run.held_out
    assert (len(run.domain0), len(held0), len(run.domain1), len(held1)) == (28, 3, 36, 4)
    for learn, judge in ((run.domain0, held0), (run.domain1, held1)):
        assert not {i.media for i in learn.items} & {i.media for i in judge.items}


def test_pairs_are_held_out_whole(work):
    both = [open_domain([work / "dark"], 16) for _ in range(2)]
    config = tiny(coupling="paired", saliency_loss_weight=0, eval_every=1)
    learn0, learn1, (judge0, judge1) = set_aside(config, 5, *both)
    assert [i.media for i in learn0.items] == [i.media for i in learn1.items]
    assert [i.media for i in judge0.items] == [i.media for i in judge1.items]


def test_an_interruption_changes_neither_the_weights_nor_the_judgements_nor_the_best(work):
    def press(phase, step):
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(job(work, "stopped", **JUDGED), Listener(press))
    finish(job(work, "stopped", **JUDGED))
    assert_same(work / "whole", work / "stopped")
    best = [ckpt.load(work / name / "checkpoints" / "best.safetensors") for name in ("whole", "stopped")]
    assert best[0].step == best[1].step and best[0].metrics == best[1].metrics
    assert all(torch.equal(best[0].tensors[k], best[1].tensors[k]) for k in best[0].tensors)


def test_judging_is_free_of_draws_so_that_it_does_not_change_the_training(work):
    finish(job(work, "often", **JUDGED | {"eval_every": 1}))
    for name in ("whole", "often"):
        assert (work / name).is_dir()
    one, other = (ckpt.load(ckpt.find(work / name)).part("velocity_ema") for name in ("whole", "often"))
    assert all(torch.equal(one[k], other[k]) for k in one)


class Mirroring(torch.nn.Module):
    """v = 1.234·t·(x mirrored − x): 0.3085 of the way to its mirror image in two Euler steps, and none in one."""

    def forward(self, x, t):
        return 1.234 * t.view(-1, 1, 1, 1) * (x.flip(-1) - x)


def test_the_figures_are_of_what_is_made_in_the_steps_of_the_config(work, tmp_path):
    for name in ("dark", "bright"):
        shutil.copytree(work / name, tmp_path / name)
    for path in {*(tmp_path / "bright").iterdir()} - {tmp_path / "bright" / f"{i}.png" for i in range(31)}:
        path.unlink()
    changes = {k: v for k, v in JUDGED.items() if not k.startswith("structure")}
    run = open_run(job(tmp_path, **changes | {"coupling": "paired", "eval_every": 3}), Listener())
    found = {step: judging.judge(run, Identity(), Mirroring(), step) for step in range(1, 11)}
    assert [step for step, figures in found.items() if figures] == [3, 6, 9, 10]
    before, real = (np.stack([d.crop(i, Crop()) for i in range(len(d))]) for d in run.held_out)
    x = to_float(before)
    made = to_uint8(x + 0.3085 * (x[..., ::-1] - x))
    y, x = in_units_of(describe(None, real).vectors, describe(None, made).vectors)
    assert found[10] == {
        "held_out_kid": pytest.approx(1000 * kernel_distance(x, y).value),
        "held_out_structure": pytest.approx(apart(outlines(made), outlines(before))),
        "held_out_psnr": pytest.approx(psnr(made, real)),
    }
    assert found[10]["held_out_structure"] > 0.01


def test_too_few_pictures_are_refused(tmp_path):
    draw_domains(tmp_path, 9, 40)
    with pytest.raises(UsageError, match="dark: 9 pictures; eval_every"):
        train(job(tmp_path, **JUDGED), Listener())


def test_a_distillation_is_judged_against_its_pairs_too(work):
    (work / "bright2").mkdir()
    for path in (work / "dark").glob("*.png"):
        (work / "bright2" / path.name).write_bytes((work / "bright" / path.name).read_bytes())
    changes = {k: v for k, v in JUDGED.items() if not k.startswith("structure")}
    listener = finish(
        job(work, "pairs", **changes | {"coupling": "paired"}).__class__(
            tiny(**changes, coupling="paired"), (work / "dark",), (work / "bright2",), work / "pairs", device="cpu"
        )
    )
    lines = (work / "pairs" / "metrics.jsonl").read_text()
    assert listener.steps and '"held_out_psnr"' in lines


def test_a_plan_looks_for_what_judges_but_downloads_nothing(work, tmp_path):
    for name in ("nowhere.onnx", "nonet"):
        with pytest.raises(UsageError, match=name):
            plan(job(work, tmp_path / "run", **JUDGED | {"eval_features": name}), Listener())
    assert plan(job(work, tmp_path / "run", **JUDGED | {"eval_features": "vgg16"}), Listener())


def test_what_judges_is_opened_before_any_training_and_may_be_an_onnx_graph(work, tmp_path):
    for name in ("nowhere.onnx", "nowhere.pt"):
        with pytest.raises(UsageError, match="nowhere"):
            train(job(work, tmp_path / "run", **JUDGED | {"eval_features": str(tmp_path / name)}), Listener())
        assert not (tmp_path / "run").exists()
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4])
    x, y = (helper.make_tensor_value_info(name, 1, [None, 3, n, n]) for name, n in (("x", 16), ("y", 4)))
    graph = tmp_path / "features.onnx"
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(helper.make_graph([pool], "g", [x], [y]), opset_imports=opset, ir_version=10)
    graph.write_bytes(model.SerializeToString())
    finish(job(work, tmp_path / "run", **JUDGED | {"eval_features": str(graph), "train_images": 10}))
    assert list(judged(tmp_path / "run")) == [2]
