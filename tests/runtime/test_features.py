"""Feature networks: how they see pictures, what is pooled from them, and graphs from strangers."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from PIL import Image, ImageFilter
from rfp.runtime import BundleError, UsageError
from rfp.runtime.distances import kernel_distance
from rfp.runtime.features import (
    METADATA_KEY,
    FeatureNet,
    apart,
    describe,
    in_units_of,
    onnx_features,
    outlines,
    pooled,
    statistics,
)


def pictures(n, seed=0, size=32):
    """Smooth coloured noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in small])


@pytest.mark.parametrize("size", [12, 50])
def test_a_picture_is_resized_as_torch_does_it(size):
    picture = pictures(1)[0]
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    want = F.interpolate(x, (size, size), mode="bicubic", antialias=True)[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    got = FeatureNet("any", size, lambda x: x).see(picture)
    np.testing.assert_allclose(got, ((want - mean) / std).numpy(), atol=1e-4)


@pytest.mark.parametrize("side", [4, 7, 3, 9])
def test_pooling_is_torchs_adaptive_mean(side):
    maps = np.random.default_rng(0).normal(size=(2, 3, side, side + 1)).astype(np.float32)
    np.testing.assert_allclose(pooled(maps, 4), F.adaptive_avg_pool2d(torch.from_numpy(maps), 4).numpy(), atol=1e-6)


def test_maps_become_vectors_and_grids_and_vectors_stay():
    maps = FeatureNet("maps", 8, lambda x: x)
    seen = describe(maps, pictures(40))
    assert seen.vectors.shape == (40, 3) and seen.grids.shape == (40, 48)
    np.testing.assert_allclose(seen.grids.reshape(40, 3, 16).mean(axis=2), seen.vectors, atol=1e-6)
    assert describe(FeatureNet("vectors", 8, lambda x: x[:, :, 0, 0]), pictures(3)).grids is None


def blurred(batch, radius):
    return np.stack([np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(radius))) for p in batch])


def test_statistics_tell_blur_noise_and_tint_from_real_ones_more_the_more_there_is():
    real, others = pictures(60, 1), pictures(60, 2)
    rng = np.random.default_rng(0)

    def distance(batch):
        base, seen = in_units_of(*(np.stack([statistics(p) for p in b]) for b in (real, batch)))
        return kernel_distance(seen, base)

    same = distance(others)
    noise = [np.clip(others + rng.normal(0, s, others.shape), 0, 255).astype(np.uint8) for s in (8, 25)]
    tint = [np.clip(others * np.array(f), 0, 255).astype(np.uint8) for f in ((1, 0.9, 0.8), (1, 0.6, 0.3))]
    for weak, strong in ([blurred(others, r) for r in (1, 3)], noise, tint):
        assert 5 * abs(same.value) < distance(weak).value < distance(strong).value


def test_outlines_see_edges_whatever_the_colours():
    batch = pictures(8)
    dark = (batch // 2).astype(np.uint8)
    assert apart(outlines(batch), outlines(dark)) < 0.02
    assert apart(outlines(batch), outlines(255 - batch)) < 1e-6
    assert apart(outlines(batch), outlines(pictures(8, 5))) > 0.05
    turned = np.zeros((1, 16, 16, 3), np.uint8)
    turned[:, :, ::4] = 255
    assert apart(outlines(turned), outlines(turned.swapaxes(1, 2))) == pytest.approx(1, abs=1e-6)


def graph(path, shape=("B", 3, "H", "W"), metadata=None, output=("B", 4, "h", "w"), kind=onnx.TensorProto.FLOAT):
    info = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((4, 3, 2, 2), np.float32), "weight")
    nodes = [helper.make_node("Conv", ["x", "weight"], ["maps"], strides=[2, 2])]
    made = helper.make_graph(nodes, "features", [info("x", kind, shape)], [info("maps", 1, output)], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata is not None:
        model.metadata_props.add(key=METADATA_KEY, value=metadata)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_graph_of_features(tmp_path):
    about = '{"name": "sums", "size": 10, "mean": [0, 0, 0], "std": [1, 1, 1]}'
    net = onnx_features(graph(tmp_path / "net.onnx", metadata=about))
    assert (net.name, net.size) == ("sums", 10)
    gray = np.full((5, 20, 20, 3), 51, np.uint8)
    np.testing.assert_allclose(describe(net, gray).vectors, np.full((5, 4), 12 * 0.2), atol=1e-5)
    fixed = onnx_features(graph(tmp_path / "fixed.onnx", shape=(1, 3, 16, 16), output=(1, 4, 8, 8)))
    assert (fixed.name, fixed.size) == ("fixed", 16) and describe(fixed, gray).grids.shape == (5, 64)
    assert onnx_features(graph(tmp_path / "any.onnx")).size == 224


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": ("B", 1, "H", "W")}, "wanted one float32 input"),
        ({"metadata": "{"}, "cannot be read"),
        ({"metadata": '{"std": [0, 1, 1]}'}, "no std is 0"),
        ({"metadata": '{"size": 100000}'}, "size 100000"),
    ],
)
def test_a_graph_that_takes_something_else_is_refused(tmp_path, changes, said):
    with pytest.raises((UsageError, BundleError), match=said):
        onnx_features(graph(tmp_path / "net.onnx", **changes))


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        onnx_features(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(BundleError, match="cannot load"):
        onnx_features(tmp_path / "bad.onnx")
