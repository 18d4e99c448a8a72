"""Pictures moved between the frames of two domains."""

import json

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import BundleError, FlowOptions, Manifest, Translator, load_bundle, translate
from rfp.runtime.alignment import IDENTITY, MESH, inverse, moved, places, sensible

SLANT = (1.0, 0.3, 0.1, -0.1, 1.3, -0.3)
LINES = np.linspace(-1, 1, MESH)


def mesh(bend, straight=SLANT):
    """`straight`, after (x, y) is moved by bend(x, y)."""
    y, x = np.meshgrid(LINES, LINES, indexing="ij")
    return *straight, *np.stack(np.broadcast_arrays(*bend(x, y), x)[:2], axis=2).ravel().tolist()


def twisted(x, y):
    """Which lines between the places of a mesh are exact for."""
    return 0.15 * x * y - 0.05, 0.2 * x + 0.1 * x * y


BENT = mesh(twisted)


def ramp(height, width, x=lambda x, y: x, y=lambda x, y: y):
    """Levels that rise evenly from corner to corner, other ones in each colour, at places moved by x and y."""
    half = min(height, width) / 2
    rows, columns = (np.arange(height) + 0.5 - height / 2) / half, (np.arange(width) + 0.5 - width / 2) / half
    v, u = np.meshgrid(rows, columns, indexing="ij")
    a, b = x(u, v), y(u, v)
    return np.stack([128 + 40 * a + 10 * b, 128 - 20 * a + 30 * b, 128 + 25 * b], axis=2), np.maximum(abs(a), abs(b))


def smooth(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 52), (52, 30)])
def test_what_was_at_ax_plus_by_plus_c_comes_to_x(height, width):
    """Cubics are exact on straight lines, so every pixel has its exact level."""
    a, b, c, d, e, f = SLANT
    want, far = ramp(height, width, lambda x, y: a * x + b * y + c, lambda x, y: d * x + e * y + f)
    got = moved(ramp(height, width)[0].round().astype(np.uint8), SLANT)
    inside = far < 1 - 4 / min(height, width)
    assert inside.mean() > 0.25 and abs(got - want)[inside].max() <= 1.6  # both are rounded, and cubics overshoot


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 52), (300, 280)])
def test_a_mesh_bends_first(height, width):
    """Every pixel of the middle square has its exact level, however pieces and cells are cut."""
    a, b, c, d, e, f = SLANT

    def bent(x, y):
        dx, dy = twisted(np.clip(x, -1, 1), np.clip(y, -1, 1))  # beyond the square as at its rim
        return x + dx, y + dy

    def source(u, v):
        x, y = bent(u, v)
        return a * x + b * y + c, d * x + e * y + f

    want, far = ramp(height, width, lambda u, v: source(u, v)[0], lambda u, v: source(u, v)[1])
    got = moved(ramp(height, width)[0].round().astype(np.uint8), BENT)
    inside = far < 1 - 4 / min(height, width)
    assert inside.mean() > 0.25 and abs(got - want)[inside].max() <= 1.6


def test_beyond_the_mesh_pictures_are_moved_as_at_its_rim():
    bent = mesh(lambda x, y: (0.4 * x, 0 * y), IDENTITY)
    want, _ = ramp(40, 120, lambda x, y: x + 0.4 * x.clip(-1, 1))
    got = moved(ramp(40, 120)[0].round().astype(np.uint8), bent)
    inside = slice(12, 108)  # 120 of them are 3 halves to each side, and 0.4 of one come from beside
    assert abs(got - want)[:, inside].max() <= 1.6


def test_a_mesh_of_nothing_moves_nothing():
    image = smooth(33, 47)
    np.testing.assert_array_equal(moved(image, mesh(lambda x, y: (0.0, 0.0), IDENTITY)), image)
    np.testing.assert_array_equal(moved(image, mesh(lambda x, y: (0.0, 0.0))), moved(image, SLANT))


def test_mirrors_and_quarter_turns_keep_every_pixel():
    square, wide = smooth(16, 16), smooth(9, 14)
    np.testing.assert_array_equal(moved(wide, (-1, 0, 0, 0, 1, 0)), wide[:, ::-1])
    np.testing.assert_array_equal(moved(wide, (1, 0, 0, 0, -1, 0)), wide[::-1])
    np.testing.assert_array_equal(moved(square, (0, 1, 0, 1, 0, 0)), square.swapaxes(0, 1))
    np.testing.assert_array_equal(moved(wide, IDENTITY), wide)


