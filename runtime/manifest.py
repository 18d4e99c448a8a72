"""The manifest of a bundle, `rfp.json`: the one description of an export.

A graph also carries it, without the list of graphs, in its own metadata under the key `rfp`, so that a lone
`velocity.onnx` still says what it is. A bundle is a stranger's file: everything is checked.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .alignment import LENGTHS, Alignment, sensible
from .errors import BundleError

FORMAT_VERSION = 1
MANIFEST_FILE = "rfp.json"
METADATA_KEY = "rfp"
LATER: dict[str, Any] = {
    "generative": False,
    "latent": None,
    "alignment": None,
    "role": "velocity",
    "format": "onnx",
    "floor": {},
    "below_floor": False,
    "about": {},
    "data": None,
}
"""Keys younger than the format, with what a manifest without them means. They are written only where they say
something else: so an older rfp goes on reading what it can, and refuses what it would misunderstand."""
ROLES = ("velocity", "encoder", "decoder")
TRANSLATION = "translation"
"""The role of a graph that does all: picture in, picture out. For apps; `rfp translate` does not use it."""
FORMATS = ("onnx", "coreml")
PRECISIONS = ("fp32", "fp16", "int8")
PALETTES = ("palette8", "palette6", "palette4")
"""Core ML's besides: weights out of a palette of 2⁸, 2⁶ or 2⁴ values."""
TIMESTEP = "t in [0, 1], float32 of shape [1] shared by the batch; 0 is domain 0, 1 is domain 1"


@dataclass(frozen=True)
class Data:
    """The file beside a graph of more than 2 GiB that holds its weights, ONNX's external data."""

    file: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _want(self.file, "data.file", "a name without folders", _is_file_name)
        _want(self.sha256, "data.sha256", "64 hexadecimal digits", _is_sha256)
        _want(self.bytes, "data.bytes", "a whole number above 0", lambda v: _is_int(v, 1, 1 << 48))


@dataclass(frozen=True)
class Graph:
    """One graph: its file in the bundle folder (a folder for Core ML) and what it computes (`role`).

    `parity` says how near it came to PyTorch: `psnr` in dB and `grey_levels` over the whole integration, the worst of
    `cases`, together with the other roles of its format and precision; `floor` has the least that was asked of it, and
    `below_floor` that it was kept all the same. `about` is what its format has to say besides.
    """

    file: str
    precision: str
    sha256: str
    bytes: int
    parity: dict[str, float] = field(default_factory=dict)
    role: str = "velocity"
    format: str = "onnx"
    floor: dict[str, float] = field(default_factory=dict)
    below_floor: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    data: Data | None = None

    def __post_init__(self) -> None:
        _want(self.file, "file", "a name without folders", _is_file_name)
        precisions, roles = (*PRECISIONS, *PALETTES), (*ROLES, TRANSLATION)
        _want(self.precision, "precision", ", ".join(precisions), lambda v: v in precisions)
        _want(self.role, "role", ", ".join(roles), lambda v: v in roles)
        _want(self.format, "format", ", ".join(FORMATS), lambda v: v in FORMATS)
        _want(self.sha256, "sha256", "64 hexadecimal digits", _is_sha256)
        _want(self.bytes, "bytes", "a whole number above 0", lambda v: _is_int(v, 1, 1 << 48))
        for name in ("parity", "floor"):
            _want(getattr(self, name), name, "names with finite numbers", _are_figures)
        _want(self.below_floor, "below_floor", "true or false", lambda v: isinstance(v, bool))
        _want(self.about, "about", "a JSON object", _is_object)
        _want(self.data, "data", "null or a JSON object", lambda v: v is None or isinstance(v, Data))


@dataclass(frozen=True)
class Latent:
    """What the flow of a latent model moves: z [B, channels, H/factor, W/factor]."""

    channels: int
    factor: int

    def __post_init__(self) -> None:
        _want(self.channels, "latent.channels", "1 to 1024", lambda v: _is_int(v, 1, 1024))
        _want(self.factor, "latent.factor", "1 to 64 (pixels)", lambda v: _is_int(v, 1, 64))


