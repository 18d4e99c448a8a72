"""How good a bundle's translations are: how real, how much of the input is kept, how near the truth where it is known.

Every figure stands beside its floor (real pictures against real ones) and its ceiling (the untouched input).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .bundle import Bundle
from .codec import open_codec
from .discovery import discover
from .distances import FEWEST
from .errors import MediaError, UsageError
from .euler import Solver
from .flow import Flow
from .judging import Figure, Judge, Scene, judged
from .media import Media, paths, read_image
from .metrics import psnr, ssim
from .options import FlowOptions
from .pixels import Uint8
from .velocity import Velocity


class Pictures(NamedTuple):
    """Squares of one size, uint8 [N, S, S, 3], by their place below the folder without the suffix."""

    names: list[str]
    pixels: Uint8


@dataclass
class Evaluation:
    """The figures by group, what was counted, and what could not be read."""

    groups: dict[str, list[Figure]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    features: str = ""
    steps: int = 0
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values: figures by group and name."""
        keys = ("translated", "untouched", "real", "margin", "better", "about")
        groups = {
            group: {f.name: {k: getattr(f, k) for k in keys} for f in figures} for group, figures in self.groups.items()
        }
        return {
            "steps": self.steps,
            "features": self.features,
            "counts": self.counts,
            "figures": groups,
            "notes": self.notes,
            "failed": self.failed,
        }


