import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rfp.cli.main import app
from rfp.train import checkpoint as ckpt
from rfp.train.reading import DEV
from rfp.train.run import Run
from trainings import TINY, VAE_TINY, draw_domains
from typer.testing import CliRunner

QUICK = TINY | {"saliency_loss_weight": 0, "train_images": 10}  # 2 steps of phase 2


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_domains(tmp_path)
    (tmp_path / "quick.json").write_text(json.dumps(QUICK))
    return tmp_path


def rfp(*args):
    return CliRunner().invoke(app, ["train", *map(str, args)])


DOMAINS = ("-d0", "dark", "-d1", "bright")
ALL = ("-c", "quick.json", *DOMAINS, "--device", "cpu")


def only_run(work):
    (run,) = (work / "runs").iterdir()
    return run


def newest(run):
    return ckpt.load(ckpt.find(run))


def test_the_run_goes_to_stdout_and_progress_to_stderr_in_plain_lines(work):
    result = rfp(*ALL)
    assert result.exit_code == 0, result.stderr
    run = only_run(work)
    assert result.stdout.strip() == f"runs/{run.name}" and re.fullmatch(r"quick-dark-bright-[0-9a-f]{6}", run.name)
    assert re.search(r"^velocity 2/2  flow \S+  gradient \S+  rate \S+", result.stderr, re.MULTILINE)
    assert "\x1b" not in result.stderr
    again = rfp(*ALL)
    assert again.exit_code == 0 and "already trained: step 2 of 2" in again.stderr and only_run(work) == run


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "/proc/x", "a/..", "a/../../x"])
def test_a_run_id_never_leads_out_of_the_folder_of_runs(work, name):
    for more in ((), ("--dry-run",)):
        result = rfp(*ALL, "--run-id", name, *more)
        assert result.exit_code == 2 and "wanted the plain name of one folder in runs" in result.stderr, result.stderr
    assert {path.name for path in work.iterdir()} == {"dark", "bright", "quick.json"}


def test_a_run_id_may_be_the_folder_itself_as_completion_gives_it(work):
    assert rfp(*ALL, "--run-id", work / "runs" / "a/").exit_code == 0
    assert only_run(work).name == "a"


