"""A bundle: the folder with `rfp.json` (its manifest) and the graphs that it names, or one graph by itself."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BundleError, UsageError
from .manifest import MANIFEST_FILE, METADATA_KEY, PRECISIONS, ROLES, Graph, Manifest

DATA_SUFFIX = ".data"
"""After a graph's name: the file of its weights, where they take more than 2 GiB."""


@dataclass(frozen=True)
class Bundle:
    """A manifest and the bytes of the ONNX graphs that were chosen; `path` is the velocity graph's file.

    `encoder` and `decoder` are empty where the manifest says nothing of latents.
    """

    path: Path
    manifest: Manifest
    model: bytes = field(repr=False)
    encoder: bytes = field(default=b"", repr=False)
    decoder: bytes = field(default=b"", repr=False)
    data: dict[str, bytes] = field(default_factory=dict, repr=False, kw_only=True)
    """Weights of graphs of more than 2 GiB, by the name of their file."""
    packages: Mapping[str, Path] = field(default_factory=dict, kw_only=True)
    """For device coreml, Core ML packages by role: they are run, and the bytes above are empty."""


def load_bundle(path: str | Path, precision: str | None = None, device: str = "cpu") -> Bundle:
    """Open a bundle folder, or one `.onnx` file that carries its manifest.

    Args:
        precision: of the graphs: fp32, fp16 or int8. None takes what suits the `device` best of what is there: fp16
            before fp32 on CUDA, fp32 before fp16 elsewhere, and int8 only where there is nothing else.
        device: as for `translate`.

    Raises:
        BundleError: nothing there, no manifest, a manifest with mistakes, a graph that is missing or damaged.
        UsageError: a bundle without graphs of this precision, or a device that is not there.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path, precision, device)
    if path.name == MANIFEST_FILE and path.is_file():
        return _from_folder(path.parent, precision, device)
    if precision is not None:
        raise UsageError(f"{path}: is one graph, of one precision; give the bundle's folder to choose {precision!r}")
    model = _read(path, "a bundle is a folder with rfp.json and velocity.onnx, or one .onnx file, from `rfp export`")
    if path.suffix.lower() != ".onnx":
        raise BundleError(f"{path}: not a bundle; give the folder that `rfp export` wrote, or its velocity.onnx")
    from .network import open_session  # onnxruntime takes 0.15 s to import and the folder form does not need it yet

    beside = path.with_name(f"{path.name}{DATA_SUFFIX}")
    data = {beside.name: _read(beside, "")} if beside.is_file() else {}
    metadata = open_session(model, path, data=data).get_modelmeta().custom_metadata_map
    if METADATA_KEY not in metadata:
        raise BundleError(
            f"{path}: an ONNX graph without rfp's description (metadata key {METADATA_KEY!r}); "
            f"give a bundle folder with {MANIFEST_FILE}, or a graph that `rfp export` wrote"
        )
    manifest = Manifest.from_json(metadata[METADATA_KEY], f"{path}, metadata {METADATA_KEY!r}")
    if manifest.latent is not None:
        raise BundleError(
            f"{path}: one graph of a model that works on latents, which needs three (encoder, velocity, decoder); "
            f"give the bundle folder with {MANIFEST_FILE}"
        )
    return Bundle(path, manifest, model, data=data)


def opened(bundle: Bundle | str | Path, precision: str | None, device: str) -> Bundle:
    """A bundle that is loaded as it is, or `load_bundle`'s. Raises as that does."""
    if not isinstance(bundle, Bundle):
        return load_bundle(bundle, precision, device)
    if precision is not None:
        raise UsageError(
            f"{bundle.path}: is loaded already; choose {precision!r} with load_bundle(path, {precision!r})"
        )
    return bundle


