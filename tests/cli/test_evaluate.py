"""`rfp evaluate` as it is typed."""

import json

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.cli.main import app
from safetensors.torch import save_file
from trainings import finish, job
from typer.testing import CliRunner


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.towards(0.0))
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / name).mkdir()
        for i in range(7):
            pixels = np.clip(np.random.default_rng(i).normal(level, 30, (40, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def rfp(*args):
    return CliRunner().invoke(app, ["evaluate", *map(str, args)])


def test_the_table_and_json_hold_the_same_figures(work):
    table = rfp("b", "--source", "dark", "--target", "bright", "--truth", "bright")
    assert table.exit_code == 0 and "features: statistics (no network)" in table.stdout
    report = json.loads(rfp("b", "--source", "dark", "--target", "bright", "--truth", "bright", "--json").stdout)
    groups = report["figures"]
    assert list(groups) == ["realism", "content kept", "distance to truth", "round trip"]
    psnr, margin = groups["distance to truth"]["psnr"]["translated"], groups["realism"]["kid"]["margin"]
    for figure in (f"{psnr:.2f}", f"± {margin:.1f}"):
        assert figure in table.stdout
    assert report["counts"] == {"target": 7, "source": 7, "truth": 7, "translated": 7} and report["failed"] == []


def test_steps_that_a_distilled_net_was_not_made_for_are_remarked_on(work):
    bundles.write_bundle(work / "one", bundles.towards(0.0), training={"config": {"distill_steps": 1}})
    done = rfp("one", "--source", "dark", "--steps", "2")
    assert "note: test was taught to make pictures in 1 Euler step" in done.stdout
    assert "note" not in rfp("one", "--source", "dark", "--steps", "1").stdout


@pytest.mark.slow
def test_a_runs_classifier_is_fooled_and_serves_as_features(work):
    finish(job(work, "run", train_images=5))
    report = json.loads(rfp("b", "--source", "dark", "--target", "bright", "--classifier", "run", "--features", "run",
                            "--json").stdout)  # fmt: skip
    assert 0 <= report["figures"]["classifier"]["fooling rate"]["translated"] <= 1
    assert report["features"] == "the run's classifier"
    assert "edge directions" in report["figures"]["content kept"]["structure"]["about"]


@pytest.mark.slow
def test_a_file_of_weights_is_recognised_by_its_shapes(work):
    from rfp.train.saliency import torchvision

    net = torchvision().models.mobilenet_v2(weights=None).features
    save_file({f"any.{i:03}": v for i, v in enumerate(net.state_dict().values())}, work / "w.safetensors")
    done = rfp("b", "--source", "dark", "--target", "bright", "--features", "w.safetensors", "--limit", 6)
    assert done.exit_code == 0 and "features: mobilenet_v2" in done.stdout
    save_file({"a": next(iter(net.state_dict().values()))}, work / "other.safetensors")
    done = rfp("b", "--source", "dark", "--features", "other.safetensors")
    assert done.exit_code == 2 and "no network known here" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "give --source"),
        (["--source", "nowhere"], 2, "nowhere: no such file"),
        (["--source", "dark", "--features", "no-such"], 2, "--features no-such"),
        (["--source", "dark", "--features", "no.onnx"], 2, "no.onnx: cannot be read"),
        (["--source", "dark", "--steps", "0"], 2, "steps is 0"),
        (["--source", "dark", "--classifier", "dark"], 2, "without checkpoints"),
    ],
)
def test_wrong_usage_says_what_is_wrong(work, args, code, said):
    done = rfp("b", *args)
    assert done.exit_code == code and said in done.stderr and done.exception.__class__ is SystemExit


def test_a_bad_picture_is_named_and_exits_1(work):
    (work / "dark" / "bad.png").write_bytes(b"no")
    done = rfp("b", "--source", "dark")
    assert done.exit_code == 1 and "failed: dark/bad.png" in done.stdout and "content kept" in done.stdout
