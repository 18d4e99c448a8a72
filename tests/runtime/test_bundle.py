import json
from dataclasses import fields, replace
from pathlib import Path

import bundles
import numpy as np
import onnx
import pytest
from rfp.runtime import BundleError, Graph, Manifest, UsageError, load_bundle
from rfp.runtime.manifest import Latent
from rfp.runtime.network import cuda_problem, open_session
from rfp.runtime.velocity import Velocity


@pytest.fixture
def folder(tmp_path):
    return bundles.write_bundle(tmp_path / "b", bundles.identity())


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))


def edit(folder, **changes):
    values = json.loads((folder / "rfp.json").read_text())
    for key, value in changes.items():
        if value is ...:
            del values[key]
        else:
            values[key] = value
    (folder / "rfp.json").write_text(json.dumps(values))


def test_a_manifest_survives_the_way_through_json(folder):
    manifest = load_bundle(folder).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.domains == ("cats", "dogs") and manifest.graphs[0].parity == {"max_abs": 0.0}


def test_a_lone_graph_describes_itself(folder):
    lone, whole = load_bundle(folder / "velocity.onnx"), load_bundle(folder)
    assert lone.manifest.graphs == () and lone.manifest.image_size == whole.manifest.image_size
    assert lone.model == whole.model


CRITIC = {"adversarial_weight": 1, "num_inference_steps": 2, "distill_steps": None}


@pytest.mark.parametrize(
    ("training", "steps", "solver", "said"),
    [
        ({"config": {"distill_steps": 1, "num_inference_steps": 1}}, 12, "euler", "in 1 Euler step, "),
        ({"config": {"distill_steps": 4}}, 4, "heun", "and here takes 4 by heun: --steps 4 is what it is for"),
        ({"config": {"distill_steps": 4}}, None, "euler", ""),  # default_steps is 4
        ({"config": {"distill_steps": 1}}, None, "euler", "here takes 4 by euler: --steps 1"),  # exported so
        ({"config": CRITIC}, 6, "euler", "in 2 Euler steps, and here takes 6"),
        ({"config": CRITIC}, 2, "euler", ""),
        ({"config": CRITIC | {"adversarial_start": 1}}, 6, "euler", ""),  # its turn never came
        ({"config": CRITIC | {"adversarial_weight": 0}}, 6, "euler", ""),
        ({"config": {"distill_steps": "1\n"}}, 6, "euler", ""),  # a stranger's
        ({"config": []}, 6, "euler", ""),
        ({}, 6, "heun", ""),
    ],
)  # fmt: skip
def test_a_net_that_knows_one_number_of_steps_says_so_of_others(training, steps, solver, said):
    note = replace(bundles.MANIFEST, training=training).other_steps(steps, solver)
    assert said in note and bool(note) == bool(said)