def evaluate(
    bundle: Bundle,
    source: str | Path | None = None,
    target: str | Path | None = None,
    truth: str | Path | None = None,
    *,
    judge: Judge | None = None,
    steps: int | None = None,
    solver: Solver = "euler",
    reverse: bool = False,
    limit: int = 1000,
    device: str = "auto",
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Translate pictures and measure the result. All are cut to centre squares of the bundle's size first.

    Args:
        bundle: what translates.
        source: pictures to translate; None for a generative bundle, which makes `limit` of its own, or as many as
            the target has.
        target: pictures of the domain that is translated into, any: for realism.
        truth: what the pictures of `source` should become, by the same names.
        judge: the feature network and the classifier; without a network, `statistics` and `outlines` stand in.
        steps, solver, device: as in `translate`.
        reverse: from domain 1 to 0; source, target and truth are then the other way round too.
        limit: pictures of each folder, spread evenly.
        on_progress: told (what, done, total).

    Raises:
        UsageError: folders or options that do not go together. MediaError: the graph fails.
    """
    judge = judge or Judge()
    result = Evaluation(features=judge.net.name if judge.net else "statistics (no network)")
    size = bundle.manifest.image_size
    _check(bundle, source, truth, reverse, limit, bool(target or judge.classifier))
    graphs = Velocity(bundle, device), open_codec(bundle, device)
    there, back = (
        Flow(*graphs, bundle.manifest, FlowOptions(steps=steps, solver=solver, reverse=way))
        for way in (reverse, not reverse)
    )
    result.steps = bundle.manifest.default_steps if steps is None else steps
    if note := bundle.manifest.other_steps(steps, solver):
        result.notes.append(note)
    read, listed = _reader(size, limit, result), partial(_images, on_bad=lambda e: result.failed.append(str(e)))
    real = read("target", target, listed(target)) if target else None
    sources = listed(source) if source else []
    truths = listed(truth) if truth and source else []
    if truths:
        sources = _shared(sources, truths, result)
    given = read("source", source, sources) if source else None
    names = set(given.names) if given else set()
    known = read("truth", truth, [media for media in truths if _name(media) in names]) if truths else None
    if given and known:
        given, known = _by_name(given, known, result)
    if given:
        out = _through(there, given.pixels, lambda done, n: on_progress("translating", done, n))
    else:
        out = _generated(there, size, min(limit, len(real.pixels)) if real else limit, on_progress)
    result.counts |= {"translated": len(out)}
    before, wanted = (p.pixels if p else None for p in (given, known))
    scene = Scene(out, before, wanted, real.pixels if real else None)
    result.groups = judged(scene, judge, result.features, reverse, lambda done, n: on_progress("looking", done, n))
    if before is not None:
        returned = _through(back, out, lambda done, n: on_progress("translating back", done, n))
        about = "of the translation translated back, against the input; untouched: of the translation itself"
        result.groups["round trip"] = [
            Figure("psnr", f"dB {about}", "higher", psnr(returned, before), psnr(out, before)),
            Figure("ssim", about, "higher", ssim(returned, before), ssim(out, before)),
        ]
    return result


def _check(
    bundle: Bundle, source: str | Path | None, truth: str | Path | None, reverse: bool, limit: int, judged_by: bool
) -> None:
    if limit < FEWEST:
        raise UsageError(f"limit is {limit}; wanted {FEWEST} or more")
    if bundle.manifest.generative and (source or truth or reverse):
        raise UsageError(
            f"{bundle.path}: makes pictures from noise, so there is no source, truth or reverse; give a target"
        )
    if bundle.manifest.generative and not judged_by:
        raise UsageError(f"{bundle.path}: makes pictures from noise; give a target, or a classifier, to judge them by")
    if not bundle.manifest.generative and not source:
        raise UsageError("give --source: pictures to translate")


def _reader(size: int, limit: int, result: Evaluation) -> Callable[..., Pictures]:
    def read(what: str, where: str | Path, images: Sequence[Media]) -> Pictures:
        found, failures = _cut(images, size, limit)
        result.failed += failures
        result.counts[what] = len(found.names)
        if len(found.names) < FEWEST:
            first = f"; first: {failures[0]}" if failures else ""
            raise UsageError(f"{where}: {len(found.names)} pictures that can be read, wanted {FEWEST} or more{first}")
        return found

    return read


def squares(where: str | Path, size: int, limit: int) -> tuple[Pictures, list[str]]:
    """The images of a folder, file or zip as centre squares of `size` px, at most `limit` of them, spread evenly, and
    what could not be read. Videos are passed over. Raises UsageError where there is no image."""
    bad: list[MediaError] = []
    found = _images(where, bad.append)
    pictures, failed = _cut(found, size, limit)
    return pictures, [*map(str, bad), *failed]


def _cut(found: Sequence[Media], size: int, limit: int) -> tuple[Pictures, list[str]]:
    n = min(limit, len(found))
    names, pixels, failed = list[str](), list[Uint8](), list[str]()
    for media in (found[i * len(found) // n] for i in range(n)):
        try:
            pixels.append(centre_square(read_image(media), size))
            names.append(_name(media))
        except MediaError as e:
            failed.append(str(e))
    return Pictures(names, np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8)), failed


def _images(where: str | Path, on_bad: Callable[[MediaError], None]) -> list[Media]:
    found = [media for media in discover(paths([where]), on_bad) if media.kind == "image"]
    if not found:
        raise UsageError(f"{where}: holds no image")
    return found


def _name(media: Media) -> str:
    return str(media.relative.with_suffix(""))


def _shared(sources: Sequence[Media], truths: Sequence[Media], result: Evaluation) -> list[Media]:
    """Those of the source of whose names there is a truth; how many others there are is noted."""
    given, known = ([_name(media) for media in found] for found in (sources, truths))
    both = set(given) & set(known)
    if len(both) < FEWEST:
        raise UsageError(
            f"source and truth share {len(both)} names, wanted {FEWEST} or more: the truth of a/b.png is a/b.png (or "
            f".jpg, …) below its own folder; source has {given[0]}, truth {known[0]}"
        )
    kept = [media for media, name in zip(sources, given, strict=True) if name in both]
    if left := len(given) - len(kept):
        result.notes.append(f"{left} pictures of the source have no truth of their name, and were left out")
    return kept


def centre_square(image: Image.Image, size: int) -> Uint8:
    """The largest square about the middle, resized to uint8 [size, size, 3]; as it is where it has that size."""
    if image.size == (size, size):
        return np.asarray(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def _by_name(given: Pictures, known: Pictures, result: Evaluation) -> tuple[Pictures, Pictures]:
    """The pairs of source and truth, the same names below their folders, of which both could be read."""
    place = {name: i for i, name in enumerate(known.names)}
    both = [i for i, name in enumerate(given.names) if name in place]
    names = [given.names[i] for i in both]
    result.counts |= {"source": len(both), "truth": len(both)}
    return Pictures(names, given.pixels[both]), Pictures(names, known.pixels[[place[name] for name in names]])


def _through(flow: Flow, pictures: Uint8, on_batch: Callable[[int, int], None]) -> Uint8:
    out = np.empty_like(pictures)
    parts = flow.batches(len(pictures), pictures.shape[2], pictures.shape[1])
    for part, made in flow.side_by_side(lambda part: (part, flow(pictures[part])), parts):
        out[part] = made
        on_batch(part.stop, len(pictures))
    return out


def _generated(flow: Flow, size: int, n: int, on_progress: Callable[[str, int, int], None]) -> Uint8:
    out = []

    def sampled(part: slice) -> Uint8:
        return flow.sample(0, range(part.start, part.stop), size, size)

    for made in flow.side_by_side(sampled, flow.batches(n, size, size)):
        out.append(made)
        on_progress("generating", sum(map(len, out)), n)
    return np.concatenate(out)