@dataclass(frozen=True)
class Manifest:
    """What a velocity graph takes and what it was made from.

    The graph computes `velocity` [B, C, H, W] from `x` [B, C, H, W] (RGB in `pixel_range`, H and W multiples of
    `multiple`) and `t` [1]. With `latent` its x and velocity are latents; an encoder graph computes `z` from pictures
    `x`, and a decoder graph pictures `x` from `z`; H and W of pictures are multiples of `multiple`. `image_size` is
    the pixel size it was trained at, `domains` the names of domain 0 and 1.
    With `generative`, domain 0 is noise, x ~ N(0, 1), in place of pictures. With `alignment` pictures of domain 0 are
    moved by it before anything else, and pictures that became of domain 0 by its inverse (runtime/alignment.py).
    Making one with a wrong type or range raises BundleError.
    """

    name: str
    image_size: int
    multiple: int
    default_steps: int
    domains: tuple[str, str]
    graphs: tuple[Graph, ...] = ()
    channels: int = 3
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    timestep: str = TIMESTEP
    licence: str = ""
    provenance: str = ""
    rfp_version: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    generative: bool = False
    latent: Latent | None = None
    alignment: Alignment | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _want(self.format_version, "format_version", "1", lambda v: _is_int(v, 1, FORMAT_VERSION))
        _want(self.name, "name", "a text", _is_word)
        _want(self.image_size, "image_size", "8 to 16384 (pixels)", lambda v: _is_int(v, 8, 16384))
        _want(self.multiple, "multiple", "1 to 1024 (pixels)", lambda v: _is_int(v, 1, 1024))
        _want(self.default_steps, "default_steps", "1 to 1000", lambda v: _is_int(v, 1, 1000))
        two_names = isinstance(self.domains, tuple) and len(self.domains) == 2 and all(map(_is_word, self.domains))
        _want(self.domains, "domains", "two names", lambda _: two_names)
        _want(self.channels, "channels", "3 (RGB)", lambda v: _is_int(v, 3, 3))
        _want(self.pixel_range, "pixel_range", "[-1, 1]", lambda v: v == (-1, 1))
        for name in ("timestep", "licence", "provenance", "rfp_version"):
            _want(getattr(self, name), name, "a text", _is_text)
        _want(self.training, "training", "a JSON object", _is_object)
        _want(self.generative, "generative", "true or false", lambda v: isinstance(v, bool))
        _want(self.latent, "latent", "null or a JSON object", lambda v: v is None or isinstance(v, Latent))
        wanted = f"null, or {LENGTHS[0]} or {LENGTHS[1]} numbers by which pictures stay pictures"
        _want(self.alignment, "alignment", wanted, _is_alignment)
        if self.alignment is not None:
            _want(self.generative, "generative", "false beside an alignment", lambda v: not v)
        if self.latent is not None:
            fits = self.multiple % self.latent.factor == 0
            _want(self.multiple, "multiple", f"a multiple of latent.factor {self.latent.factor}", lambda _: fits)
        files = [file for g in self.graphs for file in (g.file, g.data.file if g.data else None) if file]
        _want(files, "graphs", "every file once", lambda v: len(set(v)) == len(v))

    def other_steps(self, steps: int | None, solver: str) -> str:
        """What to say of these steps, if this net was not taught to make pictures in them; empty of a flow, whose
        steps are free. `rfp distill`, and a critic at the end of a training, teach a net so many Euler steps."""
        config = self.training.get("config")
        taught = config if isinstance(config, dict) else {}
        critic = taught.get("adversarial_weight") and taught.get("adversarial_start") != 1
        only = taught.get("distill_steps") or (critic and taught.get("num_inference_steps"))
        asked = self.default_steps if steps is None else steps
        if not _is_int(only, 1, 1000) or (asked == only and solver == "euler"):
            return ""
        plural = "" if only == 1 else "s"
        return (
            f"{self.name} was taught to make pictures in {only} Euler step{plural}, and here takes {asked} by "
            f"{solver}: --steps {only} is what it is for"
        )

    def to_json(self) -> str:
        """Indented JSON with a final newline for `rfp.json`; for a graph's own metadata, of `replace(m, graphs=())`."""
        values = _without_defaults(asdict(self))
        values["graphs"] = [_without_defaults(graph) for graph in values["graphs"]]
        values = {"format_version": values.pop("format_version"), **values}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST_FILE) -> "Manifest":
        """Read what `to_json` wrote. `where` names the source in messages.

        Raises:
            BundleError: not JSON, of a newer format, a key missing or unknown, or a value of wrong type or range.
        """
        try:
            values = json.loads(text)
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text, nor part of a file name
            return _manifest(values)
        except BundleError as e:
            raise BundleError(f"{where}: {e}") from None
        except (ValueError, RecursionError) as e:
            raise BundleError(f"{where}: not valid JSON ({e}); export the bundle again with `rfp export`") from e


