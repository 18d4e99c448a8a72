import hashlib
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from rfp.cli.main import app
from rfp.export import onnx as export_onnx_module
from rfp.export.bundle import export_bundle
from rfp.export.proof import FLOORS, Case, Floor, Made, Parity, make_cases, prove, psnr, shortfall
from rfp.export.source import open_source
from rfp.runtime import CheckpointError, ExportError, UsageError, generate, integrate, load_bundle
from rfp.runtime.codec import Identity
from rfp.runtime.manifest import METADATA_KEY
from rfp.runtime.noise import noises
from rfp.runtime.pixels import to_float, to_uint8
from rfp.runtime.velocity import Velocity
from rfp.train import checkpoint as ckpt
from rfp.train.config import to_json, without_folders
from trainings import TINY, tiny, write_run
from typer.testing import CliRunner

ATTENTION = TINY["velocity_net"] | {
    "attention_resolutions": [2],
    "num_attention_heads": 4,
    "normalization": "LayerNorm",
}
DIT = {"type": "DiT", "patch_size": 2, "hidden_size": 16, "depth": 2, "num_attention_heads": 2}


def session(bundle):
    return onnxruntime.InferenceSession(str(bundle / "velocity.onnx"), providers=["CPUExecutionProvider"])


def pictures(b, h, w):
    return (torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(2)) * 2 - 1).numpy()


def test_the_bundle_says_what_it_is_and_what_was_measured(run, bundle):
    manifest = load_bundle(bundle).manifest
    assert (manifest.name, manifest.domains) == ("dark-to-bright", ("dark", "bright"))
    assert (manifest.image_size, manifest.multiple, manifest.default_steps) == (16, 2, 2)
    assert (manifest.licence, manifest.provenance) == ("CC0-1.0", "noise")
    assert manifest.training == {"step": 9, "images": 45, "config": to_json(tiny())}
    graph, *lower = manifest.graphs
    assert {g.precision for g in lower} == {"fp16", "int8"}
    data = (bundle / "velocity.onnx").read_bytes()
    assert (graph.sha256, graph.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (graph.format, graph.role, graph.below_floor) == ("onnx", "velocity", False)
    assert graph.floor == {"psnr": 80, "grey_levels": 1} == FLOORS["onnx", "fp32"].figures()
    assert graph.parity["psnr"] >= 80 and graph.parity["grey_levels"] <= 1
    assert graph.parity["cases"] == 6
    assert {p.name for p in bundle.iterdir()} == {"rfp.json", *(g.file for g in manifest.graphs)}


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16), (2, 2, 2), (1, 10, 26), (5, 34, 6)])
def test_the_graph_is_the_averaged_net_at_any_batch_height_and_width(run, bundle, shape):
    net, x = ckpt.load(ckpt.find(run)).velocity(), pictures(*shape)
    for t in (0.0, 0.37, 1.0):
        (got,) = session(bundle).run(["velocity"], {"x": x, "t": np.array([t], np.float32)})
        with torch.no_grad():
            want = net(torch.from_numpy(x), torch.full((1,), t)).numpy()
        assert got.dtype == np.float32 and got.shape == x.shape and np.abs(want).max() > 0.05
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=1e-4)


FOLDED = TINY["velocity_net"] | {"patch_size": 2, "activation": "GELU"}
OLDER = FOLDED | {"fine_channels": 4, "seamless": False}


@pytest.mark.parametrize("net", [ATTENTION, FOLDED, FOLDED | {"fine_channels": 4}, OLDER, DIT])
def test_other_nets_export_and_pass_their_proof(tmp_path, net):
    (outcome,) = export_bundle(write_run(tmp_path / "run", velocity_net=net), tmp_path / "b")
    assert outcome.parity.psnr >= 80 and outcome.parity.cases == 6
    checkpoint = ckpt.load(ckpt.find(tmp_path / "run"))
    for shape in ((3, 8, 20), (1, 16, 16), (2, 40, 4)):
        x = pictures(*shape)
        (got,) = session(tmp_path / "b").run(["velocity"], {"x": x, "t": np.array([0.4], np.float32)})
        with torch.no_grad():
            want = checkpoint.velocity()(torch.from_numpy(x), torch.tensor([0.4])).numpy()
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_nothing_of_this_machine_is_in_the_graph(bundle):
    data = (bundle / "velocity.onnx").read_bytes()
    for trace in (b".py", b"/work", b"/root", b"/tmp", b"/home", b"site-packages", b"stack_trace", b"Traceback"):
        assert trace not in data, trace
    text = (bundle / "rfp.json").read_text()
    assert not re.search(r"/(work|root|tmp|home)", text)


