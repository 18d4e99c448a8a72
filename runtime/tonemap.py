"""HDR frames as SDR, for a net that has seen nothing else: libswscale's perceptual tone mapping, after libplacebo's.

PQ (SMPTE ST 2084) counts to 10,000 cd/m², HLG (ARIB STD-B67) to 1,000 at its nominal peak. What the mastering display
could show becomes SDR's white, the middle keeps its contrast, and colours outside of BT.709 are drawn in.
"""

from typing import Any

import av
from av.sidedata.sidedata import Type

HDR = {16: "PQ", 18: "HLG"}
"""AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67."""
_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_TO_SDR = f"{_FLAGS}:out_transfer=bt709:out_primaries=bt709:out_range=pc:intent=perceptual"
_TO_HLG = f"{_FLAGS}:out_transfer=arib-std-b67:intent=relative_colorimetric"
"""Clips at 1,000 cd/m²: for PQ that does not say how far it goes, and would be taken for 10,000 and come out dark."""


class ToneMap:
    """Maps the frames of one film; SDR frames pass as they are. The first one costs 2 s, for its table of colours."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._key: tuple[object, ...] = ()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame as decoded → the same, or RGB of 8 bits in BT.709."""
        if frame.color_trc not in HDR:
            return frame
        key = frame.width, frame.height, frame.format.name, frame.color_trc, frame.colorspace, frame.color_range
        if key != self._key:
            says = Type.MASTERING_DISPLAY_METADATA in frame.side_data
            self._graph, self._key = _graph(frame, bounded=says or HDR[frame.color_trc] == "HLG"), key
        self._graph.push(frame)
        mapped: av.VideoFrame = self._graph.pull()
        return mapped


def _graph(frame: av.VideoFrame, bounded: bool) -> Any:
    graph = av.filter.Graph()
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
        f":colorspace={frame.colorspace}:range={frame.color_range}"
    )
    steps = [("buffer", source), ("scale", _TO_SDR), ("format", "rgb24"), ("buffersink", None)]
    if not bounded:
        steps[1:1] = [("scale", _TO_HLG), ("format", "gbrp16le")]
    filters = [graph.add(name, arguments) for name, arguments in steps]
    graph.link_nodes(*filters).configure()
    return graph
