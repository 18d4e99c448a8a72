"""Stages beside one another: no picture waits for another's steps, nor for another's file to reach the disk."""

import os
import threading

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FlowOptions, load_bundle, translate
from rfp.runtime.codec import Identity
from rfp.runtime.flow import Flow
from rfp.runtime.network import Network
from rfp.runtime.stages import Stages
from rfp.runtime.velocity import Velocity

WAIT = 60.0


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.towards(0.5)))


@pytest.fixture
def flow(bundle):
    return Flow(Velocity(bundle, "cpu", 2), Identity(), bundle.manifest, FlowOptions(steps=4))


def grey(level):
    return np.full((1, 16, 16, 3), level, np.uint8)


def test_a_picture_does_not_wait_for_the_steps_of_its_neighbour(flow, monkeypatch):
    wanted, step, light_is_done = [flow(grey(0)), flow(grey(255))], Velocity.__call__, threading.Event()

    def waiting(self, x, t):
        if t == 0 and x.mean() < -0.9:
            assert light_is_done.wait(WAIT), "the dark picture's first step held the light one up"
        out = step(self, x, t)
        if t == 0.75 and x.mean() > 0:
            light_is_done.set()
        return out

    monkeypatch.setattr(Velocity, "__call__", waiting)
    made = list(flow.side_by_side(flow, [grey(0), grey(255)]))
    assert all(map(np.array_equal, made, wanted))


def test_a_call_has_all_threads_alone_and_one_where_others_are_at_work(bundle, monkeypatch):
    net = Velocity(bundle, "cpu", 2)._net
    x, t = np.zeros((1, 3, 16, 16), np.float32), np.zeros(1, np.float32)
    used, run = [], Network._run
    monkeypatch.setattr(Network, "_run", lambda self, session, *a: used.append(session) or run(self, session, *a))
    with net.work():
        net(x, t)
        with net.work():
            net(x, t)
        net(x, t)
    threads = [session.get_session_options().intra_op_num_threads for session in used]
    assert threads == [2, 1, 2]


def test_pictures_of_which_memory_holds_one_go_one_at_a_time(bundle, monkeypatch):
    flow = Flow(Velocity(bundle, "cpu", 2), Identity(), bundle.manifest, FlowOptions(steps=2, batch=1))
    inside, most, step = [], [], Velocity.__call__

    def counted(self, x, t):
        inside.append(None)
        most.append(len(inside))
        out = step(self, x, t)
        inside.pop()
        return out

    monkeypatch.setattr(Velocity, "__call__", counted)
    assert len(list(flow.side_by_side(flow, [grey(i) for i in range(20)]))) == 20 and max(most) == 1


def test_files_go_to_the_disk_together(bundle, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(12):
        Image.fromarray(grey(i)[0]).save(tmp_path / "in" / f"{i}.png")
    together = threading.Barrier(12, timeout=WAIT)
    monkeypatch.setattr(os, "fsync", lambda fd: together.wait())
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=FlowOptions(size="native"))
    assert len(report.done) == 12 and not together.broken


def test_a_picture_that_fails_takes_none_with_it(bundle, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.fromarray(grey(40 * i)[0]).save(tmp_path / "in" / f"{i}.png")
    step = Velocity.__call__

    def sick(self, x, t):
        return step(self, x, t) + (np.nan if abs(x.mean() - (80 / 127.5 - 1)) < 1e-3 else 0)

    monkeypatch.setattr(Velocity, "__call__", sick)
    flow = FlowOptions(size="native", steps=1, device="cpu")
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=flow)
    assert [event.source for event in report.failed] == [str(tmp_path / "in" / "2.png")] and len(report.done) == 5


def test_stages_add_up_over_threads():
    stages = Stages()
    threads = [threading.Thread(target=lambda: [stages.add("a", 1.0) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(stages.each("b", iter("xy"))) == ["x", "y"]
    assert stages["a"] == 4000 and 0 < stages["b"] < 1