def test_no_folder_of_weights_is_in_the_manifest(tmp_path):
    backbone = {"type": "ResNetSaliencyNet", "backbone": "resnet18", "weights": "C:\\me\\resnet.pth"}
    config = to_json(
        tiny(structure_embedder="dinov2_vits14", structure_weights="/home/me/dino.pth", saliency_net=backbone)
    )
    shown = without_folders(config)
    assert (shown["structure_weights"], shown["saliency_net"]["weights"]) == ("dino.pth", "resnet.pth")
    assert "home" not in json.dumps(shown)
    changed = {k for k in config if shown[k] != config[k]}
    assert changed == {"structure_weights", "saliency_net"}


def test_a_lone_graph_describes_itself(bundle):
    model = onnx.load(bundle / "velocity.onnx")
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata.keys() == {METADATA_KEY} and json.loads(metadata[METADATA_KEY])["domains"] == ["dark", "bright"]
    assert [i.name for i in model.graph.input] == ["x", "t"] and [o.name for o in model.graph.output] == ["velocity"]
    assert load_bundle(bundle / "velocity.onnx").manifest == replace(load_bundle(bundle).manifest, graphs=())


def test_exporting_again_gives_the_same_bytes(run, bundle, tmp_path):
    export_bundle(ckpt.find(run), tmp_path / "again", licence="CC0-1.0", provenance="noise")
    assert (tmp_path / "again" / "velocity.onnx").read_bytes() == (bundle / "velocity.onnx").read_bytes()


