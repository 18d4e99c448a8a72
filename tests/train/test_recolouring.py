"""Neighbours take each other's colours where colours are not what sets the domains apart, and nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.runtime.errors import ConfigError
from rfp.runtime.pixels import to_float, to_uint8
from rfp.train import velocity_phase
from rfp.train.coupling import batches, structure_pairs
from rfp.train.domains import open_domain
from rfp.train.noise import noise_domain
from rfp.train.recolouring import recoloured
from rfp.train.reflow import successor
from rfp.train.resolving import HUBER, idle, resolved
from rfp.train.sides import FEWEST, mirrored, same_colours
from trainings import finish, job, tiny

FREE = {"match_colours": None, "flow_loss_huber": None, "coupling": "structure", "structure_pairing": None}


def spot(top, left, size, colour, ground=(250, 250, 250)):
    x = np.full((32, 32, 3), ground, np.uint8)
    x[top : top + size, left : left + size] = colour
    return x


def patches(seed, size=32):
    """4×4 patches of any colours."""
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8).repeat(size // 4, 0).repeat(size // 4, 1)


def errors(a, b):
    return np.abs(a.astype(int) - b).max(axis=2)


@pytest.mark.parametrize("change", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_a_picture_in_other_colours_takes_those_of_its_original(change):
    original = patches(3)
    assert errors(recoloured(original[..., change], original), original).mean() < 10
    assert errors(original[..., change], original).mean() > (40 if change != (0, 1, 2) else -1)
    assert np.array_equal(recoloured(original, original), original)


def test_a_thing_takes_the_colour_of_the_one_in_its_place_and_the_ground_stays():
    made = recoloured(spot(9, 10, 12, (30, 160, 60)), spot(8, 8, 12, (200, 40, 120)))
    assert errors(made[12:18, 12:18], np.full((6, 6, 3), (200, 40, 120))).max() < 40
    assert errors(made[25:], np.full((7, 32, 3), 250)).max() < 12
    assert np.unique(made.reshape(-1, 3), axis=0).shape == (2, 3)  # and it is where it was, as sharp


@pytest.mark.parametrize("off", [0, 2, 4])
def test_contrast_is_kept_where_two_things_do_not_lie_on_each_other(off):
    """Least squares alone leave a third less of it with 4 px of 12."""
    made, like = recoloured(spot(8 + off, 8, 12, (30, 160, 60)), spot(8, 8, 12, (200, 40, 120))), spot(8, 8, 12, 0)
    like[8:20, 8:20] = (200, 40, 120)
    assert to_float(made).std(axis=(1, 2)).mean() == pytest.approx(to_float(like).std(axis=(1, 2)).mean(), rel=0.06)


@pytest.mark.parametrize("like", [np.zeros((8, 8, 3), np.uint8), patches(1, 8)])
def test_a_picture_of_one_colour_becomes_no_more_than_that(like):
    flat = np.full((8, 8, 3), 90, np.uint8)
    made = recoloured(flat, like)
    assert np.unique(made.reshape(-1, 3), axis=0).shape == (1, 3)
    assert errors(made[:1, :1], like.mean(axis=(0, 1), keepdims=True)).max() < 8  # as near to it as one colour gets


def test_contrast_grows_no_more_than_twice_and_of_a_bare_ground_a_tenth_is_left():
    bare = np.full((32, 32, 3), 250, np.uint8)
    assert 0.05 < to_float(recoloured(patches(1), bare)).std() / to_float(patches(1)).std() < 0.2
    at_random = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)  # where nothing of x explains it
    assert to_float(recoloured(patches(1), at_random)).std() < 0.6 * to_float(at_random).std()


def test_of_each_pair_the_picture_that_a_neighbour_was_found_for_stays_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(6):
            x = spot(*rng.integers(4, 14, 2), 12, rng.integers(0, 200, 3))
            Image.fromarray(x).save(tmp_path / name / f"{i}.png")
    domains = [open_domain([tmp_path / name], 32) for name in "ab"]
    near = np.random.default_rng(1).permuted(np.tile(np.arange(6), (6, 1)), axis=1)[:, :2]
    pair = structure_pairs(near, near, 0)
    (x0, x1, place), (y0, y1, there) = (
        next(iter(batches(*domains, pair, 12, 0, 1, 0, True, match_colours=on))) for on in (False, True)
    )
    assert torch.equal(place, there) and torch.equal(y0[::2], x0[::2]) and torch.equal(y1[1::2], x1[1::2])
    a0, a1, b0, b1 = (to_uint8(x.numpy()) for x in (x0, x1, y0, y1))
    for k in range(0, 12, 2):
        assert np.array_equal(b1[k], recoloured(a1[k], a0[k])) and not np.array_equal(b1[k], a1[k])
        assert np.array_equal(b0[k + 1], recoloured(a0[k + 1], a1[k + 1]))
        assert not np.array_equal(b0[k + 1], a0[k + 1])


def disc(x, y, r, colour):
    rows, columns = np.mgrid[:16, :16]
    return np.where(((rows - y) ** 2 + (columns - x) ** 2 < r * r)[..., None], colour, 250).astype(np.uint8)


def square(x, y, r, colour):
    rows, columns = np.mgrid[:16, :16]
    return np.where((np.maximum(abs(rows - y), abs(columns - x)) < 0.886 * r)[..., None], colour, 250).astype(np.uint8)


def marked(x, y, r, colour):
    made = disc(x, y, r, colour)
    made[12:, 12:] = (220, 30, 30)
    return made


def darker(x, y, r, colour):
    return disc(x, y, r, colour) // 2


def redder(x, y, r, colour):
    return disc(x, y, r, colour.clip((200, 0, 0), 255))


def extreme(x, y, r, colour):
    return disc(x, y, r, np.where(colour > 115, 229, 0))  # with the same mean


def to_the_left(x, y, r, colour):
    return disc((x + 4) / 2, y, r, colour)  # with the same colours


@pytest.fixture
def drawn(tmp_path):
    def draw(thing, n=240, seed=1):
        folder, rng = tmp_path / f"{thing.__name__}{n}-{seed}", np.random.default_rng(seed)
        folder.mkdir()
        for i in range(n):
            r = rng.uniform(2.5, 4)
            x = thing(*rng.uniform(4, 12, 2), r, rng.integers(0, 230, 3))
            Image.fromarray(x).save(folder / f"{i}.png")
        return open_domain([folder], 16, 1 << 22)

    return draw


@pytest.mark.parametrize("seed", range(1, 4))
def test_domains_of_things_in_any_colour_and_place_have_the_same_colours(drawn, seed):
    assert same_colours(drawn(disc, seed=0), drawn(square, seed=seed))
    assert same_colours(drawn(disc, 300, seed=9), drawn(square, 210, seed=seed))


@pytest.mark.parametrize("edit", [marked, darker, redder, extreme, to_the_left])
def test_what_an_edit_does_to_colours_is_seen(drawn, edit):
    assert not same_colours(drawn(disc, seed=0), drawn(edit))


def test_of_few_pictures_nothing_is_said(drawn):
    assert same_colours(drawn(disc, FEWEST, 0), drawn(square, FEWEST))
    assert not same_colours(drawn(disc, FEWEST - 1, 0), drawn(square, FEWEST, 3))


def test_neighbours_take_colours_where_the_domains_have_the_same_or_as_it_is_said(drawn):
    discs, squares, marks, said = drawn(disc, seed=0), drawn(square), drawn(marked), []

    def ends(domain1=squares, domain0=discs, weights=None, **changes):
        config = tiny(**FREE | changes)
        found = resolved(config, domain0, domain1, weights and SimpleNamespace(config=tiny(**weights)), said.append)
        return found.match_colours, found.flow_loss_huber

    assert ends() == (True, 0) and "match_colours" in said.pop()
    assert ends(marks) == (False, HUBER) and ends(match_colours=False) == (False, HUBER)
    assert ends(marks, match_colours=True) == (True, 0) and ends(flow_loss_huber=0.2) == (True, 0.2)
    # and only neighbours, of pictures as they lie, that no critic judges
    assert ends(coupling="random")[0] is ends(coupling="paired")[0] is None
    assert ends(domain0=noise_domain(tiny(saliency_loss_weight=0), 0)) == (False, 0)
    assert ends(alignment=[0.9, 0, 0, 0, 1, 0]) == (False, HUBER) == ends(adversarial_weight=0.1, max_size=32)
    # and as it was where a training goes on
    assert ends(weights=FREE | {"match_colours": False}) == (False, HUBER)
    assert ends(marks, weights=FREE | {"match_colours": True}) == (True, 0)
    assert ends(weights=FREE) == (False, HUBER)  # of before there was this


def test_a_critic_wants_real_pictures():
    with pytest.raises(ConfigError, match="match_colours"):
        tiny(**FREE | {"match_colours": True, "adversarial_weight": 0.1, "max_size": 32})


def test_a_critic_that_the_data_would_ask_for_gives_way_to_matched_colours(drawn):
    def grey(x, y, r, colour):
        return disc(x, y, r, colour[:1].repeat(3))

    def critic(asked):
        config = tiny(**FREE | {"match_colours": asked, "adversarial_weight": None, "max_size": 32})
        found = resolved(config, drawn(grey, 20, int(bool(asked))), drawn(disc, 20, 2 + int(bool(asked))))
        return found.adversarial_weight, found.match_colours

    assert critic(None) == (1, False) and critic(True) == (0, True)


@pytest.mark.parametrize("coupling", ["random", "minibatch_ot", "paired"])
def test_without_neighbours_it_is_said_to_have_no_effect(coupling):
    (line,) = idle(tiny(coupling=coupling, structure_pairing=None, match_colours=True))
    assert line.startswith("without effect here, match_colours: ")
    assert idle(tiny(**FREE | {"match_colours": True})) == []
    for asked, wanted in ((True, False), (False, False), (None, None)):  # nor is it asked for of a flow's own pairs
        assert successor(tiny(**FREE | {"match_colours": asked}), 2, True, None)["match_colours"] is wanted


@pytest.mark.parametrize(("changes", "wanted"), [({}, True), ({"coupling": "random"}, False)])
def test_a_training_draws_its_pairs_so(drawn, tmp_path, monkeypatch, changes, wanted):
    drawn(disc, 12), drawn(square, 12)
    (tmp_path / "disc12-1").rename(tmp_path / "dark")
    (tmp_path / "square12-1").rename(tmp_path / "bright")
    seen = []

    def watched(*args, match_colours, **options):
        seen.append(match_colours)
        return batches(*args, match_colours=match_colours, **options)

    monkeypatch.setattr(velocity_phase, "batches", watched)
    finish(job(tmp_path, saliency_loss_weight=0, **FREE | {"match_colours": True} | changes))
    assert seen and all(on is wanted for on in seen)


def test_where_nothing_is_seen_of_what_sets_domains_apart_it_may_have_a_side(drawn):
    """A light on the left of things that lie anywhere shows in no mean picture, and mirrored pairs would teach two."""
    domains = drawn(disc, seed=0), drawn(square)
    assert mirrored(tiny(), *domains)[0]
    on, why = mirrored(tiny(**FREE | {"match_colours": True}), *domains)
    assert not on and "mirroring none of the pairs" in why
    assert mirrored(tiny(**FREE | {"match_colours": True, "horizontal_flip": True}), *domains)[0]