def test_without_a_config_the_device_chooses_it_and_a_run_keeps_the_one_it_has(work):
    result = rfp(*DOMAINS, "--device", "cpu", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "config: tiny (no GPU was found" in result.stderr and "500 steps of 16 pairs (8,000 in all" in result.stdout
    noise = rfp("-d0", "random", "-d1", "bright", "--dry-run")
    assert "config: generative (pictures from noise)" in noise.stderr
    assert rfp(*ALL, "--run-id", "mine").exit_code == 0
    again = rfp(*DOMAINS, "--device", "cpu", "--run-id", "mine")
    assert again.exit_code == 0 and "already trained: step 2 of 2" in again.stderr and "config:" not in again.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing_at_all(work):
    before = sorted(work.rglob("*"))
    result = rfp(*ALL, "--dry-run")
    assert result.exit_code == 0 and sorted(work.rglob("*")) == before
    for words in (
        "7 pictures in dark",
        "9 pictures in bright",
        "2 steps of 5 pairs",
        "parameters",
        "GiB",
        "device    cpu",
    ):
        assert words in result.stdout


def test_set_and_dev_reach_the_config_in_this_order(work):
    assert rfp(*ALL, "--dev", "--set", "train_images=8", "--set", "log_every=3", "--run-id", "a").exit_code == 0
    config = newest(work / "runs" / "a").config
    assert (config.train_images, config.log_every) == (8, 3)
    assert (config.train_batch_size, config.checkpoint_every) == (DEV["train_batch_size"], DEV["checkpoint_every"])


def test_runs_run_id_and_seed_say_where_and_what(work):
    for seed in (1, 2):
        assert rfp(*ALL, "--runs", "elsewhere/ü", "--run-id", f"s{seed}", "--seed", seed).exit_code == 0
    one, two = (newest(work / "elsewhere" / "ü" / f"s{s}") for s in (1, 2))
    assert (one.seed, two.seed) == (1, 2) and not (work / "runs").exists()
    name = "velocity_net.stem.weight"
    assert not torch.equal(one.tensors[name], two.tensors[name])
    assert rfp(*ALL).exit_code == rfp(*ALL, "--seed", 4).exit_code == 0
    assert len(list((work / "runs").iterdir())) == 2  # another seed is another run


def test_domains_repeat(work):
    result = rfp("-c", "quick.json", "-d0", "dark/0.png", "-d0", "bright", "--domain1", "bright", "--dry-run")
    assert "domain 0  10 pictures in 0" in result.stdout


def test_a_checkpoint_goes_on_without_config_and_domains(work):
    assert rfp(*ALL, "--run-id", "a", "--seed", 3).exit_code == 0
    result = rfp("--checkpoint", "runs/a", "--set", "train_images=20", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "velocity 4/4" in result.stderr and newest(work / "runs" / "a").seed == 3
    # The same goes for a file.
    file = ckpt.find(work / "runs" / "a")
    assert "already trained" in rfp("-ckpt", file, "--device", "cpu").stderr


def test_a_checkpoint_with_a_new_id_branches_and_the_same_command_goes_on_with_the_branch(work):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    branch = ("--checkpoint", "runs/a", "--run-id", "b", "--device", "cpu", "--seed", 9, "--set")
    assert "velocity 3/3" in rfp(*branch, "train_images=15").stderr
    assert newest(work / "runs" / "a").step == 2 and newest(work / "runs" / "b").seed == 9
    again = rfp(*branch, "train_images=20").stderr
    assert "velocity 4/4" in again and "velocity 3/" not in again


def test_an_older_checkpoint_is_not_gone_on_with_in_its_own_folder(work):
    assert rfp(*ALL, "--run-id", "a", "--set", "checkpoint_every=1").exit_code == 0
    old = work / "runs" / "a" / "checkpoints" / "velocity-00000001.safetensors"
    result = rfp("--checkpoint", old)
    assert result.exit_code == 2 and "has a newer checkpoint than velocity-00000001" in result.stderr
    assert rfp("--checkpoint", old, "--run-id", "b", "--device", "cpu").exit_code == 0


@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_damaged_checkpoint_is_named(work, keep):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    file = ckpt.find(work / "runs" / "a")
    file.write_bytes(file.read_bytes()[:keep])
    result = rfp("--checkpoint", file)
    assert result.exit_code == 2 and f"{file.name}: not a readable safetensors file" in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "{}",
        '{"domain0": 3, "domain1": [], "seed": 0}',
        '{"domain0": [], "domain1": [], "seed": 0, "parts": [3]}',
    ],
)
def test_a_checkpoint_whose_run_json_is_lost_asks_for_the_domains(work, text):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    path = work / "runs" / "a" / "run.json"
    path.unlink() if text is None else path.write_text(text)
    result = rfp("--checkpoint", "runs/a")
    assert result.exit_code == 2 and ("give --domain0" if text is None else "run.json: cannot be read") in result.stderr
    if text is None:
        branch = ("--run-id", "b", "--set", "train_images=15")
        assert rfp("--checkpoint", "runs/a", *DOMAINS, "--device", "cpu", *branch).exit_code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-c", "quick.json", "-d0", "dark"), "give --domain1"),
        (("-c", "tini", *DOMAINS), "did you mean tiny?"),
        (("-c", "quick.json", "-d0", "drak", "-d1", "bright"), "drak: no such file or folder"),
        ((*ALL, "--set", "max_sise=3"), "max_sise: unknown key; did you mean max_size?"),
        ((*ALL, "--device", "tpu"), "--device tpu: not one of auto, cpu, cuda, mps"),
        ((*ALL, "--device", "mps"), "--device mps: not available"),
        ((*ALL, "--checkpoint", "nowhere"), "nowhere: no such run folder or checkpoint"),
        ((*ALL, "--checkpoint", "dark"), "a folder without checkpoints"),
        (("-c", "quick.json", "-d0", "x" * 5000, "-d1", "bright"), "xxx: no such file or folder"),
        ((*ALL, "--checkpoint", "x" * 5000), "xxx: no such run folder or checkpoint"),
        ((*ALL, "--seed", "-1"), "--seed"),
        ((*ALL, "--log", "tensorboard,comet"), "--log comet: not one of tensorboard, wandb"),
        ((*ALL, "--nothing"), "--nothing"),
    ],
)
def test_wrong_usage_exits_2_with_a_message_and_leaves_nothing(work, args, said):
    before = sorted(work.rglob("*"))
    result = rfp(*args)
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert "Traceback" not in result.output and result.stdout == "" and sorted(work.rglob("*")) == before


def test_another_config_under_the_same_id_is_refused(work):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    result = rfp(*ALL, "--run-id", "a", "--set", "learning_rate=0.5")
    assert result.exit_code == 2 and "(learning_rate differ)" in result.stderr


