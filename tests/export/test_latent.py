"""Latent models: three graphs, one bundle, from checkpoint to translated pictures and films."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from films import write_video
from PIL import Image
from rfp.export import onnx as export_onnx_module
from rfp.export.bundle import export_bundle
from rfp.runtime import (
    BundleError,
    ExportError,
    FlowOptions,
    Manifest,
    MediaError,
    Translator,
    generate,
    integrate,
    load_bundle,
    translate,
)
from rfp.runtime.codec import LatentCodec, open_codec
from rfp.runtime.flow import Flow
from rfp.runtime.manifest import METADATA_KEY, Latent
from rfp.runtime.noise import noises
from rfp.runtime.pixels import pad_to_multiple, to_float, to_uint8
from rfp.runtime.velocity import Velocity
from rfp.train import checkpoint as ckpt
from trainings import LATENT, noisy, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), **LATENT)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "bundle"
    export_bundle(run, output)
    return output


def edit(folder, change):
    values = json.loads((folder / "rfp.json").read_text())
    change(values)
    (folder / "rfp.json").write_text(json.dumps(values))


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def by_torch(run, images, steps=2, t0=0.0, t1=1.0):
    checkpoint = ckpt.load(ckpt.find(run))
    v, codec = checkpoint.velocity(), checkpoint.codec()
    h, w = images.shape[1:3]
    x = torch.from_numpy(pad_to_multiple(to_float(images), 4))
    with torch.no_grad():
        z = integrate(lambda x, t: v(x, torch.full((1,), t)), codec.encode(x), steps, t0, t1)
        return to_uint8(codec.decode(z).numpy())[:, :h, :w]


def test_the_bundle_says_which_graph_does_what_and_all_passed_the_proof(bundle):
    manifest = load_bundle(bundle).manifest
    assert (manifest.latent, manifest.multiple, manifest.image_size) == (Latent(3, 2), 4, 16)
    assert [(g.file, g.role) for g in manifest.graphs] == [(f"{r}.onnx", r) for r in ("velocity", "encoder", "decoder")]
    for graph in manifest.graphs:
        data = (bundle / graph.file).read_bytes()
        assert (graph.sha256, graph.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert graph.parity["psnr"] >= 80 and graph.parity["grey_levels"] <= 1
        assert graph.parity["cases"] == 6
        metadata = {p.key: p.value for p in onnx.load(bundle / graph.file).metadata_props}
        assert Manifest.from_json(metadata[METADATA_KEY]) == replace(manifest, graphs=())
        for trace in (b".py", b"/work", b"/tmp", b"site-packages"):
            assert trace not in data
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_tiles_agree_in_all_three_nets(bundle):
    loaded, images = load_bundle(bundle), np.stack([noisy(120, 5, (70, 50))])
    nets = Velocity(loaded, "cpu"), open_codec(loaded, "cpu"), loaded.manifest
    seen, flow = [], Flow(*nets, FlowOptions(steps=2, tile=32))
    through = flow._whole
    flow._whole = lambda x, norms: seen.append((norms, x.shape)) or through(x, norms)
    assert flow(images).shape == (1, 50, 70, 3)
    calls = seen[0][0]._known
    assert len(calls) == 4 and all(calls)  # one of the encoder, two of the velocity, one of the decoder
    assert {shape for _, shape in seen} == {(1, 32, 32, 3)}
    whole = Flow(*nets, FlowOptions(steps=2, tile=128))(images)
    assert np.array_equal(whole, Flow(*nets, FlowOptions(steps=2))(images))


@pytest.mark.parametrize("shape", [(1, 16, 16), (4, 16, 16), (2, 10, 23), (1, 37, 8)])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_runtime_translates_as_pytorch_does_at_any_size_and_batch(run, bundle, shape, reverse):
    loaded = load_bundle(bundle)
    images = np.stack([noisy(120, i, shape[2:0:-1]) for i in range(shape[0])])
    flow = Flow(Velocity(loaded, "cpu"), open_codec(loaded, "cpu"), loaded.manifest, FlowOptions(reverse=reverse))
    want = by_torch(run, images, 2, float(reverse), 1.0 - reverse)
    got = flow(images)
    assert got.shape == images.shape and np.abs(want.astype(int) - got).max() <= 1
    assert np.abs(want.astype(int) - images).max() > 10


def test_the_example_for_apps_does_all_three_graphs(bundle, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    from graph_alone import translated

    photo = noisy(90, 0, (21, 14))
    (made,) = Translator(bundle, FlowOptions(size="native")).images([photo])
    assert np.array_equal(translated(bundle, photo), made)


def test_z_is_the_normalised_mean(run, bundle):
    codec, x = ckpt.load(ckpt.find(run)).codec(), to_float(np.stack([noisy(100, 1, (16, 24))]))
    exported = LatentCodec(load_bundle(bundle), "cpu")
    with torch.no_grad():
        z = codec.encode(torch.from_numpy(x))
        np.testing.assert_allclose(exported.encode(x), z.numpy(), atol=1e-4)
        np.testing.assert_allclose(exported.decode(z.numpy()), codec.decode(z).numpy(), atol=1e-4)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_one_damaged_weight_of_the_codec_fails_the_proof_and_leaves_nothing(run, bundle, tmp_path, monkeypatch, role):
    def damaged(source, part):
        model = onnx.load(bundle / f"{part}.onnx")
        if part == role:
            weight = next(i for i in model.graph.initializer if len(i.dims) == 4)
            values = onnx.numpy_helper.to_array(weight).copy()
            values.flat[np.abs(values).argmax()] *= -1
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(export_onnx_module, "float32_graph", damaged)
    with pytest.raises(ExportError, match=r"velocity.onnx, encoder.onnx, decoder.onnx: not kept"):
        export_bundle(run, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["velocity", "encoder", "decoder"])
def test_a_lone_graph_of_a_latent_model_asks_for_the_bundle(bundle, role):
    with pytest.raises(BundleError, match=r"works on latents, .*give the bundle folder with rfp.json"):
        load_bundle(bundle / f"{role}.onnx")


@pytest.mark.parametrize("role", ["velocity", "encoder", "decoder"])
def test_every_graph_is_checked_against_its_sha256_and_has_to_be_there(copy, role):
    file = copy / f"{role}.onnx"
    whole = file.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{role}.onnx: damaged or changed since its export"):
        load_bundle(copy)
    file.unlink()
    with pytest.raises(BundleError, match=rf"{role}.onnx: cannot be read"):
        load_bundle(copy)
    file.write_bytes(whole)
    edit(copy, lambda m: m.update(graphs=[g for g in m["graphs"] if g["file"] != file.name]))
    with pytest.raises(BundleError, match=rf"lists no ONNX graph of the {role}"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        ({"channels": 0, "factor": 2}, "latent.channels: found 0"),
        ({"channels": 10**9, "factor": 2}, "latent.channels"),
        ({"channels": 3, "factor": "2"}, "latent.factor: found '2'"),
        ({"channels": 3, "factor": 0}, "latent.factor"),
        ({"channels": 3}, "latent.factor: missing"),
        ({"channels": 3, "factor": 2, "depth": 3}, "latent.depth: not a key"),
        ({"channels": 3, "factor": 3}, r"multiple: found 4, wanted a multiple of latent.factor 3"),
        ([3, 2], "latent: found"),
    ],
)
def test_a_wrong_description_of_latents_is_refused(copy, latent, said):
    edit(copy, lambda m: m.update(latent=latent))
    with pytest.raises(BundleError, match=said):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["graphs"][1].update(role="painter"), "role: found 'painter', wanted velocity, encoder, decoder"),
        (lambda m: m["graphs"][1].update(role=3), "role: found 3"),
    ],
)
def test_a_wrong_role_is_refused(copy, change, said):
    edit(copy, change)
    with pytest.raises(BundleError, match=re.escape(said)):
        load_bundle(copy)


@pytest.mark.parametrize("swap", [("encoder", "decoder"), ("velocity", "encoder")])
def test_graphs_in_one_anothers_place_are_refused(copy, swap):
    def change(manifest):
        roles = {swap[0]: swap[1], swap[1]: swap[0]}
        for graph in manifest["graphs"]:
            graph["role"] = roles.get(graph.get("role", "velocity"), graph.get("role", "velocity"))

    edit(copy, change)
    loaded = load_bundle(copy)
    with pytest.raises(BundleError, match=r"not an? (velocity|encoder|decoder) graph"):
        Velocity(loaded, "cpu"), open_codec(loaded, "cpu")


def test_latents_of_another_shape_than_rfp_json_says_are_refused(copy):
    edit(copy, lambda m: m.update(latent={"channels": 5, "factor": 2}))
    with pytest.raises(BundleError, match=r"the encoder graph gives \(1, 3, 8, 8\), and rfp.json says \(1, 5, 8, 8\)"):
        LatentCodec(load_bundle(copy), "cpu").encode(np.zeros((1, 3, 16, 16), np.float32))


def test_values_that_are_not_finite_are_named_with_their_graph(bundle):
    loaded = load_bundle(bundle)
    codec = open_codec(loaded, "cpu")
    codec.decode = lambda z, norms: np.full((len(z), 3, 16, 16), np.nan, np.float32)
    with pytest.raises(MediaError, match="the decoder graph gave values that are not finite"):
        Flow(Velocity(loaded, "cpu"), codec, loaded.manifest)(np.zeros((1, 16, 16, 3), np.uint8))


@pytest.mark.parametrize(("precision", "floor"), [("fp16", 50), ("int8", 30)])
def test_all_three_graphs_come_in_low_precisions_and_are_run_together(
    run, bundle, tmp_path, monkeypatch, precision, floor
):
    graphs = {role: onnx.load(bundle / f"{role}.onnx") for role in ("velocity", "encoder", "decoder")}
    monkeypatch.setattr(export_onnx_module, "float32_graph", lambda source, role: graphs[role])
    (outcome,) = export_bundle(run, tmp_path / "b", precisions=[precision])
    assert [g.file for g in outcome.graphs] == [f"{role}.{precision}.onnx" for role in graphs]
    assert outcome.parity.psnr >= floor
    loaded = load_bundle(tmp_path / "b", precision)
    images = np.stack([noisy(120, i, (16, 16)) for i in range(2)])
    got = Flow(Velocity(loaded, "cpu"), open_codec(loaded, "cpu"), loaded.manifest)(images)
    assert np.abs(by_torch(run, images).astype(float) - got).mean() < (1 if precision == "fp16" else 8)


def test_pictures_and_films_are_translated(run, bundle, tmp_path):
    (tmp_path / "in").mkdir()
    picture = noisy(90, 3, (21, 30))
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    write_video(tmp_path / "in" / "b.mp4", range(0, 200, 40))
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=FlowOptions(size="native", device="cpu"))
    assert len(report.done) == 2 and not report.failed
    got = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.abs(by_torch(run, picture[None])[0].astype(int) - got).max() <= 1
    assert (tmp_path / "out" / "b.mp4").stat().st_size > 0


def test_a_generative_latent_model_is_proven_and_makes_pictures_from_noise_of_latents(bundle, tmp_path, monkeypatch):
    # The same nets: torch's exporter takes seconds.
    graphs = {role: onnx.load(bundle / f"{role}.onnx") for role in ("velocity", "encoder", "decoder")}
    monkeypatch.setattr(export_onnx_module, "float32_graph", lambda source, role: graphs[role])
    run = write_run(tmp_path / "run", generative=True, **LATENT)
    (outcome,) = export_bundle(run, tmp_path / "b")
    assert outcome.parity.cases == 6
    generate(tmp_path / "b", tmp_path / "out", 2, seed=5, size=(24, 16), device="cpu")
    checkpoint = ckpt.load(ckpt.find(run))
    v, codec = checkpoint.velocity(), checkpoint.codec()
    z0 = torch.from_numpy(noises((3, 8, 12), 5, range(2)))
    with torch.no_grad():
        want = to_uint8(codec.decode(integrate(lambda x, t: v(x, torch.full((1,), t)), z0, 2)).numpy())
    for i in range(2):
        got = np.asarray(Image.open(tmp_path / "out" / f"seed-5-{i:06d}.png")).astype(int)
        assert got.shape == (16, 24, 3) and np.abs(got - want[i]).max() <= 1
