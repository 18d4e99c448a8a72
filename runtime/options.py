"""What can be asked of a translation, as plain values: the command line fills these, and `translate` takes them.

Each part has one frozen dataclass of its own; making one with a value out of range raises UsageError.
"""

from dataclasses import dataclass
from typing import get_args

from .errors import UsageError
from .euler import Solver

UPSCALES = ("none", "resize", "residual")


@dataclass(frozen=True)
class FlowOptions:
    """How pictures go through the net.

    Args:
        steps: of the solver; None takes the bundle's.
        solver: euler, or heun, which calls the velocity twice a step and at equal calls comes nearer.
        size: pixels of the short side at which the flow works, the aspect kept; "model" is the size of training,
            "native" leaves every size as it is.
        upscale: what comes out of another size than the flow worked at. "none" gives the flow's own size back, "resize"
            enlarges the result to the input's size, "residual" enlarges what the flow added and adds that to the
            input, whose detail so stays.
        tile: pixels of the side of tiles in which larger pictures are translated, so that memory depends on the tile
            alone; None translates whole pictures.
        overlap: pixels over which tiles are blended; None takes a quarter of the tile.
        reverse: from domain 1 to domain 0.
        batch: pictures or frames of one size at once; "auto" takes as many as suit the device and the memory.
        threads: of the net, on the CPU; "auto" is one for each core.
        device: auto, cpu, cuda or coreml.
        precision: of the graphs, where the bundle has several: fp32, fp16 or int8; None takes what suits the device
            (fp16 on CUDA, fp32 elsewhere). Only where the bundle is a path.
    """

    steps: int | None = None
    solver: Solver = "euler"
    size: int | str = "model"
    upscale: str = "none"
    tile: int | None = None
    overlap: int | None = None
    reverse: bool = False
    batch: int | str = "auto"
    threads: int | str = "auto"
    device: str = "auto"
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise UsageError(f"solver is {self.solver!r}; wanted {' or '.join(get_args(Solver))}")
        in_range("steps", self.steps, 1, 10_000, None)
        in_range("size", self.size, 8, 16_384, "model", "native")
        if self.upscale not in UPSCALES:
            raise UsageError(f"upscale is {self.upscale!r}; wanted {', '.join(UPSCALES)}")
        in_range("tile", self.tile, 32, 16_384, None)
        if self.overlap is not None and self.tile is None:
            raise UsageError("overlap is for tiles; give --tile too")
        in_range("overlap", self.overlap, 0, (self.tile or 0) // 2, None)
        in_range("batch", self.batch, 1, 4096, "auto")
        in_range("threads", self.threads, 1, 1024, "auto")


@dataclass(frozen=True)
class FilmOptions:
    """How videos are cut, compared and encoded; pictures are not concerned.

    Args:
        codec: h264, hevc, av1, vp9, ffv1 or prores; or a hardware encoder by FFmpeg's name, such as h264_nvenc. None
            takes h264, and vp9 in a .webm.
        crf: quality on the encoder's own scale, lower is better; None takes one at which the loss is hard to see.
        pix_fmt: FFmpeg's name of a YUV format, such as yuv444p or yuv420p10le; None takes the encoder's own.
        start, end: seconds of the source; None is its own beginning and end.
        compare: "side" puts the source to the left of its translation, "wipe" lays it over behind a moving line.
    """

    codec: str | None = None
    crf: float | None = None
    pix_fmt: str | None = None
    start: float | None = None
    end: float | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        if self.compare not in (None, "side", "wipe"):
            raise UsageError(f"compare is {self.compare!r}; wanted side or wipe")
        if self.crf is not None and not _is_number(self.crf):
            raise UsageError(f"crf is {self.crf!r}; wanted a number")
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not (_is_number(value) and 0 <= value < 1e9):
                raise UsageError(f"{name} is {value!r}; wanted seconds from 0 on")
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(f"end is {self.end} s, and start {self.start or 0} s; wanted an end after the start")


AS_IT_IS = FilmOptions()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def in_range(name: str, value: object, low: int, high: int, *others: object) -> None:
    """Raise UsageError unless value is one of the others, or a whole number from low to high."""
    if value in others or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        return
    words = "".join(f", or {other}" for other in others if other is not None)
    raise UsageError(f"{name} is {value!r}; wanted {low} to {high}{words}")


PICTURE_FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff")
_ALSO = {"jpeg": "jpg", "tif": "tiff"}


def picture_format(name: str) -> str:
    """One of PICTURE_FORMATS, as people write it too: JPG, jpeg, tif. Raises UsageError."""
    known = _ALSO.get(name.lower(), name.lower())
    if known not in PICTURE_FORMATS:
        raise UsageError(f"format is {name!r}; wanted one of {', '.join(PICTURE_FORMATS)}")
    return known


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are written; videos are not concerned.

    Args:
        format: one of PICTURE_FORMATS (jpeg and tif mean jpg and tiff), for every picture; None keeps each one's own.
        quality: of JPEG and WebP, 1 to 100.
    """

    format: str | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        in_range("quality", self.quality, 1, 100)
        if self.format is not None:
            object.__setattr__(self, "format", picture_format(self.format))  # one spelling for names and ledger
        if self.format not in (None, "jpg", "webp") and self.quality != type(self).quality:
            raise UsageError(f"quality is of JPEG and WebP, and format is {self.format}; leave one of the two out")


@dataclass(frozen=True)
class FolderOptions:
    """Which inputs are done.

    Args:
        shard: (i, n): only the i-th of n parts (from 1), by a hash of each name. Parts may run at once, on
            machines that share `output` or not.
        shuffle: in an order that looks random, and is the same each time.
        limit: only so many inputs, the first of that order.
        settled: seconds since an input was last written, below which it is left for another time.
    """

    shard: tuple[int, int] | None = None
    shuffle: bool = False
    limit: int | None = None
    settled: float = 0.0

    def __post_init__(self) -> None:
        in_range("limit", self.limit, 1, 1 << 62, None)
        if not _is_number(self.settled):
            raise UsageError(f"settled is {self.settled!r}; wanted seconds")
        if self.shard is not None:
            if not isinstance(self.shard, tuple) or len(self.shard) != 2:
                raise UsageError(f"shard is {self.shard!r}; wanted two numbers, which part and of how many")
            i, n = self.shard
            in_range("shard's number of parts", n, 1, 1_000_000)
            in_range("shard", i, 1, n)
