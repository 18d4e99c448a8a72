"""`--report`: one HTML file that needs no other, with a slider between each input and its translation."""

import base64
import errno
import html
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from .errors import MediaError, UsageError
from .files import write_aside
from .frames import look, read
from .media import Media, paths, read_image
from .options import AS_IT_IS, FilmOptions, FolderOptions, PictureOptions
from .plan import Job, plan, selected
from .report import Report

MOST = 200
"""Pairs on a page; of more, evenly many are taken."""
_SIDE = 480
"""Pixels of the longer side of a picture on the page."""
_MARK = '<meta name="generator" content="rfp translate">'

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
%s
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }
figure { margin: 0; } figcaption, dl, ul { overflow-wrap: anywhere; font-size: .85rem; }
.pair { position: relative; --at: 50%%; touch-action: pan-y; }
.pair img { display: block; width: 100%%; }
.pair .after { position: absolute; inset: 0; height: 100%%; clip-path: inset(0 0 0 var(--at)); }
.pair::after { content: ""; position: absolute; inset: 0 auto 0 var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%%; height: 100%%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 2px solid #48f; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dd { margin: 0; } .failed { color: #c33; }
</style></head><body>
<h1>%s</h1>
"""
_TAIL = """</main>
<script>
document.addEventListener("input", event => {
  event.target.parentElement.style.setProperty("--at", event.target.value + "%");
});
</script></body></html>
"""


def check_page(file: Path) -> None:
    """Raise UsageError where `file` is there and no such page, cannot be written, or is named as another kind of file:
    before all is translated."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{file}: the report is a page for browsers; --report wants a name that ends in .html")
    if file.is_dir():
        raise UsageError(f"{file}: is a folder; --report wants the name of an HTML file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:
        raise UsageError(f"{file}: no file can be made there ({e.strerror}); choose another name for --report") from e
    if file.exists():
        with file.open("rb") as f:
            if _MARK.encode() not in f.read(4096):
                raise UsageError(f"{file}: is there, and no report of rfp; choose another name for --report")


def write_page(
    file: Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    report: Report,
    facts: dict[str, str],
    pictures: PictureOptions,
    folder: FolderOptions,
    film: FilmOptions = AS_IT_IS,
) -> None:
    """Write the page over the inputs whose translations are there, this run's and earlier ones.

    Args:
        file: replaced where it is such a page already.
        facts: lines for the head of the page.
        pictures, folder, film: as they were for `translate`.

    Raises:
        UsageError: as `plan` and `check_page`.
        MediaError: the page cannot be written.
    """
    check_page(file)
    suffix = f".{pictures.format}" if pictures.format else None
    jobs = plan(paths(inputs), paths([output])[0], lambda error: None, suffix)
    jobs = selected(jobs, folder.shard, folder.shuffle, folder.limit).kept(lambda job: job.target.is_file())
    shown = [jobs[i * len(jobs) // MOST] for i in range(MOST)] if len(jobs) > MOST else jobs
    counts = f"{len(report.done)} translated, {len(report.skipped)} there already, {len(report.failed)} failed"
    facts = {**facts, "inputs": counts, "shown": f"{len(shown)} of {len(jobs)}"}
    try:
        with write_aside(file) as partial, partial.open("w", encoding="utf-8", errors="replace", newline="\n") as f:
            title = html.escape(str(output))
            f.write(_HEAD % (_MARK, title, title))
            f.write("<dl>" + "".join(f"<dt>{html.escape(k)}<dd>{html.escape(v)}" for k, v in facts.items()) + "</dl>\n")
            if report.failed:
                f.write("<ul class=failed>")
                f.writelines(f"<li>{html.escape(event.message)}" for event in report.failed)
                f.write("</ul>\n")
            f.write("<main>\n")
            f.writelines(_figures(shown, film))
            f.write(_TAIL)
    except OSError as e:
        raise MediaError(f"{file}: cannot be written: {e}") from e


def _figures(jobs: Sequence[Job], film: FilmOptions) -> Iterator[str]:
    for job in jobs:
        name = html.escape(job.media.relative.as_posix(), quote=True)
        try:
            before, after = _still(job.media, film.start), _still(Media(job.target, job.media.kind, job.media.relative))
        except MediaError as e:
            yield f"<figure><figcaption class=failed>{html.escape(str(e))}</figcaption></figure>\n"
            continue
        if job.media.kind == "video" and film.compare == "side":
            after = after.crop((after.width // 2, 0, after.width, after.height))
        before.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        after = after.resize(before.size, Image.Resampling.LANCZOS)
        yield (
            f'<figure><div class="pair"><img class="before" alt="{name}, before" src="{_data(before)}">'
            f'<img class="after" alt="{name}, after" src="{_data(after)}">'
            f'<input type="range" min="0" max="100" value="50" aria-label="{name}: before and after"></div>'
            f"<figcaption>{name}</figcaption></figure>\n"
        )


def _still(media: Media, start: float | None = None) -> Image.Image:
    """The picture; of a video its first frame from `start` on, in s."""
    if media.kind == "image":
        return read_image(media)
    with media.open() as stream:
        seen = look(media, stream)
        for _, pixels in read(media, stream, (seen.width, seen.height), start=start):
            return Image.fromarray(pixels)
    raise MediaError(f"{media}: holds no frame")


def _data(image: Image.Image) -> str:
    out = BytesIO()
    image.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
