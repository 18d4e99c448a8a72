"""A checkpoint becomes a bundle: graphs, each proven against PyTorch or not kept, and the manifest; all or nothing."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.bundle import DATA_SUFFIX, digest
from ..runtime.errors import BundleError, ExportError, MediaError, UsageError
from ..runtime.files import write_folder_aside
from ..runtime.manifest import MANIFEST_FILE, ROLES, Data, Graph
from ..train.checkpoint import BEST
from .calibration import calibration_pictures
from .coreml import CoreML, coreml_maker, images_maker
from .proof import (
    FLOORS,
    PICTURE_FLOORS,
    Case,
    Floor,
    HalfOverflowError,
    Made,
    Maker,
    Parity,
    make_cases,
    prove,
    shortfall,
)
from .sizes import Between, Sizes
from .source import Size, Source, open_source
from .web import PAGE_FILES, RUNTIME_FOLDER, web_runtime, write_page

DEFAULT_PRECISION = {"onnx": "fp32", "coreml": "fp16"}
"""By format: what is made where no precision is asked for, and what its files' names do not mention."""
LITTER = (".DS_Store", "Thumbs.db")
"""What file managers leave in any folder."""
_GRAPH = re.compile(rf"({'|'.join((*ROLES, 'translate'))})(\.\w+)?\.(mlpackage|onnx({re.escape(DATA_SUFFIX)})?)")
"""Names of the graphs of any format and precision."""
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
    best: bool = False,
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = (),
    steps: int | None = None,
    sizes: Sequence[Size] = (),
    between: Between | None = None,
    coreml_batch: int = 1,
    coreml_images: bool = False,
    author: str = "",
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
        best: of a run folder, the checkpoint of the lowest KID (`eval_every`) in place of the newest.
        formats: of DEFAULT_PRECISION, or WEB.
        precisions: all of them for every format; none takes each format's default.
        steps: Euler steps of the proof and the manifest; None takes the config's.
        sizes: (width, height) in pixels to prove at; none takes the size of training and a taller one. Core ML packages
            take these and no others; the size of training if there are none.
        between: two sides in pixels: Core ML packages take all sizes between them.
        coreml_batch: pictures that a Core ML package takes at once.
        coreml_images: a Core ML package too that takes a picture and gives a picture, all steps inside.
        author: of the model, as Xcode shows it.
        calibration: a folder of pictures for int8, of domain 0 (of domain 1 where the model is generative); None
            takes the checkpoint's own.
        allow_below_floor: keep graphs below their floor, and say so in the manifest.

    Returns:
        What became of each format and precision. Those with an `error` are not in the bundle.

    Raises:
        UsageError: no such run, the output is there already (with `overwrite`: and holds other files too), or an option
            out of range.
        CheckpointError: the checkpoint is damaged or holds no velocity net.
        ExportError: nothing could be kept, or its page not be made; nothing is left.
        MissingExtraError: a page, and no npm to fetch what it needs.
    """
    if output.exists():
        _replaceable(output, overwrite)
    wanted = _wanted(formats, precisions)
    if calibration is not None and "int8" not in {p for some in wanted.values() for p in some}:
        raise UsageError("--calibration is for int8; add --precision int8")
    if calibration is not None:
        calibration_pictures(calibration)  # before minutes of making graphs
    if "coreml" not in wanted and (coreml_images or coreml_batch != 1 or between or author):
        raise UsageError("--coreml-images, --coreml-batch, --author and sizes from .. to are for --format coreml")
    runtime = web_runtime(note) if WEB in formats else None  # exporting takes longer than finding that it is not there
    opened = open_source(
        source,
        best=best,
        name=name,
        licence=licence,
        provenance=provenance,
        steps=steps,
        sizes=sizes,
        between=between,
    )
    note(f"exporting {source}, {_which(source, best, opened.manifest.training['step'])}")
    taken = opened.sizes if sizes and not between else opened.sizes[:1]
    coreml = CoreML(Sizes(tuple((h, w) for w, h in taken), between), coreml_batch, author)
    cases = make_cases(opened)
    with write_folder_aside(output) as folder:
        outcomes = []
        for format_, some in wanted.items():
            for make in _makers(format_, opened, note, calibration, coreml, coreml_images):
                outcomes += [_proven(opened, cases, make, format_, p, folder, allow_below_floor, note) for p in some]
        graphs = tuple(graph for outcome in outcomes for graph in outcome.graphs)
        if not graphs:
            raise ExportError("\n".join(str(o.error) for o in outcomes) + "\nnothing was exported")
        (folder / MANIFEST_FILE).write_text(replace(opened.manifest, graphs=graphs).to_json(), encoding="utf-8")
        if runtime and any(graph.format == "onnx" for graph in graphs):
            write_page(folder, runtime)
    return outcomes


def _replaceable(output: Path, overwrite: bool) -> None:
    """Raise UsageError unless what is there may go: a bundle, and nothing beside it that no export has written."""
    if not overwrite:
        raise UsageError(f"{output}: is there already; give another -o, or --overwrite to replace it")
    if not (output / MANIFEST_FILE).is_file():
        raise UsageError(f"{output}: is not a bundle (it has no {MANIFEST_FILE}), so --overwrite leaves it alone")
    ours = {output / name for name in (MANIFEST_FILE, *PAGE_FILES, *LITTER)}
    others = [p for p in (*output.iterdir(), *(output / RUNTIME_FOLDER).glob("*")) if p not in ours]
    if found := sorted(str(p.relative_to(output)) for p in others if not _GRAPH.fullmatch(p.name)):
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        raise UsageError(
            f"{output}: holds {named} beside the bundle, which --overwrite would delete with it; move that elsewhere, "
            "or give another -o"
        )


def _which(source: Path, best: bool, step: int) -> str:
    """The checkpoint that is exported, and what else there is to choose."""
    if not source.is_dir() or best:
        return f"step {step:,}"
    other = (source / "checkpoints" / BEST).is_file()
    return f"its newest checkpoint, step {step:,}" + (" (--best exports the one of its lowest KID)" if other else "")


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


def _makers(
    format_: str, source: Source, note: Callable[[str], None], calibration: Path | None, coreml: CoreML, images: bool
) -> list[Maker]:
    """What writes the graphs of a format, of any precision; what they share is made once."""
    match format_:
        case "onnx":
            from .onnx import onnx_maker

            return [onnx_maker(source, note, calibration)]
        case "coreml":
            return [coreml_maker(source, coreml, note), *([images_maker(source, coreml, note)] if images else [])]
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
    note: Callable[[str], None],
) -> Outcome:
    """Make the graphs of one precision, prove them, and keep them or remove them again."""
    before = set(folder.iterdir())
    try:
        made = make(precision, folder)
        floor = (PICTURE_FLOORS if made.translate else {}).get(precision, FLOORS[format_, precision])
        parity, below, made = _held(cases, made, source.manifest.default_steps, floor, note)
        if below and not allow_below_floor:
            names = ", ".join(made.files.values())
            raise ExportError(f"{names}: not kept: {below}; --allow-below-floor keeps it")
    except (ExportError, BundleError, MediaError) as e:  # the last two are the runtime's, of a graph that does not run
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Outcome(format_, precision, error=str(e))
    graphs = tuple(_graph(folder, made, role, format_, precision, parity, floor, bool(below)) for role in made.files)
    return Outcome(format_, precision, graphs, parity, below)


def _held(
    cases: Sequence[Case], made: Made, steps: int, floor: Floor, note: Callable[[str], None]
) -> tuple[Parity, str | None, Made]:
    """Prove what was made; where it overflows or is below its floor, what can be made in its place."""
    try:
        parity = prove([case for case in cases if made.takes(case)], made, steps)
        below = shortfall(parity, floor)
    except HalfOverflowError as e:
        if made.otherwise is None:
            raise
        below = str(e)
    else:
        if below is None or made.otherwise is None:
            return parity, below, made
    note(f"{below}; making it again with normalisations in float32")
    return _held(cases, made.otherwise(), steps, floor, note)


def _graph(
    folder: Path, made: Made, role: str, format_: str, precision: str, parity: Parity, floor: Floor, below: bool
) -> Graph:
    path = folder / made.files[role]
    sha256, size = digest(path)
    figures, about = parity.figures(), made.about.get(role, {})
    beside = path.with_name(f"{path.name}{DATA_SUFFIX}")
    data = Data(beside.name, *digest(beside)) if beside.is_file() else None
    return Graph(path.name, precision, sha256, size, figures, role, format_, floor.figures(), below, about, data)