def test_the_version_is_said_and_what_cannot_start_names_no_run(work):
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and re.fullmatch(r"rfp \d+\.\d+\.\d+\n", result.stdout)
    result = rfp("-c", "quick.json", "-d0", "nowhere", "-d1", "bright")
    assert result.exit_code == 2 and "run:" not in result.output and not (work / "runs").exists()


def test_training_that_fails_exits_1(work):
    result = rfp(*ALL, "--set", "learning_rate=1e30", "--set", "warmup_images=0", "--set", "train_images=200")
    assert result.exit_code == 1 and "not finite" in result.stderr and "Traceback" not in result.output
    result = rfp(
        *ALL, "--set", "saliency_loss_weight=1", "-d1", "dark", "-d0", "bright", "--set", "saliency_max_steps=1"
    )
    assert result.exit_code == 1 and "the classifier tells the domains apart in only" in result.stderr


GENERATIVE = ("-c", "quick.json", "-d0", "random", "-d1", "bright", "--device", "cpu")


def test_a_run_removed_while_it_trains_is_said_in_one_line(work, monkeypatch):
    write = Run._write

    def removed(run, *args):
        shutil.rmtree(run.folder)
        return write(run, *args)

    monkeypatch.setattr(Run, "_write", removed)
    result = rfp(*ALL)
    assert result.exit_code == 1 and re.search(r"rfp: \S+metrics.jsonl: No such file or directory; ", result.stderr)


def test_the_word_random_trains_from_noise_and_a_checkpoint_goes_on_so(work):
    result = rfp(*GENERATIVE, "--run-id", "a")
    assert result.exit_code == 0, result.stderr
    assert newest(work / "runs" / "a").generative
    assert "domain 0  noise, N(0, 1) of shape 3×16×16" in rfp(*GENERATIVE, "--dry-run").stdout
    result = rfp("--checkpoint", "runs/a", "--set", "train_images=20", "--device", "cpu")
    assert "velocity 4/4" in result.stderr and newest(work / "runs" / "a").generative


@pytest.mark.parametrize("name", ["./random", "random/", "../{here}/random"])
def test_a_folder_called_random_is_a_folder_where_the_path_says_so(work, name):
    (work / "dark").rename(work / "random")
    args = list(GENERATIVE)
    args[3] = name.format(here=work.name)
    assert "domain 0  7 pictures in random" in rfp(*args, "--dry-run").stdout
    assert rfp(*args, "--run-id", "a").exit_code == 0 and not newest(work / "runs" / "a").generative
    word = rfp(*GENERATIVE, "--dry-run")
    assert "domain 0  noise" in word.stdout and f"{work}/random is not read" in word.stderr


@pytest.mark.parametrize("given", ["", "Random", "random ", "rnadom", "empty", "empty/random"])
def test_a_misspelt_or_empty_domain_0_is_never_noise(work, given):
    (work / "empty").mkdir()
    args = list(GENERATIVE)
    args[3] = given
    result = rfp(*args)
    assert result.exit_code == 2 and not (work / "runs").exists() and "noise" not in result.output
    said = {"": "--domain0 is empty", "empty": "holds no image"}.get(given, f"{given}: no such file or folder")
    assert said in result.stderr


def test_noise_stands_alone_and_with_a_config_for_it(work):
    result = rfp(*GENERATIVE, "-d0", "dark")
    assert result.exit_code == 2 and "stands alone; a folder of that name is ./random" in result.stderr
    result = rfp(*GENERATIVE, "--set", "saliency_loss_weight=1", "--set", "structure_pairing=true")
    assert (
        result.exit_code == 2
        and "noise has no structure" in result.stderr
        and "saliency_loss_weight 1" in result.stderr
    )
    assert not (work / "runs").exists()


def test_skipped_files_are_listed(work):
    (work / "dark" / "bad [1].png").write_bytes(b"no")
    result = rfp(*ALL)
    assert result.exit_code == 0 and "skipped dark/bad [1].png: not a readable image" in result.stderr


LATENT = ("--set", f"codec={json.dumps(VAE_TINY)}", "--set", "saliency_loss_weight=1")


def test_only_runs_one_phase_and_the_rest_follows_in_the_same_run(work):
    for phase in ("codec", "saliency", "velocity"):
        result = rfp(*ALL, *LATENT, "--only", phase)
        assert result.exit_code == 0 and newest(only_run(work)).phase == phase, result.stderr
    assert rfp(*ALL, *LATENT, "--dry-run").stdout.count("trained already: ") == 2
    result = rfp(*ALL, "--only", "saliency")
    assert result.exit_code == 2 and "--only saliency: saliency_loss_weight is 0" in result.stderr


