"""Run exported velocity graphs: numpy, Pillow, PyAV and ONNX Runtime, never torch.

import rfp.runtime as rfp
rfp.translate("BUNDLE", ["photos"], "paintings", flow=rfp.FlowOptions(steps=8))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    ExportError,
    MediaError,
    MissingExtraError,
    RfpError,
    TrainingError,
    UsageError,
)

if TYPE_CHECKING:
    from .bundle import Bundle, load_bundle
    from .euler import integrate
    from .generation import generate
    from .manifest import Graph, Manifest
    from .options import FilmOptions, FlowOptions, FolderOptions, PictureOptions
    from .report import Event, Report
    from .translation import translate
    from .translator import Translator

# Looked up on first use: every rfp command imports this package, and PyAV and numpy take 0.3 s.
_LATER = {
    "bundle": ("Bundle", "load_bundle"),
    "euler": ("integrate",),
    "generation": ("generate",),
    "manifest": ("Graph", "Manifest"),
    "options": ("FilmOptions", "FlowOptions", "FolderOptions", "PictureOptions"),
    "report": ("Event", "Report"),
    "translation": ("translate",),
    "translator": ("Translator",),
}

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "Event",
    "ExportError",
    "FilmOptions",
    "FlowOptions",
    "FolderOptions",
    "Graph",
    "Manifest",
    "MediaError",
    "MissingExtraError",
    "PictureOptions",
    "Report",
    "RfpError",
    "TrainingError",
    "Translator",
    "UsageError",
    "generate",
    "integrate",
    "load_bundle",
    "translate",
]


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
