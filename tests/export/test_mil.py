"""The evaluator of Core ML's programs against torch, operation by operation, from packages that lie on disk."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rfp.export import mil_operations
from rfp.export.mil import MODEL_FILE, WEIGHTS_FOLDER, Program
from rfp.export.mlpackage import Description, Wanted, write_package
from rfp.export.proof import HalfOverflowError
from rfp.export.sizes import Sizes
from rfp.runtime import ExportError
from torch import nn

ct = pytest.importorskip("coremltools", reason="pip install 'rfp[coreml]'")
SAID = Description("a test", {}, {})


def write(net, path, output="y", sizes=None, **wanted):
    sizes = sizes or Sizes(((8, 8),))
    write_package(net, {"x": torch.zeros(1, 4, 1, 1)}, output, Wanted(sizes, 4, **wanted), SAID, path)
    return path


def pictures(h=8, w=8, scale=1.0):
    return torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(3)) * scale


class Everything(nn.Module):
    """Every operation that rfp's nets are made of, each a result of its own: [1, 4, 8, 8] → [1, N, …] flattened."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.linear, self.group = nn.Linear(8, 5), nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(8)
        self.plain = nn.LayerNorm(8, eps=1e-6, elementwise_affine=False)
        self.batch = nn.BatchNorm2d(4).eval()
        for p in self.parameters():
            nn.init.normal_(p)
        self.batch.running_mean.normal_()
        self.batch.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return torch.cat([y.flatten() for y in self.parts(x).values()])

    def parts(self, x):
        tokens = x.flatten(2)
        a, b, c = x.split([1, 2, 1], dim=1)
        return {
            "add sub mul real_div": (x + 2) * (x - a) / (x.square() + 1),
            "sqrt square": (x.square() + 0.5).sqrt(),
            "sin cos": torch.cat([(7 * x).sin(), x.cos()], dim=3),
            "relu": F.relu(x),
            "silu": F.silu(x),
            "gelu": F.gelu(x),
            "gelu tanh": F.gelu(x, approximate="tanh"),
            "slice_by_index": x[:, 1:3, ::2, 5] * 2,
            "round clip": (x * 100).round().clamp(-90, 110),
            "softmax": (3 * x).softmax(-1),
            "conv": self.conv(x),
            "conv dilated grouped": self.grouped(x),
            "linear": self.linear(x),
            "matmul": x.transpose(2, 3) @ (x + 1),
            "attention": F.scaled_dot_product_attention(x, x + 1, x - 1),
            "group norm": self.group(x),
            "layer_norm": self.layer(x),
            "layer_norm plain": self.plain(x),
            "batch_norm": self.batch(x),
            "reduce_mean": x.mean((1, 3), keepdim=True),
            "reduce_mean squeezed": x.mean(2),
            "concat split": torch.cat([c, b, a], dim=1),
            "chunk": torch.cat(x.chunk(2, dim=2)[::-1], dim=2),
            "expand_dims squeeze": x.squeeze(0).unsqueeze(2).unsqueeze(0).squeeze(3) * 2,
            "reshape transpose": tokens.transpose(1, 2).reshape(1, 8, 8, 4).permute(0, 3, 2, 1) * 3,
            "pixel_shuffle": F.pixel_shuffle(x, 2) + 1,
            "pixel_unshuffle": F.pixel_unshuffle(x, 4) + 1,
            "upsample": F.interpolate(x, scale_factor=2.0, mode="nearest") + 1,
            "pad replicate": F.pad(x, (1, 2, 3, 0), mode="replicate") + 1,
            "pad constant": F.pad(x, (1, 2, 3, 0, 0, 1), value=0.5) + 1,
        }


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    net = Everything()
    path = write(net, tmp_path_factory.mktemp("mil") / "e.mlpackage", precision="fp32")
    x = pictures()
    return Program(path), net, x, Program(path)(x=x)["y"]


def names():
    return list(Everything().parts(pictures()))


