"""What a bundle, a checkpoint or a run is, without torch: the manifest, or the header of the safetensors file."""

import json
import math
import operator
from pathlib import Path
from typing import Any

from .bundle import digest, load_bundle, read_manifest
from .errors import BundleError, CheckpointError, UsageError
from .manifest import MANIFEST_FILE, Manifest

PHASES = ("codec", "saliency", "velocity")
"""Of a training, in order."""
MOST_HEADER = 100_000_000
"""Bytes of a safetensors header, as its own reader bounds it."""


def describe(path: Path) -> dict[str, Any]:
    """JSON values about a bundle folder, one of its graphs, a checkpoint file or a run folder; `kind` says which.

    Raises:
        UsageError: nothing there, or none of these.
        BundleError, CheckpointError: damaged, or of a newer format.
    """
    if (path / MANIFEST_FILE).is_file():
        return _bundle(path)
    if path.name == MANIFEST_FILE and path.is_file():
        return _bundle(path.parent)
    if path.is_dir():
        return _run(path)
    if path.suffix.lower() == ".onnx":
        return {"kind": "graph", "path": str(path), "manifest": _values(load_bundle(path).manifest)}
    if path.suffix.lower() == ".safetensors":
        return {"kind": "checkpoint", "path": str(path), **checkpoint(path)}
    found = "a file of another kind" if path.exists() else "nothing there"
    raise UsageError(
        f"{path}: {found}; wanted a bundle's folder, its .onnx, a run's folder or a .safetensors checkpoint"
    )


def _bundle(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    values = _values(manifest)
    for graph, entry in zip(manifest.graphs, values["graphs"], strict=True):
        packed = graph.format == "coreml"
        states = [_state(folder / part.file, part.sha256, packed) for part in (graph, graph.data) if part]
        entry["state"] = next((state for state in states if state != "whole"), "whole")
    return {"kind": "bundle", "path": str(folder), "manifest": values}


def _state(file: Path, sha256: str, packed: bool) -> str:
    if not file.exists():
        return "missing"
    try:
        if packed != file.is_dir() or (packed and file.is_symlink()):  # a link may lead to any folder, and all in it
            return "damaged"
        return "whole" if digest(file)[0] == sha256 else "damaged"
    except OSError as e:
        raise BundleError(f"{file}: cannot be read ({e.strerror or e})") from e


def _values(manifest: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(manifest.to_json())
    for graph, entry in zip(manifest.graphs, values["graphs"], strict=True):
        entry.update(role=graph.role, format=graph.format, below_floor=graph.below_floor)
    return values


def _run(folder: Path) -> dict[str, Any]:
    found = []
    for path in (folder / "checkpoints").glob("*.safetensors"):
        if path.name.startswith(".") or path.name.endswith(".state.safetensors"):
            continue
        try:
            found.append((path, checkpoint(path)))
        except CheckpointError:
            continue  # not one of ours, or one that is being written
    if not found:
        raise UsageError(f"{folder}: neither a bundle (no {MANIFEST_FILE}) nor a run (no checkpoints/*.safetensors)")
    found.sort(key=lambda entry: (PHASES.index(entry[1]["phase"]), entry[1]["step"]))
    return {
        "kind": "run",
        "path": str(folder),
        "checkpoints": [path.name for path, _ in found],
        "newest": found[-1][1],
        "last_metrics": _last_line(folder / "metrics.jsonl"),
    }


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - 65536))
            values = json.loads(f.read().splitlines()[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def checkpoint(path: Path) -> dict[str, Any]:
    """What the header of a checkpoint says: its training, and how many tensors and numbers each part has.

    Raises:
        CheckpointError: not a safetensors file, cut off, or not a checkpoint of rfp.
    """
    header = _header(path)
    try:
        about = json.loads(header["__metadata__"]["rfp"])
        PHASES.index(about["phase"])
        parts: dict[str, dict[str, int]] = {}
        for name, tensor in header.items():
            if name != "__metadata__":
                part = parts.setdefault(name.split(".")[0], {"tensors": 0, "numbers": 0})
                part["tensors"] += 1
                part["numbers"] += math.prod(int(n) for n in tensor["shape"])
        said = {k: about[k] for k in ("phase", "domains", "metrics", "config")}
        said |= {k: int(about[k]) for k in ("format", "step", "seed")}
        said["domains"] = [str(domain) for domain in said["domains"]]
        if len(said["domains"]) != 2 or not all(isinstance(said[k], dict) for k in ("metrics", "config")):
            raise ValueError("domains, metrics or config")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of rfp ({type(e).__name__}: {e})"
        ) from e
    return said | {"generative": about.get("generative", False) is True, "bytes": path.stat().st_size, "parts": parts}


def _header(path: Path) -> dict[str, Any]:
    """https://huggingface.co/docs/safetensors: the header's length, 8 bytes little-endian, then JSON."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(size - 8, MOST_HEADER):
                raise CheckpointError(
                    f"{path}: not a safetensors file, or cut off: a header of {length:,} bytes in {size:,}"
                )
            header: dict[str, Any] = json.loads(f.read(length))
        ends = [operator.index(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"]
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file: {e}") from e
    if (wanted := 8 + length + max(ends, default=0)) != size:
        raise CheckpointError(f"{path}: cut off or damaged: {size:,} bytes, and its header says {wanted:,}")
    return header
