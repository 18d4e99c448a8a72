"""Sizes other than the trained one: --size, --upscale and --tile."""

import itertools
import os

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FlowOptions, UsageError, images, load_bundle, saving, translate
from rfp.runtime.codec import Identity
from rfp.runtime.flow import Flow
from rfp.runtime.network import Network
from rfp.runtime.tiling import starts, tiled
from rfp.runtime.upscale import enlarged, given_back, resized
from rfp.runtime.velocity import Velocity


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def make(tmp_path):
    def flow(model, **options):
        bundle = load_bundle(bundles.write_bundle(tmp_path / "bundle", model, default_steps=2))
        velocity = Velocity(bundle, "cpu")
        return Flow(velocity, Identity(), bundle.manifest, FlowOptions(**options))

    return flow


def test_residual_keeps_every_detail_where_the_flow_adds_nothing():
    original = picture(0, 75, 101)
    small = resized(original, (43, 32))
    assert np.array_equal(given_back("residual", original, small, small), original)
    assert np.abs(given_back("resize", original, small, small).astype(int) - original).mean() > 20  # which loses it


def test_residual_adds_what_the_flow_added_and_clips():
    original = picture(1, 64, 96)
    small = resized(original, (48, 32))
    half = small // 2
    brighter = given_back("residual", original, half, half + 40)
    assert np.array_equal(brighter, np.clip(original.astype(int) + 40, 0, 255))


def test_residual_adds_to_each_channel_its_own_and_without_steps():
    """What was added rises by 5 a pixel: at four times the width by 1.25, whatever the enlargement, if it is smooth."""
    original, small = np.full((32, 64, 3), 100, np.uint8), np.full((8, 16, 3), 60, np.uint8)
    ramp = 5 * np.arange(16)
    made = small + np.uint8([1, 0, 0]) * ramp[:, None].astype(np.uint8) - np.uint8([0, 0, 30])
    out = given_back("residual", original, small, made).astype(float) - 100
    wanted = 5 * ((np.arange(64) + 0.5) / 4 - 0.5)  # centres of pixels
    assert np.abs(out[:, 8:-8, 0] - wanted[8:-8]).max() < 0.4  # rounded
    assert not out[..., 1].any() and (out[..., 2] == -30).all()


def test_pictures_are_resized_by_lanczos_from_whole_pixels_averaged_to_three_times_that():
    image = Image.fromarray(picture(7, 192, 288))
    for size, near in (
        ((120, 80), image),
        ((36, 24), image.reduce(2)),
        ((24, 16), image.reduce(4)),
        ((301, 200), image),
    ):
        wanted = np.asarray(near.resize(size, Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(resized(np.asarray(image), size), wanted)


def test_what_the_flow_added_is_enlarged_as_smoothly_as_a_parabola_and_averaged_where_it_becomes_smaller():
    """Of which the bicubic of Pillow, a = −½, is exact away from the edges, at the centres of pixels."""
    y, x = np.mgrid[:12, :16].astype(np.float32)
    parabola = lambda y, x: 3 * (x - 7) ** 2 - 2 * (y - 5) ** 2 + x * y  # noqa: E731
    (high, low), large = ((np.arange(4 * n) + 0.5) / 4 - 0.5 for n in (12, 16)), enlarged(parabola(y, x), (64, 48))
    np.testing.assert_allclose(large[8:-8, 8:-8], parabola(high[:, None], low)[8:-8, 8:-8], atol=1e-3)
    assert np.abs(enlarged((x + y) % 2 * 200 - 100, (4, 3))).max() < 10


def test_none_is_the_flows_own_size_and_the_others_the_inputs(tmp_path):
    bundle = bundles.write_bundle(tmp_path / "b", bundles.towards(0.25))
    Image.fromarray(picture(2, 90, 133)).save(tmp_path / "a.png")
    for upscale, size in (("none", (47, 32)), ("resize", (133, 90)), ("residual", (133, 90))):
        target = tmp_path / f"{upscale}.png"
        report = translate(bundle, [tmp_path / "a.png"], target, flow=FlowOptions(upscale=upscale, device="cpu"))
        with Image.open(target) as image:
            assert not report.failed and image.size == size


@pytest.mark.parametrize(("length", "tile", "overlap"), [(100, 64, 16), (64, 64, 8), (65, 64, 32), (1000, 96, 0)])
def test_tiles_cover_a_side_and_overlap_at_least_as_asked(length, tile, overlap):
    found = starts(length, tile, overlap)
    assert found[0] == 0 and found[-1] + tile >= length and found[-1] + tile <= max(length, tile)
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(found))


def test_tiles_of_a_flow_that_looks_at_single_pixels_are_the_whole_picture(make):
    image = picture(3, 150, 203)
    whole = make(bundles.towards(0.25))(image[None])[0]
    for overlap in (0, 8, 32):
        parts = make(bundles.towards(0.25), tile=64, overlap=overlap)(image[None])[0]
        assert np.abs(parts.astype(int) - whole).max() <= 1


def test_no_step_stands_where_tiles_meet(make):
    """A flow that turns each tile into its own mean: tiles disagree as much as they can, and the blend is gradual."""
    ramp = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)

    def flat(tile, norms):
        return np.full_like(tile, round(float(tile.mean())))

    out = tiled(ramp, flat, 64, 32, together=False)
    assert np.abs(np.diff(out[32, :, 0].astype(int))).max() <= 5  # of 64 grey levels between neighbouring tiles