GRAPH = {"file": "v.onnx", "precision": "fp32", "sha256": "0" * 64, "bytes": 1}
DATA = {"file": "v.onnx.data", "sha256": "0" * 64, "bytes": 1}
MISTAKES = [
    ({"image_size": "64"}, "image_size: found '64'"),
    ({"image_size": True}, "image_size"),
    ({"image_size": 10**9}, "image_size"),
    ({"multiple": 0}, "multiple"),
    ({"default_steps": 1.5}, "default_steps"),
    ({"domains": ["cats"]}, "domains"),
    ({"domains": ["cats", 3]}, "domains"),
    ({"channels": 4}, "channels"),
    ({"pixel_range": [0, 1]}, "pixel_range"),
    ({"licence": None}, "licence"),
    ({"training": []}, "training"),
    ({"generative": "yes"}, "generative: found 'yes', wanted true or false"),
    ({"generative": 1}, "generative"),
    ({"graphs": {}}, "graphs"),
    ({"graphs": [3]}, r"graphs\[0\]"),
    ({"graphs": [GRAPH | {"precision": "fp64"}]}, "precision: found 'fp64', wanted fp32, fp16, int8"),
    ({"graphs": [GRAPH | {"format": "tflite"}]}, "format: found 'tflite', wanted onnx, coreml"),
    ({"graphs": [GRAPH | {"parity": {"psnr": "high"}}]}, "parity"),
    ({"graphs": [GRAPH | {"floor": [80]}]}, "floor"),
    ({"graphs": [GRAPH | {"below_floor": 1}]}, "below_floor"),
    ({"graphs": [GRAPH | {"about": None}]}, "about"),
    ({"graphs": [GRAPH | {"file": "../x.onnx"}]}, "file"),
    ({"graphs": [GRAPH | {"data": "x"}]}, "data"),
    ({"graphs": [GRAPH | {"data": DATA | {"file": "a/b"}}]}, "data.file"),
    ({"graphs": [GRAPH | {"sha256": "ab"}]}, "sha256"),
    ({"graphs": [GRAPH | {"bytes": 0}]}, "bytes"),
    ({"graphs": [GRAPH | {"colour": 1}]}, r"graphs\[0\].colour: not a key"),
    ({"name": ...}, "name: missing"),
    ({"colour": 1}, "colour: not a key"),
    ({"format_version": 2}, "newer rfp: format_version 2"),
    ({"format_version": 0}, "format_version"),
    ({"format_version": "1"}, "format_version"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_a_wrong_manifest_is_refused_with_the_place_and_what_was_wanted(folder, changes, said):
    edit(folder, **changes)
    with pytest.raises(BundleError, match=said) as e:
        load_bundle(folder)
    assert "rfp.json" in str(e.value)


def test_the_published_schema_has_the_manifests_keys():
    for cls, part in (
        (Manifest, SCHEMA),
        (Graph, SCHEMA["$defs"]["graph"]),
        (Latent, SCHEMA["properties"]["latent"]["anyOf"][1]),
    ):
        assert part["properties"].keys() == {f.name for f in fields(cls)} and not part["additionalProperties"]


@pytest.mark.parametrize(("changes", "said"), [({}, ""), *MISTAKES])
def test_the_published_schema_refuses_what_rfp_refuses(folder, changes, said):
    jsonschema = pytest.importorskip("jsonschema", reason="pip install '.[dev]'")
    edit(folder, **changes)
    wrong = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(json.loads((folder / "rfp.json").read_text())))
    assert bool(wrong) == bool(changes), wrong


@pytest.mark.parametrize("name", ["../velocity.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "C:b.onnx", "..", ""])
def test_a_graph_outside_the_folder_is_refused(folder, name):
    graph = json.loads((folder / "rfp.json").read_text())["graphs"][0]
    edit(folder, graphs=[{**graph, "file": name}])
    with pytest.raises(BundleError, match=r"file: found .* wanted a name without folders"):
        load_bundle(folder)


def test_a_graph_with_one_changed_byte_is_refused(folder):
    data = bytearray((folder / "velocity.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "velocity.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="damaged or changed since its export"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": NaN'])
def test_what_is_no_json_object_is_refused(folder, text):
    (folder / "rfp.json").write_text(text)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_missing_files_are_named(tmp_path, folder):
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"rfp\.json"):
        load_bundle(tmp_path)
    (folder / "velocity.onnx").unlink()
    with pytest.raises(BundleError, match=r"velocity\.onnx"):
        load_bundle(folder)


def test_a_foreign_or_damaged_graph_is_refused(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(BundleError, match="cannot load"):
        load_bundle(tmp_path / "junk.onnx")
    (tmp_path / "foreign.onnx").write_bytes(bundles.identity().SerializeToString())
    with pytest.raises(BundleError, match="without rfp's description"):
        load_bundle(tmp_path / "foreign.onnx")


def test_a_graph_of_other_inputs_is_refused(tmp_path):
    model = bundles.identity()
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    with pytest.raises(BundleError, match="not a velocity graph"):
        Velocity(load_bundle(bundles.write_bundle(tmp_path / "b", model)))


@pytest.mark.parametrize("location", ["../secret.bin", "secret.bin", "absolute"])
def test_a_graph_reads_no_other_file(tmp_path, monkeypatch, location):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.zeros(1, np.float32).tobytes())
    model = bundles.identity()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret) if location == "absolute" else location)
    folder = bundles.write_bundle(tmp_path / "b", model)
    (folder / "secret.bin").write_bytes(secret.read_bytes())
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError, match="cannot load"):
        Velocity(load_bundle(folder))


def external(name):
    """Sixteen bytes of a file below the current folder, as a tensor."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.UINT8, dims=[16])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "sub/secret.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def reading(how):
    """A graph that puts the bytes of a file into its result, in a way that no optimiser looks at while it is loaded."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto
    held, inner = [external("k")], []
    before = {
        "cast": [node("Identity", ["k"], ["kk"])],
        "gather": [node("Cast", ["t"], ["i"], to=kind.INT64), node("Gather", ["k", "i"], ["kk"], axis=0)],
        "constant": [node("Constant", [], ["kk"], value=external("k"))],
    }.get(how)
    if how == "if":
        there, zeros = value("a", kind.UINT8, [16]), onnx.helper.make_tensor("z", kind.UINT8, [16], [0] * 16)
        leaf = onnx.helper.make_graph([node("Identity", ["k"], ["a"])], "then", [], [there], [external("k")])
        none = onnx.helper.make_graph([node("Identity", ["z"], ["a"])], "else", [], [there], [zeros])
        asked = [node("Less", ["t", "big"], ["c"]), node("Squeeze", ["c"], ["d"])]
        before = [*asked, node("If", ["d"], ["kk"], then_branch=leaf, else_branch=none)]
        inner = [onnx.helper.make_tensor("big", kind.FLOAT, [1], [5.0])]
    nodes = [*before, node("Cast", ["kk"], ["f"], to=kind.FLOAT), node("Add", ["x", "f"], ["y"])]
    held = inner + (held if how in ("cast", "gather") else [])
    takes, gives = [value("x", kind.FLOAT, [16]), value("t", kind.FLOAT, [1])], [value("y", kind.FLOAT, [16])]
    graph = onnx.helper.make_graph(nodes, "g", takes, gives, held)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("how", ["cast", "gather", "if", "constant"])
def test_a_graph_puts_no_other_file_into_its_result(tmp_path, monkeypatch, how):
    """ONNX Runtime takes names in a graph that is in memory for files below the current folder, whatever uses them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "secret.bin").write_bytes(b"S" * 16)
    with pytest.raises(BundleError, match="cannot load"):
        open_session(reading(how).SerializeToString(), tmp_path / "velocity.onnx")


def test_a_device_that_is_not_there_is_an_error_never_the_cpu(folder):
    bundle = load_bundle(folder)
    assert Velocity(bundle, "cpu").device == "cpu"
    with pytest.raises(UsageError, match="tpu"):
        Velocity(bundle, "tpu")
    import onnxruntime as ort

    for device, provider in (("cuda", "CUDAExecutionProvider"), ("coreml", "CoreMLExecutionProvider")):
        if provider not in ort.get_available_providers():
            with pytest.raises(UsageError, match=device):
                Velocity(bundle, device)


def test_auto_takes_the_cpu_where_cuda_does_not_start_and_says_why(folder, monkeypatch, capsys):
    import onnxruntime as ort

    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublas.so.13"))
    monkeypatch.setattr(ort, "InferenceSession", lambda model, options, providers: real(model, options, providers[1:]))
    cuda_problem.cache_clear()
    try:
        velocity = Velocity(load_bundle(folder), "auto")
        assert velocity.device == "cpu" and "could not start (Failed to load libcublas.so.13)" in velocity.said
        with pytest.raises(UsageError, match=r"libcublas.so.13\); --device cpu works"):
            Velocity(load_bundle(folder), "cuda")
    finally:
        cuda_problem.cache_clear()
    assert capsys.readouterr().out == ""  # where --json stands


def test_a_gpu_looks_for_no_convolution_anew_where_it_meets_a_new_size(folder, monkeypatch):
    """By default CUDA tries all of them, which takes longer than most pictures."""
    import onnxruntime as ort

    graph, asked = (folder / "velocity.onnx").read_bytes(), []

    def session(model, options, providers):
        asked.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        with pytest.raises(BundleError, match="no GPU here"):
            open_session(graph, folder, provider=provider)
    gpu = "CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}
    assert asked == [[gpu, "CPUExecutionProvider"], ["CPUExecutionProvider"]]
