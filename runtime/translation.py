"""Translate folders, pictures, videos and zips with a bundle."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .bundle import Bundle, opened
from .codec import open_codec
from .encoders import choose
from .errors import MediaError, UsageError
from .flow import DEFAULTS, Flow
from .images import translate_images
from .media import paths
from .options import FilmOptions, FlowOptions
from .plan import Job, plan
from .report import Event, Report, ended
from .velocity import Velocity
from .video import AS_IT_IS, translate_video


def translate(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    flow: FlowOptions = DEFAULTS,
    overwrite: bool = False,
    steady: float = 0.0,
    film: FilmOptions = AS_IT_IS,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Translate pictures and videos from domain 0 to domain 1, or back.

    What is there already is skipped, and nothing stands under its own name before it is whole: after an interruption
    the same call goes on.

    Args:
        bundle: a loaded bundle, or where it is.
        inputs: folders (recursive, mirrored below `output`), images, videos, zips.
        output: a folder; or one file, where there is one input file and this has a known suffix.
        flow: how pictures go through the net.
        overwrite: do again what is there already.
        steady: in [0, 1): how much of what was added to the last frame is carried on where nothing moves in a video,
            against flicker.
        film: how videos are cut, compared and encoded.
        on_event: told of everything as it happens, in the calling thread.

    Returns:
        What was done, skipped and failed. One bad input does not stop the others.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: a device that is not there, or inputs and output that do not go together; nothing was written.
    """
    began = time.monotonic()
    loaded = opened(bundle, flow.precision, flow.device)
    if loaded.manifest.generative:
        why = (
            "turns pictures only into noise, which is none to write"
            if flow.reverse
            else "has no pictures to turn into others"
        )
        raise UsageError(f"{loaded.path}: its domain 0 is noise, so it {why}; `rfp generate` makes pictures with it")
    if not 0 <= steady < 1:
        raise UsageError(f"steady is {steady}; wanted 0 (off) to below 1")
    bad: list[MediaError] = []
    jobs = plan(paths(inputs), paths([output])[0], bad.append)
    videos = {job.target.suffix.lower() for job in jobs if job.media.kind == "video"}
    for suffix in sorted(videos):
        choose(film, suffix)
    if film != AS_IT_IS and not videos:
        raise UsageError("options for videos were given (codec, crf, pix_fmt, start, end, compare), but there is none")
    graphs = Velocity(loaded, flow.device, flow.threads), open_codec(loaded, flow.device, flow.threads)
    new_flow = partial(Flow, *graphs, loaded.manifest, flow)
    still = new_flow()
    report = Report(device=graphs[0].said)
    key = {"model": _digest(loaded), **{k: v for k, v in asdict(flow).items() if k not in ("batch", "threads")}}
    tell = report.teller(on_event)
    tell(Event("found", total=len(jobs) + len(bad)))
    for error in bad:
        tell(Event("failed", str(error).partition(": ")[0], message=str(error)))
    there = set() if overwrite else {job.target for job in jobs if job.target.exists()}
    for job in jobs:
        if job.target in there:
            tell(Event("skipped", str(job.media), job.target))
    todo = [job for job in jobs if job.target not in there]
    translate_images([job for job in todo if job.media.kind == "image"], still, lambda *end: tell(_ended(*end)))
    for job in todo:
        if job.media.kind == "video":
            tell(_video(job, new_flow(), steady, film, key, tell))
    report.seconds = time.monotonic() - began
    return report


def _digest(bundle: Bundle) -> str:
    digest = hashlib.sha256()
    for part in (bundle.model, bundle.encoder, bundle.decoder, *bundle.data.values()):
        digest.update(part)
    return digest.hexdigest()


def _video(
    job: Job, flow: Flow, steady: float, film: FilmOptions, key: dict[str, Any], tell: Callable[[Event], None]
) -> Event:
    def on_frames(count: int, total: int | None) -> None:
        tell(Event("frames", str(job.media), job.target, count=count, total=total))

    try:
        note = translate_video(job.media, job.target, flow, on_frames, steady, film, key)
    except MediaError as e:
        return _ended(job, e)
    return Event("done", str(job.media), job.target, note)


def _ended(job: Job, error: MediaError | None) -> Event:
    return ended(str(job.media), job.target, error)
