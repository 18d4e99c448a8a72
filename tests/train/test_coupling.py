import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rfp.runtime.pixels import to_float
from rfp.train import velocity_phase
from rfp.train.coupling import batches, random_pairs, shuffled, structure_pairs
from rfp.train.domains import Crop, open_domain
from rfp.train.job import Job
from rfp.train.neighbours import neighbours
from trainings import draw_domains, finish, job, noisy, tiny


@pytest.fixture
def domains(tmp_path):
    return [open_domain([folder], 16) for folder in draw_domains(tmp_path)]


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_shuffle_is_a_permutation_each_epoch_and_a_function_of_seed_and_k():
    draw = shuffled(7, 3, 0)
    epochs = [[draw(7 * e + i) for i in range(7)] for e in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({tuple(e) for e in epochs}) > 3
    again = shuffled(7, 3, 0)
    assert [again(k) for k in reversed(range(42))] == [draw(k) for k in reversed(range(42))]
    assert [shuffled(7, 4, 0)(k) for k in range(42)] != [draw(k) for k in range(42)]


@pytest.mark.parametrize("n", [1, 2])
def test_threads_draw_far_apart_epochs_at_once(n):
    """A domain of one picture begins an epoch with each pair, and batches draw many pairs at the same time."""
    draw, wanted = shuffled(n, 0), [shuffled(n, 0)(k) for k in range(3000)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(draw, range(3000))) == wanted
    finally:
        sys.setswitchinterval(interval)


def test_random_pairs_go_through_each_domain_by_itself():
    pair = random_pairs(4, 6, 0)
    drawn = [pair(k) for k in range(24)]
    assert sorted(i for i, _ in drawn) == sorted(list(range(4)) * 6)
    assert sorted(j for _, j in drawn) == sorted(list(range(6)) * 4)
    assert drawn == [random_pairs(4, 6, 0)(k) for k in range(24)] != [random_pairs(4, 6, 1)(k) for k in range(24)]
    assert len({random_pairs(50, 50, 0)(k) for k in range(500)}) > 400  # not one fixed pairing


def test_structure_pairs_are_neighbours_and_leave_no_picture_out():
    a, b = unit(5, 4, 0), unit(9, 4, 1)
    near1, near0 = neighbours(a, b, 2)
    pair = structure_pairs(near1, near0, 0)
    drawn = [pair(k) for k in range(2 * 45)]
    assert {i for i, _ in drawn} == set(range(5)) and {j for _, j in drawn} == set(range(9))
    assert all(j in near1[i] if k % 2 == 0 else i in near0[j] for k, (i, j) in enumerate(drawn))
    assert {j for k, (i, j) in enumerate(drawn) if k % 2 == 0 and i == 0} == set(near1[0])  # each candidate comes
    # Half of the pairs start from each domain, each in epochs.
    assert sorted(i for i, _ in drawn[0:10:2]) == list(range(5))
    assert sorted(j for _, j in drawn[1:18:2]) == list(range(9))
    assert [structure_pairs(near1, near0, 0)(k) for k in (77, 3)] == [drawn[77], drawn[3]]


def test_both_pictures_of_a_pair_get_the_same_crop_and_mirroring(tmp_path):
    (tmp_path / "d").mkdir()
    Image.fromarray(noisy(128, 1, (30, 22))).save(tmp_path / "d" / "a.png")
    domain = open_domain([tmp_path / "d"], 16)
    pictures = set()
    for x0, x1, _ in batches(domain, domain, random_pairs(1, 1, 0), 6, 0, 3, 0, flip=True):
        assert torch.equal(x0, x1)
        pictures |= {tuple(x.flatten().tolist()) for x in x0}
    assert len(pictures) == 18  # each pair has a crop of its own


def test_crops_are_as_small_as_asked_for_but_enlarge_nothing(tmp_path):
    """A ramp's difference from side to side is the width of the crop."""
    for name, side in (("large", 320), ("small", 40)):
        (tmp_path / name).mkdir()
        ramp = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8)[None, :, None], (side, side, 3))
        Image.fromarray(ramp).save(tmp_path / name / "a.png")
    large, small = (open_domain([tmp_path / name], 40) for name in ("large", "small"))
    for domains, least in (((large, large), 0.5), ((large, small), 0.9), ((small, large), 0.9)):
        x0, x1, _ = next(iter(batches(*domains, random_pairs(1, 1, 0), 400, 0, 1, 0, False, crop_scale=0.5)))
        for x in (x0, x1):
            width = (x[:, 0, 0, -1] - x[:, 0, 0, 0]) / 2 * 40 / 39
            assert least - 0.03 < width.min() < least + 0.05 and width.max() > 0.95
    whole, *_ = next(iter(batches(large, large, random_pairs(1, 1, 0), 4, 0, 1, 0, False, crop_scale=1.0)))
    assert torch.equal(whole, whole[:1].expand_as(whole))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_pairs_is_cropped_and_the_others_are_the_whole_middle_square(tmp_path, share):
    """Of pictures wider than high; mirrored as often either way, and with their place in the picture."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    domain = open_domain([tmp_path], 40)
    square = torch.from_numpy(to_float(domain.crop(0, Crop())[None]))[0]
    x0, x1, place = next(iter(batches(domain, domain, random_pairs(1, 1, 0), 400, 0, 1, 0, True, crop_share=share)))
    assert torch.equal(x0, x1)
    mirrored, as_it_is = ((x0 == x).flatten(1).all(dim=1) for x in (square.flip(2), square))
    whole = mirrored | as_it_is
    assert abs(whole.float().mean() - (1 - share)) < 0.08 and whole.all() == (share == 0)
    assert not whole.any() or abs(mirrored.sum() / whole.sum() - 0.5) < 0.1
    reach = place.abs().amax(dim=(1, 2, 3))
    assert torch.allclose(reach[whole], torch.tensor(39 / 40)) and (reach[~whole] < 0.999).all()


@pytest.mark.parametrize(("changes", "shares"), [({}, [0.5, 0.5, 0.0]), ({"random_crop": False}, [0.0] * 3)])
def test_the_last_quarter_of_a_training_sees_whole_pictures(tmp_path, monkeypatch, changes, shares):
    """Whatever else begins a new stretch of it."""
    draw_domains(tmp_path)
    seen = []

    def watched(*args, crop_share, **options):
        seen.append((args[4], args[5], crop_share))
        return batches(*args, crop_share=crop_share, **options)

    monkeypatch.setattr(velocity_phase, "batches", watched)
    monkeypatch.setattr(velocity_phase, "turns", lambda *_: [5])
    monkeypatch.setattr(velocity_phase, "re_paired", lambda *_: {})
    finish(job(tmp_path, train_images=60, saliency_loss_weight=0, **changes))
    assert seen == [(0, 5, shares[0]), (5, 9, shares[1]), (9, 12, shares[2])]


def test_cutmix_puts_a_rectangle_of_the_next_pair_at_the_same_place_in_both_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(np.full((16, 16, 3), rng.integers(256, size=3), np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    domains = [open_domain([tmp_path / name], 16) for name in "ab"]
    pair = random_pairs(12, 12, 3)
    plain, mixed = (
        [
            torch.cat(side)
            for side in list(zip(*batches(*domains, pair, 6, 0, 51, 3, False, cutmix=share), strict=True))[:2]
        ]
        for share in (0.0, 0.5)
    )
    changed0, changed1 = (((m - p).abs().amax(dim=1) > 0.001)[:-1] for m, p in zip(mixed, plain, strict=True))
    count = 0
    for k, (where0, where1) in enumerate(zip(changed0, changed1, strict=True)):
        where = where0 | where1
        if not where.any():
            continue
        count += 1
        rows, columns = where.any(dim=1).nonzero(), where.any(dim=0).nonzero()
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        for m, p, changed in zip(mixed, plain, (where0, where1), strict=True):
            assert torch.equal(m[k][:, *box], p[k + 1][:, *box])
            assert not changed.any() or torch.equal(changed, where)
        assert where.sum() == where[box].numel()
    assert 0.35 < count / len(changed0) < 0.55  # half, but for rectangles of no area


@pytest.mark.parametrize(
    ("from_noise", "changes", "share"), [(False, {}, 0.5), (False, {"cutmix": 0.2}, 0.2), (True, {}, 0.0)]
)
def test_half_of_the_pairs_are_mixed_unless_told_and_none_of_noise(tmp_path, monkeypatch, from_noise, changes, share):
    dark, bright = draw_domains(tmp_path)
    seen = []

    def watched(*args, cutmix, **options):
        seen.append(cutmix)
        return batches(*args, cutmix=cutmix, **options)

    monkeypatch.setattr(velocity_phase, "batches", watched)
    config = tiny(train_images=5, saliency_loss_weight=0, **changes)
    finish(Job(config, "random" if from_noise else (dark,), (bright,), tmp_path / "run", device="cpu"))
    assert {*seen} == {share}


@pytest.mark.parametrize(("side", "wide"), [(256, 256), (256, 384), (40, 40)])
def test_every_pixel_is_where_its_batch_says(tmp_path, side, wide):
    """Of pictures that show, in red and green, where each of their pixels is in the middle square."""
    (tmp_path / "d").mkdir()
    rows, columns = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(wide) + 0.5 - wide / 2) / side + 0.5)
    shown = np.stack([rows.T, columns.T, 0 * rows.T], axis=2).clip(0, 1)
    Image.fromarray(np.rint(255 * shown).astype(np.uint8)).save(tmp_path / "d" / "a.png")
    domain = open_domain([tmp_path / "d"], 32)
    options = {"crop_scale": 0.5, "cutmix": 0.5}
    x0, x1, place = next(iter(batches(domain, domain, random_pairs(1, 1, 0), 64, 0, 1, 0, True, **options)))
    assert place.shape == (64, 2, 32, 32) and place.dtype == torch.float32
    inner = slice(1, -1)  # at a picture's border LANCZOS has nothing beyond it
    for x in (x0, x1):
        assert (x[:, :2] - place)[..., inner, inner].abs().max() < 0.03
    assert (place[:, 1, :, 0] > place[:, 1, :, -1]).any() and place.amax() - place.amin() > 1.8


def test_half_of_the_pairs_are_mirrored_and_none_without_flip(tmp_path):
    (tmp_path / "d").mkdir()
    slope = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    Image.fromarray(slope).save(tmp_path / "d" / "a.png")
    domain = open_domain([tmp_path / "d"], 16)
    for flip in (True, False):
        x, *_ = next(iter(batches(domain, domain, random_pairs(1, 1, 0), 64, 0, 1, 0, flip)))
        mirrored = (x[..., 0] > x[..., -1]).all(dim=(1, 2)).sum().item()
        assert 20 < mirrored < 44 if flip else mirrored == 0


def test_batches_are_the_same_when_started_in_the_middle(domains):
    pair = random_pairs(len(domains[0]), len(domains[1]), 5)
    whole = list(batches(*domains, pair, 5, 0, 6, 5, True))
    for start in (0, 1, 4, 6):
        rest = list(batches(*domains, pair, 5, start, 6, 5, True))
        assert len(rest) == 6 - start
        for rest_of, same in zip(rest, whole[start:], strict=True):
            assert all(map(torch.equal, rest_of, same))
    assert not torch.equal(next(iter(batches(*domains, pair, 5, 0, 1, 6, True)))[0], whole[0][0])


def test_pair_k_is_the_k_th_picture_of_the_batches(domains):
    pair = random_pairs(len(domains[0]), len(domains[1]), 5)
    x0, x1, _ = list(batches(*domains, pair, 4, 0, 3, 5, False))[2]
    for place in range(4):
        i, j = pair(2 * 4 + place)
        crop = Crop.draw(np.random.default_rng([5, 3, 8 + place]), False)
        for x, domain, index in ((x0, domains[0], i), (x1, domains[1], j)):
            wanted = domain.crop(index, crop) / 127.5 - 1
            np.testing.assert_allclose(x[place].permute(1, 2, 0).numpy(), wanted, atol=1e-6)


def test_no_more_than_depth_batches_are_read_ahead(domains):
    begun = []

    def pair(k):
        begun.append(k)
        return 0, 0

    stream = batches(*domains, pair, 4, 0, 100, 0, True, depth=2)
    next(stream)
    assert len(begun) <= 3 * 4
    stream.close()
    assert len(begun) <= 3 * 4