def damage(model, factor):
    """Scale one weight of the graph's middle."""
    weights = [i for i in model.graph.initializer if len(i.dims) == 4]
    weight = weights[len(weights) // 2]
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model


@pytest.fixture
def damaged(bundle, monkeypatch):
    def by(factor):
        model = damage(onnx.load(bundle / "velocity.onnx"), factor)
        monkeypatch.setattr(export_onnx_module, "float32_graph", lambda source, role: model)

    return by


@pytest.mark.parametrize("factor", [-1.0, float("nan")])
def test_one_damaged_weight_fails_the_proof_and_leaves_nothing(run, tmp_path, damaged, factor):
    damaged(factor)
    with pytest.raises(ExportError, match=r"(?s)velocity.onnx: not kept: .* dB below its floor of 80 dB.*nothing was"):
        export_bundle(run, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_below_its_floor_is_kept_where_that_is_asked_and_says_so(run, tmp_path, damaged):
    damaged(-1.0)
    result = rfp(run, "-o", tmp_path / "b", "--allow-below-floor")
    assert result.exit_code == 0 and "BELOW ITS FLOOR" in result.stdout
    (graph,) = load_bundle(tmp_path / "b").manifest.graphs
    assert graph.below_floor and graph.parity["psnr"] < graph.floor["psnr"] == 80


def test_a_failed_export_leaves_the_old_bundle(run, tmp_path, quick, monkeypatch):
    export_bundle(run, tmp_path / "b", name="old")
    monkeypatch.undo()
    monkeypatch.setattr("torch.onnx.export", lambda *a, **k: 1 / 0)
    with pytest.raises(ExportError, match="could not export this net: division by zero"):
        export_bundle(run, tmp_path / "b", overwrite=True)
    assert load_bundle(tmp_path / "b").manifest.name == "old" and [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_proof_covers_both_directions_two_shapes_and_batches(run):
    source, calls = open_source(run), []
    source.net.register_forward_hook(
        lambda module, inputs, out: calls.append((tuple(inputs[0].shape), inputs[1].item()))
    )
    cases = make_cases(source)
    assert {shape for shape, _ in calls} == {(4, 3, 16, 16), (1, 3, 16, 16), (1, 3, 18, 16)}
    assert [t for _, t in calls[:2]] == [0.0, 0.5] and [t for _, t in calls[-2:]] == [1.0, 0.5]
    np.testing.assert_array_equal(cases[0].x[:3], to_float(source.pictures[0]))
    np.testing.assert_array_equal(cases[3].x[:3], to_float(source.pictures[1]))
    asked = make_cases(open_source(run, sizes=[(24, 10), (16, 16)], steps=3))
    assert [c.x.shape for c in asked[:3]] == [(4, 3, 10, 24), (1, 3, 10, 24), (1, 3, 16, 16)]


@pytest.mark.parametrize("size", [(15, 16), (4, 16), (16, 20000)])
def test_sizes_that_the_net_cannot_take_are_refused(run, size):
    with pytest.raises(UsageError, match=rf"{size[0]}x{size[1]}: wanted multiples of 2 from 8 to 16384"):
        open_source(run, sizes=[size])


def test_the_figure_is_that_of_the_whole_integration(run, bundle):
    """The last state by torch and by the runtime, compared by hand."""
    checkpoint = ckpt.load(ckpt.find(run))
    net, loaded = checkpoint.velocity(), load_bundle(bundle)
    x = to_float(checkpoint.part("samples")["domain0"].numpy())
    with torch.no_grad():
        want = integrate(lambda x, t: net(x, torch.full((1,), t)), torch.from_numpy(x), 2).numpy()
    got = integrate(Velocity(loaded, "cpu"), x, 2)
    by_hand = 10 * np.log10(4 / np.mean((want - got).astype(np.float64) ** 2))
    assert loaded.manifest.graphs[0].parity["psnr"] <= by_hand + 1 and by_hand > 100


def test_the_proof_is_of_the_worst_case_and_follows_each_from_its_own_end():
    """By graphs of v = 1: what begins at t = 0 ends 1 higher, what begins at 1 ends 1 lower."""
    x = np.full((1, 3, 4, 4), 0.5, np.float32)
    cases = [Case(-x, 0, False, (4, 4), x), Case(x, 1, False, (4, 4), np.float32(0.02) - x)]
    made = Made({}, lambda x, t: np.ones_like(x), Identity())
    for order in (cases, cases[::-1]):
        assert prove(order, made, 3) == Parity(40.0, 2, 3, 2)
    assert psnr(x, x) == 200 and psnr(x, x * np.nan) == 0


def test_a_floor_is_missed_by_either_figure():
    floor = Floor(80.0, 1)
    assert shortfall(Parity(80.0, 1, 6, 2), floor) is None
    assert "0.5 dB below its floor of 80 dB" in str(shortfall(Parity(79.5, 1, 6, 2), floor))
    assert "1 above its bound of 1 grey levels" in str(shortfall(Parity(90.0, 2, 6, 2), floor))
    assert shortfall(Parity(90.0, 99, 6, 2), Floor(80.0)) is None


def test_an_output_that_is_there_is_kept_unless_it_is_a_bundle_and_overwrite(run, bundle, tmp_path, quick):
    output = tmp_path / "b"
    output.mkdir()
    (output / "diary.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"is there already|is not a bundle"):
            export_bundle(run, output, overwrite=overwrite)
    file = tmp_path / "file"
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            export_bundle(run, file, overwrite=overwrite)
    assert (output / "diary.txt").read_text() == file.read_text() == "mine"
    with pytest.raises(UsageError, match="--overwrite"):
        export_bundle(run, bundle)
    export_bundle(run, tmp_path / "c", name="old")
    export_bundle(run, tmp_path / "c", name="new", overwrite=True)
    assert load_bundle(tmp_path / "c").manifest.name == "new" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_says_that_the_output_is_as_it_was(run, bundle, tmp_path, monkeypatch, there):
    def pressed(*args):
        raise KeyboardInterrupt

    if there:
        shutil.copytree(bundle, tmp_path / "b")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("rfp.export.bundle.prove", pressed)
    result = rfp(run, "-o", tmp_path / "b", "--overwrite")
    said = f"rfp: interrupted; {tmp_path / 'b'} is as it was before; the same command begins anew"
    assert result.exit_code == 130 and said in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["notes.txt", "sub/a.png", "ort/mine.js", "my-velocity.onnx", "velocity.onnx.bak"])
def test_overwrite_deletes_nothing_that_no_export_has_written(run, bundle, tmp_path, name):
    output = tmp_path / "b"
    shutil.copytree(bundle, output)
    mine = output / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match=rf"b: holds .*{name.partition('/')[0]}.* beside the bundle"):
        export_bundle(run, output, overwrite=True)
    assert mine.read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_overwrite_replaces_an_export_of_any_format_and_precision(run, bundle, tmp_path, quick):
    output = tmp_path / "b"
    shutil.copytree(bundle, output)
    names = ["velocity.int8.onnx", "encoder.onnx", "decoder.fp16.onnx.data", "translate.palette6.mlpackage/a"]
    for name in (*names, "velocity.mlpackage/b", "index.html", "ort/LICENSE", ".DS_Store"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("old")
    export_bundle(run, output, overwrite=True)
    assert {path.name for path in output.iterdir()} == {"rfp.json", "velocity.onnx"}


def test_a_checkpoint_that_holds_no_velocity_is_named(tmp_path):
    early = write_run(tmp_path / "early", "saliency")
    with pytest.raises(CheckpointError, match=re.escape(f"{ckpt.find(early)}: ")):
        export_bundle(early, tmp_path / "b")


def test_a_checkpoint_that_holds_no_velocity_or_no_samples_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="from the saliency phase: it holds no velocity net yet; train on"):
        export_bundle(write_run(tmp_path / "early", "saliency"), tmp_path / "b")
    whole = ckpt.load(ckpt.find(run))
    without = {k: v for k, v in whole.tensors.items() if not k.startswith("samples")}
    ckpt.save(tmp_path / "w.safetensors", replace(whole, tensors=without), {})
    with pytest.raises(CheckpointError, match="no sample pictures"):
        export_bundle(tmp_path / "w.safetensors", tmp_path / "b")
    good = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    for odd in (good[:0], good[..., :1], good[0, 0, 0], good[0], good.float(), good.long(), good.bfloat16()):
        tensors = whole.tensors | {"samples.domain0": odd}
        ckpt.save(tmp_path / "w.safetensors", replace(whole, tensors=tensors), {})
        with pytest.raises(CheckpointError, match="sample pictures are damaged"):
            export_bundle(tmp_path / "w.safetensors", tmp_path / "b")
    with pytest.raises(UsageError, match="nowhere"):
        export_bundle(tmp_path / "nowhere", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_generative_bundle_says_so_and_is_proven_from_noise_and_from_pictures(tmp_path, monkeypatch):
    calls, velocity = [], ckpt.Checkpoint.velocity

    def watched(checkpoint):
        net = velocity(checkpoint)
        net.register_forward_hook(lambda module, inputs, out: calls.append((inputs[1], inputs[0].detach())))
        return net

    run = write_run(tmp_path / "run", generative=True)
    monkeypatch.setattr(ckpt.Checkpoint, "velocity", watched)
    (outcome,) = export_bundle(run, tmp_path / "b")
    assert outcome.parity.cases == 6 and outcome.parity.psnr >= 80
    manifest = load_bundle(tmp_path / "b").manifest
    assert manifest.generative and (manifest.name, manifest.domains) == ("bright", ("random", "bright"))
    assert load_bundle(tmp_path / "b" / "velocity.onnx").manifest.generative
    np.testing.assert_array_equal(calls[0][1].numpy(), noises((3, 16, 16), 0, range(4)))
    assert [t.item() for t, _ in calls[:12]] == [0.0, 0.5] * 3 + [1.0, 0.5] * 3
    picture = to_float(ckpt.load(ckpt.find(run)).part("samples")["domain1"].numpy())
    np.testing.assert_array_equal(calls[6][1].numpy()[:3], picture)

    # The same bytes whatever the batch and so however many threads a call has, and what torch makes of the noise.
    for batch in (1, 2, 5):
        generate(tmp_path / "b", tmp_path / f"{batch}", 5, seed=3, batch=batch, device="cpu")
    for i in range(5):
        files = [(tmp_path / f"{batch}" / f"seed-3-{i:06d}.png").read_bytes() for batch in (1, 2, 5)]
        assert files[0] == files[1] == files[2]
    net = velocity(ckpt.load(ckpt.find(run)))
    with torch.no_grad():
        x = integrate(lambda x, t: net(x, torch.full((1,), t)), torch.from_numpy(noises((3, 16, 16), 3, range(5))), 2)
    with Image.open(tmp_path / "2" / "seed-3-000004.png") as image:
        assert np.abs(np.asarray(image).astype(int) - to_uint8(x.numpy())[4]).max() <= 1


def test_a_generative_checkpoint_without_pictures_is_refused(tmp_path):
    whole = ckpt.load(ckpt.find(write_run(tmp_path / "run", generative=True)))
    without = {k: v for k, v in whole.tensors.items() if not k.startswith("samples")}
    ckpt.save(tmp_path / "w.safetensors", replace(whole, tensors=without), {})
    with pytest.raises(CheckpointError, match="no sample pictures"):
        export_bundle(tmp_path / "w.safetensors", tmp_path / "b")


def rfp(*args):
    return CliRunner().invoke(app, ["export", *map(str, args)])


def test_the_command_exports_and_says_the_figure(run, tmp_path, quick):
    options = ("--name", "my net", "--licence", "MIT", "--provenance", "my own")
    result = rfp(run, "-o", tmp_path / "b", *options)
    assert result.exit_code == 0 and re.search(
        r"onnx fp32: velocity.onnx \(0.2 MB\), \d+\.\d dB to PyTorch over 2 steps", result.stdout
    )
    manifest = load_bundle(tmp_path / "b").manifest
    assert (manifest.name, manifest.licence, manifest.provenance) == ("my net", "MIT", "my own")
    assert rfp(run, "-o", tmp_path / "b").exit_code == 2
    assert rfp(run, "-o", tmp_path / "b", "--overwrite").exit_code == 0
    assert load_bundle(tmp_path / "b").manifest.name == "dark-to-bright"


def test_errors_of_the_command_have_codes_and_no_traceback(run, tmp_path, monkeypatch):
    result = rfp(tmp_path / "nowhere", "-o", tmp_path / "b")
    assert result.exit_code == 2 and "no such run folder" in result.stderr and "Traceback" not in result.output
    monkeypatch.setattr("torch.onnx.export", lambda *a, **k: 1 / 0)
    result = rfp(run, "-o", tmp_path / "b")
    assert result.exit_code == 1 and "could not export" in result.stderr and result.stdout == ""


def test_a_missing_extra_is_named_with_its_pip_line(run, tmp_path, monkeypatch):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda m: None if m == "onnxscript" else find_spec(m))
    result = rfp(run, "-o", tmp_path / "b")
    assert result.exit_code == 2 and "exporting needs onnxscript: pip install 'rfp[export]'" in result.stderr


def test_the_best_checkpoint_is_exported_where_it_is_asked_for(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    newest = ckpt.find(tmp_path / "run")
    with pytest.raises(UsageError, match=r"has no best.safetensors, which runs with eval_every keep"):
        open_source(tmp_path / "run", best=True)
    ckpt.save(newest.with_name("best.safetensors"), replace(ckpt.load(newest), step=4), {})
    assert [open_source(tmp_path / "run", best=best).manifest.training["step"] for best in (False, True)] == [9, 4]
    with pytest.raises(UsageError, match=r"is one checkpoint; --best chooses among those of a run folder"):
        open_source(newest, best=True)

    def stop(source):
        raise ExportError("far enough")

    monkeypatch.setattr("rfp.export.bundle.make_cases", stop)
    notes = []
    for source, best in ((tmp_path / "run", False), (tmp_path / "run", True), (newest, False)):
        with pytest.raises(ExportError, match="far enough"):
            export_bundle(source, tmp_path / "b", best=best, note=notes.append)
    assert [note.split(", ", 1)[1] for note in notes] == [
        "its newest checkpoint, step 9 (--best exports the one of its lowest KID)",
        "step 4",
        "step 9",
    ]
