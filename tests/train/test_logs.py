"""Loggers, read back by their own readers."""

import json
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from rfp.runtime import MissingExtraError, UsageError
from rfp.train.logs import check_loggers
from rfp.train.run import Interrupted
from rfp.train.training import train
from trainings import Listener, draw_domains, finish, job


def with_log(work, run, *names, **changes):
    return replace(job(work, run, sample_every=3, **changes), log=names)


def crash_at(*moment):
    def crash(*now):
        if now == moment:
            raise KeyboardInterrupt

    return Listener(crash)


def scalars(folder, phase):
    """What TensorBoard shows: tag → (step, value), in the order of the steps."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = reader.EventAccumulator(str(folder / "tensorboard" / phase))
    seen.Reload()
    return seen, {tag: [(e.step, e.value) for e in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_what_metrics_jsonl_says_once_though_a_run_was_killed_and_went_on(tmp_path):
    draw_domains(tmp_path)
    there = with_log(tmp_path, "run", "tensorboard", checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        train(there, crash_at("velocity", 6))  # steps 5 and 6 were logged and undone
    finish(there)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for phase in ("saliency", "velocity"):
        reader, shown = scalars(tmp_path / "run", phase)
        wanted = [e for e in lines if e["phase"] == phase]
        assert [s for s, _ in shown["images_per_second"]] == sorted({s for s, _ in shown["images_per_second"]})
        for tag in {k for e in wanted for k in e} - {"phase", "step"}:
            values = [(e["step"], pytest.approx(e[tag], rel=1e-6)) for e in wanted if tag in e]
            assert shown[tag] == values
    assert [e.step for e in reader.Images("samples")] == [3, 6]
    assert reader.Images("samples")[0].width == 64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_interruption_while_logging_goes_on_where_it_was(tmp_path):
    draw_domains(tmp_path)
    there = with_log(tmp_path, "run", "tensorboard", saliency_loss_weight=0)

    def press(phase, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(there, Listener(press))
    finish(there)
    assert [s for s, _ in scalars(tmp_path / "run", "velocity")[1]["flow"]] == [1, 2, 3, 4, 5, 6]


def test_a_logger_that_is_none_or_is_not_installed_is_named(monkeypatch, tmp_path):
    draw_domains(tmp_path)
    with pytest.raises(UsageError, match="--log tensorbord: not one of tensorboard, wandb"):
        finish(with_log(tmp_path, "run", "tensorbord"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"--log wandb needs wandb: pip install 'rfp\[wandb\]'"):
        check_loggers(["wandb"])
    assert not (tmp_path / "run").exists()


class Recorder:
    """As much of wandb as rfp calls; `refuses` to go online."""

    Error = type("Error", (Exception,), {})
    Image = staticmethod(np.shape)
    Settings = staticmethod(dict)

    def __init__(self, refuses=False):
        self.refuses, self.inits, self.rows = refuses, [], []

    def login(self, prompt):
        assert prompt is False
        return True

    def init(self, **said):
        self.inits.append((said["mode"], said["id"]))
        if self.refuses and said["mode"] == "online":
            raise self.Error("no network")
        return self

    def define_metric(self, *args, **kwargs): ...

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.rows.append("finished")


def test_wandb_goes_on_with_the_same_id_numbers_rows_alike_and_falls_back_to_offline(tmp_path, monkeypatch):
    draw_domains(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("rfp.train.logs.check_loggers", lambda names: None)
    monkeypatch.setattr("rfp.train.opening.check_loggers", lambda names: None)
    there = with_log(tmp_path, "run", "wandb", checkpoint_every=2, saliency_loss_weight=0)
    first, second = Recorder(refuses=True), Recorder()
    monkeypatch.setitem(sys.modules, "wandb", first)
    with pytest.raises(KeyboardInterrupt):
        train(there, crash_at("velocity", 5))
    monkeypatch.setitem(sys.modules, "wandb", second)
    finish(there)
    assert [mode for mode, _ in first.inits] == ["online", "offline"] and first.rows[-1] == "finished"
    assert {id for _, id in first.inits + second.inits} == {(tmp_path / "run" / "wandb-id").read_text().strip()}
    steps = [[(n, row["velocity/step"]) for n, row in seen.rows[:-1]] for seen in (first, second)]
    assert steps == [[(1, 1), (2, 2), (3, 3), (3, 3), (4, 4), (5, 5)], [(5, 5), (6, 6), (6, 6)]]  # 3 and 6: samples


@pytest.mark.slow
def test_wandb_itself_writes_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    draw_domains(tmp_path)
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where nobody is logged in
    finish(with_log(tmp_path, "run", "wandb", saliency_loss_weight=0))
    written = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 1 and b"velocity/flow" in written[0].read_bytes()
    assert (tmp_path / "run" / "wandb-id").read_text().strip() in written[0].name
