import json
import os
import signal
import subprocess
import sys
import time

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.cli.main import app
from rfp.cli.number import number_or
from rfp.cli.translate import _watched
from rfp.runtime import Report, UsageError
from rfp.runtime.report import Event
from typer.testing import CliRunner


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundles.write_bundle(tmp_path / "b", bundles.identity())
    (tmp_path / "in [x]").mkdir()
    for i in range(3):
        Image.fromarray(np.full((16, 20, 3), 60 * i, np.uint8)).save(tmp_path / "in [x]" / f"{i}.png")
    return tmp_path


def rfp(*args):
    return CliRunner().invoke(app, ["translate", *map(str, args)])


def test_all_done_exits_0_with_results_on_stdout_and_progress_on_stderr(work):
    result = rfp("b", "in [x]", "-o", "out", "--size", "native", "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0 and "3 translated, 0 there already, 0 failed" in result.stdout
    assert "in [x]/0.png" in result.stderr and "in [x]/0.png" not in result.stdout
    assert "0 translated, 3 there already" in rfp("b", "in [x]", "-o", "out", "--size", "native", "--steps", 2).stdout
    assert "3 translated" in rfp("b", "in [x]", "-o", "out").stdout  # with other settings
    assert "3 translated" in rfp("b", "in [x]", "-o", "out", "--overwrite", "--reverse", "--batch", 2).stdout


@pytest.mark.parametrize(
    ("text", "meant"), [("64", 64), (" -3 ", -3), ("Native", "native"), (" MODEL ", "model")], ids=repr
)
def test_a_number_or_a_word_is_meant_however_it_is_written(text, meant):
    assert number_or("size", text, "model", "native") == meant


@pytest.mark.parametrize("text", ["", "1.5", "models", "9" * 5000], ids=len)
def test_what_is_neither_number_nor_word_is_refused_with_all_that_it_may_be(text):
    with pytest.raises(UsageError) as error:
        number_or("size", text, "model", "native")
    assert str(error.value) == f"--size is {text!r}; wanted a number or model or native"


def test_what_is_left_as_it_is_is_named_with_the_reason(work):
    (work / "out").mkdir()
    for i in (0, 2):
        (work / "out" / f"{i}.png").write_bytes(b"mine")
    result = rfp("b", "in [x]", "-o", "out")
    assert result.exit_code == 0 and "1 translated, 2 there already, 0 failed" in result.stdout
    assert all(f"skipped: out/{i}.png: there already, not in rfp's ledger" in result.stderr for i in (0, 2))
    assert result.stdout.count("note: out/") == 1 and " and others: there already, not in rfp" in result.stdout
    assert "note:" not in rfp("b", "in [x]", "-o", "new").stdout + rfp("b", "in [x]", "-o", "new").stdout


def test_an_output_that_cannot_be_made_is_said_once_and_at_once(work):
    (work / "file").write_text("mine")
    for source, output in (("in [x]", "file/out"), ("in [x]/0.png", "file/a.png")):
        result = rfp("b", source, "-o", output)
        assert result.exit_code == 2 and "no folder can be made there" in result.stderr
        assert result.stderr.count("choose another --output") == 1 and not result.stdout


@pytest.mark.parametrize(("word", "suffix"), [("jpeg", ".jpg"), ("JPG", ".jpg"), ("tif", ".tiff"), ("Png", ".png")])
def test_formats_are_taken_as_people_write_them_by_both_commands(work, word, suffix):
    bundles.write_bundle(work / "g", bundles.identity(), generative=True)
    made = rfp("b", "in [x]", "-o", "out", "--format", word)
    generated = CliRunner().invoke(app, ["generate", "g", "-o", "new", "--format", word])
    assert made.exit_code == generated.exit_code == 0, made.stderr + generated.stderr
    pictures = {p.name for folder in ("out", "new") for p in (work / folder).iterdir()} - {"translate.jsonl"}
    assert pictures == {f"{name}{suffix}" for name in ("0", "1", "2", "seed-0-000000")}
    again = rfp("b", "in [x]", "-o", "out", "--format", suffix[1:])
    assert again.exit_code == 0 and "0 translated, 3 there already" in again.stdout


@pytest.mark.parametrize("word", ["apng", "j2k", ""])
def test_what_one_command_does_not_write_the_other_does_not_either(work, word):
    bundles.write_bundle(work / "g", bundles.identity(), generative=True)
    for args in (["translate", "b", "in [x]"], ["generate", "g"]):
        result = CliRunner().invoke(app, [*args, "-o", "out", "--format", word])
        assert result.exit_code == 2 and f"format is '{word}'; wanted one of png, jpg, webp" in result.stderr


def test_one_bad_input_exits_1_and_is_named(work):
    (work / "in [x]" / "bad.png").write_bytes(b"no")
    result = rfp("b", "in [x]", "-o", "out")
    assert result.exit_code == 1 and "3 translated, 0 there already, 1 failed" in result.stdout
    assert "failed: in [x]/bad.png: not a readable image" in result.stdout


def test_json_is_one_object_with_everything(work):
    (work / "in [x]" / "bad.png").write_bytes(b"no")
    result = rfp("b/velocity.onnx", "in [x]", "-o", "out", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and (report["done"], report["skipped"], report["failed"]) == (3, 0, 1)
    assert report["failures"][0]["source"] == "in [x]/bad.png" and report["device"].startswith("cpu")
    stages = {"total", "read", "decode", "prepare", "integrate", "finish", "encode", "write"}
    assert report["images_per_second"] > 0 and report["seconds"].keys() == stages


def test_steps_that_a_distilled_net_was_not_made_for_are_remarked_on_once(work):
    made = {"default_steps": 1, "training": {"config": {"distill_steps": 1}}}
    bundles.write_bundle(work / "one", bundles.identity(), **made)
    assert "note" not in rfp("one", "in [x]", "-o", "out").stdout
    assert rfp("one", "in [x]", "-o", "out", "--steps", 12).stdout.count("note: test was taught") == 1
    (note,) = json.loads(rfp("one", "in [x]", "-o", "out", "--solver", "heun", "--json").stdout)["notes"]
    assert "--steps 1 is what it is for" in note["message"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["b", "in [x]"], "output"),
        (["b", "in [x]", "-o", "out", "--nothing"], "--nothing"),
        (["b", "nowhere", "-o", "out"], "nowhere: no such file"),
        (["nowhere", "in [x]", "-o", "out"], "nowhere"),
        (["b", "in [x]", "-o", "out", "--size", "big"], "--size is 'big'"),
        (["b", "in [x]", "-o", "out", "--steps", "0"], "steps is 0"),
        (["b", "in [x]", "-o", "out", "--shard", "0/3"], "shard is 0"),
        (["b", "in [x]", "-o", "out", "--shard", "1of3"], "--shard is '1of3'"),
        (["b", "in [x]", "-o", "out", "--format", "tga"], "format is 'tga'"),
        (["b", "in [x]", "-o", "out", "--quality", "101"], "quality is 101"),
        (["b", "in [x]", "-o", "out", "--steps", "two"], "--steps"),
        (["b", "in [x]", "-o", "out", "--device", "tpu"], "tpu"),
        (["b", "in [x]", "-o", "in [x]"], "in [x]: is an input too"),
    ],
)
def test_wrong_usage_exits_2_with_a_message_and_no_traceback(work, args, said):
    done = subprocess.run([sys.executable, "-m", "rfp", "translate", *args], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_translating_never_loads_torch(work):
    code = (
        "import sys; sys.argv = ['rfp', 'translate', 'b', 'in [x]', '-o', 'out']\n"
        "from rfp.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'onnxruntime' in sys.modules and not {'torch', 'rfp.train', 'rfp.export', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_service_that_closes_its_outputs_is_served_all_the_same(work):
    command = [sys.executable, "-m", "rfp", "translate", "b", "in [x]", "-o", "out"]
    for closed in ("2>&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'exec "$@" --overwrite {closed}', "sh", *command])
        assert done.returncode == 0 and list((work / "out").rglob("*.png"))


def test_ctrl_c_while_the_command_still_imports_ends_it_without_a_traceback():
    code = (
        "import sys\n"
        "class Key:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'rfp.cli.translate': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Key())\n"
        "from rfp.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "rfp: interrupted\n")


LISTEN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from rfp.__main__ import main; main()"
)
"""A background job is born with SIGINT ignored, and CI may run as one: take it up again as at a keyboard."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends Unix signals")
@pytest.mark.parametrize(("ending", "bad", "code"), [(signal.SIGINT, False, 0), (signal.SIGTERM, True, 1)])
def test_watch_translates_what_is_dropped_and_ends_with_a_summary(work, ending, bad, code):
    inputs, out = work / "in [x]", work / "out"

    def drop(name, write):
        write(work / f".{name}")
        (work / f".{name}").rename(inputs / name)

    def until(there):
        for _ in range(1200):
            if there():
                return
            assert child.poll() is None
            time.sleep(0.05)
        raise AssertionError("it never came")

    (work / "empty").mkdir()  # and no film yet, for which there are options
    command = [sys.executable, "-c", LISTEN, "translate", "b", "in [x]", "empty", "-o", "out", "--watch", "--crf", "20"]
    with (work / "said").open("w") as said, subprocess.Popen(command, stderr=said, stdout=said) as child:
        until(lambda: (out / "2.png").exists())
        drop("new.png", lambda path: Image.new("RGB", (16, 16), "red").save(path, "PNG"))
        until(lambda: (out / "new.png").exists())
        assert Image.open(out / "new.png").getpixel((0, 0)) == (255, 0, 0)
        if bad:
            drop("bad.png", lambda path: path.write_bytes(b"no"))
            until(lambda: "failed: in [x]/bad.png" in (work / "said").read_text())
        rounds = 3 if bad else 2
        until(lambda: (work / "said").read_text().count("there already") == rounds)
        time.sleep(0.2)
        child.send_signal(ending)
        child.wait(timeout=30)
    text = (work / "said").read_text()
    assert child.returncode == code and "Traceback" not in text and not list(out.glob(".*"))
    assert f"4 translated in {rounds} rounds, {int(bad)} failed in the last" in text


@pytest.mark.parametrize(("rounds", "said"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_watch_counts_its_rounds_in_words(work, monkeypatch, capsys, rounds, said):
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    _watched(lambda look: [look() for _ in range(rounds)], lambda again: Report(), False, work / "out")
    assert f"0 translated in {said}, 0 failed in the last" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_of_a_job_array_share_a_folder_at_the_same_time(work):
    for i in range(3, 60):
        Image.fromarray(np.full((16, 20, 3), 4 * i, np.uint8)).save(work / "in [x]" / f"{i}.png")
    command = [sys.executable, "-m", "rfp", "translate", "b", "in [x]", "-o", "out", "--json"]
    jobs = [subprocess.Popen([*command, "--shard", f"{i}/3"], stdout=-1, stderr=-1, text=True) for i in (1, 2, 3)]
    counts = [json.loads(job.communicate(timeout=120)[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sum(c["done"] for c in counts) == 60 and all(c["done"] > 5 and not c["skipped"] for c in counts)
    assert "60 translated" in rfp("b", "in [x]", "-o", "alone").stdout
    for path in (work / "alone").glob("*.png"):
        assert path.read_bytes() == (work / "out" / path.name).read_bytes()
    assert len(list((work / "out").glob("translate.*-of-3.jsonl"))) == 3
    assert "0 translated, 60 there already" in rfp("b", "in [x]", "-o", "out").stdout
    assert "0 translated" in rfp("b", "in [x]", "-o", "out", "--shard", "2/5").stdout


def test_onnx_runtime_sends_nothing_and_keeps_no_device_id(work):
    (work / "home").mkdir()
    environment = {**os.environ, "HOME": str(work / "home")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-m", "rfp", "translate", "b", "in [x]", "-o", "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "telemetry" not in done.stderr
    assert not list((work / "home").rglob("*icrosoft*"))


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(work):
    bundles.write_bundle(work / "b", bundles.blur())
    for i in range(400):
        Image.fromarray(np.full((64, 64, 3), i % 256, np.uint8)).save(work / "in [x]" / f"many {i}.png")
    command = [sys.executable, "-c", LISTEN, "translate", "b", "in [x]", "-o", "out", "--steps", "200"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(600):
            if (work / "out").is_dir() and any((work / "out").glob("*.png")):
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, stderr = child.communicate(timeout=30)
    assert child.returncode == 130 and time.monotonic() - began < 10
    assert "the same command goes on" in stderr and "Traceback" not in stderr
    assert not list((work / "out").glob(".*"))


@pytest.mark.parametrize(("done_first", "again"), [(True, [False, True, True]), (False, [False, False, True])])
def test_one_watched_file_is_written_again_once_it_is_ours(work, monkeypatch, done_first, again):
    """It has no ledger: what was there before this command stays."""
    monkeypatch.setattr("rfp.cli.translate.signal.signal", lambda *_: None)
    output, calls = work / "one.png", []
    output.write_bytes(b"there")

    def once(overwrite):
        calls.append(overwrite)
        report = Report()
        ended = report.done if len(calls) > 1 or done_first else report.skipped
        ended.append(Event("done"))
        return report

    def until(look):
        for _ in range(3):
            look()

    assert not _watched(until, once, False, output)
    assert calls == again
