"""All pictures of a domain as vectors: from the cache, and what it lacks computed in batches and kept as it comes."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.alignment import IDENTITY
from ..runtime.errors import MediaError
from ..runtime.media import read_image
from ..runtime.pixels import Uint8, to_float
from .domains import WORKERS, Crop, Domain, aligned
from .embedders import Embedder
from .embedding_cache import EmbeddingCache, Half

BATCH = 64
CHUNK = 4096
"""Vectors in float32 at once."""
Progress = Callable[[int, int, float], None]
"""Called after each batch: pictures done, pictures in all, pictures a second."""


def embed(
    domain: Domain, embedder: Embedder, cache: EmbeddingCache, device: torch.device, on_progress: Progress
) -> Tensor:
    """Unit vectors [N, D] of all pictures, centre-cropped, in float16 on the CPU. Raises what `on_progress` raises.

    They are rounded to float16 before they are used, so a picture's vector is the same from the cache or fresh.
    """
    contents = cache.contents(domain.items)
    vectors: Half = np.zeros((len(domain), embedder.width), np.float16)
    by = hashlib.sha256(repr(domain.alignment).encode()).hexdigest()[:16]
    name = embedder.name + ("" if domain.alignment == IDENTITY else f"/{by}")
    missing = cache.load(name, contents, vectors)
    source = {contents[row] or str(row): row for row in reversed(missing)}  # the same picture twice is computed once
    todo, done, start = sorted(source.values()), 0, time.monotonic()
    for rows, pictures, own in _read(domain, todo, embedder.size):
        x = torch.from_numpy(to_float(pictures)).to(device)
        vectors[rows] = embedder.embed(x).cpu().to(torch.float16).numpy()
        kept = [row for row, is_own in zip(rows, own, strict=True) if is_own]
        cache.save(name, [contents[row] for row in kept], vectors[kept])
        done += len(rows)
        on_progress(done, len(todo), done / (time.monotonic() - start))
    for row in missing:
        vectors[row] = vectors[source[contents[row] or str(row)]]
    return _centred(torch.from_numpy(vectors), embedder.parts)


def _read(domain: Domain, rows: list[int], size: int) -> Iterator[tuple[list[int], Uint8, list[bool]]]:
    """Batches of rows, their pictures [B, size, size, 3], and whether each is its own; the next is read meanwhile."""
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with ThreadPoolExecutor(WORKERS) as pool:
        pending: deque[list[Future[tuple[Uint8, bool]]]] = deque()
        try:
            for place, part in enumerate(parts):
                ahead = parts[place : place + 2] if not place else parts[place + 1 : place + 2]
                pending += [[pool.submit(_picture, domain, row, size) for row in some] for some in ahead]
                pictures, own = zip(*(future.result() for future in pending.popleft()), strict=True)
                yield part, np.stack(pictures), list(own)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _picture(domain: Domain, index: int, size: int) -> tuple[Uint8, bool]:
    """The centre of a picture as it lies in its file, whatever the size trained at; a damaged one's stand-in, and
    False: its vector must not be kept as that of the damaged bytes."""
    item = domain.items[index]
    if item.frames is not None:
        return Crop().apply(domain.read(index), size), True
    try:
        image = read_image(item.media)
    except MediaError:
        return Crop().apply(domain.read(index), size), False
    factor = min(image.size) // (2 * size)
    return Crop().apply(aligned(image.reduce(factor) if factor > 1 else image, domain.alignment, size), size), True


def _centred(vectors: Tensor, parts: tuple[tuple[int, float], ...]) -> Tensor:
    """Take their mean, which is what the domain looks like, from each part of all vectors [N, D], scale each part to
    its weight, and the whole to unit length. In place."""
    if not parts:
        return vectors
    mean = torch.stack([chunk.float().sum(dim=0) for chunk in vectors.split(CHUNK)]).sum(dim=0) / len(vectors)
    widths = [width for width, _ in parts]
    for chunk in vectors.split(CHUNK):
        own = (chunk.float() - mean).split(widths, dim=1)
        scaled = [weight * F.normalize(part) for part, (_, weight) in zip(own, parts, strict=True)]
        chunk.copy_(F.normalize(torch.cat(scaled, dim=1)))
    return vectors
