import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FlowOptions, UsageError, generate, load_bundle, translate
from rfp.runtime import flow as flow_module
from rfp.runtime import generation as generation_module
from rfp.runtime.noise import noise
from rfp.runtime.pixels import to_uint8
from rfp.runtime.velocity import Velocity


@pytest.fixture
def make(tmp_path):
    def bundle(model=None, **changes):
        model = model or bundles.identity()
        return load_bundle(bundles.write_bundle(tmp_path / "bundle", model, **{"generative": True} | changes))

    return bundle


def load(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_noise_is_what_it_always_was():
    """Other values here, by another numpy say, mean other pictures for every seed that someone wrote down."""
    got = noise((3, 2, 2), 5, 1)
    assert got.dtype == np.float32 and got.shape == (3, 2, 2)
    np.testing.assert_allclose(got.flat[:4], [-1.857229, 0.337732, 1.670886, 0.081001], rtol=0, atol=1e-6)


def test_noise_is_a_function_of_every_number_of_its_key():
    keys = [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (0, 0, 0),
        (0, 0, 1),
        (2**32, 0),
        (2**32 + 1, 0),
        (2**63 - 1, 999_999),
        (5,),
    ]
    values = [noise((3, 8, 8), *key) for key in keys]
    for i, a in enumerate(values):
        np.testing.assert_array_equal(a, noise((3, 8, 8), *keys[i]))
        assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3 for b in values[:i])


@pytest.mark.parametrize(("solver", "steps"), [("euler", 1), ("euler", 3), ("heun", 2)])
def test_steps_from_the_noise_of_each_number_meet_the_exact_answer(make, tmp_path, solver, steps):
    generate(make(bundles.towards(0.25)), tmp_path / "out", 3, seed=7, steps=steps, solver=solver)
    assert names(tmp_path / "out") == ["seed-7-000000.png", "seed-7-000001.png", "seed-7-000002.png"]
    kept = (1 - 1 / steps + (solver == "heun") / (2 * steps**2)) ** steps
    for i in range(3):
        exact = 0.25 + kept * (noise((3, 32, 32), 7, i).astype(float) - 0.25)
        wanted = np.clip((exact.transpose(1, 2, 0) + 1) * 127.5, 0, 255)
        assert np.abs(load(tmp_path / "out" / f"seed-7-{i:06d}.png") - wanted).max() <= 0.501


def test_steps_that_a_distilled_net_was_not_made_for_are_remarked_on(make, tmp_path):
    one = make(default_steps=1, training={"config": {"distill_steps": 1}})
    assert generate(one, tmp_path / "out", 1).notes == []
    assert "--steps 1 is what it is for" in generate(one, tmp_path / "other", 1, steps=4).notes[0]


def test_a_picture_is_the_same_bytes_whatever_the_batch_and_the_count(make, tmp_path):
    bundle = make(bundles.blur())
    generate(bundle, tmp_path / "one", 7, seed=3, batch=1)
    for count, batch in ((7, 2), (7, 3), (7, 7), (7, "auto"), (2, 5), (12, 4)):
        out = tmp_path / f"{count}-{batch}"
        generate(bundle, out, count, seed=3, batch=batch)
        for i in range(min(7, count)):
            name = f"seed-3-{i:06d}.png"
            assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    generate(bundle, tmp_path / "other", 1, seed=4)
    assert not np.array_equal(load(tmp_path / "other/seed-4-000000.png"), load(tmp_path / "one/seed-3-000000.png"))


