"""A domain: the pictures of one kind, from folders, files, zips and videos, cropped for training.

Nothing here depends on how often or in which order pictures are read: crop k is a function of (seed, k).
"""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..runtime.alignment import IDENTITY, Alignment, moved
from ..runtime.discovery import discover
from ..runtime.errors import MediaError, UsageError
from ..runtime.media import Media, open_image, read_image
from ..runtime.pixels import Float, Uint8
from .frame_cache import Film, FrameCache, open_films

Indices = npt.NDArray[np.int64]
HELD_OUT = 256
"""Pictures per domain that only judge, at most, and never more than a tenth of the domain."""
WORKERS = max(2, min(16, os.cpu_count() or 2))


class Item(NamedTuple):
    """One picture: an image, or frame number `frame` of a video, which lies in `frames` at `row`."""

    media: Media
    frames: Uint8 | None = None
    frame: int = 0
    row: int = 0

    @property
    def name(self) -> str:
        """By which pairs find each other: its place below the input without the suffix, and of a film the frame."""
        frame = f" frame {self.frame}" if self.frames is not None else ""
        return f"{self.media.relative.with_suffix('')}{frame}"


LEAST = 0.9
"""Side of the smallest random crop, of the short side, where nothing else is said."""


class Crop(NamedTuple):
    """A square: its side as a share of the short side, and its centre's offset in shares of it."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator, flip: bool, least: float = LEAST, share: float = 1.0) -> "Crop":
        """Side `least` to 1 of the short side, anywhere in the middle square, mirrored half of the time if `flip`.

        Only a `share` of them; the others are the whole middle square.
        """
        scale, dx, dy, mirror, cut = rng.uniform([least, -0.5, -0.5, 0.0, 0.0], [1.0, 0.5, 0.5, 1.0, 1.0])
        room = 1 - scale
        square = cls(float(scale), float(dx * room), float(dy * room)) if cut < share else cls()
        return square._replace(flip=bool(flip and mirror < 0.5))

    def place(self, size: int) -> Float:
        """Where the pixels of the square lie in the picture: float32 [size, size, 2], row and column.

        The middle square of the picture goes from -1 to 1.
        """
        line = self.scale * (2 * (np.arange(size, dtype=np.float32) + 0.5) / size - 1)
        rows, columns = 2 * self.dy + line, 2 * self.dx + line
        where = np.meshgrid(rows, columns[::-1] if self.flip else columns, indexing="ij")
        return np.stack(where, axis=-1).astype(np.float32)

    def apply(self, image: Image.Image, size: int) -> Uint8:
        """Cut out the square and resize it by LANCZOS: uint8 [size, size, 3]."""
        short = min(image.size)
        side = self.scale * short
        left = min(max(image.width / 2 + self.dx * short - side / 2, 0), image.width - side)
        top = min(max(image.height / 2 + self.dy * short - side / 2, 0), image.height - side)
        square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        pixels = np.asarray(square)
        return pixels[:, ::-1] if self.flip else pixels


@dataclass
class Domain:
    """Pictures by index. `skipped` lists what could not be read, each with its reason.

    Decoded pictures stay in memory up to `cache_bytes`; others are decoded again when they are drawn.
    """

    name: str
    items: list[Item]
    size: int
    skipped: list[str] = field(default_factory=list)
    cache_bytes: int = 0
    undecoded: int = 0
    """About how many bytes its videos' frames take that were not in the frame cache before."""
    alignment: Alignment = IDENTITY
    """By which its pictures are moved when they are read."""
    on_bad: Callable[[str], None] = lambda problem: None
    """Told of each picture that turns out damaged when it is read."""
    _cache: dict[int, Image.Image] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Image.Image:
        """Picture `index` in RGB, reduced by a whole factor when it is far larger than the crops.

        A picture that turns out damaged is noted in `skipped`, and the next good one stands in for it.
        """
        for i in range(index, index + len(self.items)):
            i %= len(self.items)
            if (image := self.decoded(i)) is not None:
                return image
        raise UsageError(f"{self.name}: none of its {len(self.items)} pictures can be read; first: {self.skipped[0]}")

    def decoded(self, index: int) -> Image.Image | None:
        """Picture `index`, or None where it is damaged, which is noted."""
        if (cached := self._cache.get(index)) is not None:
            return cached
        try:
            image = self._decode(self.items[index])
        except MediaError as e:
            with self._lock:
                new = str(e) not in self.skipped
                self.skipped += [str(e)] if new else []
            if new:
                self.on_bad(str(e))
            return None
        if self.items[index].frames is None:  # those lie in the system's own file cache
            self._keep(index, image)
        return image

    def decodes(self, index: int) -> bool:
        """Whether picture `index` is whole; noted where it is not."""
        return self.decoded(index) is not None

    def align(self, alignment: Alignment) -> None:
        """Move its pictures by `alignment`, as the bundle will: at the size of the crops."""
        with self._lock:
            self.cache_bytes += sum(map(_bytes, self._cache.values()))
            self._cache.clear()
        self.alignment = alignment

    def _keep(self, index: int, image: Image.Image) -> None:
        """Hold a decoded picture while there is room. None is ever put out for another, since all are drawn equally
        often: a set of twice the memory is still read from it half of the time."""
        size = _bytes(image)
        with self._lock:
            if index not in self._cache and size <= self.cache_bytes:
                self.cache_bytes -= size
                self._cache[index] = image

    def _decode(self, item: Item) -> Image.Image:
        if item.frames is not None:
            return aligned(Image.fromarray(item.frames[item.row]), self.alignment, self.size)
        return aligned(reduced(read_image(item.media), self.size), self.alignment, self.size)

    def crop(self, index: int, crop: Crop) -> Uint8:
        """uint8 [size, size, 3]."""
        return crop.apply(self.read(index), self.size)

    def some(self, most: int, side: int) -> tuple[Indices, Uint8]:
        """Which pictures are looked at to judge the domain, the same ones each time, and their middle squares at `side`
        px, uint8 [N, side, side, 3]."""
        chosen: Indices = np.random.default_rng(0).permutation(len(self))[:most]
        with ThreadPoolExecutor(WORKERS) as pool:
            return chosen, np.stack(list(pool.map(lambda i: Crop().apply(self.read(int(i)), side), chosen)))


