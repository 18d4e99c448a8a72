"""What a random frame of a video costs, how large a film on disk is, and what RAM and open zips are worth.

    python benchmarks/video_data.py VIDEO... [--size 64] [--draws 200] [--images FOLDER]

Ratios of CPU time within one run: other work on the machine does not count. Prints Markdown tables for RESULTS.md:

- frames, drawn at random one by one: mapped from the frame cache; sought by their own timestamps and decoded from the
  last keyframe, each draw; read by sequence, in which the frames of a window of 256 are shuffled;
- what a frame takes on disk, raw and as a JPEG of quality 95, and what reading it back costs;
- images (--images): crops a second with and without RAM, from a folder and from a zip that is opened for every picture,
  once a thread, or once for all.
"""

import argparse
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from statistics import median

import av
import numpy as np
from PIL import Image
from rfp.runtime import media as runtime_media
from rfp.runtime.frames import open_video, upright
from rfp.runtime.media import Media
from rfp.runtime.pixels import Uint8
from rfp.train.domains import WORKERS, Crop, open_domain
from rfp.train.frame_cache import FrameCache

WINDOW = 256


def frames_per_second(draw: Callable[[int], object], order: np.ndarray) -> float:
    """Draws a second of CPU time."""
    began = time.process_time()
    for i in order:
        draw(int(i))
    return len(order) / (time.process_time() - began)


def small(frame: av.VideoFrame, shape: tuple[int, ...]) -> Image.Image:
    """A frame as the frame cache would keep it."""
    return Image.fromarray(upright(frame)).resize((shape[1], shape[0]), Image.Resampling.LANCZOS)


class Seeker:
    """Frame i by its own timestamp: seek to the keyframe before it, decode up to it."""

    def __init__(self, item: Media, shape: tuple[int, ...]) -> None:
        self.shape, self.stream = shape, item.open()
        self.open = open_video(item, self.stream)
        self.container, self.video = self.open.__enter__()
        self.times = sorted(p.pts for p in self.container.demux(self.video) if p.pts is not None)

    def __call__(self, i: int) -> Image.Image | None:
        self.container.seek(self.times[i], stream=self.video)
        for frame in self.container.decode(self.video):
            if frame.pts is not None and frame.pts >= self.times[i]:
                return small(frame, self.shape)
        return None


def sequence(item: Media, shape: tuple[int, ...]) -> Iterator[Image.Image]:
    """All frames for ever, shuffled within a window: no frame meets one that is further away than the window."""
    rng, window = np.random.default_rng(0), []
    while True:
        with item.open() as stream, open_video(item, stream) as (container, video):
            for frame in container.decode(video):
                window.append(small(frame, shape))
                if len(window) == WINDOW:
                    yield window.pop(int(rng.integers(WINDOW)))


def video_rows(path: Path, size: int, draws: int) -> tuple[str, str]:
    """Two table rows: speed, and disk."""
    item = Media(path, "video", PurePosixPath(path.name))
    began = time.process_time()
    domain = open_domain([path], size, cache=FrameCache(limit=10**12))
    decoding = time.process_time() - began
    frames: Uint8 = domain.items[0].frames  # type: ignore[assignment]
    order = np.random.default_rng(0).integers(len(frames), size=draws)
    cached = frames_per_second(lambda i: Crop().apply(domain.read(i), size), order)
    seek = Seeker(item, frames.shape[1:])
    last = len(seek.times) - 1
    sought = frames_per_second(lambda i: Crop().apply(seek(min(i, last)) or domain.read(i), size), order[: draws // 5])
    reader = sequence(item, frames.shape[1:])
    next(reader)  # the window is full
    in_order = frames_per_second(lambda i: Crop().apply(next(reader), size), order)
    jpegs = [BytesIO() for _ in range(min(100, len(frames)))]
    for i, out in enumerate(jpegs):
        Image.fromarray(frames[i * len(frames) // len(jpegs)]).save(out, "JPEG", quality=95, subsampling=0)
    of_jpegs = np.random.default_rng(0).integers(len(jpegs), size=draws)
    jpeg = frames_per_second(lambda i: Crop().apply(Image.open(jpegs[i]).convert("RGB"), size), of_jpegs)
    raw, packed, source = frames[0].nbytes, median(o.tell() for o in jpegs), path.stat().st_size / len(frames)
    about = f"| {path.name}, {seek.video.width}×{seek.video.height}, {len(frames)} frames |"
    speed = f"{about} 1.00 | {sought / cached:.4f} | {in_order / cached:.3f} | {decoding * cached / len(frames):.0f} |"
    return (
        speed,
        f"{about} {raw / 1000:.1f} kB | {packed / 1000:.1f} kB | {source / 1000:.1f} kB | {jpeg / cached:.2f} |",
    )


def crops_per_second(read: Callable[[int], Image.Image], n: int, size: int, draws: int) -> float:
    """Crops a second of CPU time, with as many threads as training reads with."""
    order = np.random.default_rng(0).integers(n, size=draws)
    best = 0.0
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in range(3):  # the best of three
            began = time.process_time()
            list(pool.map(lambda i: Crop(0.95, 0.01, 0.01).apply(read(int(i)), size), order))
            best = max(best, draws / (time.process_time() - began))
    return best


def image_rows(folder: Path, size: int, draws: int) -> list[str]:
    """Rows of speed relative to files without RAM."""
    domains = {mb: open_domain([folder], size, mb << 20) for mb in (0, 1024)}
    n = len(domains[0])
    for i in range(n):
        domains[1024].read(i)
    files = crops_per_second(domains[0].read, n, size, draws)
    rows = [
        f"| {n} files, decoded each time | 1.00 |",
        f"| all of them in RAM | {crops_per_second(domains[1024].read, n, size, draws) / files:.1f} |",
    ]
    half = sum(i.width * i.height * 4 for i in domains[1024]._cache.values()) // 2
    part = open_domain([folder], size, half)
    for i in range(n):
        part.read(i)
    rows.append(f"| half of them in RAM | {crops_per_second(part.read, n, size, draws) / files:.1f} |")
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "z.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for item in domains[0].items:
                archive.write(item.media.path, f"{item.media.path.parent.name}/{item.media.path.name}")
        zipped = open_domain([path], size)
        once = crops_per_second(zipped.read, n, size, draws)
        shared = runtime_media._archive
        own = threading.local()

        def a_thread(path: Path) -> zipfile.ZipFile:
            if not hasattr(own, "zip"):
                own.zip = zipfile.ZipFile(path)
            return own.zip

        runtime_media._archive = a_thread
        each_thread = crops_per_second(zipped.read, n, size, draws)
        runtime_media._archive = lambda path: zipfile.ZipFile(path)
        every = crops_per_second(zipped.read, n, size, max(20, draws // 20))
        runtime_media._archive = shared
    return [
        *rows,
        f"| a zip, opened once for all threads (as it is) | {once / files:.2f} |",
        f"| a zip, opened once in each thread | {each_thread / files:.2f} |",
        f"| a zip, opened for every picture | {every / files:.2f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--images", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RFP_CACHE"] = cache
        rows = [video_rows(path, args.size, args.draws) for path in args.videos]
    print("| video | frame cache | seek + decode | in sequence | decoding all of it once, in draws a frame |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(speed for speed, _ in rows))
    print("\n| video | raw frame | as JPEG 95 | in the video | speed of JPEG |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(disk for _, disk in rows))
    if args.images:
        print("\n| images | crops a second |\n| --- | --- |")
        print("\n".join(image_rows(args.images, args.size, args.draws * 10)))


if __name__ == "__main__":
    main()