def test_out_of_memory_halves_the_batch_and_goes_on(make, tmp_path, monkeypatch):
    """As on a GPU, where pictures share a call."""
    bundle, tried = make(bundles.blur()), []
    generate(bundle, tmp_path / "one", 12, seed=3, batch=1)
    monkeypatch.setattr(Velocity, "__call__", bundles.room_for(2, tried))
    monkeypatch.setattr(flow_module.Flow, "batch", flow_module.Flow.at_once)
    report = generate(bundle, tmp_path / "many", 12, seed=3, batch=8, threads=1)
    assert len(report.done) == 12 and not report.failed and tried[:4] == [8, 4, 2, 2]
    for name in names(tmp_path / "one"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_side_that_is_no_multiple_is_cut_from_the_next_one(make, tmp_path):
    generate(make(multiple=8), tmp_path / "out", 1, size=(19, 21))
    want = to_uint8(noise((3, 24, 24), 0, 0))[:21, :19]
    assert np.array_equal(load(tmp_path / "out/seed-0-000000.png"), want)
    generate(make(multiple=8), tmp_path / "square", 1, size=40)
    assert load(tmp_path / "square/seed-0-000000.png").shape == (40, 40, 3)


def test_what_is_there_is_skipped_and_overwrite_makes_it_again(make, tmp_path):
    bundle, out = make(), tmp_path / "out"
    generate(bundle, out, 3, grid=True)
    (out / "seed-0-000001.png").unlink()
    (out / "seed-0-000002.png").write_bytes(b"mine")
    again = generate(bundle, out, 3, grid=True)
    assert (len(again.done), len(again.skipped)) == (1, 3) and (out / "seed-0-000002.png").read_bytes() == b"mine"
    whole = generate(bundle, out, 3, grid=True, overwrite=True)
    assert len(whole.done) == 3 and not whole.skipped and load(out / "seed-0-000002.png").shape == (32, 32, 3)
    assert not list(out.glob(".*"))


def test_the_contact_sheet_shows_every_picture_row_by_row(make, tmp_path, monkeypatch):
    out = tmp_path / "out"
    report = generate(make(), out, 5, grid=True)
    grid = load(out / "seed-0-grid-5.png")
    assert grid.shape == (64, 96, 3) and (grid[32:, 64:] == 255).all() and len(report.done) == 5
    for i in range(5):
        y, x = 32 * (i // 3), 32 * (i % 3)
        assert np.array_equal(grid[y : y + 32, x : x + 32], load(out / f"seed-0-{i:06d}.png"))
    monkeypatch.setattr(generation_module, "SHEET_SIDE", 30)
    generate(make(), out, 6, grid=True)
    assert load(out / "seed-0-grid-6.png").shape == (20, 30, 3)


def test_a_contact_sheet_of_a_picture_that_is_none_fails_alone(make, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/seed-0-000000.png").write_bytes(b"mine")
    report = generate(make(), tmp_path / "out", 2, grid=True)
    assert (len(report.done), len(report.skipped), len(report.failed)) == (1, 1, 1)
    assert (
        "contact sheet: " in report.failed[0].message
        and "seed-0-000000.png: not a readable" in report.failed[0].message
    )


@pytest.mark.parametrize(("suffix", "format_"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".tiff", "TIFF")])
def test_the_format_is_the_suffixs(make, tmp_path, suffix, format_):
    generate(make(), tmp_path / "out", 1, suffix=suffix)
    with Image.open(tmp_path / "out" / f"seed-0-000000{suffix}") as image:
        assert image.format == format_


def test_values_that_are_not_finite_fail_the_picture(make, tmp_path):
    report = generate(make(bundles.towards(float("nan"))), tmp_path / "out", 3, batch=2)
    assert len(report.failed) == 3 and "seed 0, picture 2: the velocity graph gave values" in report.failed[2].message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 10**7},
        {"seed": -1},
        {"seed": 2**63},
        {"steps": 0},
        {"size": 0},
        {"size": (64, 10**6)},
        {"batch": 0},
        {"suffix": ".tga"},
    ],
)
def test_options_out_of_range_are_refused_before_any_work(make, tmp_path, wrong):
    name = "format" if "suffix" in wrong else next(iter(wrong))
    with pytest.raises(UsageError, match=f"{name} is "):
        generate(make(), tmp_path / "out", **{"count": 1} | wrong)
    assert not (tmp_path / "out").exists()


def test_a_size_beyond_the_memory_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr(generation_module, "MOST_PIXELS", 1000)
    with pytest.raises(UsageError, match="32×32: more pixels than this machine"):
        generate(make(), tmp_path / "out", 1)
    assert flow_module.MOST_PIXELS > 1000


def test_the_output_is_a_folder(make, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for output in (tmp_path / "file", tmp_path / "cat.png"):
        with pytest.raises(UsageError, match="wanted a folder"):
            generate(make(), output, 1)
    (tmp_path / "odd.png").mkdir()
    assert generate(make(), tmp_path / "odd.png", 1).done


def test_each_command_refuses_the_others_bundle_and_names_the_other(make, tmp_path):
    with pytest.raises(UsageError, match=r"turns cats into dogs, and needs pictures for it: `rfp translate`"):
        generate(make(generative=False), tmp_path / "out", 1)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    for reverse, said in ((False, "no pictures to turn into others"), (True, "only into noise")):
        with pytest.raises(UsageError, match=f"{said}.*`rfp generate`"):
            translate(make(), [tmp_path / "a.png"], tmp_path / "b.png", flow=FlowOptions(reverse=reverse))
    assert not (tmp_path / "b.png").exists() and not (tmp_path / "out").exists()


def test_a_manifest_says_generative_only_where_it_is(make, tmp_path):
    assert make().manifest.generative and '"generative": true' in (tmp_path / "bundle/rfp.json").read_text()
    assert not make(generative=False).manifest.generative
    assert "generative" not in (tmp_path / "bundle/rfp.json").read_text()  # rfp from before then reads it as ever
