import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from films import write_video
from PIL import Image
from rfp.runtime import UsageError
from rfp.train.coupling import batches, random_pairs
from rfp.train.domains import Crop, Domain, open_domain
from trainings import noisy


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RFP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_pictures_come_from_folders_zips_files_and_videos(tmp_path):
    for name in ("10.PNG", "2.jpg", "sub [x]/ü.webp"):
        save(tmp_path / "a" / name, noisy(80, 1))
    with zipfile.ZipFile(tmp_path / "a" / "z.zip", "w") as z:
        for i in range(2):
            z.write(tmp_path / "a" / "10.PNG", f"in/{i}.png")
    write_video(tmp_path / "a" / "v.mp4", [0, 40, 80])
    save(tmp_path / "one.bmp", noisy(80, 2))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    domain = open_domain([tmp_path / "a", tmp_path / "one.bmp"], 16)
    names = [item.media.member or item.media.path.name for item in domain.items]
    assert names == ["2.jpg", "10.PNG", "ü.webp", "v.mp4", "v.mp4", "v.mp4", "in/0.png", "in/1.png", "one.bmp"]
    assert domain.name == "a" and not domain.skipped
    for i in range(len(domain)):
        assert domain.crop(i, Crop()).shape == (16, 16, 3)


@pytest.mark.parametrize("what", ["nowhere", "empty", "text", "all broken", "bad zip", "bad video", "headers only"])
def test_a_domain_without_a_picture_is_refused_before_any_work(tmp_path, what):
    folder = tmp_path / what
    if what != "nowhere":
        folder.mkdir()
    if what == "text":
        (folder / "a.txt").write_text("a")
    if what == "all broken":
        (folder / "a.png").write_bytes(b"no")
    if what == "bad zip":
        (folder / "a.zip").write_bytes(b"no")
    if what == "bad video":
        (folder / "a.mp4").write_bytes(b"no")
    if what == "headers only":
        data = save(tmp_path / "whole.png", noisy(80, 1)).read_bytes()
        (folder / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=what):
        open_domain([folder], 16)


def test_broken_files_among_good_ones_are_listed_and_passed_over(tmp_path):
    save(tmp_path / "d" / "good.png", noisy(80, 1))
    for name in ("bad.png", "bad.zip", "bad.mp4"):
        (tmp_path / "d" / name).write_bytes(b"no")
    domain = open_domain([tmp_path / "d"], 16)
    assert len(domain) == 1 and len(domain.skipped) == 3
    assert all(any(name in s for s in domain.skipped) for name in ("bad.png", "bad.zip", "bad.mp4"))
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["bad.mp4", "bad.png", "bad.zip", "good.png"]