def _from_folder(folder: Path, precision: str | None, device: str) -> Bundle:
    manifest = read_manifest(folder)
    roles = ROLES if manifest.latent is not None else ROLES[:1]
    formats = {g.format for g in manifest.graphs}
    if device == "coreml" and "coreml" in formats:
        packages = _packages(folder, manifest, roles, precision)
        return Bundle(packages["velocity"], manifest, b"", packages=packages)
    if formats == {"coreml"}:
        where = folder / MANIFEST_FILE
        raise BundleError(f"{where}: has Core ML packages only: --device coreml runs them on a Mac; or export ONNX")
    chosen = _choose(folder / MANIFEST_FILE, manifest, precision, device)
    graphs = [_graph(folder, manifest, role, chosen) for role in roles]
    models = [_checked(folder / g.file, g.sha256, g.bytes) for g in graphs]
    data = {g.data.file: _checked(folder / g.data.file, g.data.sha256, g.data.bytes) for g in graphs if g.data}
    return Bundle(folder / graphs[0].file, manifest, *models, data=data)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle folder. Raises BundleError."""
    where = folder / MANIFEST_FILE
    text = _read(where, f"is {folder} a folder that `rfp export` wrote?")
    return Manifest.from_json(text.decode("utf-8", errors="replace"), str(where))


def digest(path: Path) -> tuple[str, int]:
    """sha256 and bytes of a file; of a folder, over the path and the sha256 of each file in it, in order of paths."""
    if path.is_file():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest(), path.stat().st_size
    whole, size = hashlib.sha256(), 0
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    for name, file in files:
        sha256, n = digest(file)
        whole.update(f"{name}\0{sha256}\n".encode())
        size += n
    return whole.hexdigest(), size


def _choose(where: Path, manifest: Manifest, precision: str | None, device: str) -> str:
    """The precision of the graphs to run, of those that the bundle has."""
    there = {g.precision for g in manifest.graphs if g.role == "velocity" and g.format == "onnx"}
    if precision is not None:
        if precision not in there:
            raise UsageError(
                f"{where}: has no ONNX graph of precision {precision!r} (there: {', '.join(sorted(there)) or 'none'}); "
                f"export it again with --precision {precision}"
                if precision in PRECISIONS
                else f"precision {precision!r} is not known; wanted {', '.join(PRECISIONS)}"
            )
        return precision
    order = PRECISIONS
    if device != "cpu" and "fp16" in there:
        from .network import choose_device  # onnxruntime takes 0.15 s to import

        order = ("fp16", "fp32", "int8") if choose_device(device) == "cuda" else PRECISIONS
    return next((p for p in order if p in there), order[0])


def _graph(folder: Path, manifest: Manifest, role: str, precision: str) -> Graph:
    """The ONNX graph of a role and precision."""
    wanted = ("onnx", role, precision)
    graph = next((g for g in manifest.graphs if (g.format, g.role, g.precision) == wanted), None)
    if graph is None:
        found = ", ".join(g.file for g in manifest.graphs) or "none"
        raise BundleError(
            f"{folder / MANIFEST_FILE}: lists no ONNX graph of the {role} (found: {found}); export the checkpoint again"
        )
    return graph


def _checked(file: Path, sha256: str, size: int) -> bytes:
    """The bytes of a file as they were when it was exported."""
    data = _read(file, f"{MANIFEST_FILE} lists it; copy the whole bundle folder", size + 1)
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BundleError(
            f"{file}: damaged or changed since its export: {file.stat().st_size:,} bytes, sha256 {found[:12]}…, "
            f"{MANIFEST_FILE} says {size:,} bytes, sha256 {sha256[:12]}…; copy the bundle again"
        )
    return data


def _packages(folder: Path, manifest: Manifest, roles: Sequence[str], precision: str | None) -> dict[str, Path]:
    """The Core ML packages of all roles: of the precision asked for, else fp16, else the first there is."""
    there = [g.precision for g in manifest.graphs if g.format == "coreml" and g.role == "velocity"]
    if precision is not None and precision not in there:
        raise UsageError(f"{folder}: has no Core ML package of precision {precision!r} (there: {', '.join(there)})")
    chosen = precision or next((p for p in ("fp16", *there) if p in there), "fp16")
    packages = {}
    for role in roles:
        wanted = ("coreml", role, chosen)
        graph = next((g for g in manifest.graphs if (g.format, g.role, g.precision) == wanted), None)
        if graph is None:
            raise BundleError(f"{folder / MANIFEST_FILE}: lists no Core ML package of the {role}; export it again")
        _check_package(folder / graph.file, graph)
        packages[role] = folder / graph.file
    return packages


def _check_package(path: Path, graph: Graph) -> None:
    if not path.is_dir():
        raise BundleError(f"{path}: cannot be read (no such folder); {MANIFEST_FILE} lists it; copy the whole bundle")
    try:
        found, size = digest(path)
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror or e}); copy the whole bundle") from e
    if found != graph.sha256:
        raise BundleError(
            f"{path}: damaged or changed since its export: {size:,} bytes, sha256 {found[:12]}…, "
            f"{MANIFEST_FILE} says {graph.bytes:,} bytes, sha256 {graph.sha256[:12]}…; copy the bundle again"
        )


def _read(path: Path, hint: str, most: int = -1) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, and a device never ends
            raise BundleError(f"{path}: is no file; {hint}")
        with path.open("rb") as f:
            return f.read() if most < 0 else f.read(min(most, path.stat().st_size))
    except (OSError, ValueError, MemoryError, OverflowError) as e:
        why = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise BundleError(f"{path}: cannot be read ({why}); {hint}") from e
