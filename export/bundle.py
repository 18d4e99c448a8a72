"""A checkpoint becomes a bundle: graphs, each proven against PyTorch or not kept, and the manifest; all or nothing."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.bundle import DATA_SUFFIX, digest
from ..runtime.errors import BundleError, ExportError, MediaError, UsageError
from ..runtime.files import write_folder_aside
from ..runtime.manifest import MANIFEST_FILE, Data, Graph
from .proof import FLOORS, Case, Floor, Made, Maker, Parity, make_cases, prove, shortfall
from .source import Size, Source, open_source
from .web import web_runtime, write_page

DEFAULT_PRECISION = {"onnx": "fp32"}
"""By format: what is made where no precision is asked for, and what its files' names do not mention."""
WEB = "web"
"""Asked for as a format: ONNX graphs with a page for browsers around them."""


@dataclass(frozen=True)
class Outcome:
    """What became of one format and precision. `error` says why it was not kept; `floor` what it was held against."""

    format: str
    precision: str
    graphs: tuple[Graph, ...] = ()
    parity: Parity | None = None
    below_floor: str | None = None
    error: str | None = None


def export_bundle(
    source: Path,
    output: Path,
    *,
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = (),
    steps: int | None = None,
    sizes: Sequence[Size] = (),
    calibration: Path | None = None,
    allow_below_floor: bool = False,
    name: str | None = None,
    licence: str = "",
    provenance: str = "",
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Write rfp.json and the graphs of a run folder or a checkpoint to the folder `output`, each proven first.

    A latent model has three graphs for each format and precision (velocity, encoder, decoder), proven together.

    Args:
        formats: of DEFAULT_PRECISION, or WEB.
        precisions: all of them for every format; none takes each format's default.
        steps: Euler steps of the proof and the manifest; None takes the config's.
        sizes: (width, height) in pixels to prove at; none takes the size of training and a taller one.
        calibration: a folder of pictures for int8, of domain 0 (of domain 1 where the model is generative); None
            takes the checkpoint's own.
        allow_below_floor: keep graphs below their floor, and say so in the manifest.

    Returns:
        What became of each format and precision. Those with an `error` are not in the bundle.

    Raises:
        UsageError: no such run, the output is there already, or an option out of range.
        CheckpointError: the checkpoint is damaged or holds no velocity net.
        ExportError: nothing could be kept, or its page not be made; nothing is left.
        MissingExtraError: a page, and no npm to fetch what it needs.
    """
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: is there already; give another -o, or --overwrite to replace it")
    if overwrite and output.exists() and not (output / MANIFEST_FILE).is_file():
        raise UsageError(f"{output}: is not a bundle (it has no {MANIFEST_FILE}), so --overwrite leaves it alone")
    wanted = _wanted(formats, precisions)
    if calibration is not None and "int8" not in {p for some in wanted.values() for p in some}:
        raise UsageError("--calibration is for int8; add --precision int8")
    runtime = web_runtime(note) if WEB in formats else None  # exporting takes longer than finding that it is not there
    note(f"exporting {source}")
    opened = open_source(source, name=name, licence=licence, provenance=provenance, steps=steps, sizes=sizes)
    cases = make_cases(opened)
    with write_folder_aside(output) as folder:
        outcomes = []
        for format_, some in wanted.items():
            make = _maker(format_, opened, note, calibration)
            for precision in some:
                outcome = _proven(opened, cases, make, format_, precision, folder, allow_below_floor)
                outcomes.append(outcome)
        graphs = tuple(graph for outcome in outcomes for graph in outcome.graphs)
        if not graphs:
            raise ExportError("\n".join(str(o.error) for o in outcomes) + "\nnothing was exported")
        (folder / MANIFEST_FILE).write_text(replace(opened.manifest, graphs=graphs).to_json(), encoding="utf-8")
        if runtime and any(graph.format == "onnx" for graph in graphs):
            write_page(folder, runtime)
    return outcomes


def _wanted(formats: Sequence[str], precisions: Sequence[str]) -> dict[str, list[str]]:
    """The precisions of each format. Raises UsageError for what is not known."""
    wanted, all_formats = {}, ", ".join([*DEFAULT_PRECISION, WEB])
    for format_ in dict.fromkeys("onnx" if f == WEB else f for f in formats):
        if format_ not in DEFAULT_PRECISION:
            raise UsageError(f"--format {format_!r} is not known; wanted one or more of {all_formats}")
        known = [p for f, p in FLOORS if f == format_]
        wanted[format_] = list(dict.fromkeys(precisions)) or [DEFAULT_PRECISION[format_]]
        if unknown := [p for p in wanted[format_] if p not in known]:
            raise UsageError(
                f"--precision {unknown[0]!r} is not known for {format_}; wanted one or more of {', '.join(known)}"
            )
    if not wanted:
        raise UsageError(f"--format is empty; wanted one or more of {all_formats}")
    return wanted


def _maker(format_: str, source: Source, note: Callable[[str], None], calibration: Path | None) -> Maker:
    """What writes the graphs of a format, of any precision; what they share is made once."""
    match format_:
        case "onnx":
            from .onnx import onnx_maker

            return onnx_maker(source, note, calibration)
        case _:
            raise AssertionError(format_)


def _proven(
    source: Source,
    cases: Sequence[Case],
    make: Maker,
    format_: str,
    precision: str,
    folder: Path,
    allow_below_floor: bool,
) -> Outcome:
    """Make the graphs of one precision, prove them, and keep them or remove them again."""
    floor, before = FLOORS[format_, precision], set(folder.iterdir())
    try:
        made = make(precision, folder)
        some = [case for case in cases if made.takes(case)]
        parity = prove(some, made, source.manifest.default_steps)
        below = shortfall(parity, floor)
        if below and not allow_below_floor:
            names = ", ".join(made.files.values())
            raise ExportError(f"{names}: not kept: {below}; --allow-below-floor keeps it")
    except (ExportError, BundleError, MediaError) as e:  # the last two are the runtime's, of a graph that does not run
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Outcome(format_, precision, error=str(e))
    graphs = tuple(_graph(folder, made, role, format_, precision, parity, floor, bool(below)) for role in made.files)
    return Outcome(format_, precision, graphs, parity, below)


def _graph(
    folder: Path, made: Made, role: str, format_: str, precision: str, parity: Parity, floor: Floor, below: bool
) -> Graph:
    path = folder / made.files[role]
    sha256, size = digest(path)
    figures, about = parity.figures(), made.about.get(role, {})
    beside = path.with_name(f"{path.name}{DATA_SUFFIX}")
    data = Data(beside.name, *digest(beside)) if beside.is_file() else None
    return Graph(path.name, precision, sha256, size, figures, role, format_, floor.figures(), below, about, data)
