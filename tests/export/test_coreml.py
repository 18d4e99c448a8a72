"""Core ML packages of rfp's nets, from a checkpoint to a bundle, proven by the evaluator of their MIL programs."""

import shutil
import sys
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.cli.main import app
from rfp.export import coreml, mlpackage
from rfp.export.bundle import export_bundle
from rfp.export.coreml import CoreML, coreml_maker, images_maker
from rfp.export.mil import MODEL_FILE, WEIGHTS_FOLDER, Program
from rfp.export.proof import make_cases, prove
from rfp.export.sizes import Sizes
from rfp.export.source import open_source
from rfp.runtime import BundleError, ExportError, UsageError, load_bundle, translate
from rfp.runtime.bundle import digest
from rfp.runtime.coreml import by_batch
from rfp.runtime.manifest import Manifest
from rfp.runtime.options import FlowOptions
from rfp.runtime.velocity import Velocity
from rfp.train import checkpoint as ckpt
from test_mil import DYNAMIC
from trainings import LATENT, TINY, noisy, write_run
from typer.testing import CliRunner

Model_pb2 = pytest.importorskip("coremltools.proto.Model_pb2", reason="pip install 'rfp[coreml]'")
ATTENTION = TINY["velocity_net"] | {"attention_resolutions": [2], "num_attention_heads": 4}
DIT = {"type": "DiT", "patch_size": 2, "hidden_size": 16, "depth": 1, "num_attention_heads": 2}
SMALL = {"type": "UNet", "model_channels": 8, "ch_mult": [1], "num_res_blocks": 1}
FINE = SMALL | {"patch_size": 2, "fine_channels": 4, "seamless": True}
SQUARE = Sizes(((16, 16),))
pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac Core ML itself is asked")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), velocity_net=SMALL)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "bundle"
    more = {"licence": "CC0-1.0", "author": "A. Uthor", "coreml_images": True}
    export_bundle(run, output, formats=["coreml"], **more)
    return output


def made(run, folder, taken=SQUARE, precision="fp32", batch=1, **options):
    source = open_source(run, **options)
    maker = coreml_maker(source, CoreML(taken, batch), lambda text: None)
    folder.mkdir()
    return source, maker(precision, folder)


def parity(source, graphs):
    cases = [case for case in make_cases(source) if graphs.takes(case)]
    assert cases
    return prove(cases, graphs, source.manifest.default_steps)


def test_the_manifest_says_what_was_proven_and_that_core_ml_was_not_asked(bundle):
    manifest = Manifest.from_json((bundle / "rfp.json").read_text())
    velocity, translation = manifest.graphs
    assert (velocity.file, velocity.format, velocity.precision) == ("velocity.mlpackage", "coreml", "fp16")
    assert (translation.file, translation.role) == ("translate.mlpackage", "translation")
    assert velocity.floor == {"psnr": 50.0} and velocity.parity["psnr"] >= 50
    assert velocity.parity["cases"] == 4 and translation.parity["cases"] == 2
    assert velocity.about == {
        "predicted": False,
        "sizes": "16x16",
        "batch": 1,
        "from": "macOS 14, iOS 17",
        "float32": ["time embedding"],
    }
    assert translation.about["steps"] == 2
    for graph in manifest.graphs:
        assert digest(bundle / graph.file) == (graph.sha256, graph.bytes)


def spec_of(package):
    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL_FILE).read_bytes())
    return spec


def test_a_package_describes_itself(bundle):
    spec = spec_of(bundle / "velocity.mlpackage")
    said = spec.description.metadata
    assert (said.author, said.license) == (
        "A. Uthor",
        "CC0-1.0",
    ) and "from dark (t = 0) to bright" in said.shortDescription
    manifest = Manifest.from_json(dict(said.userDefined)["rfp"])
    assert manifest == replace(Manifest.from_json((bundle / "rfp.json").read_text()), graphs=())
    x, t = spec.description.input
    assert list(x.type.multiArrayType.shape) == [1, 3, 16, 16] and "RGB in [-1, 1]" in x.shortDescription
    assert list(t.type.multiArrayType.shape) == [1] and "Time" in t.shortDescription
    (out,) = spec.description.output
    assert out.name == "velocity" and out.shortDescription
    float32 = 65568
    assert {v.type.multiArrayType.dataType for v in (x, t, out)} == {float32}


def test_pictures_go_in_and_come_out(bundle):
    spec = spec_of(bundle / "translate.mlpackage")
    (given,), (out,) = spec.description.input, spec.description.output
    for picture in (given.type.imageType, out.type.imageType):
        assert (picture.width, picture.height, picture.colorSpace) == (16, 16, 20)  # RGB
    got = Program(bundle / "translate.mlpackage")(image=torch.full((1, 3, 16, 16), 200.0))["translation"]
    assert got.min() >= 0 and got.max() <= 255 and (got == got.round()).all()


