"""The exported page in Chromium, and onnxruntime-web under Node, against PyTorch and the runtime.

Needs Node.js with npm (which fetches onnxruntime-web and playwright-core) and Chromium: `make test-extra`.
"""

import base64
import functools
import http.server
import json
import os
import shutil

import numpy as np
import pytest
import test_export
import torch
from browsers import CHROMIUM, fetch_playwright, image_of, in_chromium, in_node, levels, served
from PIL import Image
from rfp.cli.main import app
from rfp.cli.site_server import serve
from rfp.runtime import FlowOptions, generate, integrate, load_bundle, translate
from rfp.runtime.codec import open_codec
from rfp.runtime.flow import Flow
from rfp.runtime.media import read_image
from rfp.runtime.pixels import pad_to_multiple, to_float, to_uint8
from rfp.runtime.velocity import Velocity
from rfp.train import checkpoint as ckpt
from trainings import LATENT, noisy, write_run
from typer.testing import CliRunner

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js and npm: https://nodejs.org"),
]
NETS = {
    "attention": {"velocity_net": test_export.ATTENTION},
    "dit": {"velocity_net": test_export.DIT},
    "latent": LATENT,
    "generative": {"generative": True},
    "latent from noise": {"generative": True, **LATENT},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By name, a run and the site exported from it; each made once."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp("made")
        run, site = write_run(folder / "run", **NETS[name]), folder / "site"
        done = CliRunner().invoke(app, ["export", str(run), "-o", str(site), "--format", "web"])
        assert done.exit_code == 0, done.output
        return run, site

    return make


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    return fetch_playwright(tmp_path_factory.mktemp("node"))


def by_torch(run, file, steps, reverse, short):
    """What the checkpoint makes of a file as `rfp translate --size short` reads it."""
    checkpoint, image = ckpt.load(ckpt.find(run)), read_image(file)
    scale = short / min(image.size)
    image = np.asarray(image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.LANCZOS))
    v, codec, (h, w) = checkpoint.velocity(), checkpoint.codec(), image.shape[:2]
    with torch.no_grad():
        z = codec.encode(torch.from_numpy(pad_to_multiple(to_float(image[None]), checkpoint.config.multiple)))
        z = integrate(lambda x, t: v(x, torch.full((1,), t)), z, steps, float(reverse), 1.0 - reverse)
        return to_uint8(codec.decode(z).numpy())[0, :h, :w]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures as people have them: an odd size, a turned photograph, a transparent drawing, a large one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(noisy(120, 1, (37, 23))).save(folder / "odd.png")
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(noisy(90, 2, (64, 40))).save(folder / "turned.jpg", exif=exif, quality=95, subsampling=0)
    Image.fromarray(rng.integers(0, 256, (21, 30, 4), np.uint8)).save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (3001, 4003, 3), np.uint8)).save(folder / "large.png", compress_level=1)
    return folder


@needs_chromium
@pytest.mark.parametrize("name", ["attention", "dit", "latent"])
def test_chromium_gives_the_pictures_of_pytorch(made, modules, files, tmp_path, name):
    run, site = made(name)
    names = ["odd.png", "turned.jpg", "clear.png", *(["large.png"] if name == "attention" else [])]
    code = """
    const results = [];
    for (const name of names) {
      for (const [steps, size] of [["2", "16"], ["5", "32"]]) {
        for (const direction of [0, 1]) {
          await page.fill("#steps", steps);
          await page.selectOption("#size", size);
          await page.setInputFiles("#file", `${files}/${name}`);
          const title = await page.textContent("#title");
          results.push([name, Number(steps), Number(size), title, await settled(), await pixels()]);
          await page.click("#direction");
        }
      }
    }
    give({ results, errors, requests });
    """
    with served(serve(site, 0)) as url:
        told = in_chromium(modules, tmp_path, url, code, names=names, files=str(files))
        assert told["errors"] == [] and {r.startswith((url, "blob:")) for r in told["requests"]} == {True}
    assert len(told["results"]) == 4 * len(names)
    for file, steps, size, title, status, given in told["results"]:
        assert "px in" in status
        want = by_torch(run, files / file, steps, title == "bright → dark", size)
        assert levels(image_of(given), want) <= 2, (file, steps, size, title)
        assert want.std() > 5


