"""Every preset that ships: it validates, it can be planned as it is, and it trains when only its sizes are shrunk."""

import json
import re
from pathlib import Path

import pytest
import torch
from rfp.cli.main import app
from rfp.train import checkpoint as ckpt
from rfp.train.config import RFPix2pixModel, to_json
from rfp.train.net_config import UNetConfig
from rfp.train.reading import load_config, presets
from rfp.train.velocity_net import build_velocity_net, parameters
from trainings import draw_domains
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

FROM_NOISE = {"generative"}
"""Presets that are meant for --domain0 random."""

SHRUNK = {
    "max_size": 64,
    "sample_batch_size": 1,
    "train_batch_size": 3,
    "train_minibatch_size": 2,
    "train_images": 6,
    "num_inference_steps": 2,
    "saliency_max_steps": 1,
    "saliency_accuracy_threshold": 0,  # a step teaches nothing, and a blind classifier would stop the training
}
NETS = {
    "UNet": {"model_channels": 16, "num_attention_heads": 2},
    "DiT": {"hidden_size": 24, "depth": 2},
    "ResNetSaliencyNet": {"backbone": "resnet18", "pretrained": False},  # tests have no network
    "ConvSaliencyNet": {},
    "Identity": {},
    "VAE": {"model_channels": 8, "train_batch_size": 2, "train_minibatch_size": 2, "train_images": 4},
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_domains(tmp_path)
    return tmp_path


def rfp(name, *args):
    domain0 = "random" if name in FROM_NOISE else "dark"
    command = ["train", "-c", name, "-d0", domain0, "-d1", "bright", "--device", "cpu", *args]
    return CliRunner().invoke(app, command)


def shrink(config):
    """`--set` options that change sizes alone: every kind of net, coupling and loss stays."""
    used = {key: net["type"] for key, net in to_json(config).items() if isinstance(net, dict)}
    if not config.saliency_loss_weight:
        del used["saliency_net"]
    changes = {f"{key}.{name}": value for key, kind in used.items() for name, value in NETS[kind].items()}
    return [f"--set={key}={json.dumps(value)}" for key, value in (SHRUNK | changes).items()]


@pytest.fixture(scope="module", params=presets())
def planned(request, tmp_path_factory):
    """A preset, its parameters, and its plan: the estimate of memory takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("plan"))
        draw_domains(folder)
        result = rfp(request.param, "--dry-run", "--set", "max_epochs=1000000")
    assert result.exit_code == 0, result.stderr
    config, here = load_config(request.param), UNetConfig(coordinates=False, input_gain="matrix", seamless=True)
    if isinstance(net := config.velocity_net, UNetConfig):
        config = config.model_copy(update={"velocity_net": net.settled(here)})
    with torch.device("meta"):
        count = parameters(build_velocity_net(config))
    return request.param, count, result.stdout


def gigabytes(plan):
    """The estimate for phase 2, GiB."""
    return re.search(r"memory    about (\d+\.\d) GiB on the \w+ for phase 2", plan)[1]


def test_a_preset_is_planned_as_it_is_and_fits_a_gpu(planned):
    name, count, plan = planned
    config = load_config(name)
    assert f"{config.velocity_net.type}, {count:,} parameters, {config.steps:,} steps" in plan
    assert float(gigabytes(plan)) < 24


def test_the_readme_gives_a_presets_size_and_parameters(planned):
    name, count, plan = planned
    config = load_config(name)
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    assert f" {config.velocity_net.type}, {count / 1e6:.1f} M " in row and f" {config.max_size} px " in row, row
    assert f" {gigabytes(plan)} GiB " in row


@pytest.mark.parametrize("name", presets())
def test_a_preset_trains(work, name):
    result = rfp(name, "--run-id", "r", *shrink(load_config(name)))
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (work / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines][-1] == ("velocity", 2)
    net = ckpt.load(ckpt.find(work / "runs" / "r")).velocity()
    out = net(torch.zeros(1, net.channels, 64, 64), torch.zeros(1))
    assert out.isfinite().all() and out.any()


def test_large_is_the_original_design_but_for_the_coupling_that_works():
    design = {
        "train_batch_size": 48,
        "train_minibatch_size": 16,  # 24 there, which a seamless net has no room for in 24 GiB; the batch is the same
        "train_images": 6_000_000,
        "learning_rate": 5e-4,  # the same rate moves a net four times as wide as `structure` twice as far
        "saliency_loss_weight": 0.1,
    }
    design |= {"velocity_net": {"type": "UNet", "model_channels": 128, "ch_mult": [1, 2, 4, 8, 8]}}
    assert to_json(load_config("large")) == to_json(RFPix2pixModel(**design, coupling="structure"))


@pytest.mark.parametrize("name", sorted(set(presets()) - FROM_NOISE))
def test_a_preset_takes_pairs_by_name_at_one_word(name):
    assert load_config(name, ["coupling=paired"]).pairs_by == "paired"