def test_parts_of_other_runs_are_taken_and_the_same_command_goes_on(work):
    assert rfp(*ALL, *LATENT, "--run-id", "a").exit_code == 0
    for option in ("--codec-checkpoint", "--saliency-checkpoint", "--velocity-checkpoint"):
        result = rfp(*ALL, *LATENT, option, "nowhere")
        assert result.exit_code == 2 and "nowhere: no such run folder" in result.stderr
        result = rfp("--checkpoint", "runs/a", option, "runs/a")
        assert result.exit_code == 2 and "give one or the other" in result.stderr
    taken = ("--codec-checkpoint", "runs/a", "--saliency-checkpoint", "runs/a", "--velocity-checkpoint", "runs/a")
    result = rfp(*ALL, *LATENT, *taken, "--run-id", "b")
    assert result.exit_code == 0 and "velocity 1/2" in result.stderr and "codec 1" not in result.stderr
    for again in (taken, ()):  # and a command that goes on need not name them
        assert "already trained" in rfp(*ALL, *LATENT, *again, "--run-id", "b").stderr
    assert "already trained" in rfp("--checkpoint", "runs/b", "--device", "cpu").stderr
    assert json.loads((work / "runs" / "b" / "run.json").read_text())["parts"].keys() == {
        "codec",
        "saliency",
        "velocity",
    }


@pytest.mark.parametrize("package", ["torch", "torchvision", "pydantic", "safetensors", "scipy"])
def test_a_missing_package_is_named_with_its_pip_line(work, monkeypatch, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))
    result = rfp(*ALL)
    assert result.exit_code == 2 and f"training needs {package}: pip install 'rfp[train]'" in result.stderr


def test_every_option_is_tried_here():
    text = CliRunner().invoke(app, ["train", "--help"]).output
    options = set(re.findall(r"(?<!\S)--[a-z0-9-]+", text)) - {"--help"}
    tests = Path(__file__).read_text(encoding="utf-8")
    shorts = {"--config": "-c", "--domain0": "-d0"}
    assert options and [o for o in options if f'"{shorts.get(o, o)}"' not in tests] == []


