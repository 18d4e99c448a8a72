"""The demo's data set: unpaired day and night landscapes to train on, pairs and a clip to test on."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..runtime.errors import UsageError
from ..runtime.files import write_folder_aside
from .scenes import Scene, draw_scene, render

VERSION = 1
"""Goes up when the pictures change, so that older data is drawn again."""
FPS, SECONDS, PAN = 24, 4, 0.5
"""The clip; PAN is how far the camera moves in it, in picture heights of the near bank."""
SAMPLE_RATE = 44_100
CHORD = (146.83, 220.00, 277.18, 329.63)
"""D major 9, Hz."""


@dataclass(frozen=True)
class DemoScenes:
    """The scenes of a seed: `day` and `night` are different ones, `test` are held out, `clip` is the video's."""

    day: list[Scene]
    night: list[Scene]
    test: list[Scene]
    clip: Scene


def demo_scenes(train: int, test: int, seed: int) -> DemoScenes:
    """Draw the scenes. Each list has a random stream of its own: more training scenes leave the test as it was."""
    day, night, held_out, clip = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    return DemoScenes(
        day=[draw_scene(day) for _ in range(train)],
        night=[draw_scene(night) for _ in range(train)],
        test=[draw_scene(held_out) for _ in range(test)],
        clip=draw_scene(clip),
    )


def write_demo_data(folder: Path, train: int = 600, test: int = 32, size: int = 64, seed: int = 0) -> None:
    """Write the data set, whole or not at all; where it already stands, do nothing.

        folder/train/day/0000.png …   folder/train/night/0000.png …   (other scenes: never a pair)
        folder/test/day/0000.png …    folder/test/night/0000.png …    (the truth of the same name)
        folder/test/day.mp4           folder/test/night.mp4           (16:9, 4 s; the truth)
        folder/demo.json                                              (what it was made with)

    Args:
        train: pictures of each training domain. test: held-out pairs. size: height in pixels, even.

    Raises:
        UsageError: `folder` holds something else.
    """
    made_with = {"version": VERSION, "train": train, "test": test, "size": size, "seed": seed}
    receipt = folder / "demo.json"
    if receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8")) == made_with:
        return
    if folder.exists() and not receipt.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and holds no demo data; not replaced. Name a new folder")
    scenes = demo_scenes(train, test, seed)
    with write_folder_aside(folder) as partial:
        _write_images(partial / "train" / "day", scenes.day, False, size)
        _write_images(partial / "train" / "night", scenes.night, True, size)
        for name, night in (("day", False), ("night", True)):
            _write_images(partial / "test" / name, scenes.test, night, size)
            _write_clip(partial / "test" / f"{name}.mp4", scenes.clip, night, size)
        (partial / "demo.json").write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


def _write_images(folder: Path, scenes: list[Scene], night: bool, size: int) -> None:
    folder.mkdir(parents=True)
    for k, scene in enumerate(scenes):
        Image.fromarray(render(scene, night, size)).save(folder / f"{k:04d}.png")


def _write_clip(path: Path, scene: Scene, night: bool, size: int) -> None:
    """A slow pan over `scene` in H.264 with stereo AAC, about 16:9."""
    width = round(size * 7 / 4 / 2) * 2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, size, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for k in range(FPS * SECONDS):
            pixels = render(scene, night, size, shift=PAN * k / (FPS * SECONDS), width=width)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        samples = soundtrack(night)
        for start in range(0, samples.shape[1], 1024):
            chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, start : start + 1024]), "fltp", "stereo")
            chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(chunk))
        container.mux(audio.encode())


def soundtrack(night: bool) -> npt.NDArray[np.float32]:
    """A soft chord over wind, an octave lower by night: float32 [2, samples] in [-1, 1]."""
    n = SAMPLE_RATE * SECONDS
    t = np.arange(n) / SAMPLE_RATE
    sound = np.zeros((2, n))
    for k, pitch in enumerate(CHORD):
        tone = np.sin(2 * np.pi * pitch * (0.5 if night else 1.0) * t + k)
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * t / SECONDS * (1 + k % 2) + k)
        sound += tone * swell * np.array([[0.4 + 0.2 * k / 3], [0.6 - 0.2 * k / 3]])
    hiss = np.fft.rfft(np.random.default_rng(3).standard_normal((2, n)))
    hiss /= 1 + (np.fft.rfftfreq(n, 1 / SAMPLE_RATE) / 300) ** 2  # wind: little of it above 300 Hz
    wind = np.fft.irfft(hiss, n)
    sound = 0.09 * sound + 0.05 * wind / wind.std() * (0.6 + 0.4 * np.sin(2 * np.pi * t / SECONDS))
    fade = np.clip(np.minimum(t, SECONDS - t) / 0.25, 0, 1)
    faded: npt.NDArray[np.float32] = (sound * fade).astype(np.float32)
    return faded