def test_the_rim_of_a_tile_is_not_used_but_where_the_picture_ends():
    """Of tiles of 64 px that overlap by 16 the outer 4 px are wrong, as zero padding makes them."""
    image = picture(5, 64, 112)

    def rimmed(tile, norms):
        out = np.zeros_like(tile)
        out[:, :, 4:-4] = tile[:, :, 4:-4]
        return out

    out = tiled(image, rimmed, 64, 16, together=False)
    np.testing.assert_array_equal(out[:, 4:-4], image[:, 4:-4])


def test_tiles_overlap_by_a_quarter_unless_told(make, monkeypatch):
    """Of 64 px, 3 cover 120 px where they overlap by 16, and 2 where by 8."""
    seen, call = [], Network.__call__
    count = lambda self, *x, **tile: seen.append(x) or call(self, *x, **tile)  # noqa: E731
    monkeypatch.setattr(Network, "__call__", count)
    counts = []
    for more in ({}, {"overlap": 16}, {"overlap": 8}):
        make(bundles.blur(), tile=64, **more)(picture(6, 40, 120)[None])
        counts.append(len(seen))
        seen.clear()
    assert counts[0] == counts[1] > counts[2]


def test_the_net_never_sees_more_than_a_tile(make, monkeypatch):
    flow, seen = make(bundles.blur(), tile=64), []
    call = Network.__call__
    count = lambda self, x, *t, **tile: seen.append(x.shape) or call(self, x, *t, **tile)  # noqa: E731
    monkeypatch.setattr(Network, "__call__", count)
    assert flow(picture(4, 300, 200)[None]).shape == (1, 300, 200, 3)
    assert max(shape[0] * shape[2] * shape[3] for shape in seen) <= 64 * 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upscale": "twice"}, "upscale"),
        ({"tile": 8}, "tile"),
        ({"overlap": 8}, "--tile"),
        ({"tile": 64, "overlap": 33}, "overlap"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        FlowOptions(**options)


@pytest.mark.parametrize("upscale", ["resize", "residual"])
def test_originals_without_room_are_decoded_again_and_room_is_given_back(tmp_path, monkeypatch, upscale):
    bundle = bundles.write_bundle(tmp_path / "b", bundles.towards(0.25))
    (tmp_path / "in").mkdir()
    for i in range(9):
        Image.fromarray(picture(i, 90 + i, 133)).save(tmp_path / "in" / f"{i}.png")
    again, rooms = [], []
    read, room = saving.read_image, images.Room
    monkeypatch.setattr(saving, "read_image", lambda media: again.append(media) or read(media))
    monkeypatch.setattr(images, "Room", lambda size: rooms.append(room(size)) or rooms[-1])
    for name, kept, expected in (("all", images.KEPT, 0), ("two", 2 * 100 * 133 * 3, None), ("none", 0, 9)):
        monkeypatch.setattr(images, "KEPT", kept)
        again.clear()
        flow = FlowOptions(upscale=upscale, device="cpu")
        report = translate(bundle, [tmp_path / "in"], tmp_path / name, flow=flow)
        assert len(report.done) == 9 and rooms[-1]._left == kept
        assert expected in (None, len(again))
    for i in range(9):
        made = [(tmp_path / name / f"{i}.png").read_bytes() for name in ("all", "two", "none")]
        assert made[0] == made[1] == made[2]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A bundle, a picture that is enlarged again, and the room that originals take meanwhile, once there is some."""
    Image.fromarray(picture(8, 90, 133)).save(tmp_path / "a.png")
    rooms, room = [], images.Room
    monkeypatch.setattr(images, "Room", lambda size: rooms.append(room(size)) or rooms[-1])
    return bundles.write_bundle(tmp_path / "b", bundles.towards(0.25)), tmp_path / "a.png", rooms


ENLARGED = FlowOptions(upscale="resize", device="cpu")


@pytest.mark.parametrize("error", [OSError("odd"), RuntimeError("odd"), MemoryError("odd")])
def test_a_picture_that_cannot_be_written_fails_by_name_and_gives_its_room_back(large, tmp_path, monkeypatch, error):
    def refuse(*args):
        raise error

    bundle, source, rooms = large
    monkeypatch.setattr(saving, "save_picture", refuse)
    report = translate(bundle, [source], tmp_path / "out.png", flow=ENLARGED)
    assert "out.png: cannot be written: odd" in report.failed[0].message and not (tmp_path / "out.png").exists()
    assert rooms[0]._left == images.KEPT


def test_a_picture_that_waits_for_the_disk_takes_no_room(large, tmp_path, monkeypatch):
    bundle, source, rooms = large
    left = []
    monkeypatch.setattr(os, "fsync", lambda fd: left.append(rooms[0]._left))
    assert not translate(bundle, [source], tmp_path / "out.png", flow=ENLARGED).failed and left == [images.KEPT]
