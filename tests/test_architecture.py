"""The arrows cli → export → train → runtime hold, and what must stay light is light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("cli", "export", "train", "runtime")  # each may import itself and what stands after it
NEVER_IN_RUNTIME = {"torch", "torchvision", "pydantic", "typer", "rich", "onnx", "coremltools", "safetensors", "scipy"}
HEAVY = {"torch", "torchvision", "pydantic", "onnx", "onnxruntime", "coremltools", "safetensors", "numpy", "av", "PIL"}
MODULES = [(layer, path) for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imports(nodes: list[ast.stmt], layer: str, everywhere: bool) -> Iterator[str]:
    """Names that a module imports: `torch`, `rfp.train`; with `everywhere`, inside functions too."""
    for node in nodes:
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield module
            case ast.ImportFrom(level=1):
                yield f"rfp.{layer}"
            case ast.ImportFrom(level=2, module=None):
                yield from (f"rfp.{alias.name}" for alias in node.names)
            case ast.ImportFrom(module=module):
                yield f"rfp.{module}"
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not everywhere:
                pass
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not everywhere:
                pass
            case _:
                children = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.ExceptHandler)]
                yield from imports(children, layer, everywhere)


def of(layer: str, path: Path, everywhere: bool = True) -> set[str]:
    return set(imports(ast.parse(path.read_text(encoding="utf-8")).body, layer, everywhere))


@pytest.mark.parametrize(("layer", "path"), MODULES, ids=lambda v: str(v).removeprefix(str(ROOT)))
def test_no_arrow_points_back(layer, path):
    allowed = {f"rfp.{name}" for name in LAYERS[LAYERS.index(layer) :]} | {"rfp.configs"}
    if layer == "runtime":
        allowed = {"rfp.runtime"}
    ours = {".".join(name.split(".")[:2]) for name in of(layer, path) if name.split(".")[0] == "rfp"}
    back = ours & {f"rfp.{name}" for name in (*LAYERS, "configs")} - allowed
    assert not back, f"{path} imports {sorted(back)}"


@pytest.mark.parametrize("path", [p for layer, p in MODULES if layer == "runtime"], ids=lambda p: p.name)
def test_the_runtime_needs_nothing_that_only_training_has(path):
    never = NEVER_IN_RUNTIME - (
        {"coremltools"} if path.name == "coreml.py" else set()
    )  # on a Mac, where it is asked for
    assert not {name.split(".")[0] for name in of("runtime", path)} & never
    assert not {name.split(".")[0] for name in of("runtime", path, everywhere=False)} & NEVER_IN_RUNTIME


@pytest.mark.parametrize("path", [p for layer, p in MODULES if layer == "cli"], ids=lambda p: p.name)
def test_commands_import_the_torch_side_only_inside_functions(path):
    names = of("cli", path, everywhere=False)
    assert not {n.split(".")[0] for n in names} & {"torch", "torchvision", "pydantic", "onnx", "onnxruntime"}
    assert not {".".join(n.split(".")[:2]) for n in names} & {"rfp.train", "rfp.export"}


@pytest.mark.parametrize("code", ["import rfp.runtime", "from rfp.cli.main import app", "import rfp"])
def test_what_every_command_imports_is_light(code):
    out = subprocess.check_output(
        [sys.executable, "-c", f"import json, sys; {code}; print(json.dumps([*sys.modules]))"]
    )
    assert not HEAVY & set(json.loads(out))


def test_translating_pictures_imports_no_video_library_and_no_progress_bar():
    code = "import rfp.cli.main, rfp.runtime.translation, rfp.runtime.translator"
    out = subprocess.check_output(
        [sys.executable, "-c", f"import json, sys; {code}; print(json.dumps([*sys.modules]))"]
    )
    assert not {"av", "rich", "http.server", "pydantic", "onnxruntime", "torch"} & set(json.loads(out))


def test_help_works_without_the_training_packages():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'pydantic', 'onnx', 'safetensors']));"
        "from rfp.__main__ import main; sys.argv = ['rfp', '--help']; main()"
    )
    assert b"translate" in subprocess.check_output([sys.executable, "-c", code])