def keys(d):
    """The bicubic kernel that the manifest's schema names: a = -1 (Keys 1981, equation 4)."""
    d = abs(d)
    return np.where(d < 1, d**3 - 2 * d**2 + 1, np.where(d < 2, -(d**3) + 5 * d**2 - 8 * d + 4, 0))


def test_between_pixels_it_is_as_the_schema_says():
    noise = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    v, u = (np.mgrid[0:13, 0:17] + 0.5 - np.array([6.5, 8.5])[:, None, None]) / 6.5
    x, y = (SLANT[k] * u + SLANT[k + 1] * v + SLANT[k + 2] for k in (0, 3))
    x, y = x * 6.5 + 8.5, y * 6.5 + 6.5
    left, top = np.floor(x - 0.5).astype(int), np.floor(y - 0.5).astype(int)
    want = np.zeros(noise.shape)
    for i in range(-1, 3):
        for k in range(-1, 3):
            share = keys(x - 0.5 - left - k) * keys(y - 0.5 - top - i)
            want += share[..., None] * noise[(top + i).clip(0, 12), (left + k).clip(0, 16)]
    beside = (x < 0) | (x > 17) | (y < 0) | (y > 13)
    want[beside] = noise[y.astype(int).clip(0, 12), x.astype(int).clip(0, 16)][beside]
    assert beside.any() and not beside.all()
    assert np.abs(moved(noise, SLANT) - want.clip(0, 255)).max() < 0.51


def test_beyond_the_edge_the_edge_goes_on(monkeypatch):
    monkeypatch.setattr("rfp.runtime.alignment.PIECE", 7)  # in several pieces
    monkeypatch.setattr("rfp.runtime.alignment.SMALL", 0)
    image = smooth(20, 20)
    right = moved(image, (1, 0, 1, 0, 1, 0))  # what was half a picture to the right
    np.testing.assert_array_equal(right[:, :10], image[:, 10:])
    np.testing.assert_array_equal(right[:, 10:], np.repeat(image[:, -1:], 10, axis=1))
    corner = moved(image, (1, 0, -4, 0, 1, -4))
    assert (corner == image[0, 0]).all()


def test_there_and_back_is_where_it_was():
    image, back = smooth(48, 48), inverse(SLANT)
    np.testing.assert_allclose(inverse(back), SLANT, atol=1e-12)
    a, b, c, d, e, f = back
    p, q, r, s, t, u = SLANT
    product = a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f
    np.testing.assert_allclose(product, IDENTITY, atol=1e-12)
    there = moved(moved(image, SLANT), back)
    assert abs(there.astype(int) - image)[16:32, 16:32].max() <= 3


def lens(x, y):
    s = -0.5 * (1 - np.hypot(x, y)).clip(0)
    return s * x, s * y


@pytest.mark.parametrize("a", [BENT, mesh(lens, IDENTITY), mesh(lens)], ids=["twist", "lens", "slanted lens"])
def test_a_bend_there_and_back_is_where_it_was(a):
    """The way back is exact at its own places, and between them as near as lines are to a bend."""
    assert sensible(a)
    image = smooth(96, 96)
    for one, other in ((a, inverse(a)), (inverse(a), a)):
        off = abs(moved(moved(image, one), other).astype(int) - image)[32:64, 32:64]
        plain = abs(moved(image, one).astype(int) - image)[32:64, 32:64]
        assert off.mean() < 3 < plain.mean() / 3 and off.max() <= 15 < plain.max() / 3
    again = inverse(inverse(a))
    np.testing.assert_allclose(again[:6], a[:6], atol=1e-12)


@pytest.mark.parametrize("straight", [IDENTITY, SLANT], ids=["steep", "slanted and steep"])
def test_the_way_back_from_the_steepest_bend_is_exact_at_its_own_places(straight):
    a = mesh(lambda x, y: (0.85 * x, -0.85 * y), straight)
    v, u = np.meshgrid(LINES, LINES, indexing="ij")
    np.testing.assert_allclose(places(a, *places(inverse(a), u, v)), (u, v), atol=1e-5)


@pytest.fixture
def make(tmp_path):
    def bundle(model, alignment=SLANT):
        return load_bundle(
            bundles.write_bundle(tmp_path / f"{hash(alignment)}", model, default_steps=1, alignment=alignment)
        )

    return bundle


def through(bundle, image, **options):
    (made,) = Translator(bundle, FlowOptions(size="native", device="cpu", **options)).images([image])
    return made


