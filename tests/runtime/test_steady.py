"""Flicker, measured and calmed."""

from pathlib import Path

import av
import bundles
import numpy as np
import pytest
from films import write_video
from rfp.runtime import FlowOptions, UsageError, translate
from rfp.runtime.metrics import flicker
from rfp.runtime.steady import Steady

FRAME = np.random.default_rng(0).integers(40, 200, (16, 20, 3), np.uint8)


def still(n=12):
    return np.repeat(FRAME[None], n, axis=0)


def flickering(frames, size=20):
    return (frames + np.random.default_rng(1).integers(0, size, frames.shape)).astype(np.uint8)


def test_flicker_of_a_film_that_is_its_source_is_the_sources_own():
    film = flickering(still())
    f = flicker(film, film)
    assert f["change"] == 1 and f["still"] == f["still_source"]


def test_flicker_counts_only_what_stands_still():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1:, :2] = 100  # the upper half moves once
    out = frames.copy()
    out[1, :2], out[1, 2:] = 7, 10  # the lower one flickers by 10, up and down
    f = flicker(frames, out)
    assert f["still_source"] == 0 and f["change"] > 1
    moved, kept = 2 * 4, 3 * 2 * 4  # of 2 × 16 comparisons the upper half's first ones move
    assert f["still"] == pytest.approx((8 * 10 + 8 * 10 + 8 * 93) / kept) and moved + kept == 32
    assert np.isnan(flicker(still(), still())["change"])
    with pytest.raises(ValueError, match="two films of one shape"):
        flicker(frames, out[:2])


def test_where_nothing_moves_flicker_is_calmed_and_no_strength_changes_nothing():
    frames = still(40)
    made = flickering(frames)
    np.testing.assert_array_equal(Steady(0.0)(frames, made), made)
    plain, calm = flicker(frames, made)["still"], flicker(frames[20:], Steady(0.8)(frames, made)[20:])["still"]
    # An average with weight 0.2 on the newest of independent ones changes by 0.2·√(2/1.8) of what they vary.
    assert calm / plain == pytest.approx(0.2 * (2 / 1.8) ** 0.5 / 2**0.5, rel=0.3)


def test_what_moves_is_not_dragged_behind():
    frames = np.stack([np.full((16, 16, 3), v, np.uint8) for v in (20, 200, 20, 200)])
    made = 255 - frames
    np.testing.assert_array_equal(Steady(0.9)(frames, made), made)


def test_batches_make_no_difference():
    frames, steady = still(9), Steady(0.7)
    made = flickering(frames)
    parts = [steady(frames[i : i + 4], made[i : i + 4]) for i in range(0, 9, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), Steady(0.7)(frames, made))


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as film:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])


def test_a_film_is_steadied_as_it_is_translated(tmp_path: Path):
    """Each translated frame adds −x/4, so what the counting columns leave behind is only seen when steadied."""
    bundle = bundles.write_bundle(tmp_path / "b", bundles.towards(0.0))
    film = write_video(tmp_path / "film.mp4", [40 * i for i in range(10)])
    for name, steady in (("plain", 0.0), ("calm", 0.9)):
        flow = FlowOptions(steps=4, size="native", device="cpu", batch=3)
        done = translate(bundle, [film], tmp_path / f"{name}.mp4", flow=flow, steady=steady)
        assert not done.failed
    source, plain, calm = (decoded(tmp_path / f"{name}.mp4") for name in ("film", "plain", "calm"))
    wanted = Steady(0.9)(source, plain)
    assert plain.shape == calm.shape == source.shape
    assert np.abs(calm.astype(int) - wanted).mean() < 2
    with pytest.raises(UsageError, match=r"steady is 1\.0"):
        translate(bundle, [film], tmp_path / "x.mp4", steady=1.0)


def test_less_is_carried_on_the_more_five_by_five_pixels_change():
    """Of a displacement of 40 that falls to 0, half where nothing moves, and nothing from 24 grey levels on."""
    before = np.full((1, 9, 9, 3), 100, np.uint8)
    spot = before.copy()
    spot[0, 4, 4] = 40
    carried = np.full((1, 9, 9, 1), 20)
    carried[:, 2:7, 2:7] = 18  # 60 of one pixel are 2.4 of 25, a tenth of 24
    for now, wanted in ((spot, carried), (before - 12, 10), (before + 12, 10), (before - 30, 0)):
        steady = Steady(0.5)
        steady(before, before + 40)
        np.testing.assert_array_equal(steady(now, now), now + wanted)


def test_frames_are_steadied_as_the_formula_says_up_to_the_edges_and_to_black_and_white():
    """Unrounded and pixel by pixel; half of the translations lie at the ends of the range, beyond which s may lead."""
    rng = np.random.default_rng(2)
    frames = np.clip(FRAME + rng.integers(-20, 21, (6, 16, 20, 3)) * (rng.random((6, 16, 20, 1)) < 0.5), 0, 255)
    made = np.clip(rng.integers(-128, 384, frames.shape), 0, 255)
    wanted = [kept := made[0] - frames[0].astype(float)]
    for now, before, to in zip(frames[1:], frames, made[1:], strict=False):
        change = np.pad(np.abs(now - before).mean(axis=2), 2, mode="edge")
        near = np.array([[change[y : y + 5, x : x + 5].mean() for x in range(20)] for y in range(16)])
        kept = kept + (1 - 0.8 * np.maximum(1 - near / 24, 0))[..., None] * (to - now - kept)
        wanted.append(kept)
    out = Steady(0.8)(frames.astype(np.uint8), made.astype(np.uint8))
    exact = frames + wanted
    assert (exact < -1).any() and (exact > 256).any()
    assert np.abs(out - np.clip(exact, 0, 255)).max() < 0.501


def test_what_changes_by_two_grey_levels_is_still_and_by_three_is_not():
    frames, out = np.zeros((2, 2, 4, 3), np.uint8), np.zeros((2, 2, 4, 3), np.uint8)
    frames[1], out[1] = (np.array(levels, np.uint8)[:, None, None] for levels in ((2, 3), (5, 9)))
    f = flicker(frames, out)
    assert (f["still"], f["still_source"], f["change"]) == (5, 2, 14 / 5)
