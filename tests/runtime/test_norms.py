"""GroupNorm's statistics into and out of graphs: against PyTorch's own, and what tiles make of them."""

import bundles
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from rfp.runtime import BundleError, FlowOptions, load_bundle
from rfp.runtime.codec import Identity
from rfp.runtime.flow import Flow
from rfp.runtime.norms import GIVEN, MEASURED, PLACE, SHARE, Frame, Norms, opened_up
from rfp.runtime.velocity import Velocity
from rfp.train.unet import whole

EPSILON = 1e-3


def normalised(scale=(2.0, 0.5, 1.0), bias=(0.1, 0.0, -0.3)) -> onnx.ModelProto:
    """v = GroupNorm(x), a group for each channel, as torch's exporter writes it."""
    nodes = [
        helper.make_node("Add", ["x", "zero"], ["x1"]),
        helper.make_node("Shape", ["x1"], ["shape"]),
        helper.make_node("Constant", [], ["flat"], value_ints=[0, 3, -1]),
        helper.make_node("Reshape", ["x1", "flat"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "scale", "bias"], ["normal"], epsilon=EPSILON),
        helper.make_node("Reshape", ["normal", "shape"], ["velocity"]),
    ]
    return bundles.velocity_graph(nodes, [bundles.constant("scale", scale), bundles.constant("bias", bias)])


def run(session, x, share, given):
    feeds = {"x": x, "t": np.zeros(1, np.float32), SHARE: np.array([share], np.float32), GIVEN.format(0): given}
    return session.run(["velocity", MEASURED.format(0)], feeds)


def test_an_opened_norm_tells_its_statistics_and_takes_others():
    model = normalised()
    data, count, _ = opened_up(model.SerializeToString())
    onnx.checker.check_model(onnx.load_from_string(data))
    session = onnxruntime.InferenceSession(data)
    x, other = (np.random.default_rng(i).normal(i, 1 + i, (2, 3, 8, 12)).astype(np.float32) for i in range(2))
    own, measured = run(session, x, 0, np.zeros((1, 1, 2), np.float32))
    affine = torch.tensor([2, 0.5, 1]), torch.tensor([0.1, 0, -0.3])
    by_torch = torch.nn.functional.group_norm(torch.from_numpy(x), 3, *affine, EPSILON)
    assert count == 1 and np.abs(own - by_torch.numpy()).max() < 1e-5
    flat = x.reshape(2, 3, -1)
    assert np.abs(measured - np.stack([flat.mean(2), flat.var(2)], -1)).max() < 1e-5
    _, of_other = run(session, other, 0, np.zeros((1, 1, 2), np.float32))
    by_other, _ = run(session, x, 1, of_other[:1])
    mean, variance = of_other[0].T[..., None, None]
    scale, bias = (np.array(v)[:, None, None] for v in ((2, 0.5, 1), (0.1, 0, -0.3)))
    assert np.abs(by_other - ((x - mean) / np.sqrt(variance + EPSILON) * scale + bias)).max() < 1e-4


def test_agreed_statistics_are_those_of_all_tiles_as_one():
    x = np.random.default_rng(3).normal(2, 3, (4, 5, 100))
    norms = Norms()
    for part in x:
        norms.begin(Frame(0, 0, 8, 8))
        assert norms.known() is None
        norms.add([np.stack([part.mean(1), part.var(1)], -1)[None].astype(np.float32)])
    norms.agree()
    norms.begin(Frame(0, 0, 8, 8))
    ((known,),) = (norms.known(),)
    assert np.allclose(known[0], np.stack([x.mean((0, 2)), x.var((0, 2))], -1), atol=1e-4)


def test_every_call_has_the_statistics_of_all_tiles_at_that_call():
    x = np.random.default_rng(3).normal(2, 3, (4, 2, 3, 5, 100))  # tiles, calls, norms, groups
    norms = Norms()
    for tile in x:
        norms.begin(Frame(0, 0, 8, 8))
        for call in tile:
            norms.add([np.stack([n.mean(1), n.var(1)], -1)[None].astype(np.float32) for n in call])
    norms.agree()
    for _ in range(2):
        norms.begin(Frame(0, 0, 8, 8))
        for call in range(2):
            for n, known in enumerate(norms.known()):
                wanted = np.stack([x[:, call, n].mean((0, 2)), x[:, call, n].var((0, 2))], -1)
                np.testing.assert_allclose(known[0], wanted, atol=1e-4)
            norms.add(norms.known())


def test_tiles_of_one_norm_are_the_whole_picture(tmp_path):
    """With no convolution before it, the statistics of disjoint tiles together are exactly those of the picture."""
    bundle = load_bundle(bundles.write_bundle(tmp_path / "bundle", normalised(), default_steps=1))
    image = np.random.default_rng(4).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image[64:] //= 4  # so that tiles by themselves differ
    whole = Flow(Velocity(bundle, "cpu"), Identity(), bundle.manifest, FlowOptions(size="native"))(image[None])[0]
    flow = Flow(Velocity(bundle, "cpu"), Identity(), bundle.manifest, FlowOptions(size="native", tile=64, overlap=0))
    assert np.abs(flow(image[None])[0].astype(int) - whole).max() <= 1
    alone = flow._whole(np.stack([image[:64, :64]]))[0]
    assert np.abs(alone.astype(int) - whole[:64, :64]).max() > 20


@pytest.mark.parametrize(("height", "width"), [(128, 96), (96, 200), (160, 160)])
def test_tiles_know_where_they_lie(tmp_path, height, width):
    """v shows in red and green where each pixel lies, as training says it of whole pictures."""
    nodes = [
        *normalised().graph.node[3:-1],  # the norm, without which no graph is opened; what it gives is not used
        helper.make_node("Conv", ["zero", "fewer"], ["middle"]),
        helper.make_node("Identity", ["middle"], [PLACE]),
        helper.make_node("Conv", [PLACE, "more"], ["velocity"]),
    ]
    norm = [v for v in normalised().graph.initializer if v.name in ("scale", "bias")]
    weights = [("fewer", np.zeros((2, 3, 1, 1))), ("more", np.eye(3, 2)[..., None, None])]
    model = bundles.velocity_graph(nodes, [*norm, *(bundles.constant(*w) for w in weights)])
    bundle = load_bundle(bundles.write_bundle(tmp_path / "bundle", model, default_steps=1))
    flow = Flow(Velocity(bundle, "cpu"), Identity(), bundle.manifest, FlowOptions(size="native", tile=64, overlap=16))
    grey = np.full((1, height, width, 3), 127, np.uint8)
    place = whole(torch.zeros(1, 3, height, width))[0].permute(1, 2, 0).numpy()
    assert np.abs(flow(grey)[0, ..., :2] - 127.5 * (place + 1)).max() < 2


def test_a_graph_without_norms_stays_as_it_is_and_a_damaged_one_is_refused():
    model = bundles.blur().SerializeToString()
    assert opened_up(model) == (model, 0, False)
    data = normalised().SerializeToString()
    for damaged in (data[:-3], b"\x3b" + data, b"\xff" * 20):
        with pytest.raises(BundleError, match="damaged"):
            opened_up(damaged)
