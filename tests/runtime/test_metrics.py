"""Metrics against values known by arithmetic, and against scikit-image's."""

import numpy as np
import pytest
from rfp.runtime.metrics import edge_correlation, l1, psnr, ssim, texture_energy

Y, X = np.mgrid[:20, :31]
SMOOTH = np.stack([8 * X, 12 * Y, 5 * X + 4 * Y], axis=2).astype(np.uint8)
ROUGH = ((X[..., None] * 7 + Y[..., None] * 13 + np.array([0, 29, 58])) ** 2 % 256).astype(np.uint8)
NOISY = np.clip(SMOOTH + ((X * 5 + Y * 3) ** 2 % 41 - 20)[..., None], 0, 255).astype(np.uint8)
RECORDED = [(SMOOTH, NOISY, 0.776704839092), (SMOOTH, ROUGH, 0.01066344897), (NOISY, ROUGH, 0.013928198446)]
"""structural_similarity(a, b, channel_axis=2) of scikit-image 0.26.0."""


def flat(level, shape=(16, 16, 3)):
    return np.full(shape, level, np.uint8)


@pytest.mark.parametrize(("a", "b", "wanted"), RECORDED)
def test_ssim_is_what_scikit_image_gave(a, b, wanted):
    assert ssim(a, b) == pytest.approx(wanted, abs=1e-9)


def test_ssim_agrees_with_scikit_image():
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    for a, b, _ in RECORDED:
        assert ssim(a, b) == pytest.approx(reference(a, b, channel_axis=2), abs=1e-9)


def test_ssim_of_flat_images_is_the_luminance_term():
    c1 = 2.55**2
    assert ssim(flat(100), flat(150)) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-12)


def test_psnr_of_a_known_error():
    assert psnr(flat(100), flat(110)) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(flat(0), flat(255)) == 0


def test_psnr_of_a_stack_is_the_mean_of_its_images():
    stacks = np.stack([flat(100), flat(0)]), np.stack([flat(110), flat(255)])
    assert psnr(*stacks) == pytest.approx(psnr(flat(100), flat(110)) / 2)


def test_l1_is_a_part_of_the_range():
    assert l1(flat(0), flat(255)) == 1
    assert l1(flat(7), flat(58)) == pytest.approx(51 / 255)


def test_texture_energy_grows_with_the_square_of_contrast():
    checks = np.repeat(((X + Y) % 2)[..., None], 3, axis=2).astype(np.uint8)
    assert texture_energy(checks * 40, checks * 20) == pytest.approx(4)
    assert texture_energy(flat(9, checks.shape), checks) == 0
    assert np.isnan(texture_energy(checks, flat(9, checks.shape)))


def test_identical_images_score_best():
    assert l1(ROUGH, ROUGH) == 0
    assert ssim(ROUGH, ROUGH) == pytest.approx(1)
    assert texture_energy(ROUGH, ROUGH) == 1
    assert psnr(ROUGH, ROUGH) == pytest.approx(10 * np.log10(255**2 / 1e-3))


@pytest.mark.parametrize("metric", [l1, psnr, ssim, texture_energy])
def test_images_that_cannot_be_compared_are_refused(metric):
    with pytest.raises(ValueError, match="uint8"):
        metric(flat(0), flat(0, (16, 17, 3)))
    with pytest.raises(ValueError, match="uint8"):
        metric(flat(0) / 255, flat(0) / 255)
    assert metric(np.stack([ROUGH] * 2), np.stack([NOISY] * 2)) == pytest.approx(metric(ROUGH, NOISY))


def test_edge_correlation_is_pearsons_of_the_gradients_and_1_for_the_same_edges():
    a = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), np.uint8)
    b = np.random.default_rng(1).integers(0, 256, (2, 9, 11, 3), np.uint8)

    def edges(x):
        dy, dx = np.gradient(x.mean(axis=2))
        return np.hypot(dy, dx)[1:-1, 1:-1].ravel()

    wanted = np.mean([np.corrcoef(edges(x), edges(y))[0, 1] for x, y in zip(a, b, strict=True)])
    assert edge_correlation(a, b) == pytest.approx(wanted, rel=1e-9)
    assert edge_correlation(a, 255 - a) == pytest.approx(1)
    flat = np.zeros_like(a)
    assert (edge_correlation(flat, flat), edge_correlation(flat, a)) == (1, 0)


def test_texture_is_that_of_the_grey_picture():
    checks = np.repeat(((X + Y) % 2 * 60)[..., None], 3, axis=2).astype(np.uint8)
    for channel in range(3):
        alone = np.zeros_like(checks)
        alone[..., channel] = checks[..., channel]
        assert texture_energy(alone, checks) == pytest.approx(1 / 9)
