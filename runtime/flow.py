"""uint8 pictures through the velocity: the path that images and video frames share."""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from .alignment import inverse, moved
from .batching import BatchSize
from .codec import Codec
from .errors import MediaError, OutOfMemoryError
from .euler import integrate
from .manifest import Manifest
from .media import MAX_PIXELS
from .noise import noises
from .norms import Norms
from .options import FlowOptions
from .pipeline import parallel
from .pixels import Float, Uint8, pad_to_multiple, to_float, to_uint8
from .stages import Stages
from .tiling import tiled
from .upscale import given_back
from .velocity import Velocity

In = TypeVar("In")
Out = TypeVar("Out")

BATCH_PIXELS = 1 << 21
"""Pixels in a batch where no number was asked for: about 4 GB in a net that takes 1.85 kB a pixel."""


MOST_AT_ONCE = 256
"""Pictures up to which a batch grows by itself."""


def _most_pixels() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a Unix
        return MAX_PIXELS
    return min(MAX_PIXELS, memory // 1024)


MOST_PIXELS = _most_pixels()
"""Pixels of the largest picture tried, at 1 kB a pixel: the system ends a command that takes all memory, unasked."""


class Stopped(Exception):
    """Raised inside a flow after its `stop`."""


DEFAULTS = FlowOptions()


class Flow:
    """Calling it translates uint8 [B, H, W, 3] to uint8 [B, H, W, 3] by Euler steps over a velocity, between an encoder
    and a decoder where the model works on latents."""

    def __init__(
        self,
        velocity: Velocity,
        codec: Codec,
        manifest: Manifest,
        options: FlowOptions = DEFAULTS,
        stages: Stages | None = None,
    ) -> None:
        """`stages` takes down where the time goes."""
        self.stages = Stages() if stages is None else stages
        self._velocity, self._codec, self._multiple = velocity, codec, manifest.multiple
        self._batch = options.batch
        self._steps = manifest.default_steps if options.steps is None else options.steps
        self._short = manifest.image_size if options.size == "model" else options.size
        self._solver = options.solver
        self._t0, self._t1 = (1.0, 0.0) if options.reverse else (0.0, 1.0)
        self._reverse, there = options.reverse, manifest.alignment
        self._alignment = inverse(there) if there and options.reverse else there
        self._tile = options.tile and options.tile + -options.tile % manifest.multiple
        self._overlap = (self._tile or 0) // 4 if options.overlap is None else options.overlap
        self.device = velocity.said
        self.upscale = options.upscale
        """How the result comes back to the input's size: see runtime/upscale.py."""
        self.lanes = velocity.cores if velocity.device == "cpu" else 1
        """Calls of a flow that are best under way at once; each core of a CPU follows a picture by itself."""
        self._sizes: dict[tuple[int, int], BatchSize] = {}
        self._exclusive = threading.Lock()
        self._stopped = threading.Event()

    def __call__(self, images: Uint8) -> Uint8:
        """H and W are padded to the net's multiple by reflection and cropped back.

        Raises:
            MediaError: the velocity fails, or gives values that are not finite.
            Stopped: `stop` was called.
        """
        if self._reverse:
            return self.beside(self._translated(images))
        return self._translated(self.beside(images))

    def beside(self, images: Uint8) -> Uint8:
        """Pictures uint8 [B, H, W, 3] of the one domain, as what is in them lies in the other: see `alignment`."""
        if self._alignment is None:
            return images
        with self.stages.timed("prepare"):
            return np.stack([moved(image, self._alignment) for image in images])

    def given_back(self, original: Uint8, small: Uint8, made: Uint8) -> Uint8:
        """The translation `made` of `small` as large as the options say; uint8 [H, W, 3]: see runtime/upscale.py."""
        if self.upscale == "residual":
            original, small = self.beside(original[None])[0], self.beside(small[None])[0]
        return given_back(self.upscale, original, small, made)

    def _translated(self, images: Uint8) -> Uint8:
        height, width = images.shape[1:3]
        if self._tile and max(height, width) > self._tile:
            with self._exclusive:
                return np.stack([tiled(image, self._whole, self._tile, self._overlap) for image in images])
        return self._fitting(self._whole, images, width, height)

    def _fitting(self, work: Callable[[Any], Uint8], items: Any, width: int, height: int) -> Uint8:
        """work(items), which makes as many pictures of this size; by halves where memory does not hold them all."""
        best, began = self._best(width, height), time.perf_counter()
        try:
            with self._turn(best):
                out = work(items)
        except OutOfMemoryError:
            if best.size == len(items) == 1:
                raise
            best.ran_out(max(len(items), best.size))
            parts = np.array_split(items, min(2, len(items)))
            return np.concatenate([self._fitting(work, part, width, height) for part in parts])
        best.took(len(items), time.perf_counter() - began)
        return out

    def side_by_side(
        self, work: Callable[[In], Out], batches: Iterable[In], at_once: int | None = None
    ) -> Generator[Out, None, None]:
        """Yield work(batch) in the order of `batches`, each of `batch` pictures that it takes through this flow.

        So many at a time as the device likes best, and one more waits. What `batches` raises is raised after the
        results before it. `at_once`: as of the method of that name, where memory may hold fewer.
        """
        return parallel(self._threads, work, batches, min(self.lanes, at_once or self.lanes) + 1)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.lanes, "flow")

    @contextmanager
    def _turn(self, best: BatchSize) -> Iterator[None]:
        """Pictures so large that not every core may have one go through one at a time, each on all cores."""
        with (
            self._exclusive if best.size < self.lanes else nullcontext(),
            self._velocity.work(),
            self._codec.work(),
        ):
            yield

    def _whole(self, images: Uint8, norms: Norms | None = None) -> Uint8:
        height, width = images.shape[1:3]
        with self.stages.timed("prepare"):
            x = pad_to_multiple(to_float(images), self._multiple)
        with self.stages.timed("integrate"):
            z = self._codec.encode(x, norms)
        return self.follow(z, norms)[:, :height, :width]

    def sample(self, seed: int, numbers: Sequence[int], width: int, height: int) -> Uint8:
        """Pictures out of noise, each a function of (seed, its number): uint8 [B, height, width, 3].

        A side that is no multiple of the net's is cut from the next one. Raises as calling does.
        """
        h, w = ((side + -side % self._multiple) // self._codec.factor for side in (height, width))

        def made(some: Sequence[int]) -> Uint8:
            return self.follow(noises((self._codec.channels, h, w), seed, some))[:, :height, :width]

        return self._fitting(made, numbers, width, height)

    def follow(self, x: Float, norms: Norms | None = None) -> Uint8:
        """From states [B, C, H, W] at the flow's beginning to the pictures at its end, uint8 [B, H, W, 3].

        With `norms` a tile's, [1, C, H, W].
        """
        way = self._steps, self._t0, self._t1, self._on_step, self._solver
        with self.stages.timed("integrate"):
            if norms is None:
                x = self._velocity.take(integrate(self._velocity, self._velocity.put(x), *way))
            else:
                x = integrate(partial(self._velocity.tile, norms), x, *way)
            x = self._codec.decode(_finite(x, "velocity"), norms)
        with self.stages.timed("finish"):
            return to_uint8(_finite(x, "decoder"))

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in px at which a picture is translated: its short side at `size`, its aspect kept.

        Raises:
            MediaError: above MOST_PIXELS, as a panorama may be.
        """
        scale = self._short / min(width, height) if isinstance(self._short, int) else 1.0
        fitted = max(1, round(width * scale)), max(1, round(height * scale))
        if fitted[0] * fitted[1] > (MAX_PIXELS if self._tile else MOST_PIXELS):
            raise MediaError(
                f"{fitted[0]}×{fitted[1]} px are more than this machine's memory is sure to hold "
                f"({MOST_PIXELS:,}); try a smaller --size, or --tile 512"
            )
        return fitted

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in px of the result of such a picture. Raises as `fit` does."""
        fitted = self.fit(width, height)
        return fitted if self.upscale == "none" else (width, height)

    def batch(self, width: int, height: int) -> int:
        """How many pictures of this size are best in one call: on a CPU one, and as many calls as there are lanes."""
        return 1 if self._velocity.device == "cpu" else self.at_once(width, height)

    def batches(self, n: int, width: int, height: int) -> Iterator[slice]:
        """n pictures of this size in parts of `batch`, which on a GPU changes while they are made."""
        end = 0
        while end < n:
            start, end = end, min(end + self.batch(width, height), n)
            yield slice(start, end)

    def at_once(self, width: int, height: int) -> int:
        """How many pictures of this size are under way at once, in one call or several."""
        if self._tile and max(width, height) > self._tile:
            return 1
        return self._best(width, height).size

    def _best(self, width: int, height: int) -> BatchSize:
        """On the CPU every core has a picture and more are no faster; elsewhere the batch grows."""
        if isinstance(self._batch, int):
            size = BatchSize(self._batch, self._batch, settled=True)
        else:
            start = max(1, min(self._velocity.batch, BATCH_PIXELS // (width * height)))
            size = BatchSize(start, MOST_AT_ONCE, settled=self._velocity.device == "cpu")
        return self._sizes.setdefault((width, height), size)

    def stop(self) -> None:
        """From another thread: let a call under way, and every later one, raise Stopped after its present step."""
        self._stopped.set()

    def _on_step(self, step: int, x: object) -> None:
        if self._stopped.is_set():
            raise Stopped


def _finite(x: Float, what: str) -> Float:
    if not np.isfinite(x).all():
        raise MediaError(f"the {what} graph gave values that are not finite; export it again, in fp32")
    return x