def test_a_picture_cut_short_is_listed_and_the_next_stands_in(tmp_path):
    for i in range(3):
        save(tmp_path / "d" / f"{i}.png", np.full((40, 40, 3), 50 * i, np.uint8) + noisy(20, i, (40, 40)) // 4)
    path = tmp_path / "d" / "1.png"
    path.write_bytes(path.read_bytes()[:1500])
    domain = open_domain([tmp_path / "d"], 16)
    assert len(domain) == 3 and not domain.skipped  # its header is good
    for _ in range(2):
        assert (domain.crop(1, Crop()) == domain.crop(2, Crop())).all()
    assert len(domain.skipped) == 1 and "1.png" in domain.skipped[0]


@pytest.mark.parametrize("least", [0.9, 0.5])
def test_crops_are_drawn_from_the_least_side_to_all_and_lie_in_the_middle_square(least):
    crops = [Crop.draw(np.random.default_rng([0, 3, k]), True, least) for k in range(4000)]
    scale, dx, dy, flip = (np.array(values) for values in zip(*crops, strict=True))
    assert least <= scale.min() < least + 0.002 and 0.998 < scale.max() <= 1
    for offset in (dx, dy):
        assert (abs(offset) <= (1 - scale) / 2).all() and -0.5 < (offset / (1 - scale)).min() < -0.495
        assert 0.495 < (offset / (1 - scale)).max() < 0.5
    assert 0.45 < flip.mean() < 0.55
    assert not any(Crop.draw(np.random.default_rng(k), flip=False).flip for k in range(50))


def test_a_crop_is_the_square_it_says_resized_by_lanczos():
    pixels = noisy(128, 1, (60, 40))  # 60 wide
    image = Image.fromarray(pixels)
    assert (Crop().apply(image, 40) == pixels[:, 10:50]).all()
    # Side .9 of 40 is 36; 5 % of 40 to the right and 2.5 % down of the centre (30, 20): left 14, top 3.
    moved = Crop(0.9, 0.05, 0.025)
    assert (moved.apply(image, 36) == pixels[3:39, 14:50]).all()
    wanted = image.crop((14, 3, 50, 39)).resize((12, 12), Image.Resampling.LANCZOS)
    assert np.abs(moved.apply(image, 12).astype(int) - np.asarray(wanted)).max() <= 40  # box sees over the edge
    exact = image.resize((12, 12), Image.Resampling.LANCZOS, box=(14, 3, 50, 39))
    assert (moved.apply(image, 12) == np.asarray(exact)).all()
    assert (moved._replace(flip=True).apply(image, 12) == moved.apply(image, 12)[:, ::-1]).all()


@pytest.mark.parametrize("size", [(20, 20), (41, 20), (20, 41)])
def test_a_crop_never_leaves_the_picture(size):
    image = Image.fromarray(np.full((size[1], size[0], 3), 255, np.uint8))
    for dx, dy in ((0.05, 0.05), (-0.05, -0.05)):
        for scale in (0.9, 0.97, 1.0):
            assert (Crop(scale, dx, dy).apply(image, 16) == 255).all()


def test_255_comes_back_as_255_and_0_as_0(tmp_path):
    for level in (0, 255):
        save(tmp_path / f"{level}" / "a.png", np.full((300, 200, 3), level, np.uint8))
        domain = open_domain([tmp_path / f"{level}"], 16)
        assert (domain.crop(0, Crop(0.93, 0.02, -0.03)) == level).all()
        x0, *_ = next(iter(batches(domain, domain, random_pairs(1, 1, 0), 2, 0, 1, 0, True)))
        assert (x0 == (1 if level else -1)).all()


def test_grey_alpha_and_palette_pictures_are_rgb_over_white(tmp_path):
    (tmp_path / "d").mkdir()
    Image.new("L", (20, 20), 100).save(tmp_path / "d" / "0.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "d" / "1.png")
    Image.new("RGB", (20, 20), (10, 200, 30)).quantize(4).save(tmp_path / "d" / "2.png")
    Image.new("LA", (20, 20), (0, 255)).save(tmp_path / "d" / "3.png")
    domain = open_domain([tmp_path / "d"], 16)
    colours = [tuple(int(c) for c in domain.crop(i, Crop())[8, 8]) for i in range(4)]
    assert colours == [(100,) * 3, (255,) * 3, (10, 200, 30), (0,) * 3]


def test_exif_turns_pictures_upright(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "d" / "a.png", pixels, exif=exif)
    upright = open_domain([tmp_path / "d"], 20).crop(0, Crop())
    assert upright[2].max() == 0 and upright[17].min() == 255


def test_large_pictures_are_reduced_before_they_are_kept(tmp_path):
    save(tmp_path / "d" / "a.png", np.full((800, 1000, 3), 9, np.uint8))
    domain = open_domain([tmp_path / "d"], 16, 1 << 20)
    assert 2 * 16 <= min(domain.read(0).size) <= 4 * 16 and domain.read(0) is domain.read(0)


def test_memory_for_decoded_pictures_is_bounded_also_when_threads_decode_the_same(tmp_path, monkeypatch):
    for i in range(5):
        save(tmp_path / "d" / f"{i}.png", noisy(80, i, (20, 20)))
    domain = open_domain([tmp_path / "d"], 16, cache_bytes=2 * 20 * 20 * 4 + 10)  # Pillow's RGB has 4 bytes
    domain._cache.clear()
    domain.cache_bytes = 2 * 20 * 20 * 4 + 10
    together, decode = threading.Barrier(4), Domain._decode

    def decode_together(self, item):
        together.wait(10)
        return decode(self, item)

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(Domain, "_decode", decode_together)
        list(pool.map(domain.read, [0] * 4))
    crops = [domain.crop(i, Crop()) for i in range(5)]
    assert sorted(domain._cache) == [0, 1] and domain.cache_bytes == 10
    without = open_domain([tmp_path / "d"], 16)
    assert all((domain.crop(i, Crop()) == c).all() for i, c in enumerate(crops))
    assert all((without.crop(i, Crop()) == c).all() for i, c in enumerate(crops)) and not without._cache


def test_a_set_that_fits_is_decoded_once_and_one_that_does_not_never_swaps(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / "d" / f"{i}.png", noisy(80, i, (20, 20)))
    decoded, decode = [], Domain._decode
    monkeypatch.setattr(
        Domain, "_decode", lambda self, item: decoded.append(item.media.path.name) or decode(self, item)
    )
    for held, wanted in ((6, 6), (2, 2 + 4 * 5)):
        domain = open_domain([tmp_path / "d"], 16, cache_bytes=held * 20 * 20 * 4)
        for _ in range(5):
            for i in range(6):
                domain.crop(i, Crop())
        assert len(decoded) == wanted
        decoded.clear()


def test_a_claim_of_too_many_pixels_is_refused_from_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr("rfp.runtime.media.MAX_PIXELS", 900)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # above it Pillow warns, and warnings are errors here
    save(tmp_path / "d" / "good.png", noisy(80, 1, (22, 24)))
    save(tmp_path / "d" / "huge.png", noisy(80, 1, (31, 30)))
    domain = open_domain([tmp_path / "d"], 16)
    assert len(domain) == 1 and "huge.png: 31×30 pixels, above the limit of 900" in domain.skipped[0]


def test_a_domain_is_not_read_into_memory_when_it_is_opened(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / "d" / f"{i}.png", noisy(80, i))
    read = []
    decode = Domain._decode
    monkeypatch.setattr(Domain, "_decode", lambda self, item: read.append(item) or decode(self, item))
    open_domain([Path(tmp_path / "d")], 16)
    assert len(read) == 1


def test_crops_are_tensors_in_minus_one_to_one(tmp_path):
    save(tmp_path / "d" / "a.png", noisy(128, 1, (20, 20)))
    domain = open_domain([tmp_path / "d"], 16)
    x0, *_ = next(iter(batches(domain, domain, random_pairs(1, 1, 0), 3, 0, 1, 0, True)))
    assert x0.shape == (3, 3, 16, 16) and x0.dtype == torch.float32 and -1 <= x0.min() < -0.5 < 0.5 < x0.max() <= 1