@pytest.mark.parametrize("a", [SLANT, BENT], ids=["slant", "bent"])
def test_domain_0_is_moved_first_and_moved_back_last(make, a):
    """One step of v = mean − x blurs there and sharpens back, so that the order shows."""
    image, plain = smooth(32, 40), make(bundles.blur(), None)
    bundle = make(bundles.blur(), a)
    there, back = through(bundle, image), through(bundle, image, reverse=True)
    np.testing.assert_array_equal(there, through(plain, moved(image, a)))
    np.testing.assert_array_equal(back, moved(through(plain, image, reverse=True), inverse(a)))
    assert (there != moved(through(plain, image), a)).any()


def test_tiles_are_cut_from_the_moved_picture(make):
    image = smooth(64, 80)
    np.testing.assert_array_equal(through(make(bundles.identity()), image, tile=32), moved(image, SLANT))


def test_pictures_that_share_a_batch_are_moved_once(make, monkeypatch):
    """Where memory runs out a batch is halved and tried again."""
    from rfp.runtime.errors import OutOfMemoryError
    from rfp.runtime.flow import Flow

    whole, image = Flow._whole, smooth(32, 32)
    monkeypatch.setattr(
        Flow, "_whole", lambda self, x, norms=None: (_ for _ in ()).throw(OutOfMemoryError("")) if len(x) > 1
        else whole(self, x, norms)
    )  # fmt: skip
    flow = Translator(make(bundles.identity()), FlowOptions(size="native", batch=4, device="cpu"))._new_flow()
    for made in flow(np.stack([image] * 4)):
        np.testing.assert_array_equal(made, moved(image, SLANT))


def test_residual_adds_to_the_moved_original(make):
    image = smooth(90, 120)
    for reverse in (False, True):
        way = inverse(SLANT) if reverse else SLANT
        (made,) = Translator(
            make(bundles.identity()), FlowOptions(size=32, upscale="residual", device="cpu", reverse=reverse)
        ).images([image])
        np.testing.assert_array_equal(made, moved(image, way))  # the flow added nothing


def test_a_folder_goes_the_same_way(make, tmp_path):
    image = smooth(32, 32)
    Image.fromarray(image).save(tmp_path / "a.png")
    translate(make(bundles.identity()), [tmp_path / "a.png"], tmp_path / "b.png", flow=FlowOptions(device="cpu"))
    with Image.open(tmp_path / "b.png") as made:
        np.testing.assert_array_equal(np.asarray(made), moved(image, SLANT))


def test_the_manifest_holds_it_only_where_there_is_one(make):
    assert make(bundles.identity()).manifest.alignment == SLANT
    plain = make(bundles.identity(), None).manifest
    assert plain.alignment is None and "alignment" not in json.loads(plain.to_json())


@pytest.mark.parametrize(
    "wrong",
    [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1, "0"], [1, 0, 0, 0, 1, True], [1, 0, 0, 0, 0, 0], [5, 0, 0, 0, 1, 0],
     [1, 0, 0, 0, 1, 10**400], [1, 0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0, *[5] * 162],
     [1, 0, 0, 0, 1, 0, *[0.2, 0, -0.2, 0] * 40, 0, 0], {}, "none"],
)  # fmt: skip
def test_a_strangers_map_that_is_none_is_refused(make, wrong):
    values = json.loads(make(bundles.identity()).manifest.to_json()) | {"alignment": wrong}
    with pytest.raises(BundleError, match="alignment"):
        Manifest.from_json(json.dumps(values))


def test_noise_is_not_moved(make):
    values = json.loads(make(bundles.identity()).manifest.to_json()) | {"generative": True}
    with pytest.raises(BundleError, match="false beside an alignment"):
        Manifest.from_json(json.dumps(values))


def test_a_mesh_that_folds_is_not_sensible():
    """Slopes of 0.9 and less have a way back; turned by an eighth of a turn it has them in both directions at once."""
    assert sensible(mesh(lambda x, y: (0.89 * x, -0.89 * y), IDENTITY))
    assert not sensible(mesh(lambda x, y: (0.91 * x, 0.0), IDENTITY))
    assert not sensible(mesh(lambda x, y: (0.65 * x + 0.65 * y, 0.0), IDENTITY))
    assert not sensible(mesh(lambda x, y: (0.25 * np.sign(x), 0.0), IDENTITY))


def test_sensible_maps_leave_something_to_be_seen():
    assert sensible(IDENTITY) and sensible(SLANT) and sensible((-1, 0, 0, 0, 1, 0)) and sensible((0.5, 0, 0, 0, 0.5, 0))
    assert (
        not sensible((0.1, 0, 0, 0, 0.1, 0)) and not sensible((1, 1, 0, 1, 1, 0)) and not sensible((4.1, 0, 0, 0, 1, 0))
    )
