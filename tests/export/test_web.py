"""The page around a bundle: whole, self-contained, and its arithmetic that of the runtime."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import MANIFEST, towards, write_bundle
from PIL import Image
from rfp.cli.main import app
from rfp.export import web
from rfp.runtime import ExportError, load_bundle, translate
from rfp.runtime.alignment import MESH, inverse, moved
from rfp.runtime.errors import MissingExtraError
from rfp.runtime.noise import noise
from rfp.runtime.pixels import pad_to_multiple, to_float, to_uint8
from trainings import write_run
from typer.testing import CliRunner

SITE = Path(web.__file__).parent / "site"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="runs the page's scripts in Node.js, which is not installed")


def tarball(path, names=web.RUNTIME_FILES):
    """A package as npm packs it, with a line in each file."""
    with tarfile.open(path, "w:gz") as package:
        for name in (*names, "not-needed.js"):
            data = f"/* {name} */".encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that passes for the pinned one, and an empty cache folder."""
    path = tarball(tmp_path / "package.tgz")
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(web, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setenv("RFP_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def site(tmp_path, package):
    folder = write_bundle(tmp_path / "site", towards(0.5))
    web.write_page(folder, package)
    return folder


def test_every_file_that_the_page_names_is_there_and_no_other(site):
    named, todo = {"rfp.json", "velocity.onnx", "ort/LICENSE"}, ["index.html"]
    while todo:
        name = todo.pop()
        named.add(name)
        if name.startswith("ort/"):
            continue
        text = (site / name).read_text(encoding="utf-8")
        found = re.findall(r'(?:src|href)="([^"#:]+)"|(?:from|import|import\(|Worker\()\s*"\./([^"]+)"', text)
        found += [("", name) for name in re.findall(r'"\./(ort/[^"]+)"', text)]
        todo += [a or b for a, b in found if (a or b) not in named]
    wasm = {"ort/" + name for name in web.RUNTIME_FILES if name.endswith(".wasm")}  # the .mjs beside them name these
    assert {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()} == named | wasm


def test_nothing_in_the_page_names_another_place(site):
    for file in SITE.iterdir():
        text = (site / file.name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z0-9]+\.|/home/|/tmp/|/work/|/Users/|[A-Z]:\\", text), file.name
    html = (site / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe-inline" not in policy
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", html)  # the policy would refuse them


def test_the_folder_stays_a_bundle(site, tmp_path):
    Image.new("RGB", (40, 32)).save(tmp_path / "in.png")
    assert load_bundle(site).manifest.name == "test"
    assert not translate(site, [tmp_path / "in.png"], tmp_path / "out.png").failed


@pytest.mark.slow
def test_a_run_is_exported_as_a_page_in_one_command(tmp_path, package, monkeypatch):
    run, site = str(write_run(tmp_path / "run")), str(tmp_path / "site")
    monkeypatch.setenv("PATH", "")
    refused = CliRunner().invoke(app, ["export", run, "-o", site, "--format", "web"])
    assert refused.exit_code == 2 and "Node.js" in refused.output and not Path(site).exists()
    shutil.copy(package, tmp_path / "cache" / web.TARBALL)
    done = CliRunner().invoke(app, ["export", run, "-o", site, "--format", "web,onnx"])
    assert done.exit_code == 0 and f"rfp preview {site}" in done.output, done.output
    for name in ("index.html", "velocity.onnx", "rfp.json", *(f"ort/{name}" for name in web.RUNTIME_FILES)):
        assert (Path(site) / name).is_file()
    assert load_bundle(site).manifest.graphs[0].parity["grey_levels"] <= 1


def test_writing_twice_gives_the_same_bytes(site, package, tmp_path):
    again = write_bundle(tmp_path / "again", towards(0.5))
    web.write_page(again, package)
    for file in (p for p in site.rglob("*") if p.is_file()):
        assert file.read_bytes() == (again / file.relative_to(site)).read_bytes()


def test_graphs_that_no_browser_holds_are_refused(tmp_path, package):
    folder = write_bundle(tmp_path / "large", towards(0.5))
    values = json.loads((folder / "rfp.json").read_text())
    values["graphs"][0]["bytes"] = 3 << 30
    (folder / "rfp.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match=r"3\.2 GB together"):
        web.write_page(folder, package)
    graph = values["graphs"][0] | {"bytes": 1 << 20}
    weights = {"file": "weights.bin", "sha256": "0" * 64, "bytes": 3 << 30}
    (folder / "rfp.json").write_text(json.dumps(values | {"graphs": [graph | {"data": weights}]}))
    with pytest.raises(ExportError, match=r"3\.2 GB together"):
        web.write_page(folder, package)
    halves = [
        graph | {"file": f"{role}.onnx", "role": role, "bytes": 1_600_000_000} for role in ("velocity", "decoder")
    ]
    (folder / "rfp.json").write_text(json.dumps(values | {"graphs": halves}))
    with pytest.raises(ExportError, match=r"3\.2 GB together"):
        web.write_page(folder, package)
    # A visitor fetches one precision, and nothing of Core ML's.
    each = [graph | {"file": f"{p}.onnx", "precision": p, "bytes": 2_000_000_000} for p in ("fp32", "fp16")]
    apple = graph | {"file": "v.mlpackage", "precision": "fp16", "format": "coreml", "bytes": 3 << 30}
    (folder / "rfp.json").write_text(json.dumps(values | {"graphs": [*each, apple]}))
    web.write_page(folder, package)


def fake_npm(tmp_path, monkeypatch, code):
    """Put an `npm` on the path, and nothing else; `folder` in the code is where it is to pack to."""
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    where = "folder = Path(sys.argv[sys.argv.index('--pack-destination') + 1])"
    script.write_text(f"#!{sys.executable}\nimport shutil, sys\nfrom pathlib import Path\n{where}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return script


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a Unix script")
def test_npm_fetches_the_pinned_version_once(tmp_path, package, monkeypatch):
    code = (
        f"assert 'onnxruntime-web@{web.VERSION}' in sys.argv\nshutil.copy({str(package)!r}, folder / {web.TARBALL!r})"
    )
    script, notes = fake_npm(tmp_path, monkeypatch, code), []
    kept = web.web_runtime(notes.append)
    assert kept == tmp_path / "cache" / web.TARBALL and kept.read_bytes() == package.read_bytes()
    assert list(kept.parent.iterdir()) == [kept] and web.VERSION in notes[0]
    script.unlink()
    assert web.web_runtime(notes.append) == kept and len(notes) == 1


NPM_SAYS = json.dumps(
    {"error": {"code": "E", "summary": "FetchError: no route to the registry", "detail": ""}}, indent=2
)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a Unix script")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('npm error network: no route to the registry')", "no route to the registry"),
        (f"(folder / {web.TARBALL!r}).write_text('another thing')", "is not onnxruntime-web"),
        ("", "exit code 0"),
        (f"print({NPM_SAYS!r})\nsys.exit(1)", r"\(FetchError: no route to the registry\)"),
        (f"sys.exit({NPM_SAYS!r})", r"\(FetchError: no route to the registry\)"),  # as old versions do
        ("print('{\"error\": null}')\nsys.exit(1)", r"\(exit code 1\)"),
    ],
)
def test_what_npm_cannot_fetch_is_an_error_and_is_not_kept(tmp_path, package, monkeypatch, code, message):
    fake_npm(tmp_path, monkeypatch, code)
    with pytest.raises(ExportError, match=message):
        web.web_runtime()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_that_finds_no_registry_says_why(tmp_path, package, monkeypatch):
    settings = {"registry": "http://127.0.0.1:9", "fetch_retries": "0", "cache": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(ExportError, match=r"\(.*ECONNREFUSED.*\); try again with a network"):
        web.web_runtime()


def test_without_npm_the_error_says_both_ways_to_go_on(tmp_path, package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError) as error:
        web.web_runtime()
    for part in ("Node.js", web.ADDRESS, str(tmp_path / "cache" / web.TARBALL)):
        assert part in str(error.value)
    shutil.copy(package, tmp_path / "cache" / web.TARBALL)  # the second way
    assert web.web_runtime().is_file()


def test_a_damaged_package_in_the_cache_is_named_and_left_alone(tmp_path, package):
    kept = tmp_path / "cache" / web.TARBALL
    kept.parent.mkdir()
    kept.write_bytes(package.read_bytes()[:-1])
    with pytest.raises(ExportError, match="remove it"):
        web.web_runtime()
    assert kept.is_file()


# ── the page's arithmetic, in Node.js, against the runtime's ─────────────────────────────────────────────────────


def by_node(code, *arrays):
    """What a module's body writes by `give(typed array)`. It has `arrays` as `input`, a list of byte arrays."""
    source = f"""
        import {{ readFileSync, writeSync }} from "node:fs";
        import * as flow from "{SITE.as_uri()}/flow.js";
        const {{ Flow, choose, fit, integrate, inverse, moved, resize, toFloat, toPicture }} = flow;
        import {{ noise }} from "{SITE.as_uri()}/noise.js";
        const all = readFileSync(0), input = [];
        let begin = 0;
        for (const size of {[a.nbytes for a in arrays]}) input.push(all.subarray(begin, (begin += size)));
        const give = (x) => {{
          const bytes = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
          for (let at = 0; at < bytes.length; at += writeSync(1, bytes, at));
        }};
        {code}"""
    command = [NODE, "--input-type=module", "-e", source]
    done = subprocess.run(command, input=b"".join(a.tobytes() for a in arrays), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def rgba(image):
    return np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2)


def random_image(width, height):
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)


@needs_node
def test_the_page_reduces_pictures_to_the_pixels_of_pillow():
    cases = [((37, 5), (20, 64)), ((640, 480), (85, 64)), ((33, 100), (64, 194)), ((64, 64), (64, 64))]
    cases.append(((2100, 900), (149, 64)))  # in two strips
    images = [random_image(*size) for size, _ in cases]
    code = f"""for (const [i, [from, to]] of {json.dumps(cases)}.entries()) {{
        const rows = (y, n) => new Uint8ClampedArray(input[i]).subarray(4 * from[0] * y, 4 * from[0] * (y + n));
        give(resize(rows, from, to).data);
    }}"""
    got = np.frombuffer(by_node(code, *(rgba(image) for image in images)), np.uint8)
    pairs = zip(images, cases, strict=True)
    want = [np.asarray(Image.fromarray(a).resize(to, Image.Resampling.LANCZOS)) for a, (_, to) in pairs]
    np.testing.assert_array_equal(got, np.concatenate([rgba(image).ravel() for image in want]))


@needs_node
def test_the_page_fits_pads_and_rounds_as_the_runtime_does():
    sizes, image = [(w, h, s) for w in (1, 5, 33, 640) for h in (2, 33, 129) for s in (8, 64)], random_image(19, 5)
    code = f"""const x = toFloat({{ data: input[0], width: 19, height: 5 }}, 16);
        give(Int32Array.from({json.dumps(sizes)}.flatMap((a) => fit(...a))));
        give(x.data);
        give(toPicture(x, 19, 5).data);"""
    got, split = by_node(code, rgba(image)), 8 * len(sizes)
    fitted, state = np.frombuffer(got[:split], np.int32), np.frombuffer(got[split:-380], np.float32)
    assert fitted.tolist() == [max(1, round(a * s / min(w, h))) for w, h, s in sizes for a in (w, h)]
    np.testing.assert_array_equal(state.reshape(3, 16, 32), pad_to_multiple(to_float(image), 16))
    np.testing.assert_array_equal(np.frombuffer(got[-380:], np.uint8).reshape(5, 19, 4), rgba(image))


STRAIGHT = (1.013, 0.307, 0.101, -0.103, 1.317, -0.331)
BENT = (*STRAIGHT, *np.random.default_rng(0).uniform(-0.07, 0.07, 2 * MESH**2).round(4).tolist())


@pytest.mark.parametrize("a", [STRAIGHT, BENT], ids=["straight", "bent"])
@needs_node
def test_the_page_moves_pictures_as_the_runtime_does(a):
    """First there, last back; levels differ where rounding does. v = −x brings all to grey, half of the way."""
    image = random_image(30, 24)
    manifest = json.loads(replace(MANIFEST, alignment=a).to_json())
    code = f"""const picture = {{ data: new Uint8ClampedArray(input[0]), width: 30, height: 24 }};
        give(moved(picture, {list(a)}).data);
        give(Float64Array.from(inverse({list(a)})));
        const run = async (role, {{ x }}) => ({{ data: x.data.map((n) => -n / 2), dims: x.dims }});
        for (const reverse of [false, true]) {{
          give((await new Flow({json.dumps(manifest)}, run).translate(picture, 1, reverse)).data);
        }}"""
    got, size, end = by_node(code, rgba(image)), 30 * 24 * 4, 30 * 24 * 4 + 8 * len(a)
    np.testing.assert_allclose(np.frombuffer(got[size:end]), inverse(a), atol=1e-12)
    grey = [to_uint8(to_float(x) * n).astype(float) for x, n in ((moved(image, a), 0.5), (image, 1.5))]
    want = moved(image, a), grey[0], moved(grey[1].astype(np.uint8), inverse(a))
    pictures = (got[:size], got[end:-size], got[-size:])
    for made, wanted in zip(pictures, want, strict=True):
        shown = np.frombuffer(made, np.uint8).reshape(24, 30, 4)
        assert (shown[..., 3] == 255).all() and abs(shown[..., :3].astype(float) - wanted).max() <= 1


@needs_node
def test_the_page_chooses_graphs_as_the_runtime_does():
    def graphs(*precisions):
        return [{"precision": p, "role": r, "file": f"{r}.{p}"} for p in precisions for r in ("velocity", "decoder")]

    bundles = [graphs("int8", "fp16", "fp32"), graphs("int8"), graphs("fp16")]
    bundles.append(
        [{"precision": "fp16", "format": "coreml", "file": "a"}, {"precision": "int8", "file": "velocity.int8"}]
    )
    code = f"""for (const half of [false, true]) {{
          for (const graphs of {json.dumps(bundles)}) console.log(choose({{ graphs }}, half).velocity.file);
        }}"""
    chosen = by_node(code).decode().split()
    assert [name.split(".")[1] for name in chosen] == ["fp32", "int8", "fp16", "int8", "fp16", "int8", "fp16", "int8"]


@needs_node
def test_a_seed_gives_the_noise_of_rfp_generate():
    draws = [(0, 0), (1, 7), (2**32, 3), (2**63 - 1, 999_999)]
    got = by_node("".join(f"give(noise(60000, {seed}n, {number}));" for seed, number in draws))
    want = np.concatenate([noise((60_000,), *draw) for draw in draws])
    np.testing.assert_allclose(np.frombuffer(got, np.float32), want, rtol=0, atol=1e-6)


@needs_node
def test_the_page_integrates_as_the_runtime_does_and_refuses_what_is_not_finite():
    """v = 3t²: n Euler steps add (n − 1)(2n − 1) / (2n²), and take away (n + 1)(2n + 1) / (2n²) on the way back."""
    code = f"""const v = async (x, t) => ({{ data: Float32Array.of(3 * t * t), dims: [1] }});
        for (const ends of [[0, 1], [1, 0]]) {{
          give((await integrate(v, {{ data: Float32Array.of(0.25), dims: [1] }}, 5, ...ends)).data);
        }}
        const run = async () => ({{ data: new Float32Array(192).fill(NaN), dims: [1, 3, 8, 8] }});
        const picture = {{ data: new Uint8Array(256), width: 8, height: 8 }};
        let error;
        await new Flow({MANIFEST.to_json()}, run).translate(picture, 2, false).catch((e) => (error = e));
        if (!/finite/.test(error)) throw error;"""
    there, back = np.frombuffer(by_node(code), np.float32)
    np.testing.assert_allclose([there, back], [0.25 + 4 * 9 / 50, 0.25 - 6 * 11 / 50], atol=1e-6)
