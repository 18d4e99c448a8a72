"""A third opinion: ONNX's own reference evaluator, in Python, agrees with PyTorch on the float32 graphs."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from rfp.export import onnx as export_onnx_module
from rfp.export.bundle import export_bundle
from rfp.export.graph import LARGEST, weight_bytes
from rfp.export.onnx import float32_graph, optimised_nodes
from rfp.export.source import open_source
from rfp.runtime import integrate
from rfp.runtime.pixels import to_float, to_uint8
from trainings import TINY, write_run

NETS = {
    "UNet": TINY["velocity_net"],
    "attention": TINY["velocity_net"] | {"attention_resolutions": [2], "num_attention_heads": 4},
    "fine": TINY["velocity_net"] | {"patch_size": 2, "fine_channels": 8},
    "DiT": {"type": "DiT", "patch_size": 2, "hidden_size": 16, "depth": 2, "num_attention_heads": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_onnx_s_own_evaluator_gives_the_same_pictures_and_low_precisions_pass(tmp_path, monkeypatch, net):
    source = open_source(write_run(tmp_path / "run", velocity_net=NETS[net]))
    model = float32_graph(source, "velocity")
    reference = ReferenceEvaluator(model)
    x = to_float(source.pictures[0][:1, :8, :12])

    def velocity(x, t):
        return reference.run(["velocity"], {"x": x, "t": np.array([t], np.float32)})[0]

    with torch.no_grad():
        want = integrate(lambda x, t: source.net(x, torch.full((1,), t)), torch.from_numpy(x), 2).numpy()
    got = integrate(velocity, x, 2)
    assert np.abs(want - x).max() > 0.1  # the net does something
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(to_uint8(got).astype(int) - to_uint8(want)).max() <= 1
    # It holds its weights, has no constant left to fold, and ONNX Runtime's optimiser takes it.
    assert 0 < weight_bytes(model) < LARGEST and not [n for n in model.graph.node if n.op_type == "Constant"]
    onnx.save(model, tmp_path / "v.onnx")
    assert optimised_nodes(tmp_path / "v.onnx") > 0
    # The same graph in half precision and in 8 bits, through the whole export.
    monkeypatch.setattr(export_onnx_module, "float32_graph", lambda source, role: model)
    outcomes = export_bundle(tmp_path / "run", tmp_path / "b", precisions=["fp16", "int8"])
    assert [o.error for o in outcomes] == [None, None]
    assert [o.parity.psnr >= floor for o, floor in zip(outcomes, (50, 30), strict=True)] == [True, True]
    assert outcomes[1].graphs[0].about["layers"] > 2 * len(outcomes[1].graphs[0].about["left_in_float"])