@pytest.mark.extra
def test_nothing_of_this_machine_is_in_the_package_and_the_bytes_repeat(run, bundle, tmp_path):
    files = [p for p in (bundle / "velocity.mlpackage").rglob("*") if p.is_file()]
    assert len(files) == 3
    for file in files:
        for trace in (b".py", b"/work", b"/root", b"/tmp", b"/home", b"site-packages", b"Traceback"):
            assert trace not in file.read_bytes(), (file, trace)
    export_bundle(run, tmp_path / "b", formats=["coreml"], licence="CC0-1.0", author="A. Uthor")
    again = tmp_path / "b" / "velocity.mlpackage"
    assert digest(again) == digest(bundle / "velocity.mlpackage")


def test_a_corrupted_weight_fails_the_proof(run, tmp_path, monkeypatch):
    """The proof reads what lies on the disk: one of its bytes is enough."""
    write = mlpackage._save

    def corrupt(model, path):
        write(model, path)
        weights = path / WEIGHTS_FOLDER / "weight.bin"
        data = bytearray(weights.read_bytes())
        halves = np.frombuffer(data, np.float16).copy()
        halves[len(halves) // 2] = 100.0
        weights.write_bytes(halves.tobytes())

    monkeypatch.setattr(mlpackage, "_save", corrupt)
    with pytest.raises(ExportError, match=r"velocity.mlpackage: not kept: .* dB below its floor of 50 dB"):
        export_bundle(run, tmp_path / "b", formats=["coreml"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extra
def test_what_overflows_in_fp16_is_made_again_with_normalisations_in_float32(tmp_path):
    run = write_run(tmp_path / "run", velocity_net=SMALL)
    whole = ckpt.load(ckpt.find(run))
    whole.tensors["velocity_ema.stem.weight"].mul_(2000)
    ckpt.save(tmp_path / "loud.safetensors", whole, {})
    notes = []
    (outcome,) = export_bundle(tmp_path / "loud.safetensors", tmp_path / "b", formats=["coreml"], note=notes.append)
    assert any("reaches" in n and "making it again with normalisations in float32" in n for n in notes)
    assert outcome.parity.psnr >= 50
    assert outcome.graphs[0].about["float32"] == ["time embedding", "normalisations"]


@pytest.mark.extra
def test_a_dit_takes_all_sizes_between_two(tmp_path):
    run = write_run(tmp_path / "run", velocity_net=DIT)
    source, graphs = made(run, tmp_path / "p", Sizes(((16, 16),), (8, 32)), between=(8, 32))
    assert set(Program(tmp_path / "p" / "velocity.fp32.mlpackage").operations) >= DYNAMIC - {"slice_by_size"}
    assert source.sizes == ((16, 16), (8, 8), (16, 18))
    found = parity(source, graphs)
    assert found.psnr >= 80 and found.cases == 8


@pytest.mark.extra
def test_a_seamless_net_takes_all_sizes_between_two(tmp_path):
    run = write_run(tmp_path / "run", velocity_net=FINE)
    source, graphs = made(run, tmp_path / "p", Sizes(((16, 16),), (8, 32)), between=(8, 32))
    assert "pad" in Program(tmp_path / "p" / "velocity.fp32.mlpackage").operations
    found = parity(source, graphs)
    assert found.psnr >= 80 and found.cases == 8


@pytest.mark.extra
def test_attention_takes_several_sizes_and_a_batch(tmp_path):
    run = write_run(tmp_path / "run", velocity_net=ATTENTION)
    sizes = ((16, 16), (24, 16))
    source, graphs = made(run, tmp_path / "p", Sizes(((16, 16), (16, 24))), batch=3, sizes=sizes)
    spec = spec_of(tmp_path / "p" / "velocity.fp32.mlpackage")
    x = spec.description.input[0].type.multiArrayType
    assert sorted(tuple(s.shape) for s in x.enumeratedShapes.shapes) == [(3, 3, 16, 16), (3, 3, 16, 24)]
    assert "slice_by_size" in Program(tmp_path / "p" / "velocity.fp32.mlpackage").operations
    found = parity(source, graphs)
    assert found.psnr >= 80 and found.cases == 6


@pytest.mark.extra
def test_a_latent_model_has_three_packages(tmp_path):
    run = write_run(tmp_path / "run", velocity_net=SMALL, **LATENT)
    source, graphs = made(run, tmp_path / "p", precision="fp16")
    assert graphs.files == {role: f"{role}.mlpackage" for role in ("velocity", "encoder", "decoder")}
    shapes = {role: spec_of(tmp_path / "p" / file).description.input[0].type for role, file in graphs.files.items()}
    assert list(shapes["velocity"].multiArrayType.shape) == [1, 3, 8, 8]
    assert list(shapes["encoder"].multiArrayType.shape) == [1, 3, 16, 16]
    found = parity(source, graphs)
    assert found.psnr >= 50 and found.cases == 4


def test_a_pair_that_breaks_is_named_with_the_one_that_works(run, tmp_path, monkeypatch):
    monkeypatch.setattr("coremltools.convert", lambda *a, **k: {}["sym_float"])
    with pytest.raises(ExportError) as e:
        export_bundle(run, tmp_path / "b", formats=["coreml"])
    version = torch.__version__
    assert f"could not convert what torch {version} exported ('sym_float')" in str(e.value)
    assert "the pair known to work is coremltools 9.0 with torch 2.13.0" in str(e.value)


def test_the_pair_known_to_work_is_the_one_tested_with():
    from importlib.metadata import version

    assert {name: version(name).partition("+")[0] for name in mlpackage.KNOWN_PAIR} == mlpackage.KNOWN_PAIR


def rfp(*args):
    return CliRunner().invoke(app, ["export", *map(str, args)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sizes", "20..9"), "wanted two multiples of 1, the smaller first"),
        (("--sizes", "a..b"), "is no range"),
        (("--sizes", "8..16,16..32"), "wanted one range"),
        (("--sizes", "7"), "wanted multiples of"),
        (
            ("--precision", "palette5"),
            "'palette5' is not known for coreml; wanted one or more of fp32, fp16, int8, pal",
        ),
    ],
)
def test_wrong_options_are_named(run, tmp_path, options, said):
    result = rfp(run, "-o", tmp_path / "b", "--format", "coreml", *options)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.output


def test_options_of_core_ml_without_it_are_refused(run, tmp_path):
    result = rfp(run, "-o", tmp_path / "b", "--coreml-images")
    assert result.exit_code == 2 and "are for --format coreml" in result.stderr
    source = open_source(write_run(tmp_path / "g", velocity_net=SMALL, generative=True))
    with pytest.raises(UsageError, match="makes them from noise"):
        images_maker(source, CoreML(SQUARE), print)


def test_a_missing_coremltools_is_named_with_its_pip_line(run, tmp_path, monkeypatch):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda m: None if m == "coremltools" else find_spec(m))
    result = rfp(run, "-o", tmp_path / "b", "--format", "coreml")
    assert result.exit_code == 2 and "pip install 'rfp[coreml]'" in result.stderr


class InPlaceOfCoreML:
    """What rfp.runtime.coreml.Package is, with answers that come from the evaluator."""

    asked: ClassVar[list[tuple[int, ...]]] = []
    batch = 1

    def __init__(self, path, takes, gives, *, image=False):
        self.program, self.takes, self.gives = Program(path), takes, gives

    def __call__(self, x, *shared):
        self.asked.append(x.shape)

        def run(x):
            given = dict(zip(self.takes, map(torch.from_numpy, (x, *shared)), strict=True))
            return self.program(**given)[self.gives].numpy()

        return by_batch(run, x, 1)


@pytest.mark.extra
def test_on_a_mac_core_ml_itself_is_asked(run, tmp_path, monkeypatch):
    """Everything but Core ML: in the place of its package, one whose answers come from the evaluator."""
    monkeypatch.setattr(coreml, "on_a_mac", lambda: True)
    monkeypatch.setattr(coreml, "Package", InPlaceOfCoreML)
    (outcome,) = export_bundle(run, tmp_path / "b", formats=["coreml"])
    assert outcome.graphs[0].about["predicted"] is True and InPlaceOfCoreML.asked


def test_a_bundle_without_onnx_says_what_runs_it(bundle):
    with pytest.raises(BundleError, match="has Core ML packages only: --device coreml runs them on a Mac"):
        load_bundle(bundle)
    loaded = load_bundle(bundle, device="coreml")
    assert loaded.packages == {"velocity": bundle / "velocity.mlpackage"}
    with pytest.raises(UsageError, match="--device coreml needs macOS 14 or later"):
        Velocity(loaded, "coreml")


def test_a_package_that_was_changed_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    model = tmp_path / "b" / "velocity.mlpackage" / MODEL_FILE
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"velocity.mlpackage: damaged or changed since its export"):
        load_bundle(tmp_path / "b", device="coreml")
    shutil.rmtree(tmp_path / "b" / "velocity.mlpackage")
    with pytest.raises(BundleError, match=r"velocity.mlpackage: cannot be read"):
        load_bundle(tmp_path / "b", device="coreml")


def test_pictures_are_translated_by_the_packages_of_a_bundle(bundle, tmp_path, monkeypatch):
    """All of `--device coreml` but Core ML."""
    monkeypatch.setattr("rfp.runtime.velocity.Package", InPlaceOfCoreML)
    Image.fromarray(noisy(90, 3, (16, 16))).save(tmp_path / "a.png")
    report = translate(bundle, [tmp_path / "a.png"], tmp_path / "out", flow=FlowOptions(device="coreml"))
    assert len(report.done) == 1 and not report.failed
    picture = np.asarray(Image.open(tmp_path / "a.png"), np.float32).transpose(2, 0, 1)[None]
    want = Program(bundle / "translate.mlpackage")(image=torch.from_numpy(picture))["translation"][0].permute(1, 2, 0)
    assert np.abs(np.asarray(Image.open(tmp_path / "out" / "a.png")) - want.numpy()).max() <= 2