@needs_chromium
@pytest.mark.parametrize("name", ["generative", "latent from noise"])
def test_chromium_makes_the_pictures_of_rfp_generate(made, modules, tmp_path, name):
    _, site = made(name)
    code = """
    const results = [await pixels()];
    await page.fill("#seed", "7");
    await page.dispatchEvent("#seed", "change");
    await settled();
    results.push(await pixels());
    await page.click("#another");
    await settled();
    const hidden = ["#choose", "#film", "#direction"].map((id) => page.isHidden(id));
    give({ results, errors, seed: await page.inputValue("#seed"), hidden: await Promise.all(hidden),
           last: await pixels() });
    """
    with served(serve(site, 0)) as url:
        told = in_chromium(modules, tmp_path, url, code)
    assert told["errors"] == [] and told["hidden"] == [True] * 3
    for seed, given in zip((0, 7, int(told["seed"])), (*told["results"], told["last"]), strict=True):
        generate(site, tmp_path / "want", 1, seed=seed, device="cpu")
        want = np.asarray(Image.open(tmp_path / "want" / f"seed-{seed}-000000.png"))
        assert levels(image_of(given), want) <= 2


@needs_chromium
def test_every_way_into_the_page_and_out_of_it(made, modules, files, tmp_path):
    _, site = made("attention")
    shutil.copytree(site, tmp_path / "site")
    values = json.loads((site / "rfp.json").read_text())
    values["domains"][0] = "<img src=x onerror=alert(1)>"  # a stranger's bundle
    (tmp_path / "site" / "rfp.json").write_text(json.dumps(values))
    code = """
    const send = (kind, file) => page.evaluate(async ([kind, file]) => {
      const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0)), data = new DataTransfer();
      data.items.add(new File([bytes], "odd.png", { type: "image/png" }));
      const options = { bubbles: true, cancelable: true };
      document.body.dispatchEvent(kind === "drop"
        ? new DragEvent("drop", { ...options, dataTransfer: data })
        : new ClipboardEvent("paste", { ...options, clipboardData: data }));
    }, [kind, file]);
    const shown = {};
    await send("drop", odd);
    await settled();
    shown.dropped = await pixels();
    const [file] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
    await file.saveAs(saved);
    await page.click("#direction");
    await settled();
    await page.click("#direction");
    await settled();
    await send("paste", odd);
    await settled();
    shown.pasted = await pixels();

    const box = await page.locator("#stage").boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + 50);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width / 4, box.y + 50);
    await page.mouse.up();
    const dragged = await page.getAttribute("#handle", "aria-valuenow");
    await page.focus("#handle");
    await page.keyboard.press("ArrowRight");
    const pressed = await page.getAttribute("#handle", "aria-valuenow");

    await page.setInputFiles("#file", note);
    const refused = await settled();
    await page.setInputFiles("#file", broken);
    await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Not done"));
    const damaged = await status();

    await page.click("#film");
    await page.waitForFunction(() => document.getElementById("film").textContent === "Keep this one");
    await page.waitForFunction(() => document.getElementById("after").width > 0);
    await settled();
    await page.click("#film");
    await page.waitForFunction(() => document.getElementById("camera").hidden);
    await settled();
    shown.camera = await pixels();
    const scrolls = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    const inside = await page.evaluate(() => document.querySelectorAll("h1 img, button img").length);
    const name = file.suggestedFilename();
    give({ shown, dragged, pressed, refused, damaged, scrolls, inside, name, errors, requests });
    """
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes((files / "odd.png").read_bytes()[:90])
    odd = base64.b64encode((files / "odd.png").read_bytes()).decode()
    paths = {name: str(tmp_path / file) for name, file in [("note", "note.txt"), ("broken", "broken.png")]}
    with served(serve(tmp_path / "site", 0)) as url:
        saved = str(tmp_path / "saved.png")
        told = in_chromium(modules, tmp_path, url, code, width=390, odd=odd, saved=saved, **paths)
        assert {r.startswith((url, "blob:")) for r in told["requests"]} == {True}
    translate(site, [files / "odd.png"], tmp_path / "want.png", flow=FlowOptions(device="cpu"))
    want = np.asarray(Image.open(tmp_path / "want.png"))
    assert levels(image_of(told["shown"]["dropped"]), want) <= 2
    assert levels(image_of(told["shown"]["pasted"]), want) <= 2
    assert (image_of(told["shown"]["dropped"]) == np.asarray(Image.open(tmp_path / "saved.png").convert("RGB"))).all()
    assert told["name"] == "odd-bright.png"
    assert (told["dragged"], told["pressed"]) == ("25", "30")
    assert "note.txt is not a picture" in told["refused"] and "cannot read that" in told["damaged"]
    assert min(image_of(told["shown"]["camera"]).shape[:2]) == 16
    assert (told["scrolls"], told["inside"], told["errors"]) == (False, 0, [])


