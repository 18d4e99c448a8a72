"""A page around a bundle, for browsers: our static files and ONNX Runtime's web build beside the graphs.

The folder stays a bundle, so `rfp translate` takes it too. Nothing in it names another machine.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..runtime.errors import ExportError, MissingExtraError
from ..runtime.manifest import MANIFEST_FILE, PRECISIONS, Manifest
from ..train.frame_cache import cache_folder

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""What `npm view onnxruntime-web@VERSION dist.integrity` says: another version, another page to test."""
TARBALL = f"{PACKAGE}-{VERSION}.tgz"
ADDRESS = f"https://registry.npmjs.org/{PACKAGE}/-/{TARBALL}"
RUNTIME_FILES = (
    "ort.wasm.bundle.min.mjs",  # the CPU: 14 MB with the next
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",  # the GPU, where a browser has WebGPU: 27 MB with the next
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Of the package's 37; a visitor fetches two of them."""
SITE = Path(__file__).parent / "site"
RUNTIME_FOLDER = "ort"
PAGE_FILES = (
    *sorted(file.name for file in SITE.iterdir()),
    RUNTIME_FOLDER,
    *(f"{RUNTIME_FOLDER}/{name}" for name in (*RUNTIME_FILES, "LICENSE")),
)
"""All that a page adds to a bundle's folder."""
MOST_BYTES = 1 << 31
"""Of the graphs of a precision together: browsers hold no larger buffer, and WebAssembly addresses 4 GiB in all."""


def web_runtime(note: Callable[[str], None] = lambda text: None) -> Path:
    """The pinned onnxruntime-web as npm packs it (33 MB): from the cache folder, and the first time through npm.

    Raises:
        MissingExtraError: it is not in the cache, and npm is not installed.
        ExportError: npm could not fetch it, or what is there is not that version as it was published.
    """
    folder = cache_folder()
    kept = folder / TARBALL
    if not kept.exists():
        note(f"fetching {PACKAGE} {VERSION} through npm, once, into {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npm-", dir=folder) as aside:
            packed = _npm_pack(Path(aside), kept)
            _verify(packed)
            packed.replace(kept)
    _verify(kept)
    return kept


def write_page(folder: Path, runtime: Path) -> None:
    """Put the page beside the graphs of a bundle; `runtime` is what `web_runtime` gave.

    Raises:
        ExportError: the graphs are too large for a browser.
    """
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"), str(folder / MANIFEST_FILE))
    onnx = [graph for graph in manifest.graphs if graph.format == "onnx"]
    for precision in PRECISIONS:
        sizes = [g.bytes + (g.data.bytes if g.data else 0) for g in onnx if g.precision == precision]
        if (total := sum(sizes)) > MOST_BYTES:
            raise ExportError(
                f"the {precision} graphs are {total / 1e9:.1f} GB together, and browsers hold {MOST_BYTES / 1e9:.1f}; "
                "export a lower --precision, or without --format web"
            )
    for file in sorted(SITE.iterdir()):
        shutil.copyfile(file, folder / file.name)
    (folder / RUNTIME_FOLDER).mkdir()
    with tarfile.open(runtime) as package:
        for name in RUNTIME_FILES:
            member = package.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / RUNTIME_FOLDER / name).write_bytes(member.read())
    (folder / RUNTIME_FOLDER / "LICENSE").write_text(_LICENCE, encoding="utf-8")


def _npm_pack(folder: Path, kept: Path) -> Path:
    npm = shutil.which("npm")
    by_hand = f"or put {ADDRESS} at {kept}"
    if npm is None:
        raise MissingExtraError(
            f"a page needs {PACKAGE} {VERSION}, which npm fetches once, and npm is not installed: "
            f"install Node.js (https://nodejs.org), {by_hand}"
        )
    options = ["--pack-destination", str(folder), "--ignore-scripts", "--silent", "--json"]  # errors in JSON alone
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / TARBALL).is_file():
        reason = _summary(done.stdout) or _summary(done.stderr) or done.stderr.strip() or f"exit code {done.returncode}"
        raise ExportError(
            f"npm could not fetch {PACKAGE} {VERSION} ({reason.splitlines()[-1]}); try again with a network, {by_hand}"
        )
    return folder / TARBALL


def _summary(said: str) -> str:
    """What npm itself calls the summary of its error, of JSON on stdout or, by old versions, on stderr."""
    try:
        return str(json.loads(said)["error"]["summary"]).strip()
    except (ValueError, KeyError, TypeError):
        return ""


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if (found := f"sha512-{base64.b64encode(digest).decode()}") != INTEGRITY:
        raise ExportError(
            f"{path}: is not {PACKAGE} {VERSION} as it was published ({path.stat().st_size:,} bytes, {found[:20]}…, "
            f"wanted {INTEGRITY[:20]}…); remove it and export again"
        )


_LICENCE = f"""\
ONNX Runtime Web (onnxruntime-web) {VERSION}

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
