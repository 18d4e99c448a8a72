"""What the tests of exporting share: a run, its bundle in every precision, each made once."""

import onnx
import pytest
from rfp.export import onnx as export_onnx_module
from rfp.export.bundle import export_bundle
from trainings import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("r ü n"))


@pytest.fixture(scope="session")
def bundle(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "bundle"
    export_bundle(run, output, precisions=["fp32", "fp16", "int8"], licence="CC0-1.0", provenance="noise")
    return output


@pytest.fixture
def quick(bundle, monkeypatch):
    """Exporting takes torch seconds: where something else is tested, the graph is the one that is there."""
    monkeypatch.setattr(export_onnx_module, "float32_graph", lambda source, role: onnx.load(bundle / f"{role}.onnx"))
