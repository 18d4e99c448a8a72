"""The wheel and the base install: what reaches a user's machine."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import identity, write_bundle
from PIL import Image

ROOT = Path(__file__).parent.parent
BIN = "Scripts" if sys.platform == "win32" else "bin"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files, as a clean clone would."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_preset(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in (("train", "train"), ("runtime", "runtime"), ("export", "export"), ("cli", "cli")):
        assert {f"rfp/{package}/{p.name}" for p in (ROOT / folder).glob("*.py")} <= names
    assert {f"rfp/configs/{p.name}" for p in (ROOT / "configs").glob("*.json")} <= names
    assert "rfp/configs/schema.json" in names
    assert {f"rfp/export/site/{p.name}" for p in (ROOT / "export" / "site").iterdir()} <= names
    assert {n.split("/")[0] for n in names if not n.split("/")[0].endswith(".dist-info")} == {"rfp"}


@pytest.mark.slow
def test_the_base_install_translates_and_generates_without_torch(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python, rfp = tmp_path / "venv" / BIN / "python", tmp_path / "venv" / BIN / "rfp"
    installed = run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert run(python, "-c", "import torch", cwd=tmp_path).returncode == 1

    shown = run(rfp, "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "translate" in shown.stdout

    bundle = write_bundle(tmp_path / "bundle", identity())
    Image.fromarray(np.full((16, 24, 3), 128, np.uint8)).save(tmp_path / "in.png")
    done = run(rfp, "translate", bundle, "in.png", "-o", "out.png", "--size", "native", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 1
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (24, 16)

    maker = write_bundle(tmp_path / "maker", identity(), generative=True)
    made = run(rfp, "generate", maker, "-o", "made", "-n", "3", "--grid", cwd=tmp_path)
    assert made.returncode == 0 and len(list((tmp_path / "made").iterdir())) == 4, made.stderr

    refused = run(rfp, "train", "-c", "small", "-d0", ".", "-d1", ".", cwd=tmp_path)
    assert refused.returncode == 2 and "pip install 'rfp[train]'" in refused.stderr
    assert "Traceback" not in refused.stderr
