"""Large inputs to small sizes: decoded and resized the short way, which nobody can tell from the long one."""

import av
import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FlowOptions, PictureOptions, load_bundle, translate
from rfp.runtime.frames import upright
from rfp.runtime.upscale import resized


def scene(width, height):
    small = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def decibels(a, b):
    return 10 * np.log10(255**2 / np.square(np.asarray(a, float) - np.asarray(b, float)).mean().clip(1e-9))


def plain(image, size):
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def test_a_frame_is_scaled_before_its_colours_are_converted_as_well_as_after():
    frame = av.VideoFrame.from_image(scene(1280, 720)).reformat(format="yuv420p")
    assert np.array_equal(upright(frame), upright(frame, (1280, 720)))
    for size in ((14, 8), (114, 64), (641, 361), (1920, 1080)):
        assert decibels(upright(frame, size), plain(Image.fromarray(upright(frame)), size)) > 40


def test_a_picture_made_much_smaller_is_as_by_lanczos():
    image = scene(1000, 750)
    assert decibels(resized(np.asarray(image), (85, 64)), plain(image, (85, 64))) > 50


@pytest.mark.parametrize("size", [(1600, 1200), (1200, 1600), (808, 801)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photo_decoded_at_a_fraction_has_the_size_and_the_looks_of_the_whole(tmp_path, size, orientation):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "b", bundles.identity()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    scene(*size).save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("", (32 * 6, 32 * 6))
        assert image.width < size[0], "this test is of photos that are decoded at a fraction"
    flow, pictures = FlowOptions(steps=1, size=32, device="cpu"), PictureOptions(format="png")
    assert not translate(bundle, [tmp_path / "a.jpg"], tmp_path / "out", flow=flow, pictures=pictures).failed
    turned = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    with Image.open(tmp_path / "a.jpg") as image:
        whole = image.convert("RGB") if turned is None else image.convert("RGB").transpose(turned)
    wanted = tuple(max(1, round(side * 32 / min(size))) for side in whole.size)
    with Image.open(tmp_path / "out" / "a.png") as made:
        assert made.size == wanted and decibels(made, plain(whole, wanted)) > 40
