"""`rfp info` describes bundles, checkpoints and runs, without torch, and refuses what is none of them."""

import json
import os
import re
import struct
import subprocess
import sys

import bundles
import pytest
import torch
from rfp.cli.main import app
from rfp.train import checkpoint as ckpt
from trainings import LATENT, tiny, write_run
from typer.testing import CliRunner


def info(*args):
    return CliRunner().invoke(app, ["info", *map(str, args)])


def as_json(*args):
    result = info(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def bundle(tmp_path):
    return bundles.write_bundle(
        tmp_path / "b", bundles.identity(), licence="CC0-1.0", training={"step": 3, "images": 9}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_run(tmp_path_factory.mktemp("run"))
    write_run(root, "saliency")
    (root / "metrics.jsonl").write_text('{"phase": "velocity", "step": 9, "flow": 0.5}\n')
    return root


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, as outside of Linux")  # noqa: PTH110
def test_a_full_disk_under_the_output_is_said_in_one_line(bundle):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-m", "rfp", "info", bundle], stdout=full, stderr=-1, text=True)
    said = "rfp: output: No space left on device; put that right and run the same command again\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_bundle_is_described_with_its_graphs(bundle):
    text = info(bundle).stdout
    for part in ("cats -> dogs", "32 px", "multiples of 8", "4 Euler steps", "3 steps, 9 pairs", "CC0-1.0", "fp32"):
        assert part in text, part
    values = as_json(bundle)
    assert values["kind"] == "bundle" and values["manifest"]["graphs"][0]["state"] == "whole"
    assert as_json(bundle / "rfp.json") == values
    lone = as_json(bundle / "velocity.onnx")
    assert lone["kind"] == "graph" and lone["manifest"]["domains"] == ["cats", "dogs"]


def test_one_of_a_thing_is_said_as_one(tmp_path):
    once = {"default_steps": 1, "training": {"step": 1, "images": 1}}
    text = info(bundles.write_bundle(tmp_path / "b", bundles.identity(), **once)).stdout
    assert "1 Euler step by default" in text and "1 step, 1 pair\n" in text


@pytest.mark.parametrize("state", ["damaged", "missing"])
def test_a_bundle_that_is_not_whole_says_so_and_exits_with_1(bundle, state):
    file = bundle / "velocity.onnx"
    file.write_bytes(file.read_bytes() + b"x") if state == "damaged" else file.unlink()
    result = info(bundle)
    assert result.exit_code == 1 and state.upper() in result.stdout
    assert json.loads(info(bundle, "--json").stdout)["manifest"]["graphs"][0]["state"] == state


def test_a_checkpoint_is_described_from_its_header_as_torch_reads_it(run):
    path = ckpt.find(run)
    checkpoint, values = ckpt.load(path), as_json(path)
    assert values["kind"] == "checkpoint" and (values["phase"], values["step"]) == ("velocity", 9)
    assert values["domains"] == ["dark", "bright"] and values["config"]["max_size"] == 16
    for name in ("velocity_ema", "samples"):
        part = checkpoint.part(name).values()
        assert values["parts"][name] == {"tensors": len(part), "numbers": sum(x.numel() for x in part)}
    assert f"velocity_ema {values['parts']['velocity_ema']['numbers']:,}" in info(path).stdout


def test_only_nets_that_a_checkpoint_holds_are_named(tmp_path):
    """A run without a classifier was said to have one, for its config describes one."""
    assert re.findall("nets +(.*)", info(write_run(tmp_path / "plain")).stdout) == ["UNet"]
    assert re.findall("nets +(.*)", info(write_run(tmp_path / "latent", **LATENT)).stdout) == ["VAE, UNet"]
    tensors = {"saliency_net.a": torch.ones(1)}
    one = ckpt.Checkpoint(tiny(), "saliency", 9, 0, ("dark", "bright"), tensors)
    ckpt.save(tmp_path / "one.safetensors", one, {})
    assert re.findall("nets +(.*)", info(tmp_path / "one.safetensors").stdout) == ["ConvSaliencyNet"]


def test_a_run_is_its_newest_checkpoint_by_phase(run):
    values = as_json(run)
    assert values["kind"] == "run" and values["newest"]["phase"] == "velocity"
    assert values["checkpoints"] == ["saliency-00000009.safetensors", "velocity-00000009.safetensors"]
    assert values["last_metrics"]["flow"] == 0.5 and "flow 0.5" in info(run).stdout


def test_a_generative_checkpoint_says_noise(tmp_path):
    assert "noise -> bright" in info(write_run(tmp_path / "run", generative=True)).stdout


def header(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        struct.pack("<Q", 1 << 62) + b"{}",
        header("{"),
        header("[]"),
        header("[" * 100_000),
        header('{"a": 3}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header("{}"),
        header('{"__metadata__": {"rfp": "{}"}}'),
        header('{"__metadata__": {"rfp": "[]"}}'),
        header('{"__metadata__": 3}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}}'),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, null]}}'),
        header('{"__metadata__": {"rfp": "{\\"phase\\": \\"velocity\\", \\"step\\": Infinity}"}}'),
        header(
            json.dumps({"__metadata__": {"rfp": '{"phase": "codec"}'}, "a": {"shape": [1e999], "data_offsets": [0, 0]}})
        ),
        header(
            json.dumps(
                {
                    "__metadata__": {
                        "rfp": json.dumps(
                            {
                                "format": 1,
                                "phase": "velocity",
                                "step": 1,
                                "seed": 0,
                                "domains": ["a"],
                                "metrics": {},
                                "config": [],
                            }
                        )
                    }
                }
            )
        ),
    ],
)
def test_what_is_no_checkpoint_is_an_error_and_never_a_traceback(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    result = info(path)
    assert (
        result.exit_code == 2 and str(path) in "".join(result.stderr.split("\n")) and "Traceback" not in result.output
    )


def test_a_cut_off_checkpoint_is_an_error(run, tmp_path):
    data = ckpt.find(run).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-10])
    result = info(tmp_path / "cut.safetensors")
    assert result.exit_code == 2 and "cut off or damaged" in result.stderr


def test_what_is_none_of_them_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    for path, said in (
        (tmp_path, "neither a bundle"),
        (tmp_path / "a.txt", "another kind"),
        (tmp_path / "b", "nothing"),
    ):
        result = info(path)
        assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_control_characters_of_a_strangers_bundle_do_not_reach_the_terminal(tmp_path):
    folder = bundles.write_bundle(tmp_path / "b", bundles.identity(), name="evil\x1b[2J", provenance="a\nb")
    assert "\x1b" not in info(folder).stdout and "a\nb" not in info(folder).stdout


def test_it_needs_no_torch(run, bundle):
    for path in (run, bundle):
        code = (
            "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'safetensors']));"
            f"from rfp.__main__ import main; sys.argv = ['rfp', 'info', {str(path)!r}]; main()"
        )
        assert b"domains" in subprocess.check_output([sys.executable, "-c", code])