def _bytes(image: Image.Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes


def aligned(image: Image.Image, alignment: Alignment, size: int) -> Image.Image:
    """A picture moved by `alignment`, its short side at `size` px first."""
    if alignment == IDENTITY:
        return image
    scale = size / min(image.size)
    fitted = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
    return Image.fromarray(moved(np.asarray(fitted), alignment))


def reduced(image: Image.Image, size: int) -> Image.Image:
    """A picture far larger than crops of `size` px, made smaller by a whole factor before it is kept or cut.

    Box reduction down to twice the crop's size, then LANCZOS: Pillow's own reducing_gap=2, but cacheable.
    """
    factor = int(0.9 * min(image.size) / (2 * size))
    return image.reduce(factor) if factor > 1 else image


def open_domain(
    inputs: Sequence[Path],
    size: int,
    cache_bytes: int = 0,
    on_progress: Callable[[str], None] = lambda text: None,
    cache: FrameCache | None = None,
) -> Domain:
    """Find the pictures of a domain, look at every image's header, and decode videos to the frame cache.

    Raises:
        UsageError: nothing there, nothing readable, no picture at all, or no room for the frames. Before any training.
    """
    cache = cache or FrameCache()
    bad: list[MediaError] = []
    found = list(discover(inputs, bad.append))
    domain = Domain(Path(inputs[0]).resolve().stem, [], size, [str(e) for e in bad], cache_bytes)
    with ThreadPoolExecutor(WORKERS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes below the limit here
        problems = list(pool.map(_header_problem, found))
    videos = [media for media in found if media.kind == "video"]
    films, domain.undecoded = open_films(videos, size, cache, on_progress)
    of = dict(zip(videos, films, strict=True))
    for media, problem in zip(found, problems, strict=True):
        match of.get(media, problem):
            case None:
                domain.items.append(Item(media))
            case Film(frames, end):
                domain.items += [Item(media, frames, i * cache.stride, i) for i in range(len(frames))]
                if end:
                    domain.skipped.append(f"{end}; its {len(frames)} frames before that are used")
            case error:
                domain.skipped.append(str(error))
    if not domain.items:
        count = len(found) + len(bad)
        raise UsageError(f"{inputs[0]}: none of its {count} files can be read; first: {domain.skipped[0]}")
    domain.read(0)  # raises if not a single picture decodes
    return domain


def hold_out(domain: Domain, seed: Sequence[int], needs: str) -> tuple[Indices, Indices]:
    """Indices to learn from, and of pictures that only judge. Raises UsageError, saying `needs`, if there is one."""
    if len(domain) < 2:
        raise UsageError(f"{domain.name}: {len(domain)} picture; {needs}")
    order = np.random.default_rng(seed).permutation(len(domain))
    n = min(HELD_OUT, max(1, len(domain) // 10))
    return order[n:], order[:n]


def part(domain: Domain, indices: Indices) -> Domain:
    """The pictures of these indices, in their order in the domain."""
    items = [domain.items[i] for i in sorted(indices.tolist())]
    return replace(domain, items=items, _cache={}, _lock=threading.Lock())


def whole_pairs(domain0: Domain, domain1: Domain) -> tuple[Domain, Domain]:
    """Both domains without pictures that cannot be decoded and those of the same names: no other may stand in."""
    bad: set[str] = set()
    for domain in (domain0, domain1):
        with ThreadPoolExecutor(WORKERS) as pool:
            good = list(pool.map(domain.decodes, range(len(domain))))
        bad |= {item.name for item, whole in zip(domain.items, good, strict=True) if not whole}
    if not bad:
        return domain0, domain1
    kept = []
    for domain in (domain0, domain1):
        domain.align(domain.alignment)  # its memory is free again
        kept.append(part(domain, np.flatnonzero([item.name not in bad for item in domain.items])))
    return kept[0], kept[1]


def _header_problem(media: Media) -> str | None:
    if media.kind == "video":
        return None
    try:
        with media.room(), open_image(media.open(), str(media)):
            return None
    except MediaError as e:
        return str(e)