def test_ctrl_c_saves_exits_130_and_says_how_to_go_on(work):
    (work / "long.json").write_text(json.dumps(TINY | {"train_images": 100_000, "saliency_max_steps": 2000}))
    command = [sys.executable, "-m", "rfp", "train", "-c", "long.json", *DOMAINS, "--run-id", "a b", "--device", "cpu"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as child:
        for line in child.stderr:
            if line.startswith("velocity 3/"):
                break
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130 and stdout == "" and "Traceback" not in stderr
    assert f"rfp: interrupted and saved. To go on:\n  rfp {' '.join(command[3:-4])} --run-id 'a b'" in stderr
    saved = newest(work / "runs" / "a b")
    assert saved.phase == "velocity" and saved.step >= 3
    assert not list((work / "runs").rglob(".*"))


OPEN = ("optimizer", "dropout", "alignment", "adversarial_weight", "flow_loss_huber")
"""What presets leave to the data, and a checkpoint's config spells out."""


def test_a_checkpoint_goes_on_with_a_config_that_leaves_much_open(work):
    net = {k: v for k, v in QUICK["velocity_net"].items() if k not in ("coordinates", "input_gain", "seamless")}
    open_ = {k: v for k, v in QUICK.items() if k not in OPEN} | {"velocity_net": net, "structure_pairing": True}
    (work / "open.json").write_text(json.dumps(open_))
    assert rfp("-c", "open.json", *DOMAINS, "--device", "cpu", "--run-id", "a").exit_code == 0
    for more in ((), ("--run-id", "a")):
        again = rfp("--checkpoint", "runs/a", "--device", "cpu", *more)
        assert again.exit_code == 0 and "already trained: step 2 of 2" in again.stderr, again.stderr
    result = rfp("--checkpoint", "runs/a", "--set", "train_images=20", "--device", "cpu")
    assert result.exit_code == 0 and "velocity 4/4" in result.stderr, result.stderr


def test_what_is_said_of_another_config_names_the_one_with_which_the_run_goes_on(work):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    config = Path("runs/a/config.json")
    assert f"-c {config}, another --run-id" in rfp("-c", "tiny", *ALL[2:], "--run-id", "a").stderr
    assert "already trained" in rfp("-c", config, *ALL[2:], "--run-id", "a").stderr


def test_pictures_that_were_moved_are_gone_on_with_as_it_is_said(work):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    moved = ("-d0", (work / "dark").rename("d"), "-d1", (work / "bright").rename("b"), "--device", "cpu")
    refused = rfp("--checkpoint", "runs/a", *moved, "--set", "train_images=20")
    assert refused.exit_code == 2 and "with --checkpoint runs/a --run-id NEW" in refused.stderr
    result = rfp("--checkpoint", "runs/a", "--run-id", "NEW", *moved, "--set", "train_images=20")
    assert result.exit_code == 0 and "velocity 3/4" in result.stderr and "velocity 1/4" not in result.stderr


def test_what_is_said_of_another_config_is_what_begins_anew(work):
    assert rfp(*ALL, "--run-id", "a").exit_code == 0
    other = rfp(*ALL, "--run-id", "a", "--set", "learning_rate=0.002")
    assert other.exit_code == 2 and "--velocity-checkpoint runs/a --run-id NEW" in " ".join(other.stderr.split())
    anew = rfp(*ALL, "--set", "learning_rate=0.002", "--velocity-checkpoint", "runs/a", "--run-id", "NEW")
    assert anew.exit_code == 0 and "velocity 1/2" in anew.stderr
    ended = rfp(*ALL, "--checkpoint", "runs/a", "--run-id", "b")
    assert ended.exit_code == 2 and "end of its training" in ended.stderr and not (work / "runs" / "b").exists()


def test_the_last_checkpoint_is_the_newest_by_its_number_too(work):
    draw_domains(work / "more", 31, 31)
    judged = ("-c", "quick.json", "-d0", "more/dark", "-d1", "more/bright", "--set", "eval_every=2", "--device", "cpu")
    assert rfp(*judged, "--run-id", "a").exit_code == 0
    folder = work / "runs" / "a" / "checkpoints"
    again = rfp("--checkpoint", folder / "last.safetensors", "--device", "cpu")
    assert again.exit_code == 0 and "already trained" in again.stderr, again.stderr
    shutil.copytree(work / "runs" / "a", work / "runs" / "copied")  # in which it is no link
    copied = rfp("--checkpoint", "runs/copied/checkpoints/last.safetensors", "--device", "cpu")
    assert copied.exit_code == 0 and "already trained" in copied.stderr, copied.stderr
    (work / "runs" / "copied" / "config.json").write_bytes(b"\xff{")
    spoiled = rfp("--checkpoint", "runs/copied")
    assert spoiled.exit_code == 2 and "config.json: cannot be read" in spoiled.stderr
    best = ("--checkpoint", folder / "best.safetensors", "--run-id", "b", "--device", "cpu", "--dry-run")
    assert re.search("begins +with the weights of velocity step 2, at step 0", rfp(*best).stdout)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-c", "quick.json", "-d0", "dark", "-d1", "random"), "only domain 0 can be noise"),
        (("-c", "dark", *DOMAINS), "is a folder; wanted a config file or a preset"),
        (("--checkpoint", "quick.json"), "quick.json: not a readable safetensors file"),
        ((*ALL, "--set", "codec=VAE"), 'wanted an object such as {"type": "Identity"} or {"type": "VAE"}'),
        ((*ALL, "--set", "$shema=2"), "did you mean $schema?"),
    ],
)
def test_slips_are_told_by_what_they_are(work, args, said):
    result = rfp(*args)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()), result.stderr


def test_inputs_count_once_and_one_of_both_domains_is_remarked_on(work):
    result = rfp("-c", "quick.json", "-d0", "dark", "-d0", work / "dark", "-d1", "dark", "--dry-run")
    assert "domain 0  7 pictures in dark" in result.stdout and "is in both domains" in result.stderr


def test_keys_given_twice_come_with_all_other_mistakes_and_a_mark_at_the_beginning_is_none(work):
    text = json.dumps(QUICK)
    (work / "twice.json").write_text('{"max_size": 9, "max_sise": 3, ' + text[1:])
    said = rfp("-c", "twice.json", *DOMAINS).stderr
    assert "2 mistakes" in said and "max_size: given twice" in said and "max_sise: unknown key" in said
    (work / "marked.json").write_text("\ufeff" + text, encoding="utf-8")
    assert rfp("-c", "marked.json", *DOMAINS, "--dry-run").exit_code == 0
