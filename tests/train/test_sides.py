"""Mirroring is left out where it would teach both sides at once."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from rfp.runtime.pixels import to_float
from rfp.train.domains import open_domain
from rfp.train.noise import Noise
from rfp.train.reflow import Source
from rfp.train.sides import colourfulness, mirrored, one_sided, thumbnails
from trainings import finish, job, noisy, tiny


def blobs(n, seed, edit=lambda x: x):
    """Pictures with a spot anywhere, edited: floats [n, 3, 16, 16]."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(n):
        x = np.full((16, 16, 3), 250, np.uint8)
        y0, x0 = rng.integers(0, 12, 2)
        x[y0 : y0 + 5, x0 : x0 + 5] = rng.integers(0, 200, 3)
        made.append(edit(x))
    return to_float(np.stack(made))


def badge(x):
    x[12:, 12:] = (200, 30, 30)
    return x


def both_corners(x):
    x[12:, 12:] = x[12:, :4] = (200, 30, 30)
    return x


def test_a_mark_on_one_side_is_half_of_the_difference_that_it_makes():
    """It stands at one place: half of its energy changes sign when mirrored, half does not."""
    assert one_sided(blobs(400, 0), blobs(300, 1, badge)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("edit", [lambda x: x, lambda x: 255 - x, both_corners, lambda x: x[::-1]])
def test_what_looks_the_same_mirrored_has_no_side(edit):
    for seed in range(5):
        assert one_sided(blobs(300, seed), blobs(250, 50 + seed, edit)) < 0.01


def test_domains_that_share_a_side_do_not_differ_by_it():
    assert one_sided(blobs(300, 0, badge), blobs(300, 1, lambda x: badge(x // 2))) < 0.05


def test_too_few_pictures_say_nothing():
    assert one_sided(blobs(1, 0), blobs(1, 1, badge)) == 0.0
    assert one_sided(blobs(2, 0), blobs(2, 0)) == 0.0


@pytest.fixture
def work(tmp_path):
    for name, edit in (("dark", lambda x: x), ("bright", badge)):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(edit(noisy(120, i, (16, 16)))).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("asked", [None, True, False])
def test_the_config_has_the_last_word(work, asked):
    domains = [open_domain([work / name], 16) for name in ("dark", "bright")]
    mirror, why = mirrored(tiny(horizontal_flip=asked), *domains)
    assert mirror is bool(asked) and bool(why) is (asked is None)
    assert mirrored(tiny(horizontal_flip=asked), Noise(0, (3, 16, 16)), domains[1])[0] is (asked is not False)


def test_training_says_and_does_so(work, monkeypatch):
    given = []

    def batches(*args, **options):
        given.append(args[7])
        return iter(())

    monkeypatch.setattr("rfp.train.velocity_phase.batches", batches)
    listener = finish(job(work, saliency_loss_weight=0))
    assert given == [False, False] and any("mirroring none of the pairs" in note for note in listener.notes)
    finish(job(work, "again", saliency_loss_weight=0, horizontal_flip=True))
    assert given == [False, False, True, True]  # each last quarter is a stretch of its own


def test_pairs_that_a_flow_makes_are_mirrored_as_its_training_was(work):
    domains = [open_domain([work / name], 16) for name in ("dark", "bright")]
    for asked, expected in ((None, False), (True, True)):
        checkpoint = SimpleNamespace(config=tiny(horizontal_flip=asked))
        assert Source(work, checkpoint, *domains, steps=3, seed=0).mirror is expected


def test_colourfulness_is_the_mean_gap_between_the_levels_of_a_pixel(tmp_path):
    for i, colour in enumerate(((255, 0, 0), (90, 90, 90), (100, 120, 130))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{i}.png")
    assert colourfulness(open_domain([tmp_path], 16)) == pytest.approx((2 + 0 + 30 / 127.5) / 3)


def test_a_film_is_one_picture(tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(20):
            frame = np.full((32, 32, 3), 5 * i, np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        film.mux(stream.encode())
    Image.fromarray(noisy(120, 0, (32, 32))).save(tmp_path / "photo.png")
    domain = open_domain([tmp_path], 16)
    cells = thumbnails(domain)
    assert len(domain) == 21 and cells.shape == (2, 3, 16, 16)
    film_cells = min(cells, key=np.std)
    assert film_cells.mean() == pytest.approx(np.mean([5 * i for i in range(20)]) / 127.5 - 1, abs=0.02)
