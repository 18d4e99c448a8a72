"""Translate folders, pictures, videos and zips with a bundle."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from .bundle import Bundle, opened
from .codec import open_codec
from .errors import DamagedError, MediaError, RfpError, UsageError
from .flow import DEFAULTS, Flow
from .images import translate_images
from .ledger import Ledger, identify, model_hash, settings, stat_of
from .media import paths
from .options import AS_IT_IS, FilmOptions, FlowOptions, FolderOptions, PictureOptions
from .plan import Job, plan, selected
from .report import Event, Report, ended
from .stages import Stages
from .tasks import Task
from .velocity import Velocity

PICTURES, FOLDERS = PictureOptions(), FolderOptions()


def translate(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    flow: FlowOptions = DEFAULTS,
    pictures: PictureOptions = PICTURES,
    folder: FolderOptions = FOLDERS,
    overwrite: bool = False,
    steady: float = 0.0,
    film: FilmOptions = AS_IT_IS,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Translate pictures and videos from domain 0 to domain 1, or back.

    Nothing stands under its own name before it is whole, and what was done is skipped: after an interruption the same
    call goes on. What this function wrote, by the ledger in `output`, and nobody changed since, is done again where the
    input, the model or the settings are others; every other file that is there stays as it is.

    Args:
        bundle: a loaded bundle, or where it is.
        inputs: folders (recursive, mirrored below `output`), images, videos, zips.
        output: a folder; or one file, where there is one input file and this has a known suffix.
        flow: how pictures go through the net.
        pictures: how pictures are written.
        folder: which inputs are done.
        overwrite: do again what is there already, whoever made it.
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
    if isinstance(inputs, str | Path):
        raise UsageError(f"inputs is the one path {inputs}; wanted a list of paths, such as [{str(inputs)!r}]")
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
    out = paths([output])[0]
    suffix = f".{pictures.format}" if pictures.format else None
    jobs = plan(paths(inputs), out, bad.append, suffix, may_be_empty=folder.settled > 0)
    one_file = len(jobs) == 1 and jobs[0].target == out
    for_films, for_pictures = film != AS_IT_IS or steady, pictures != PICTURES
    only = _only_kind(jobs) if (for_films or for_pictures) and not folder.settled else None
    if for_films and only == "image":
        raise UsageError(
            "options for videos were given (codec, crf, pix_fmt, start, end, compare, steady), but there is none"
        )
    if for_pictures and only == "video":
        raise UsageError(
            "options for pictures were given (format, quality), but there is none; videos have codec and crf"
        )
    if folder.settled:
        jobs = jobs.kept(lambda job: _settled(job, folder.settled))
    jobs = selected(jobs, folder.shard, folder.shuffle, folder.limit)
    videos = {job.target.suffix.lower() for job in jobs if job.media.kind == "video"}
    if videos:
        from .encoders import choose  # PyAV takes 50 ms to import

        for suffix in sorted(videos):
            choose(film, suffix)
    graphs = Velocity(loaded, flow.device, flow.threads), open_codec(loaded, flow.device, flow.threads)
    _made(out.parent if one_file else out)
    stages = Stages()
    new_flow = partial(Flow, *graphs, loaded.manifest, flow, stages)
    still = new_flow()
    model = model_hash(loaded)
    report = Report(device=graphs[0].said, stages=stages)
    if note := loaded.manifest.other_steps(flow.steps, flow.solver):
        report.notes.append(note)
    started = time.monotonic()
    key = {"model": model, **{k: v for k, v in asdict(flow).items() if k not in ("batch", "threads")}}
    tell = report.teller(on_event)
    tell(Event("found", total=len(jobs) + len(bad)))
    for error in bad:
        tell(Event("failed", str(error).partition(": ")[0], message=str(error)))
    new_ledger = partial(Ledger, None if one_file else out, folder.shard, model)
    ledger = new_ledger(settings(loaded, flow, pictures))
    images = (job for job in jobs if job.media.kind == "image")
    with closing(translate_images(images, still, ledger, pictures, overwrite)) as tasks:
        for task in tasks:
            tell(_of_task(task))
            report.images += task.skipped is None and task.error is None
    if report.images:
        report.images_per_second = report.images / (time.monotonic() - started)
    if films := [job for job in jobs if job.media.kind == "video"]:
        from .video import translate_video

        ledger = new_ledger(settings(loaded, flow, film) | ({"steady": steady} if steady else {}))
        for job in films:
            tell(
                _video(
                    job,
                    partial(translate_video, flow=new_flow(), steady=steady, film=film, key=key),
                    ledger,
                    overwrite,
                    tell,
                )
            )
    report.seconds = time.monotonic() - began
    return report


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: no folder can be made there ({e.strerror}); choose another --output") from e


def _only_kind(jobs: Iterable[Job]) -> str | None:
    """What all inputs are; None for none, or for both."""
    kind = None
    for job in jobs:
        if kind not in (None, job.media.kind):
            return None
        kind = job.media.kind
    return kind


def _settled(job: Job, seconds: float) -> bool:
    try:
        return abs(time.time() - job.media.path.stat().st_mtime) >= seconds
    except OSError:
        return False  # gone already


def _of_task(task: Task) -> Event:
    if task.skipped is not None:
        return Event("skipped", str(task.job.media), task.job.target, task.skipped)
    end = _ended(task.job, task.error)
    return end if task.error else replace(end, message=task.note)


def _video(job: Job, run: Callable[..., str], ledger: Ledger, overwrite: bool, tell: Callable[[Event], None]) -> Event:
    def on_frames(count: int, total: int | None) -> None:
        tell(Event("frames", str(job.media), job.target, count=count, total=total))

    source, began, before = None, time.monotonic(), None
    try:
        try:
            if not overwrite and (why := ledger.why_not(job)) is not None:
                return Event("skipped", str(job.media), job.target, why)
        except DamagedError as e:  # as in an earlier run, whose line stands
            return _ended(job, e)
        before = stat_of(job.target) if job.target.exists() else None
        with job.media.open() as stream:
            source = identify(job.media, stream)
        note = run(job.media, job.target, on_frames=on_frames)
        ledger.add(job, source, job.target, time.monotonic() - began)
    except MediaError as e:
        with suppress(MediaError, OSError):  # the first error is the one to tell
            part = job.target if job.target.exists() and stat_of(job.target) != before else None
            ledger.add(job, source, part, time.monotonic() - began, str(e))
        return _ended(job, e)
    except RfpError:
        raise
    except Exception as e:  # PyAV raises a dozen kinds on damaged files, and a muxer on times out of range
        return _ended(job, MediaError(f"{job.media}: cannot be translated: {type(e).__name__}: {e}"))
    return Event("done", str(job.media), job.target, note)


def _ended(job: Job, error: MediaError | None) -> Event:
    return ended(str(job.media), job.target, error)
