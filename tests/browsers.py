"""Scripts in Node.js, and pages in a headless Chromium that playwright-core drives."""

import base64
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLAYWRIGHT = "playwright-core@1.65.1"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def fetch_playwright(folder: Path) -> Path:
    """Where its modules are then; skips the test where npm cannot fetch it."""
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), PLAYWRIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not fetch {PLAYWRIGHT}: {done.stderr.strip()[-200:]}")
    return folder / "node_modules"


def in_node(code: str, cwd: Path, **values: Any) -> Any:
    """Run a module's body with `values` as constants, and return what it gave to `give` once."""
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    end = "const give = (x) => process.stdout.write(JSON.stringify(x), () => process.exit(0));\n"
    (cwd / "main.mjs").write_text(constants + end + code, encoding="utf-8")
    done = subprocess.run(["node", "main.mjs"], cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PRELUDE = """
const { chromium } = await import(`${modules}/playwright-core/index.mjs`);
const usual = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
const browser = await chromium.launch({ executablePath, args: [...usual, ...flags] });
const phone = width < 500;
const context = await browser.newContext({ viewport: { width, height: 860 }, hasTouch: phone, isMobile: phone });
const page = await context.newPage(), requests = [], errors = [];
context.on("request", (r) => requests.push(r.url()));
page.on("pageerror", (e) => errors.push(String(e)));
page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
const status = () => page.textContent("#status");
const settled = async () => {
  const ended = (id) => /Ready|px in|Not|not|could/.test(document.getElementById(id).textContent);
  await page.waitForFunction(ended, "status", { timeout: 240000 });
  return status();
};
const pixels = () => page.evaluate(() => {
  const { width, height } = document.getElementById("after");
  const { data } = document.getElementById("after").getContext("2d").getImageData(0, 0, width, height);
  return { width, height, data: btoa(String.fromCharCode(...data)) };
});
await page.goto(url);
await settled();
"""


def in_chromium(
    modules: Path, cwd: Path, url: str, code: str, flags: Sequence[str] = (), width: int = 1000, **values: Any
) -> Any:
    """As `in_node`, after the page at `url` has started; PRELUDE says what the code may use."""
    code = PRELUDE + code + "\nawait browser.close();\n"
    values |= {"executablePath": CHROMIUM, "modules": str(modules), "flags": list(flags), "width": width, "url": url}
    return in_node(code, cwd, **values)


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[str]:
    """Its address, while it runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def image_of(given: dict[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3] out of what `pixels()` told."""
    data = np.frombuffer(base64.b64decode(given["data"]), np.uint8).reshape(given["height"], given["width"], 4)
    assert (data[..., 3] == 255).all()
    return data[..., :3]


def levels(got: np.ndarray, want: np.ndarray) -> int:
    """By how many grey levels they differ at most."""
    assert got.shape == want.shape
    return int(np.abs(got.astype(int) - want).max())