@pytest.mark.parametrize("name", names())
def test_an_operation_gives_what_torch_gives(everything, name):
    _, net, x, got = everything
    with torch.no_grad():
        parts = net.parts(x)
    start = sum(parts[n].numel() for n in list(parts)[: list(parts).index(name)])
    want = parts[name].flatten()
    torch.testing.assert_close(got[start : start + want.numel()], want, atol=2e-5, rtol=1e-5)


DYNAMIC = {"shape", "gather", "slice_by_size", "floor_div", "range_1d", "tile", "select", "equal"}
"""Operations that only a range of sizes needs: test_coreml.py compares a DiT that goes through all of them."""


def test_every_operation_of_the_table_is_compared_with_torch(everything):
    program, *_ = everything
    assert set(program.operations) >= mil_operations.OPERATIONS.keys() - DYNAMIC - {"cast"}


def test_an_operation_that_is_not_known_is_named(tmp_path):
    path = write(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ELU()), tmp_path / "u.mlpackage")
    with pytest.raises(ExportError, match=r"u.mlpackage: holds operations that the proof does not know: elu"):
        Program(path)


def test_half_precision_is_rounded_after_every_operation_and_the_bounds_are_kept(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return x.square() / 64 + 0.001

    program = Program(write(Net(), tmp_path / "h.mlpackage"))
    x = pictures(scale=10)
    want = ((x.half() * x.half()).float() / 64).half() + torch.tensor(0.001).half()
    torch.testing.assert_close(program(x=x)["y"], want.float(), atol=0, rtol=1e-3)
    assert (program(x=x)["y"] != Net()(x)).any()
    x[0, 0, 0, 0] = 257.0  # its square is 66,049
    with pytest.raises(HalfOverflowError, match=r"h.mlpackage: (square|mul) .* reaches 6.605e\+04, and fp16 ends at"):
        program(x=x)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(HalfOverflowError, match="reaches nan"):
        program(x=x)


def test_squares_inside_a_layer_norm_count(tmp_path):
    program = Program(write(nn.LayerNorm(8), tmp_path / "l.mlpackage"))
    assert "layer_norm" in program.operations
    program(x=pictures(scale=20))
    with pytest.raises(HalfOverflowError, match="layer_norm"):
        program(x=pictures(scale=400))


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.006), ("palette4", 0.25)])
def test_compressed_weights_are_decoded(tmp_path, precision, error):
    torch.manual_seed(5)
    net = nn.Conv2d(4, 300, 3, padding=1)
    program = Program(write(net, tmp_path / "c.mlpackage", precision=precision))
    stored = sum(f.stat().st_size for f in (tmp_path / "c.mlpackage" / WEIGHTS_FOLDER).iterdir())
    assert stored < net.weight.numel() * (0.7 if precision == "palette4" else 1.3)
    with torch.no_grad():
        want = net(pictures())
    apart = (program(x=pictures())["y"] - want).abs().max() / want.abs().max()
    assert 0 < apart < error


def test_a_damaged_package_says_so(tmp_path):
    path = write(nn.Conv2d(4, 64, 3), tmp_path / "d.mlpackage", precision="fp32")
    shutil.copytree(path, tmp_path / "e.mlpackage")
    (path / MODEL_FILE).write_bytes(b"no protobuf")
    with pytest.raises(ExportError, match=r"d.mlpackage: cannot be read back"):
        Program(path)
    (tmp_path / "e.mlpackage" / WEIGHTS_FOLDER / "weight.bin").unlink()
    with pytest.raises(ExportError, match=r"e.mlpackage: cannot be read back"):
        Program(tmp_path / "e.mlpackage")


def test_coremltools_reads_the_package_too(tmp_path):
    path = write(nn.Conv2d(4, 2, 1), tmp_path / "p.mlpackage")
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert [i.name for i in spec.description.input] == ["x"] and spec.specificationVersion == 8  # iOS 17
    assert np.prod(spec.description.output[0].type.multiArrayType.shape) == 128
