"""float16 and int8 graphs: what stays in float32, what they are calibrated with, their floors, who runs which."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rfp.cli.main import app
from rfp.export import graph as graph_module
from rfp.export import int8 as int8_module
from rfp.export import onnx as export_onnx_module
from rfp.export.bundle import export_bundle
from rfp.export.calibration import trajectories
from rfp.export.half import beside_x, half
from rfp.export.int8 import Layer, _left_in_float, int8
from rfp.export.source import open_source
from rfp.runtime import BundleError, ExportError, FlowOptions, UsageError, load_bundle, translate
from rfp.runtime.norms import GIVEN, GIVEN_PLACE, SHARE, Frame, opened_up
from rfp.runtime.velocity import Velocity
from rfp.train.unet import whole
from trainings import noisy
from typer.testing import CliRunner

FILES = {"fp32": "velocity.onnx", "fp16": "velocity.fp16.onnx", "int8": "velocity.int8.onnx"}


def types(path):
    """The element type of every value of a graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return graph, values | {i.name: i.data_type for i in graph.initializer}


def test_one_bundle_holds_all_three_each_with_its_floor_and_parity(bundle):
    graphs = {g.precision: g for g in load_bundle(bundle).manifest.graphs}
    assert {p: g.file for p, g in graphs.items()} == FILES
    assert {p: g.floor["psnr"] for p, g in graphs.items()} == {"fp32": 80, "fp16": 50, "int8": 30}
    for graph in graphs.values():
        assert graph.parity["psnr"] >= graph.floor["psnr"] and graph.parity["cases"] == 6 and not graph.below_floor
    assert graphs["fp32"].parity["psnr"] > graphs["fp16"].parity["psnr"] > graphs["int8"].parity["psnr"]
    assert graphs["fp16"].bytes < 0.75 * graphs["fp32"].bytes


@pytest.mark.parametrize("file", FILES.values())
def test_a_lone_graph_describes_itself_and_names_nothing_of_this_machine(bundle, file):
    model = onnx.load(bundle / file)
    assert ([p.key for p in model.metadata_props], model.producer_name) == (["rfp"], "rfp")
    assert load_bundle(bundle / file).manifest.domains == ("dark", "bright")
    data = (bundle / file).read_bytes()
    for trace in (b".py", b"/work", b"/root", b"/tmp", b"/home", b"site-packages", b"stack_trace"):
        assert trace not in data, trace


@pytest.mark.parametrize("file", FILES.values())
def test_the_norms_of_every_precision_take_and_tell_statistics(run, bundle, file):
    """As tiles use them: torch's GroupNorms are InstanceNormalizations in the graph, all of which are found."""
    data = (bundle / file).read_bytes()
    opened, count, placed = opened_up(data)
    norms = [m for m in open_source(run).net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert count == len(norms) and placed
    x, t = np.random.default_rng(0).normal(size=(1, 3, 16, 24)).astype(np.float32), np.array([0.3], np.float32)
    (want,) = onnxruntime.InferenceSession(data).run(None, {"x": x, "t": t})
    session = onnxruntime.InferenceSession(opened)
    feeds = {"x": x, "t": t, SHARE: np.zeros(1, np.float32), GIVEN_PLACE: whole(torch.from_numpy(x)).numpy()}
    own, *measured = session.run(None, feeds | {GIVEN.format(i): np.zeros((1, 1, 2), np.float32) for i in range(count)})
    assert [m.shape[1] for m in measured] == [norm.num_groups for norm in norms]
    feeds |= {SHARE: np.ones(1, np.float32), **{GIVEN.format(i): m for i, m in enumerate(measured)}}
    for made in (own, session.run(None, feeds)[0]):
        assert np.abs(made - want).max() <= 2e-3 * np.abs(want).max()  # another order of sums, where one is rounded


@pytest.mark.parametrize("file", FILES.values())
def test_a_tile_is_where_an_opened_graph_of_every_precision_is_told(run, bundle, file):
    """Against PyTorch's net of crops, which takes their places too."""
    net, frame = open_source(run).net, Frame(8, 16, 48, 40)
    opened, count, _ = opened_up((bundle / file).read_bytes())
    x, t = np.random.default_rng(1).uniform(-1, 1, (1, 3, 16, 24)).astype(np.float32), np.array([0.3], np.float32)
    feeds = {"x": x, "t": t, SHARE: np.zeros(1, np.float32), GIVEN_PLACE: frame.place(16, 24, 1)}
    feeds |= {GIVEN.format(i): np.zeros((1, 1, 2), np.float32) for i in range(count)}
    made = onnxruntime.InferenceSession(opened).run(["velocity"], feeds)[0]
    with torch.no_grad():
        places = None, torch.from_numpy(frame.place(16, 24, 1))
        here, there = (net(*map(torch.from_numpy, (x, t)), place) for place in places)
    apart = np.abs(made - there.numpy()).mean() / (there - here).abs().mean()
    assert apart < {"fp32": 1e-4, "fp16": 0.02, "int8": 0.75}[next(p for p, name in FILES.items() if name == file)]


def test_a_graph_that_does_not_run_is_not_kept_either(run, tmp_path, quick, monkeypatch):
    def broken(model):
        model = half(model)
        weight = next(i for i in model.graph.initializer if i.name == "stem.weight")
        weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 5, 3, 3), np.float16), weight.name))
        return model

    monkeypatch.setattr(export_onnx_module, "half", broken)
    fp16, fp32 = export_bundle(run, tmp_path / "b", precisions=["fp16", "fp32"])
    assert (
        fp16.error and fp32.graphs and sorted(p.name for p in (tmp_path / "b").iterdir()) == ["rfp.json", FILES["fp32"]]
    )