@needs_chromium
def test_webgpu_gives_the_same_picture_and_its_failure_leaves_the_cpu(made, modules, files, tmp_path):
    """On SwiftShader, a GPU in software: the page takes it only where it is asked to."""
    _, site = made("attention")
    code = """
    if (await page.isHidden("#device-label")) give(null);
    const results = [await status()];
    await page.selectOption("#device", "gpu");
    await settled();
    await page.setInputFiles("#file", odd);
    results.push(await settled(), await pixels());
    await page.route("**/ort/ort.webgpu*", (route) => route.abort());
    await page.selectOption("#device", "cpu");
    await settled();
    await page.selectOption("#device", "gpu");
    await page.waitForFunction(() => /px in.*CPU/.test(document.getElementById("status").textContent));
    give({ results, again: await pixels() });
    """
    flags = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-vulkan=swiftshader"]
    flags += ["--use-webgpu-adapter=swiftshader", "--disable-vulkan-surface"]
    with served(serve(site, 0)) as url:
        told = in_chromium(modules, tmp_path, url, code, flags, odd=str(files / "odd.png"))
    if told is None:
        pytest.skip("this Chromium has no WebGPU adapter, not even in software")
    translate(site, [files / "odd.png"], tmp_path / "want.png", flow=FlowOptions(device="cpu"))
    want = np.asarray(Image.open(tmp_path / "want.png"))
    assert "on the GPU (WebGPU)" in told["results"][1]
    assert levels(image_of(told["results"][2]), want) <= 2
    assert levels(image_of(told["again"]), want) <= 2


class Plain(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@needs_chromium
def test_a_server_without_the_headers_gives_the_same_picture_on_one_thread(made, modules, files, tmp_path):
    _, site = made("attention")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Plain, directory=str(site)))
    code = 'await page.setInputFiles("#file", odd); give({ status: await settled(), pixels: await pixels() });'
    with served(server) as url:
        told = in_chromium(modules, tmp_path, url, code, odd=str(files / "odd.png"))
    with served(serve(site, 0)) as url:
        threaded = in_chromium(modules, tmp_path, url, code, odd=str(files / "odd.png"))
    assert "1 thread)" in told["status"]
    assert f"{min(os.cpu_count() or 1, 8)} thread" in threaded["status"]
    assert levels(image_of(told["pixels"]), image_of(threaded["pixels"])) <= 1


@pytest.mark.parametrize("name", ["attention", "dit", "latent"])
def test_onnxruntime_web_under_node_gives_the_runtimes_picture(made, tmp_path, name):
    """A third party's opinion of the same bundle, through the page's own flow.js."""
    _, site = made(name)
    image = noisy(120, 3, (38, 22))
    code = """
    import { readFileSync } from "node:fs";
    const { Flow } = await import(`${site}/flow.js`), ort = await import(`${site}/ort/ort.wasm.bundle.min.mjs`);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = readFileSync(new URL(`${site}/ort/ort-wasm-simd-threaded.wasm`));
    const manifest = JSON.parse(readFileSync(new URL(`${site}/rfp.json`))), sessions = {};
    for (const { role, file } of manifest.graphs) {
      sessions[role ?? "velocity"] = await ort.InferenceSession.create(readFileSync(new URL(`${site}/${file}`)));
    }
    const flow = new Flow(manifest, async (role, inputs) => {
      const feeds = Object.entries(inputs).map(([name, x]) => [name, new ort.Tensor("float32", x.data, x.dims)]);
      return (await sessions[role].run(Object.fromEntries(feeds)))[sessions[role].outputNames[0]];
    });
    const picture = { data: Uint8Array.from(rgba), width: 38, height: 22 }, out = [];
    for (const reverse of [false, true]) out.push([...(await flow.translate(picture, 4, reverse)).data]);
    give(out);
    """
    rgba = np.concatenate([image, np.full((22, 38, 1), 255, np.uint8)], axis=2)
    out = in_node(code, tmp_path, site=site.as_uri(), rgba=rgba.ravel().tolist())
    bundle = load_bundle(site)
    for reverse, data in zip((False, True), out, strict=True):
        options = FlowOptions(steps=4, reverse=reverse, size="native")
        flow = Flow(Velocity(bundle, "cpu"), open_codec(bundle, "cpu"), bundle.manifest, options)
        got = np.array(data, np.uint8).reshape(22, 38, 4)[..., :3]
        assert levels(got, flow(image[None])[0]) <= 1
