from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest
from rfp.train.coupling import batches, random_pairs
from rfp.train.domains import Crop, open_domain
from rfp.train.transport import ot_permutation, transport_pairs
from trainings import draw_domains


def cost(x0, x1):
    return float(((x0 - x1) ** 2).sum())


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_the_permutation_costs_what_the_best_of_all_permutations_costs(n, seed):
    x0, x1 = np.random.default_rng(seed).standard_normal((2, n, 3, 4, 4), np.float32)
    best = min(cost(x0, x1[list(order)]) for order in permutations(range(n)))
    order = ot_permutation(x0, x1)
    assert sorted(order) == list(range(n)) and cost(x0, x1[order]) == pytest.approx(best, rel=1e-5)


def test_samples_in_another_order_are_found_again():
    x = np.random.default_rng(0).standard_normal((50, 7))
    order = np.random.default_rng(1).permutation(50)
    assert (x[order][ot_permutation(x, x[order])] == x).all()


def test_noise_far_from_the_origin_is_told_apart():
    """‖a‖² + ‖b‖² − 2ab loses digits when all are far off and near each other."""
    x = 100 + np.random.default_rng(0).standard_normal((20, 500)).astype(np.float32) * 1e-2
    assert (ot_permutation(x, x[::-1]) == np.arange(20)[::-1]).all()


@pytest.fixture
def domains(tmp_path):
    return [open_domain([folder], 16) for folder in draw_domains(tmp_path, 23, 31)]


def centre(domain, index):
    return domain.crop(index, Crop()).astype(np.float64)


def test_each_batch_is_exchanged_within_itself_and_never_lies_further_apart(domains):
    plain = random_pairs(23, 31, 4)
    paired = transport_pairs(*domains, plain, 12)
    nearer = 0
    for step in range(10):
        before, after = ([pair(k) for k in range(12 * step, 12 * step + 12)] for pair in (plain, paired))
        assert [i for i, _ in after] == [i for i, _ in before]  # the order of domain 0 stays
        assert sorted(j for _, j in after) == sorted(j for _, j in before)
        there, here = (
            sum(cost(centre(domains[0], i), centre(domains[1], j)) for i, j in pairs) for pairs in (before, after)
        )
        assert here <= there
        x0, x1 = (np.stack([centre(d, n[side]) for n in before]) for side, d in enumerate(domains))
        assert here == pytest.approx(cost(x0, x1[ot_permutation(x0, x1)]))
        nearer += here < there
    assert nearer == 10


def test_a_pair_is_the_same_whoever_asks_and_when(domains):
    plain = random_pairs(23, 31, 4)
    inorder = [transport_pairs(*domains, plain, 8)(k) for k in range(8 * 12)]
    paired = transport_pairs(*domains, plain, 8)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(paired, range(8 * 12))) == inorder
    assert [paired(k) for k in reversed(range(8 * 12))] == inorder[::-1]


def test_both_pictures_keep_one_crop_and_mirroring(domains):
    pair = transport_pairs(*domains, random_pairs(23, 31, 4), 6)
    x0, x1, _ = list(batches(*domains, pair, 6, 0, 3, 4, flip=True))[2]
    for place in range(6):
        i, j = pair(12 + place)
        crop = Crop.draw(np.random.default_rng([4, 3, 12 + place]), True)
        for x, domain, index in ((x0, domains[0], i), (x1, domains[1], j)):
            np.testing.assert_allclose(
                x[place].permute(1, 2, 0).numpy(), domain.crop(index, crop) / 127.5 - 1, atol=1e-6
            )
