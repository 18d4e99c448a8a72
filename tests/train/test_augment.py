from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from rfp.train import augment as module
from rfp.train.augment import lots
from rfp.train.config import Augmentation
from rfp.train.saliency import soft_cross_entropy

ALL = get_args(Augmentation)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def augment(x, names, rng):
    return module.augment(x, names, lots(len(x), rng))


def equal_pictures(n=32):
    return (torch.rand(1, 3, 16, 16, generator=rng(7)) * 2 - 1).repeat(n, 1, 1, 1)


@pytest.mark.parametrize("name", ALL)
def test_each_picture_has_a_draw_of_its_own(name):
    out = augment(equal_pictures(), [name], rng())
    kinds = torch.unique(out.flatten(1), dim=0)
    assert len(kinds) == (2 if name in ("grayscale", "hflip") else len(kinds)) and len(kinds) > 1
    if name == "color_jitter":
        assert len(kinds) == len(out)


@pytest.mark.parametrize("names", [[], *([n] for n in ALL), ALL])
def test_shape_range_and_type_stay_and_the_input_too(names):
    x = torch.cat([equal_pictures(6), torch.ones(2, 3, 16, 16), -torch.ones(2, 3, 16, 16)])
    before = x.clone()
    out = augment(x, names, rng())
    assert out.shape == x.shape and out.dtype == x.dtype and out.abs().max() <= 1
    assert torch.equal(x, before) and (names or torch.equal(out, x))


def test_what_each_does():
    x = equal_pictures(200)
    flipped = augment(x, ["hflip"], rng())
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, x, strict=True)])
    assert (mirrored ^ same).all() and 70 < mirrored.sum() < 130
    gray = augment(x, ["grayscale"], rng())
    is_gray = (gray[:, 0] == gray[:, 1]).flatten(1).all(dim=1)
    assert 5 < is_gray.sum() < 40 and torch.equal(gray[~is_gray], x[~is_gray])
    erased = augment(x, ["random_erasing"], rng()) != x
    share = erased.all(dim=1).float().mean(dim=(1, 2))
    assert 70 < (share > 0).sum() < 130 and share.max() <= 0.45**2
    for mask in erased.all(dim=1)[share > 0]:  # one rectangle
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()


def test_the_same_generator_draws_the_same():
    assert torch.equal(augment(equal_pictures(), ALL, rng(3)), augment(equal_pictures(), ALL, rng(3)))
    assert not torch.equal(augment(equal_pictures(), ALL, rng(3)), augment(equal_pictures(), ALL, rng(4)))


def test_parts_of_a_batch_are_augmented_as_in_the_whole():
    x, drawn = equal_pictures(7), lots(7, rng(3))
    parts = [module.augment(a, ALL, b) for a, b in zip(x.split(3), drawn.split(3), strict=True)]
    assert torch.equal(torch.cat(parts), module.augment(x, ALL, drawn))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_cross_entropy_is_torchs_for_hard_labels(smoothing):
    logits, label = torch.randn(9, 2, generator=rng()), torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
    ours = soft_cross_entropy(logits, label.float(), smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(logits, label, label_smoothing=smoothing))


def test_soft_cross_entropy_of_a_blend():
    logits, share = torch.randn(4, 2, generator=rng()), torch.tensor([0.0, 0.25, 0.5, 1.0])
    wanted = F.cross_entropy(logits, torch.stack([1 - share, share], dim=1), label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, share, 0.1), wanted)