def _manifest(values: Any) -> Manifest:
    """A manifest out of parsed JSON. A key that is not known is refused: it may change what the graph means."""
    values = dict(_want(values, "the manifest", "a JSON object", _is_object))
    version = values.get("format_version")
    if _is_int(version, FORMAT_VERSION + 1, 1 << 31):
        raise BundleError(
            f"made by a newer rfp: format_version {version}, and this rfp reads up to {FORMAT_VERSION}; "
            "upgrade with `pip install --upgrade rfp`"
        )
    graphs = _want(values.get("graphs", []), "graphs", "a list", lambda v: isinstance(v, list))
    values["graphs"] = tuple(_graph(graph, f"graphs[{i}]") for i, graph in enumerate(graphs))
    if (latent := values.get("latent")) is not None:
        values["latent"] = Latent(**_known(Latent, _want(latent, "latent", "a JSON object", _is_object), "latent."))
    for name in ("domains", "pixel_range", "alignment"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return Manifest(**_known(Manifest, values, ""))


def _graph(value: Any, at: str) -> Graph:
    values = dict(_want(value, at, "a JSON object", _is_object))
    if (data := values.get("data")) is not None:
        values["data"] = Data(**_known(Data, _want(data, f"{at}.data", "a JSON object", _is_object), f"{at}.data."))
    return Graph(**_known(Graph, values, f"{at}."))


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in LATER or v != LATER[k]}


def _known(cls: type[Data | Graph | Manifest | Latent], values: dict[str, Any], at: str) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    if unknown := sorted(values.keys() - known):
        raise BundleError(
            f"{at}{repr(unknown[0])[1:-1]}: not a key of format {FORMAT_VERSION}; is the bundle from a newer rfp?"
        )
    optional = LATER.keys() | {"parity"}
    if missing := sorted(known - optional - values.keys()):
        raise BundleError(f"{at}{missing[0]}: missing; export the bundle again with `rfp export`")
    return values


def _want(value: Any, name: str, wanted: str, good: Callable[[Any], bool]) -> Any:
    if good(value):
        return value
    shown = repr(value)
    raise BundleError(f"{name}: found {shown[:80]}{'…' if len(shown) > 80 else ''}, wanted {wanted}")


def _is_alignment(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(type(n) in (int, float) for n in value)
    return value is None or (numbers and sensible(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return _is_int(value, -(1 << 63), 1 << 63) or (isinstance(value, float) and math.isfinite(value))


def _are_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(k) and _is_number(v) for k, v in value.items())


def _is_file_name(value: Any) -> bool:
    """One plain name: nothing that leads out of the bundle folder on any system."""
    return _is_word(value) and value.isprintable() and value not in (".", "..") and not any(c in value for c in "/\\:")
