"""States on a device, and batches that find their size; both run here on the CPU's own device."""

import bundles
import numpy as np
import onnx
import pytest
from rfp.runtime import FlowOptions, integrate, load_bundle
from rfp.runtime.batching import BatchSize
from rfp.runtime.codec import Identity
from rfp.runtime.errors import MediaError, OutOfMemoryError
from rfp.runtime.flow import Flow
from rfp.runtime.network import failure, open_session
from rfp.runtime.resident import STEP_GRAPH, STEP_NAME, Device
from rfp.runtime.velocity import Velocity


@pytest.fixture
def velocity(tmp_path):
    return Velocity(load_bundle(bundles.write_bundle(tmp_path / "b", bundles.blur())), "cpu")


def test_the_step_graph_is_a_plain_onnx_graph_of_a_product_and_a_sum():
    model = onnx.load_from_string(STEP_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Mul", "Add"]


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_states_on_a_device_end_where_arrays_do(velocity, t0, t1, solver):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 16, 24)).astype(np.float32)
    before = x.copy()
    wanted = integrate(velocity, x, 5, t0, t1, None, solver)
    device = Device(velocity._net.session, open_session(STEP_GRAPH, STEP_NAME), "cpu")
    seen = []
    end = integrate(velocity, device.put(x), 5, t0, t1, lambda step, state: seen.append((step, state.shape)), solver)
    np.testing.assert_allclose(velocity.take(end), wanted, atol=1e-6)
    assert np.array_equal(x, before) and seen[-1] == (5, x.shape)


def test_a_batch_grows_while_that_helps_and_goes_back():
    batch = BatchSize(2, 64)
    rate = {2: 10.0, 4: 19.0, 8: 30.0, 16: 30.5}
    for _ in range(12):
        batch.took(batch.size, batch.size / rate[batch.size])
    assert batch.size == 8 and batch.settled


def test_a_batch_stops_growing_at_its_bound_and_takes_no_account_of_rests():
    batch = BatchSize(2, 4)
    batch.took(1, 100.0)
    for _ in range(9):
        batch.took(batch.size, 1.0)
    assert batch.size == 4


def test_what_does_not_go_through_is_told_by_its_width_and_height():
    assert "the velocity graph failed at 32×16 (no)" in str(failure("velocity", (1, 3, 16, 32), ValueError("no")))


def test_out_of_memory_halves_the_batch_and_goes_on(velocity, monkeypatch):
    bundle = load_bundle(velocity._path.parent)
    flow = Flow(velocity, Identity(), bundle.manifest, FlowOptions(batch=8, steps=2))
    images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    wanted, tried = flow(images), []
    small = bundles.room_for(2, tried)
    monkeypatch.setattr(Velocity, "__call__", small)
    assert np.array_equal(flow(images), wanted) and tried[:3] == [8, 4, 2] and flow.at_once(16, 16) == 2
    monkeypatch.setattr(Velocity, "__call__", lambda self, x, t: small(self, np.repeat(x, 3, 0), t))
    with pytest.raises(OutOfMemoryError, match="--tile"):
        flow(images[:1])


def test_memory_that_runs_out_where_a_step_is_added_halves_the_batch_too(velocity):
    """The sum is a graph of its own on the device, and its output the last that must find room there."""
    bundle = load_bundle(velocity._path.parent)
    flow = Flow(velocity, Identity(), bundle.manifest, FlowOptions(batch=8, steps=2))
    images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    wanted, step, tried = flow(images), open_session(STEP_GRAPH, STEP_NAME), []

    class Small:
        def io_binding(self):
            return step.io_binding()

        def run_with_iobinding(self, binding):
            tried.append(binding.get_outputs()[0].shape()[0])
            if tried[-1] > 2:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 98304")
            step.run_with_iobinding(binding)

    velocity._on = Device(velocity._net.session, Small(), "cpu")
    assert np.array_equal(flow(images), wanted) and tried[:3] == [8, 4, 2] and flow.at_once(16, 16) == 2


def test_another_failure_is_not_taken_for_full_memory():
    assert type(failure("velocity", (1, 3, 8, 8), ValueError("bad shape"))) is MediaError