def test_half_keeps_normalisations_the_time_embedding_and_the_door_in_float32(bundle):
    graph, type_of = types(bundle / FILES["fp16"])
    assert [type_of[v.name] for v in (*graph.input, *graph.output)] == [TensorProto.FLOAT] * 3
    kinds = {}
    for node in graph.node:
        kinds.setdefault(node.op_type, set()).add(type_of.get(node.input[0]))
    assert kinds["Conv"] == {TensorProto.FLOAT16}
    assert kinds["InstanceNormalization"] == kinds["Sin"] == kinds["Cos"] == {TensorProto.FLOAT}
    for i in graph.initializer:
        if i.name.endswith(".weight"):
            assert i.data_type == (TensorProto.FLOAT if i.name.startswith("time.") else TensorProto.FLOAT16), i.name


@pytest.fixture
def small() -> onnx.ModelProto:
    """All kinds of normalisations after a convolution, and a shift from t through a layer of `time.` and one beyond."""
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "k": (4,), "time.0.weight": (4, 8), "film.weight": (8, 8)}
    shapes |= {f"{norm}.{of}": (8,) for norm in ("inst", "group") for of in "wb"} | {"layer.w": (16,), "layer.b": (16,)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
    weights += [numpy_helper.from_array(np.array(v), name) for name, v in (("to", [1, 8, 1, 1]), ("column", [1, 1]))]
    nodes = [
        ("Conv", ["x", "conv.weight"], "conv", {"pads": [1, 1, 1, 1]}),
        ("InstanceNormalization", ["conv", "inst.w", "inst.b"], "inst", {}),
        ("GroupNormalization", ["inst", "group.w", "group.b"], "group", {"num_groups": 4}),
        ("LayerNormalization", ["group", "layer.w", "layer.b"], "layer", {}),
        ("Shape", ["x"], "shape", {}),
        ("Reshape", ["t", "column"], "t1", {}),
        ("Mul", ["t1", "k"], "scaled", {}),
        ("Sin", ["scaled"], "sin", {}),
        ("MatMul", ["sin", "time.0.weight"], "time", {}),
        ("MatMul", ["time", "film.weight"], "film", {}),
        ("Reshape", ["film", "to"], "shift", {}),
        ("Add", ["layer", "shift"], "velocity", {}),
    ]
    made = [helper.make_node(op, inputs, [out], name=out, **more) for op, inputs, out, more in nodes]
    shown = (("x", (1, 3, 16, 16)), ("t", (1,)), *((name, (1, 8, 16, 16)) for name in ("velocity", "group", "layer")))
    x, t, velocity, *inner = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shown)
    graph = helper.make_graph(made, "small", [x, t], [velocity], weights, value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)  # the type of every value, as torch writes it


