"""The demo's landscapes: the same from the same seed, unpaired where they should be, and night follows from day."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rfp.cli.demo_data import FPS, SECONDS, demo_scenes, write_demo_data
from rfp.cli.scenes import draw_scene, render
from rfp.runtime.errors import UsageError
from rfp.runtime.metrics import psnr

SIZE = 32


def scenes(n, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_scene(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_demo_data(folder, train=5, test=2, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def pictures():
    drawn = scenes(40)
    return drawn, np.stack([render(s, False) for s in drawn]), np.stack([render(s, True) for s in drawn])


def test_the_same_seed_draws_the_same_pictures():
    for night in (False, True):
        assert np.array_equal(*(render(scenes(3)[2], night) for _ in range(2)))
    assert scenes(3)[2] != scenes(3, seed=1)[2]


def test_training_and_test_scenes_are_disjoint():
    drawn = demo_scenes(train=600, test=32, seed=0)
    everything = [*drawn.day, *drawn.night, *drawn.test, drawn.clip]
    assert len(set(everything)) == len(everything) == 600 + 600 + 32 + 1


def test_more_training_scenes_leave_the_test_scenes_as_they_were():
    few, many = demo_scenes(3, 4, seed=9), demo_scenes(5, 4, seed=9)
    assert few.test == many.test
    assert few.clip == many.clip
    assert many.day[:3] == few.day


def test_the_moon_stands_where_the_sun_stood(pictures):
    for scene, day, night in zip(*pictures, strict=True):
        r, g, b = np.moveaxis(day[:26].astype(int), 2, 0)
        sun = (r > 248) & (b < 236) & (g - b > 12)  # yellow: clouds and snow are white
        moon = night[:26].min(axis=2) > 195
        wanted = np.array(scene.sun) * 64 - 0.5
        for disc in (sun, moon):
            y, x = np.nonzero(disc)
            assert len(x) > 30
            assert np.abs([x.mean(), y.mean()] - wanted).max() < 1


def test_lit_windows_belong_to_houses_of_the_day(pictures):
    lit_columns = 0
    for _, day, night in zip(*pictures, strict=True):
        r, g, b = np.moveaxis(day[28:41].astype(int), 2, 0)
        roofs = ((r - g > 60) & (r - b > 60)).any(axis=0)
        houses = roofs | np.roll(roofs, 1) | np.roll(roofs, -1)
        r, g, b = np.moveaxis(night[28:41].astype(int), 2, 0)
        lit = ((r > 200) & (r - b > 90)).any(axis=0)
        lit_columns += lit.sum()
        assert not (lit & ~houses).any()
    assert lit_columns > 4 * len(pictures[0])


def test_thumbnails_find_the_true_pair(pictures):
    """What structure pairing lives on: 8×8 thumbnails of day and night of one scene are nearest to each other."""
    _, day, night = pictures

    def embed(images):
        small = images.reshape(-1, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        small -= small.mean(axis=1, keepdims=True)
        return small / np.linalg.norm(small, axis=1, keepdims=True)

    found = (embed(day) @ embed(night).T).argmax(axis=1)
    assert np.mean(found == np.arange(len(day))) > 0.85


def test_day_is_far_from_night(pictures):
    assert psnr(pictures[1], pictures[2]) < 11


def test_the_pan_is_smooth_and_leaves_the_sun_in_place():
    scene = scenes(1)[0]
    frames = [render(scene, True, shift=0.005 * k, width=112) for k in range(3)]
    assert frames[0].shape == (64, 112, 3)
    assert 22 < psnr(frames[0], frames[1]) < 60
    assert psnr(frames[0], frames[1]) > psnr(frames[0], frames[2])
    y, x = round(scene.sun[1] * 64), round(scene.sun[0] * 112)
    assert np.array_equal(frames[0][y - 2 : y + 2, x - 2 : x + 2], frames[2][y - 2 : y + 2, x - 2 : x + 2])


def test_the_data_set_holds_what_it_says(data):
    names = {folder: sorted(p.name for p in (data / folder).iterdir()) for folder in ("train/day", "train/night")}
    assert names["train/day"] == names["train/night"] == [f"{k:04d}.png" for k in range(5)]
    held_out = demo_scenes(train=5, test=2, seed=0).test
    for name, night in (("day", False), ("night", True)):
        for k, scene in enumerate(held_out):
            with Image.open(data / "test" / name / f"{k:04d}.png") as image:
                assert np.array_equal(np.asarray(image), render(scene, night, SIZE))


@pytest.mark.parametrize("name", ["day", "night"])
def test_the_clip_has_all_frames_and_sound(data, name):
    with av.open(str(data / "test" / f"{name}.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == FPS
    assert len(frames) == FPS * SECONDS
    assert frames[0].shape == (SIZE, SIZE * 7 // 4, 3)
    assert psnr(frames[0], frames[-1]) < 20
    with av.open(str(data / "test" / f"{name}.mp4")) as container:
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert sound.shape[0] == 2
    assert sound.shape[1] / 44_100 == pytest.approx(SECONDS, abs=0.1)
    assert 0.02 < sound.std() < 0.3
    assert np.abs(sound).max() < 1


def test_data_that_stands_is_kept_and_other_folders_are_not_replaced(data, tmp_path):
    before = (data / "demo.json").stat().st_mtime_ns
    write_demo_data(data, train=5, test=2, size=SIZE)
    assert (data / "demo.json").stat().st_mtime_ns == before
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not replaced"):
        write_demo_data(tmp_path, train=5, test=2, size=SIZE)
    assert (tmp_path / "holiday.png").read_bytes() == b"mine"
