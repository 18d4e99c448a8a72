import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from rfp.cli.main import app
from trainings import draw_domains, finish, job, noisy
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work = tmp_path_factory.mktemp("run")
    draw_domains(work)
    certain = {"saliency_max_steps": 30, "saliency_accuracy_threshold": 1, "saliency_label_smoothing": 0.2}
    finish(job(work, train_images=5, **certain))
    return work / "run"


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    Path("in [x]").mkdir()
    for i in range(3):
        for level in (60, 200):
            Image.fromarray(noisy(level, i)).save(f"in [x]/{level} {i}.png")
    return tmp_path


def rfp(*args):
    return CliRunner().invoke(app, ["split", *map(str, args), "--device", "cpu"])


def test_a_table_on_stdout_says_how_many_went_where(work):
    result = rfp("run", "in [x]", "-o", "out", "--batch", 4)
    assert result.exit_code == 0, result.output
    assert re.search(r"domain0 +3 +3 +50\.0%\ndomain1 +3 +3 +50\.0%\nuncertain +0 +0 +0\.0%\n", result.stdout)
    assert "out: 6 new, 0 there already, 0 duplicates, 0 failed" in result.stdout and not result.stderr
    assert len(list(Path("out/domain1").iterdir())) == 3
    assert "0 new, 6 there already" in rfp("run", "in [x]", "-o", "out").stdout


def test_json_is_one_object_and_a_bad_input_exits_1(work):
    Path("in [x]/bad.png").write_bytes(b"no")
    result = rfp("run", "in [x]", "-o", "out", "--json", "--max-size", 10)
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["folders"]["domain0"] == {"new": 3, "total": 3}
    assert report["failed"][0]["source"] == "in [x]/bad.png" and report["report"] == "out/report.csv"
    with Image.open(next(Path("out/domain0").iterdir())) as image:
        assert image.size == (8, 10)
    result = rfp("run", "in [x]", "-o", "out", "--max-size", 10)
    assert result.exit_code == 1 and "failed: in [x]/bad.png: not a readable image" in result.stdout


def test_verify_exits_0_when_all_is_well_and_1_when_not(work):
    rfp("run", "in [x]", "-o", "out")
    result = rfp("run", "--verify", "-o", "out")
    assert result.exit_code == 0 and result.stdout == "out: 6 pictures checked, 0 wrong\n"
    Path("out/domain0/a [b].png").write_bytes(b"")
    result = rfp("run", "--verify", "-o", "out")
    assert result.exit_code == 1 and "wrong: out/domain0/a [b].png: not from rfp split" in result.stdout
    result = rfp("run", "--verify", "-o", "out", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["problems"][0]["source"] == "out/domain0/a [b].png"


def test_a_threshold_above_what_the_classifier_was_taught_is_warned_of(work):
    result = rfp("run", "in [x]", "-o", "out", "--threshold", 0.95)
    assert result.exit_code == 0 and "no surer than 90.0% (label smoothing)" in result.stderr


def test_what_is_refused_is_said_in_one_plain_line(work):
    for args in (("in [x]", "-o", "out", "--threshold", 2), ("--verify", "-o", "nowhere")):
        result = rfp("run", *args)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr == "rfp: nowhere: not a folder that rfp split wrote: split.json: No such file or directory\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "in [x]"), "output"),
        (("run", "-o", "out"), "give INPUT"),
        (("run", "in [x]", "-o", "in [x]"), "what lies there is no input"),
        (("run", "nowhere", "-o", "out"), "nowhere: no such file"),
        (("nowhere", "in [x]", "-o", "out"), "nowhere: no such run folder or checkpoint"),
        (("in [x]", "in [x]", "-o", "out"), "a folder without checkpoints"),
        (("run", "in [x]", "-o", "out", "--threshold", 2), "--threshold is 2.0"),
        (("run", "in [x]", "-o", "run/config.json"), "is a file"),
        (("run", "in [x]", "-o", "out", "--verify"), "leave out INPUT"),
        (("run", "--verify", "-o", "out", "--max-size", 3), "leave out INPUT and --max-size"),
        (("run", "--verify", "-o", "in [x]"), "not a folder that rfp split wrote"),
        (("run", "in [x]", "-o", "out", "--device", "tpu"), "--device"),
    ],
)
def test_wrong_usage_exits_2_with_a_message_and_leaves_nothing(work, args, said):
    before = sorted(work.rglob("*"))
    result = CliRunner().invoke(app, ["split", *map(str, args)])
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert "Traceback" not in result.output and result.stdout == "" and sorted(work.rglob("*")) == before


def test_without_torch_the_pip_line_is_named(work, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else find_spec(name))
    result = rfp("run", "in [x]", "-o", "out")
    assert result.exit_code == 2 and "pip install 'rfp[train]'" in result.stderr
