"""Sorting pictures by a classifier that tells dark from bright."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from films import counted, write_video
from PIL import Image
from rfp.runtime import CheckpointError, UsageError
from rfp.train import checkpoint as ckpt
from rfp.train.domains import Crop, open_domain
from rfp.train.split import Classifier, Failure, load_classifier, split
from rfp.train.split_verify import verify
from trainings import VAE_TINY, finish, job, noisy

CERTAIN = {"saliency_max_steps": 30, "saliency_accuracy_threshold": 1, "saliency_label_smoothing": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose classifier was trained on dark and bright pictures; both phases."""
    from trainings import draw_domains

    work = tmp_path_factory.mktemp("run")
    draw_domains(work)
    finish(job(work, train_images=5, **CERTAIN))
    return work / "run"


@pytest.fixture(scope="module")
def classifier(run):
    return load_classifier(run, "cpu")


@pytest.fixture
def brightness():
    """A classifier whose answer is known: the mean brightness of the crop."""
    return Classifier(lambda crops: [float(c.mean()) / 255 for c in crops], 16, "brightness", 1.0)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path, level, size=(20, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy(level, level, size)).save(path, **options)
    return path


def tree(folder):
    """Every file with its content and time of change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def copies(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*.*") if p.parent != out)


def rows(out):
    with (out / "report.csv").open(newline="") as f:
        return {row["source"]: row for row in csv.DictReader(f)}


def test_pictures_go_to_their_domain_byte_for_byte_named_by_what_they_hold(run, classifier, tmp_path):
    wanted = {}
    for i in range(12):
        for name, level in (("domain0", 60), ("domain1", 195)):
            suffix = (".png", ".JPG", ".webp")[i % 3]
            path = save(tmp_path / "in" / "sub [x]" / f"{name} {i}{suffix}", level + i, (30 + i, 20))
            wanted[f"{name}/{sha256(path)}{suffix}"] = path.read_bytes()
    before = tree(tmp_path / "in")
    report = split(classifier, [tmp_path / "in"], tmp_path / "out", batch=5)
    assert copies(tmp_path / "out") == sorted(wanted)
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in wanted.items())
    assert report.new == report.total == {"domain0": 12, "domain1": 12, "uncertain": 0} and not report.failed
    assert tree(tmp_path / "in") == before
    lines = rows(tmp_path / "out")
    assert len(lines) == 24
    for source, row in lines.items():
        assert row["sha256"] == row["copy_sha256"] == sha256(Path(source)) and row["domain"] in source
        assert (float(row["probability"]) >= 0.7) == (row["domain"] == "domain1")
        assert row["file"] == f"{row['domain']}/{row['sha256']}{Path(source).suffix}"


def test_pictures_are_judged_as_in_training(run, classifier, tmp_path):
    save(tmp_path / "in" / "a.png", 128, (300, 200))
    seen = []
    spy = replace(classifier, probabilities=lambda crops: seen.extend(crops) or classifier.probabilities(crops))
    split(spy, [tmp_path / "in"], tmp_path / "out")
    assert (seen[0] == open_domain([tmp_path / "in"], 16).crop(0, Crop())).all()
    net = ckpt.load(ckpt.find(run)).saliency()
    (row,) = rows(tmp_path / "out").values()
    wanted = net(torch.from_numpy(seen[0].transpose(2, 0, 1)[None] / np.float32(127.5) - 1)).softmax(1)[0, 1]
    assert abs(float(row["probability"]) - float(wanted)) < 1e-4


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_what_is_not_sure_enough_is_uncertain(brightness, tmp_path, threshold):
    levels = range(5, 255, 25)
    for level in levels:
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (level,) * 3).save(tmp_path / "in" / f"{level}.png")
    split(brightness, [tmp_path / "in"], tmp_path / "out", threshold)
    for level in levels:
        p = level / 255
        domain = "domain1" if p >= threshold else "domain0" if 1 - p >= threshold else "uncertain"
        assert rows(tmp_path / "out")[str(tmp_path / "in" / f"{level}.png")]["domain"] == domain


def test_the_same_content_is_kept_once_whatever_its_name(brightness, tmp_path):
    path = save(tmp_path / "in" / "a.png", 200)
    for name in ("b.png", "c.PNG", "sub/a.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "in" / name)
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as archive:
        archive.write(path, "d.png")
    for batch in (1, 2, 64):
        out = tmp_path / f"out{batch}"
        report = split(brightness, [tmp_path / "in"], out, batch=batch)
        assert len(copies(out)) == 1 and sum(report.new.values()) == 1 and report.duplicates == 4
        assert len({row["file"] for row in rows(out).values()}) == 1 and len(rows(out)) == 5
        assert str(tmp_path / "in" / "z.zip::d.png") in rows(out)


def test_running_again_does_nothing_and_new_pictures_are_added(brightness, tmp_path, monkeypatch):
    for level in (30, 220):
        save(tmp_path / "in" / f"{level}.png", level)
    out = tmp_path / "out"
    split(brightness, [tmp_path / "in"], out)
    before = {p: c for p, (c, _) in tree(out).items()}
    times = {p: t for p, (_, t) in tree(out).items() if p.suffix == ".png"}
    with monkeypatch.context() as patch:
        patch.setattr("rfp.train.split.read_image", None)  # nothing is decoded or judged again
        report = split(replace(brightness, probabilities=None), [tmp_path / "in"], out)
    assert report.skipped == 2 and {p: c for p, (c, _) in tree(out).items()} == before
    save(tmp_path / "in" / "10.png", 10)
    report = split(brightness, [tmp_path / "in"], out)
    assert report.skipped == 2 and report.new["domain0"] == 1 and report.total["domain0"] == 2
    assert all(tree(out)[p][1] == t for p, t in times.items())


def test_what_a_person_moved_stays_where_it_is_and_is_not_copied_again(brightness, tmp_path):
    save(tmp_path / "in" / "a.png", 128)
    out = tmp_path / "out"
    split(brightness, [tmp_path / "in"], out)
    (copy,) = (out / "uncertain").iterdir()
    (out / "domain1").mkdir(exist_ok=True)
    moved = copy.rename(out / "domain1" / copy.name)
    report = split(brightness, [tmp_path / "in"], out)
    assert report.skipped == 1 and report.total == {"domain0": 0, "domain1": 1, "uncertain": 0}
    assert copies(out) == [f"domain1/{moved.name}"] and next(iter(rows(out).values()))["domain"] == "domain1"


def test_bad_files_are_listed_and_the_others_sorted(brightness, tmp_path):
    save(tmp_path / "in" / "good.png", 220)
    (tmp_path / "in" / "bad.png").write_bytes(b"no")
    (tmp_path / "in" / "bad.zip").write_bytes(b"no")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no")
    cut = save(tmp_path / "in" / "cut.png", 30)
    cut.write_bytes(cut.read_bytes()[:300])
    ends = []
    report = split(brightness, [tmp_path / "in"], tmp_path / "out", on_end=ends.append)
    failed = [f.message for f in report.failed]
    assert len(failed) == 4 and all(any(n in f for f in failed) for n in ("bad.png", "bad.zip", "bad.mp4", "cut.png"))
    assert sum(report.new.values()) == 1 and len(copies(tmp_path / "out")) == len(rows(tmp_path / "out")) == 1
    assert len(ends) == 5 and [e for e in ends if isinstance(e, Failure)] == report.failed


def test_a_copy_that_cannot_be_written_fails_and_so_do_its_duplicates(brightness, tmp_path, monkeypatch):
    path = save(tmp_path / "in" / "a.png", 220)
    shutil.copy(path, tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "domain1").write_text("a file where the folder should be")
    report = split(brightness, [tmp_path / "in"], tmp_path / "out")
    assert len(report.failed) == 2 and not rows(tmp_path / "out") and sum(report.new.values()) == 0
    (tmp_path / "out" / "domain1").unlink()
    assert split(brightness, [tmp_path / "in"], tmp_path / "out").new["domain1"] == 1


def test_every_frame_of_a_video_is_sorted_by_its_time_and_equal_ones_once(brightness, tmp_path):
    video = write_video(tmp_path / "v.mp4", [0, 40, 47, 380])
    split(brightness, [video], tmp_path / "out", 0.5)
    lines = rows(tmp_path / "out")
    assert list(lines) == [f"{video}@{t}s" for t in ("0.000", "0.040", "0.047", "0.380")]
    for i, row in enumerate(lines.values()):
        pixels = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        assert row["file"].endswith(".png") and np.abs(pixels.astype(int) - counted(i)).mean() < 6
        assert sha256(tmp_path / "out" / row["file"]) == row["copy_sha256"] != row["sha256"]
    again = split(brightness, [video], tmp_path / "out", 0.5)
    assert again.skipped == 4 and not verify(brightness, tmp_path / "out").problems


def test_max_size_reduces_larger_copies_only_and_names_them_by_their_source(brightness, tmp_path):
    small, large = save(tmp_path / "in" / "small.png", 220, (40, 30)), save(tmp_path / "in" / "large.JPG", 30, (41, 80))
    video = write_video(tmp_path / "in" / "v.mp4", [0])
    out, seen = tmp_path / "out", []
    spy = replace(brightness, probabilities=lambda crops: seen.append(crops) or brightness.probabilities(crops))
    split(spy, [tmp_path / "in"], out, 0.5, max_size=40)
    lines = rows(out)
    assert (out / lines[str(small)]["file"]).read_bytes() == small.read_bytes()
    row = lines[str(large)]
    assert row["sha256"] == sha256(large) and Path(row["file"]).name == f"{row['sha256']}.JPG"
    with Image.open(out / row["file"]) as image:
        assert image.size == (20, 40) and image.format == "JPEG" and row["copy_sha256"] == sha256(out / row["file"])
    with Image.open(out / lines[f"{video}@0.000s"]["file"]) as frame:
        assert frame.size == (40, 30)
    assert not verify(spy, out).problems
    judged, verified = ({c.tobytes() for c in crops} for crops in seen)
    assert judged == verified  # as it was written, also where JPEG changes it
    assert split(brightness, [tmp_path / "in"], out, 0.5, max_size=40).skipped == 3


def test_the_output_may_lie_in_the_input_but_not_the_other_way_round(brightness, tmp_path):
    save(tmp_path / "in" / "a.png", 220)
    out = tmp_path / "in" / "out"
    for _ in range(2):
        report = split(brightness, [tmp_path / "in"], out)
    assert report.skipped == 1 and report.duplicates == 0 and len(copies(out)) == 1
    for inputs in ([out], [out / "domain1"], [tmp_path / "in", next((out / "domain1").iterdir())]):
        with pytest.raises(UsageError, match="what lies there is no input"):
            split(brightness, inputs, out)
    with pytest.raises(UsageError, match="is a file"):
        split(brightness, [tmp_path / "in"], save(tmp_path / "file.png", 10))


def test_a_folder_sorted_otherwise_or_by_others_is_left_alone(brightness, tmp_path):
    save(tmp_path / "in" / "a.png", 220)
    out = tmp_path / "out"
    split(brightness, [tmp_path / "in"], out)
    before = tree(out)
    for changed, said in (
        ({"threshold": 0.8}, "threshold: 0.7"),
        ({"max_size": 9}, "max_size: None"),
        ({"classifier": replace(brightness, identity="other")}, "classifier: brightness"),
    ):
        with pytest.raises(UsageError, match=f"was sorted otherwise .{said}"):
            split(**({"classifier": brightness, "inputs": [tmp_path / "in"], "output": out} | changed))
    assert tree(out) == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.csv").write_text("accounts")
    with pytest.raises(UsageError, match=r"report\.csv: is there, but not from rfp split"):
        split(brightness, [tmp_path / "in"], tmp_path / "theirs")
    with (out / "split.json").open("rb+") as f:
        from rfp.runtime.files import lock

        assert lock(f.fileno(), shared=False)
        with pytest.raises(UsageError, match="another rfp split writes to it"):
            split(brightness, [tmp_path / "in"], out)


@pytest.mark.parametrize("option", [{"threshold": 0.4}, {"threshold": 1.1}, {"max_size": 0}, {"batch": 0}])
def test_options_out_of_range_are_refused_and_leave_nothing(brightness, tmp_path, option):
    save(tmp_path / "in" / "a.png", 220)
    with pytest.raises(UsageError, match=next(iter(option)).replace("_", "-")):
        split(brightness, [tmp_path / "in"], tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_large_files_do_not_wait_until_a_batch_is_full(tmp_path, monkeypatch):
    for i in range(7):
        source = save(tmp_path / "in" / f"{i}.bmp", 70 + i)
    monkeypatch.setattr("rfp.train.split.WAITING_BYTES", 5 * source.stat().st_size // 2)
    judged = []
    classifier = Classifier(lambda crops: judged.append(len(crops)) or [0.0] * len(crops), 16, "dark", 1.0)
    assert split(classifier, [tmp_path / "in"], tmp_path / "out").new["domain0"] == 7
    assert judged == [3, 3, 1]


def test_few_pictures_are_held_however_many_there_are(brightness, tmp_path, monkeypatch):
    from rfp.train import split as module

    for i in range(250):
        save(tmp_path / "in" / f"{i}.png", i)
    held, most = set(), [0]
    load, write = module._load, module._write

    def counted_load(task, *args):
        held.add(task.path)
        most[0] = max(most[0], len(held))
        return load(task, *args)

    def counted_write(work, output):
        held.discard(Path(work[0].source))
        return write(work, output)

    monkeypatch.setattr(module, "_load", counted_load)
    monkeypatch.setattr(module, "_write", counted_write)
    split(brightness, [tmp_path / "in"], tmp_path / "out", batch=8)
    assert not held and most[0] <= 8 + 2 * module.AHEAD + 1


def test_verify_finds_everything_that_is_off_and_changes_nothing(brightness, tmp_path):
    for level in (10, 30, 50, 128, 220, 240):
        save(tmp_path / "in" / f"{level}.png", level)
    out = tmp_path / "out"
    split(brightness, [tmp_path / "in"], out)
    assert not verify(brightness, out).problems and verify(brightness, out).pictures == 6
    file = {int(Path(source).stem): out / row["file"] for source, row in rows(out).items()}
    file[10].write_bytes(file[220].read_bytes())  # another picture under its name
    file[30].write_bytes(b"no")
    file[50].unlink()
    moved = file[240].rename(out / "domain0" / file[240].name)
    shutil.copy(file[220], out / "uncertain")
    (out / "domain1" / ".x.partial.png").write_bytes(b"")
    (out / "domain1" / "holiday.png").write_bytes(b"")
    (out / "notes.txt").write_text("")
    before = tree(out)
    wanted = [
        (file[10], "holds something else than its name"),
        (file[10], "is judged domain1 now: domain 1 at 8"),
        (file[30], "not a readable image"),
        (file[50], "is gone; report.csv has it from"),
        (moved, "is judged domain1 now"),
        (out / "uncertain" / file[220].name, "is there twice"),
        (out / "uncertain" / file[220].name, "is judged domain1 now"),
        (out / "domain1" / ".x.partial.png", "left by a split that was killed"),
        (out / "domain1" / "holiday.png", "its name is no SHA-256"),
        (out / "notes.txt", "not from rfp split"),
    ]
    found = verify(brightness, out).problems
    for path, said in wanted:
        assert any(f.source == str(path) and said in f.message for f in found), (path, said, found)
    assert len(found) == len(wanted) and tree(out) == before
    # Another threshold or classifier says what would change.
    assert any("is judged uncertain" in f.message for f in verify(brightness, out, 0.99).problems)
    other = verify(replace(brightness, identity="other"), out).problems
    assert any("another classifier" in f.message for f in other)
    with pytest.raises(UsageError, match="not a folder that rfp split wrote"):
        verify(brightness, tmp_path / "in")


def test_a_classifier_comes_from_either_phase_and_is_the_same(run, classifier, tmp_path):
    files = {p.name.partition("-")[0]: p for p in ckpt.checkpoints(run)}
    assert {"saliency", "velocity"} <= files.keys()
    assert {load_classifier(p, "cpu").identity for p in files.values()} == {classifier.identity}
    loaded = ckpt.load(files["velocity"])
    larger = replace(loaded, config=loaded.config.model_copy(update={"max_size": 32}))  # it would see other crops
    ckpt.save(tmp_path / "larger.safetensors", larger, {})
    assert load_classifier(tmp_path / "larger.safetensors", "cpu").identity != classifier.identity


def test_a_checkpoint_without_a_classifier_says_what_to_do(run, tmp_path):
    shutil.copytree(run.parent / "dark", tmp_path / "dark")
    shutil.copytree(run.parent / "bright", tmp_path / "bright")
    finish(job(tmp_path, train_images=5, saliency_loss_weight=0))
    with pytest.raises(CheckpointError, match=r"holds no classifier.*saliency_loss_weight=0\.1"):
        load_classifier(tmp_path / "run")


def test_a_classifier_of_latents_sees_latents(run, tmp_path):
    shutil.copytree(run.parent / "dark", tmp_path / "dark")
    shutil.copytree(run.parent / "bright", tmp_path / "bright")
    finish(job(tmp_path, train_images=5, codec=VAE_TINY, **CERTAIN))
    loaded = ckpt.load(ckpt.find(tmp_path / "run"))
    crop = open_domain([tmp_path / "dark"], 16).crop(0, Crop())
    x = torch.from_numpy(crop.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    wanted = loaded.saliency()(loaded.codec().encode(x)).softmax(1)[0, 1]
    classifier = load_classifier(tmp_path / "run", "cpu")
    assert abs(classifier.probabilities(crop[None])[0] - float(wanted)) < 1e-5
    (codec, *_), identity = ckpt.checkpoints(tmp_path / "run"), classifier.identity
    with pytest.raises(CheckpointError, match=r"holds no classifier .it is of the codec phase"):
        load_classifier(codec)
    tensors = loaded.tensors | {"codec_ema.mean": loaded.tensors["codec_ema.mean"] + 1}
    ckpt.save(tmp_path / "other.safetensors", replace(loaded, tensors=tensors), {})
    assert load_classifier(tmp_path / "other.safetensors", "cpu").identity != identity


@pytest.mark.parametrize("half_line", [False, True])
def test_a_picture_without_its_line_gets_it_and_is_not_written_again(brightness, tmp_path, half_line):
    for level in (30, 128, 220):
        save(tmp_path / "in" / f"{level}.png", level)
    out = tmp_path / "out"
    split(brightness, [tmp_path / "in"], out)
    whole, times = (out / "report.csv").read_text(), {p: t for p, (_, t) in tree(out).items() if p.suffix == ".png"}
    lines = whole.splitlines(keepends=True)
    (out / "report.csv").write_text("".join(lines[:-1]) + (lines[-1][:-3] if half_line else ""))
    split(brightness, [tmp_path / "in"], out)
    assert sorted((out / "report.csv").read_text().splitlines()) == sorted(whole.splitlines())
    assert {p: tree(out)[p][1] for p in times} == times


KILLED = """
import sys, time
from pathlib import Path
from rfp.train.split import Classifier, split
def slowly(crops):
    time.sleep(0.02)
    return [float(c.mean()) / 255 for c in crops]
ended = lambda e: print(e.source, flush=True)
split(Classifier(slowly, 16, "brightness", 1.0), [Path(sys.argv[1])], Path(sys.argv[2]), batch=2, on_end=ended)
"""


@pytest.mark.slow
def test_kill_9_leaves_only_whole_files_and_the_next_run_goes_on(brightness, tmp_path):
    for i in range(120):
        save(tmp_path / "in" / f"{i}.png", i)
    write_video(tmp_path / "in" / "v.mp4", range(0, 1200, 40))
    whole, out = tmp_path / "whole", tmp_path / "out"
    split(brightness, [tmp_path / "in"], whole)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(out)]
    for lines in (5, 90):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as child:
            for _ in range(lines):
                assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        for path in out.rglob("*.png"):
            if not path.name.startswith("."):
                assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()
    report = split(brightness, [tmp_path / "in"], out)
    assert report.skipped >= 60 and sum(report.total.values()) == 150 and not report.failed
    assert copies(out) == copies(whole) and not list(out.rglob(".*"))
    assert rows(out) == rows(whole) and not verify(brightness, out).problems
    assert json.loads((out / "split.json").read_text())["threshold"] == 0.7