def test_half_is_for_what_is_of_the_pictures_but_for_all_kinds_of_normalisations(small):
    before = small.SerializeToString()
    made = half(small)
    assert small.SerializeToString() == before and not made.graph.value_info
    halves = {i.name for i in made.graph.initializer if i.data_type == TensorProto.FLOAT16}
    assert halves == {"conv.weight", "film.weight"}
    onnx.checker.check_model(made, full_check=True)
    feeds = {"x": np.random.default_rng(1).normal(size=(1, 3, 16, 16)), "t": np.array([0.7])}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    want, got = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (small, made))
    assert got.dtype == np.float32 and 0 < np.abs(got - want).max() < 0.01 * np.abs(want).max()


def test_no_value_is_rounded_to_half_between_what_stays_in_float32(small):
    """Neither t and 1000·t nor what goes from one normalisation to the next."""
    graph = half(small).graph
    made_by = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        if node.op_type == "Cast":
            before = made_by.get(node.input[0])
            assert before is None or before.op_type != "Cast", node.name


def test_what_says_nothing_of_the_pictures_ends_with_the_layers_of_time(small):
    """Of a graph whose weights are inputs too, as old ones' are, the same."""
    wanted = ["shape", "t1", "scaled", "sin", "time"]
    assert beside_x(small.graph) == wanted
    for weight in small.graph.initializer:
        small.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    assert beside_x(small.graph) == wanted


def test_int8_has_u8_activations_s8_weights_of_each_channel_and_says_what_it_left(bundle):
    graph, type_of = types(bundle / FILES["int8"])
    of = {out: node for node in graph.node for out in node.output}
    about = next(g.about for g in load_bundle(bundle).manifest.graphs if g.precision == "int8")
    convs, left = [n for n in graph.node if n.op_type == "Conv"], []
    weights = {i.name: i for i in graph.initializer}
    for conv in convs:
        x, w = (of.get(name) for name in conv.input[:2])
        if w is None:
            left.append(conv.input[1].removesuffix(".weight"))
            continue
        assert (x.op_type, type_of[x.input[0]]) == ("DequantizeLinear", TensorProto.UINT8)
        weight, scales = weights[w.input[0]], numpy_helper.to_array(weights[w.input[1]])
        assert weight.data_type == TensorProto.INT8 and len(scales) == weight.dims[0]
    assert left == about["left_in_float"] and len(convs) == about["layers"] > 2 * len(left)
    assert about["calibration_calls"] == 4


@pytest.mark.parametrize(("decibels", "share"), [(36.0, 0.0), (35.9, 0.5)])
def test_layers_stay_in_float_only_as_long_as_the_aim_is_missed(bundle, decibels, share):
    feeds = [{"x": np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16), "t": np.array([0.5], np.float32)}]
    _, about = int8(onnx.load(bundle / "velocity.onnx"), feeds, lambda model: decibels)
    assert (about["left_in_float"] == []) == (share == 0) and max(0, share - 0.3) <= about[
        "multiplications_in_float"
    ] <= share


@pytest.mark.parametrize(("decibels", "left"), [(45.0, False), (44.9, True)])
def test_what_a_codecs_graph_gives_is_held_to_more(bundle, monkeypatch, decibels, left):
    monkeypatch.setattr(int8_module, "psnr", lambda want, got: decibels)
    feeds = [{"x": np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16), "t": np.array([0.5], np.float32)}]
    _, about = int8(onnx.load(bundle / "velocity.onnx"), feeds)
    assert bool(about["left_in_float"]) == left


def test_layers_in_float_are_those_that_save_the_most_error_for_their_cost():
    layers = [Layer("a", "a", 10, 1.0), Layer("b", "b", 1, 0.5), Layer("c", "c", 5, 0.4)]
    for most, left in ((0, ""), (4, "b"), (10, "bc"), (11, "ab"), (16, "abc")):
        assert "".join(layer.name for layer in _left_in_float(layers, most)) == left


