"""The demo's landscapes: the same from the same seed, unpaired where they should be, and night follows from day."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rfp.cli.canvas import SPECTRUM, View, lay, noise, tri
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


@pytest.mark.parametrize(
    ("size", "period", "margin"), [((64, 64), 1.45, 0.12), ((64, 112), 0.4, 0.3), ((64, 16), 3, 0)]
)
def test_a_place_of_a_panorama_shows_wherever_it_comes_round_in_the_frame_and_nowhere_else(size, period, margin):
    view = View(*size)
    for offset in np.random.default_rng(0).uniform(-3, 3, 50):
        everywhere = 0.3 - offset + period * np.arange(-40, 40)
        wanted = everywhere[(everywhere >= -margin) & (everywhere <= view.aspect + margin)]
        np.testing.assert_allclose(view.repeat(0.3, offset, period, margin), wanted, atol=1e-9)


def test_the_grid_is_of_the_middles_of_pixels_in_picture_heights():
    view = View(4, 6)
    assert (view.y.ravel().tolist(), view.x.tolist()) == (
        [i / 8 for i in (1, 3, 5, 7)],
        [i / 8 for i in range(1, 12, 2)],
    )


@pytest.mark.parametrize("kind", SPECTRUM)
def test_a_texture_slides_with_its_panorama_and_has_mean_0_and_deviation_1(kind):
    view = View(256, 512)
    still = noise(view, kind, 0, 0, 256)
    np.testing.assert_array_equal(noise(view, kind, 0.25, 100, 200), np.roll(still, -64, axis=1)[100:200])
    assert (still.mean(), still.std()) == pytest.approx((0, 1), abs=1e-4)


def test_a_layer_lies_where_it_has_depth_lighter_at_its_edge():
    below, view = np.zeros((3, 10, 1), np.float32), View(10, 1)
    depth = np.linspace(-0.35, 0.55, 10, dtype=np.float32)[:, None]
    lay(below, np.full_like(below, 100), depth, view, np.float32([[[8]], [[4]], [[0]]]))
    light = np.clip(1 - 2 * depth, 0, 1)[4:]  # none from a fifth of ten rows on
    np.testing.assert_allclose(below[:, 4:], 100 + light * np.float32([[[8]], [[4]], [[0]]]), rtol=1e-6)
    assert not below[:, :4].any() and light[0] > 0.8


def test_a_triangle_wave_rises_from_whole_numbers_and_falls_from_the_middle():
    assert tri(np.array([-0.75, 0, 0.25, 0.5, 0.75, 1, 3.25])).tolist() == [0.5, 0, 0.5, 1, 0.5, 0, 0.5]
