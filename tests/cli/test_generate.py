import json
import subprocess
import sys

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.cli.main import app
from trainings import TINY
from typer.testing import CliRunner


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.identity(), generative=True)
    return tmp_path


def rfp(*args, command="generate"):
    return CliRunner().invoke(app, [command, *map(str, args)])


def test_all_made_exits_0_with_results_on_stdout_and_progress_on_stderr(work):
    result = rfp("b", "-o", "out", "-n", 4, "--seed", 5, "--grid", "--steps", 2, "--size", "24x16", "--device", "cpu")
    assert result.exit_code == 0 and "out: 4 made, 0 there already, 0 failed" in result.stdout
    assert "seed 5, picture 3 -> out/seed-5-000003.png" in result.stderr and "picture" not in result.stdout
    assert sorted(p.name for p in (work / "out").iterdir()) == [
        *(f"seed-5-00000{i}.png" for i in range(4)),
        "seed-5-grid-4.png",
    ]
    with Image.open("out/seed-5-000000.png") as image:
        assert image.size == (24, 16)
    assert "0 made, 4 there already" in rfp("b", "-o", "out", "-n", 4, "--seed", 5).stdout
    assert "1 made" in rfp("b", "-o", "out", "--overwrite", "--batch", 2, "--seed", 5).stdout
    assert rfp("b", "-o", "out", "--format", "JPG").exit_code == 0 and (work / "out/seed-0-000000.jpg").is_file()


def test_a_picture_that_fails_exits_1_and_json_says_everything(work):
    bundles.write_bundle(work / "nan", bundles.towards(float("nan")), generative=True)
    result = rfp("nan/velocity.onnx", "-o", "out", "-n", 2, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["done"] == report["skipped"] == 0 and report["seconds"]["total"] > 0
    assert report["failures"][1]["source"] == "seed 0, picture 1" and "not finite" in report["failures"][1]["message"]
    assert json.loads(rfp("b", "-o", "out", "--json").stdout)["done"] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["b"], "output"),
        (["nowhere", "-o", "out"], "nowhere"),
        (["b", "-o", "out", "-n", "0"], "count is 0"),
        (["b", "-o", "out", "--size", "big"], "--size is 'big'"),
        (["b", "-o", "out", "--size", "1x2x3"], "--size is '1x2x3'"),
        (["b", "-o", "out", "--size", "64x4"], "size is 4"),
        (["b", "-o", "out", "--seed", "-1"], "seed is -1"),
        (["b", "-o", "out", "--device", "tpu"], "tpu"),
        (["b", "-o", "out", "--solver", "rk4"], "solver is 'rk4'"),
        (["b", "-o", "out", "--format", "tga"], "format is 'tga'; wanted one of png, jpg, webp"),
        (["t", "-o", "out"], "`rfp translate`"),
    ],
)
def test_wrong_usage_exits_2_with_a_message_and_leaves_nothing(work, args, said):
    bundles.write_bundle(work / "t", bundles.identity())
    result = rfp(*args)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == "" and not (work / "out").exists()


def test_translating_with_a_bundle_that_generates_names_the_right_command(work):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("a.png")
    for options in ((), ("--reverse",)):
        result = rfp("b", "a.png", "-o", "out", *options, command="translate")
        assert result.exit_code == 2 and "`rfp generate`" in result.stderr and not (work / "out").exists()


def test_generating_never_loads_torch(work):
    code = (
        "import sys; sys.argv = ['rfp', 'generate', 'b', '-o', 'out', '-n', '3', '--grid']\n"
        "from rfp.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'onnxruntime' in sys.modules and not {'torch', 'rfp.train', 'rfp.export', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_trained_on_two_colours_it_makes_pictures_of_one_or_the_other(work):
    """The whole road: each picture is near red or near blue, not between them, and there are about as many of each."""
    colours = np.array([[220, 40, 40], [40, 60, 210]])
    (work / "colours").mkdir()
    for i, colour in enumerate(colours):
        Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(work / "colours" / f"{i}.png")
    config = TINY | {"max_size": 8, "saliency_loss_weight": 0, "train_images": 8_000, "train_batch_size": 32}
    config |= {"train_minibatch_size": 32, "ema_decay": 0.98, "log_every": 100, "num_inference_steps": 20}
    (work / "c.json").write_text(json.dumps(config | {"learning_rate": 0.005, "checkpoint_every": 250}))
    result = rfp("-c", "c.json", "-d0", "random", "-d1", "colours", "--run-id", "r", "--device", "cpu", command="train")
    assert result.exit_code == 0, result.stderr
    assert rfp("runs/r", "-o", "rb", command="export").exit_code == 0
    assert rfp("rb", "-o", "out", "-n", 64, "--seed", 1, "--grid").exit_code == 0
    pictures = np.stack([np.asarray(Image.open(work / "out" / f"seed-1-{i:06d}.png")) for i in range(64)])
    distance = np.abs(pictures[:, None].astype(float) - colours[:, None, None]).mean(axis=(2, 3, 4))  # [64, 2]
    assert np.median(distance.min(axis=1)) < 30 and 16 <= (distance.argmin(axis=1) == 0).sum() <= 48, distance


def test_json_counts_the_pictures_that_were_made_and_their_rate(work):
    values = json.loads(rfp("b", "-o", "out", "-n", 5, "--grid", "--json").stdout)
    assert values["done"] == 5 and values["images_per_second"] > 0