def test_calibration_sees_real_trajectories_at_all_t_in_both_directions(run, bundle, tmp_path):
    source = open_source(run, steps=4)
    loaded = load_bundle(bundle)
    made = export_onnx_module.opened(loaded.manifest, {"velocity": loaded.model})
    calls = trajectories(source, made, None)["velocity"]
    assert [c["t"].item() for c in calls] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    for start, first in ((0, calls[0]), (1, calls[4])):
        np.testing.assert_allclose(first["x"], source.pictures[start].transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(calls[1]["x"], calls[0]["x"] + made.velocity(calls[0]["x"], 0.0) / 4, atol=1e-6)
    # From a folder: its pictures forwards, and back from where they arrived.
    Image.fromarray(noisy(90, 5, (30, 20))).save(tmp_path / "a.png")
    calls = trajectories(source, made, tmp_path)["velocity"]
    assert calls[0]["x"].shape == (1, 3, 16, 16) and abs(calls[0]["x"].mean() - (90 / 127.5 - 1)) < 0.1
    np.testing.assert_allclose(calls[4]["x"], calls[3]["x"] + made.velocity(calls[3]["x"], 0.75) / 4, atol=1e-6)
    mirror = replace(source.manifest, alignment=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0))  # as translating moves them
    moved = trajectories(replace(source, manifest=mirror), made, tmp_path)["velocity"][0]["x"]
    np.testing.assert_allclose(moved, calls[0]["x"][..., ::-1], atol=1e-6)


def test_a_calibration_folder_without_pictures_or_without_int8_is_refused(run, tmp_path, quick):
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    for folder, why in (("empty", "holds no image"), ("nowhere", "no such file or folder")):
        with pytest.raises(UsageError, match=why):
            export_bundle(run, tmp_path / "b", note=said.append, precisions=["int8"], calibration=tmp_path / folder)
    assert not said  # before any graph is made
    with pytest.raises(UsageError, match="--calibration is for int8"):
        export_bundle(run, tmp_path / "b", calibration=tmp_path / "empty")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def damaged(make):
    """A maker of graphs whose output layer is upside down."""

    def wrapped(model, *more):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        weight = next(i for i in copy.graph.initializer if i.name == "head.2.weight")
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        return make(copy, *more)

    return wrapped


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_damaged_graph_fails_its_floor_and_the_others_are_kept(run, tmp_path, quick, monkeypatch, precision):
    name, make = {"fp16": ("half", half), "int8": ("int8", int8)}[precision]
    monkeypatch.setattr(export_onnx_module, name, damaged(make))
    floor = {"fp16": 50, "int8": 30}[precision]
    args = ["export", str(run), "-o", str(tmp_path / "b"), "--precision", f"{precision},fp32"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1 and f"onnx {precision}: not kept" in result.stdout
    message = " ".join(result.stderr.split())
    assert f"{FILES[precision]}: not kept" in message and f"dB below its floor of {floor} dB" in message
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["rfp.json", "velocity.onnx"]
    result = CliRunner().invoke(app, [*args, "--allow-below-floor", "--overwrite"])
    assert result.exit_code == 0 and "BELOW ITS FLOOR" in result.stdout
    kept = {g["precision"]: g for g in json.loads((tmp_path / "b" / "rfp.json").read_text())["graphs"]}
    assert kept[precision]["below_floor"] is True and "below_floor" not in kept["fp32"]


def test_exporting_again_gives_the_same_bytes_in_every_precision(run, bundle, tmp_path, quick):
    export_bundle(run, tmp_path / "again", precisions=["fp32", "fp16", "int8"], licence="CC0-1.0", provenance="noise")
    for path in bundle.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("precision", FILES)
def test_the_runtime_runs_the_precision_that_was_asked_for(bundle, precision):
    loaded = load_bundle(bundle, precision)
    assert loaded.model == (bundle / FILES[precision]).read_bytes() and loaded.path.name == FILES[precision]
    x = np.zeros((2, 3, 16, 16), np.float32)
    assert Velocity(loaded, "cpu")(x, 0.5).shape == x.shape


def test_without_being_asked_cuda_gets_half_the_rest_float32_and_nobody_int8(bundle, monkeypatch):
    assert load_bundle(bundle).path.name == FILES["fp32"]
    monkeypatch.setattr("rfp.runtime.network.choose_device", lambda device: "cuda" if device == "auto" else device)
    assert load_bundle(bundle, device="auto").path.name == FILES["fp16"]
    assert (
        load_bundle(bundle, device="cpu").path.name == load_bundle(bundle, device="coreml").path.name == FILES["fp32"]
    )


def test_a_precision_that_is_not_there_is_an_error(bundle, tmp_path):
    with pytest.raises(UsageError, match="precision 'fp64' is not known; wanted fp32, fp16, int8"):
        load_bundle(bundle, "fp64")
    with pytest.raises(UsageError, match="is one graph, of one precision"):
        load_bundle(bundle / "velocity.onnx", "int8")
    with pytest.raises(UsageError, match="is loaded already"):
        translate(load_bundle(bundle), [tmp_path], tmp_path / "out", flow=FlowOptions(precision="int8"))
    values = json.loads((bundle / "rfp.json").read_text())
    values["graphs"] = [g for g in values["graphs"] if g["precision"] == "fp16"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "rfp.json").write_text(json.dumps(values))
    (tmp_path / "one" / FILES["fp16"]).write_bytes((bundle / FILES["fp16"]).read_bytes())
    with pytest.raises(UsageError, match=r"no ONNX graph of precision 'int8' \(there: fp16\); .*--precision int8"):
        load_bundle(tmp_path / "one", "int8")
    assert load_bundle(tmp_path / "one").path.name == FILES["fp16"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "tflite"], "--format 'tflite' is not known"),
        (["--format", ","], "--format is empty"),
        (["--precision", "fp64"], "--precision 'fp64' is not known for onnx; wanted one or more of fp32, fp16, int8"),
        (["--sizes", "big"], "--sizes: 'big' is no size"),
        (["--sizes", "15x16"], "wanted multiples of 2"),
    ],
)
def test_options_out_of_range_are_refused(run, tmp_path, options, said):
    result = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "b"), *options])
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()) and not (tmp_path / "b").exists()


def test_weights_above_the_limit_lie_beside_the_graph_and_are_checked(run, bundle, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST", 50_000)
    export_bundle(run, tmp_path / "b", precisions=["fp32", "fp16"])
    folder, whole = tmp_path / "b", load_bundle(bundle)
    loaded = load_bundle(folder)
    data = loaded.manifest.graphs[0].data
    assert (data.file, data.bytes) == ("velocity.onnx.data", (folder / "velocity.onnx.data").stat().st_size)
    assert len(loaded.model) < len(whole.model) / 2 and loaded.manifest.graphs[0].parity["psnr"] >= 80
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    want = Velocity(whole, "cpu")(x, 0.5)
    np.testing.assert_array_equal(Velocity(loaded, "cpu")(x, 0.5), want)
    np.testing.assert_array_equal(Velocity(load_bundle(folder / "velocity.onnx"), "cpu")(x, 0.5), want)
    info = CliRunner().invoke(app, ["info", str(folder)])
    assert info.exit_code == 0 and "0.2 MB" in info.stdout
    path = folder / data.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert CliRunner().invoke(app, ["info", str(folder)]).exit_code == 1
    with pytest.raises(BundleError, match=r"velocity.onnx.data: damaged or changed since its export"):
        load_bundle(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"velocity.onnx.data: cannot be read"):
        load_bundle(folder)
    values = json.loads((folder / "rfp.json").read_text())
    for name in ("../x", "/etc/passwd"):
        values["graphs"][0]["data"]["file"] = name
        (folder / "rfp.json").write_text(json.dumps(values))
        with pytest.raises(BundleError, match=r"data.file: found .* wanted a name without folders"):
            load_bundle(folder)


def test_int8_of_a_graph_above_2_gib_is_an_error_that_says_so(run, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(export_onnx_module, "LARGEST", 50_000)
    with pytest.raises(ExportError, match="int8: the velocity graph is above 2 GiB"):
        export_bundle(run, tmp_path / "b", precisions=["int8"])
