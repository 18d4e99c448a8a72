"""How one domain is moved against the other, found without pairs; and what training makes of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rfp.cli.main import app
from rfp.export.bundle import export_bundle
from rfp.runtime import load_bundle
from rfp.runtime.alignment import IDENTITY, MESH, moved, sensible
from rfp.runtime.errors import ConfigError, UsageError
from rfp.train import bending, resolving
from rfp.train import checkpoint as ckpt
from rfp.train.alignment import FEWEST, LEAST_BEND, find_alignment, pictures, unlikeness
from rfp.train.alignment import _cost as cost
from rfp.train.domains import Crop, Domain, open_domain
from rfp.train.noise import Noise, noise_domain
from rfp.train.opening import open_run
from rfp.train.resolving import resolved
from trainings import Listener, finish, job, tiny
from typer.testing import CliRunner

MAPS = [
    (1.0, 0.3, 0.0, 0.0, 1.3, -0.3),
    (0.97, 0.26, 0.0, -0.26, 0.97, 0.0),
    (1.2, 0.0, 0.15, 0.0, 1.2, -0.1),
    (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
]
NAMES = ["slant", "turn", "smaller and elsewhere", "mirror"]


def face(rng, size=32):
    """One of many faces: all have a head, eyes, a mouth and a hat that leans to the left; nothing else is the same."""
    image = Image.new("RGB", (4 * size, 4 * size), tuple(rng.integers(200, 256, 3)))
    draw, near = ImageDraw.Draw(image), lambda *at: [s * size * 4 + rng.normal(0, 2) for s in at]
    colours = [tuple(map(int, rng.integers(0, 180, 3))) for _ in range(5)]
    draw.ellipse(near(0.25, 0.25, 0.75, 0.8), fill=colours[0])
    draw.polygon(near(0.2, 0.3, 0.25, 0.1, 0.7, 0.25), fill=colours[1])
    draw.ellipse(near(0.35, 0.4, 0.43, 0.5), fill=colours[2])
    draw.ellipse(near(0.57, 0.4, 0.65, 0.5), fill=colours[3])
    draw.line(near(0.4, 0.65, 0.62, 0.7), fill=colours[4], width=rng.integers(3, 9))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def faces(root, name, n, seed, edit=lambda x: x):
    rng, folder = np.random.default_rng(seed), root / name
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(edit(face(rng))).save(folder / f"{i}.png")
    return folder


def domains(root, edit, n=70):
    return [open_domain([faces(root, *about, e)], 32) for *about, e in (("a", n, 0, lambda x: x), ("b", n, 1, edit))]


@pytest.mark.parametrize("a", MAPS, ids=NAMES)
def test_the_map_between_domains_is_found_from_other_pictures(tmp_path, a):
    found, why = find_alignment(*domains(tmp_path, lambda x: moved(x, a)))
    np.testing.assert_allclose(found, a, atol=0.08)
    assert "alignment: domain 0 is moved by" in why


LINES = np.linspace(-1, 1, MESH)


def swirl(x, y):
    """The middle turned by 40°, less and less so to the rim: by how much each place is moved."""
    angle = 0.7 * (1 - np.hypot(x, y)).clip(0)
    return x * np.cos(angle) - y * np.sin(angle) - x, x * np.sin(angle) + y * np.cos(angle) - y


def lens(x, y):
    """The middle twice as large, less and less so to the rim."""
    s = -0.5 * (1 - np.hypot(x, y)).clip(0)
    return s * x, s * y


def bent_by(bend, straight=IDENTITY):
    y, x = np.meshgrid(LINES, LINES, indexing="ij")
    return *straight, *np.stack(bend(x, y), axis=2).ravel().tolist()


def apart(a, b):
    """Where the faces are; beyond them nothing tells how pictures are bent."""
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-0.5, 0.5, 21), indexing="ij")
    return np.hypot(*(p - q for p, q in zip(at(a, x, y), at(b, x, y), strict=True))).mean()


def test_a_map_that_is_slanted_and_bent_is_found(tmp_path):
    a = bent_by(lens, MAPS[0])
    found, why = find_alignment(*domains(tmp_path, lambda x: moved(x, a), 100))
    assert len(found) == len(a) and sensible(found) and "moved by" in why and "bent by up to" in why
    assert apart(found, a) < 0.04 and apart(found, a) < apart(MAPS[0], a) / 3


def test_a_bend_alone_is_found(tmp_path):
    a = bent_by(lens)
    x0, x1 = pictures(*domains(tmp_path, lambda x: moved(x, a), 200), 200, bending.SIZE)
    found, gain = bending.bent(x0, x1, IDENTITY, unlikeness(x0, x1))
    assert sensible(found) and gain > 4 * LEAST_BEND and apart(found, a) < apart(IDENTITY, a) / 2.5


def test_of_pictures_that_lie_alike_hardly_any_bend_is_seen(tmp_path):
    x0, x1 = pictures(*domains(tmp_path, lambda x: 255 - x // 2, 100), 100, bending.SIZE)
    _, gain = bending.bent(x0, x1, IDENTITY, unlikeness(x0, x1))
    assert gain < LEAST_BEND / 2


def at(a, x, y):
    """Where what comes to (x, y) was, by bilinear interpolation from first principles."""
    if len(a) > 6:
        mesh = np.reshape(a[6:], (MESH, MESH, 2))
        near = [np.maximum(0, 1 - abs(n[..., None] - LINES) / (2 / (MESH - 1))) for n in (y, x)]
        dx, dy = np.einsum("...i,...j,ijk->k...", *near, mesh)
        x, y = x + dx, y + dy
    return a[0] * x + a[1] * y + a[2], a[3] * x + a[4] * y + a[5]


@pytest.mark.parametrize("a", [MAPS[0], bent_by(swirl), bent_by(lens, MAPS[1])], ids=["slant", "swirl", "turned lens"])
def test_the_search_moves_as_the_runtime_does(a):
    """It takes straight lines between pixels, the runtime cubics."""
    small = np.random.default_rng(0).integers(60, 200, (4, 4, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))
    x = torch.tensor(image).permute(2, 0, 1)[None].float()
    got = bending.moved(x, a)[0].permute(1, 2, 0).numpy()
    off = abs(got - moved(image, a))
    assert off.mean() < 0.6 and np.quantile(off, 0.99) <= 4 and abs(got - image).mean() > 5


@pytest.mark.parametrize("edit", [lambda x: x, lambda x: 255 - x, lambda x: x // 4], ids=["same", "negative", "dark"])
def test_domains_that_lie_alike_are_left_where_they_are(tmp_path, edit):
    assert find_alignment(*domains(tmp_path, edit)) == (IDENTITY, "")


def test_domains_of_the_same_pictures_are_left_where_they_are(tmp_path):
    same = [open_domain([faces(tmp_path, name, 60, 0)], 32) for name in "ab"]
    assert find_alignment(*same) == (IDENTITY, "")


def test_pictures_that_share_nothing_are_left_where_they_are(tmp_path):
    def noise(x):
        return np.random.default_rng(x.astype(int).sum()).integers(0, 256, x.shape, np.uint8)

    assert find_alignment(*domains(tmp_path / "some", noise)) == (IDENTITY, "")
    rng = np.random.default_rng(0)
    both = []
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(60):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
        both.append(open_domain([tmp_path / name], 32))
    assert find_alignment(*both) == (IDENTITY, "")


def test_of_few_pictures_nothing_is_said(tmp_path):
    assert find_alignment(*domains(tmp_path, lambda x: moved(x, MAPS[0]), FEWEST - 1)) == (IDENTITY, "")


def test_turned_and_enlarged_pictures_must_be_more_alike_than_others():
    """Of domains of symmetric things they are as much so, and of enlarged ones whatever these show."""

    def dearer(enlarged, *a):
        return round(cost(lambda a: 0.5, enlarged, a) - 0.5, 6)

    assert dearer(0.05, *IDENTITY) == dearer(0, *MAPS[0]) == 0
    for turned in ((-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0), (0.7, 0.8, 0, -0.8, 0.7, 0)):
        assert dearer(0, *turned) == 0.03
    for area in (2, 0.5):
        assert dearer(0.05, area, 0, 0.3, 0, 1, -0.2) == round(0.05 * math.log(2), 6)
    assert dearer(0, 5, 0, 0, 0, 1, 0) == 1.5  # which is no map at all


def test_what_all_pictures_share_makes_none_alike():
    rng = torch.Generator().manual_seed(0)
    e0, e1 = torch.randn(9, 5, generator=rng), torch.randn(7, 5, generator=rng)
    torch.testing.assert_close(bending.cosines(e0 + 40, e1 + 40), bending.cosines(e0, e1), atol=1e-3, rtol=0)
    a, b = e0 - (e0.mean(0) + e1.mean(0)) / 2, e1 - (e0.mean(0) + e1.mean(0)) / 2
    wanted = (a @ b.T) / a.norm(dim=1)[:, None] / b.norm(dim=1)[None]
    torch.testing.assert_close(bending.cosines(e0, e1), wanted)


@pytest.fixture
def work(tmp_path):
    faces(tmp_path, "dark", 60, 0)
    faces(tmp_path, "bright", 60, 1, lambda x: moved(x, MAPS[0]))
    return tmp_path


STRUCTURE = {"alignment": None, "structure_pairing": True, "saliency_loss_weight": 0.0, "train_images": 20}


def test_a_training_moves_domain_0_and_its_bundle_does_the_same(work):
    listener = finish(job(work, **STRUCTURE))
    assert any("alignment" in note for note in listener.notes)
    checkpoint = ckpt.load(ckpt.find(work / "run"))
    found = checkpoint.config.aligned_by
    np.testing.assert_allclose(found, MAPS[0], atol=0.08)
    run = open_run(job(work, **STRUCTURE), Listener())
    seen = run.samples(run.domain0)
    own = [np.asarray(Image.open(p)) for p in sorted((work / "dark").iterdir())]
    small = [np.asarray(Image.fromarray(x).resize((16, 16), Image.Resampling.LANCZOS)) for x in own]
    assert all(any(np.array_equal(x, moved(y, found)) for y in small) for x in seen)
    export_bundle(work / "run", work / "bundle")
    assert load_bundle(work / "bundle").manifest.alignment == found


def test_going_on_keeps_what_was_found(work, monkeypatch):
    finish(job(work, **STRUCTURE))
    before = ckpt.load(ckpt.find(work / "run")).config.alignment
    monkeypatch.setattr(resolving, "find_alignment", lambda *domains: pytest.fail("looked again"))
    assert open_run(job(work, **STRUCTURE), Listener()).config.alignment == before
    finish(job(work, **(STRUCTURE | {"train_images": 30})))
    assert ckpt.load(ckpt.find(work / "run")).config.alignment == before


@pytest.mark.parametrize(
    "changes", [{"coupling": "random", "structure_pairing": False}, {"alignment": [1, 0, 0, 0, 1, 0]}]
)
def test_nothing_is_moved_unasked_or_where_the_config_says_so(work, changes):
    run = open_run(job(work, **(STRUCTURE | changes)), Listener())
    assert run.config.aligned_by == IDENTITY and run.domain0.alignment == IDENTITY
    assert run.domain0.read(0).size == (32, 32)


def test_pairs_that_a_flow_made_are_not_moved_again(work):
    changes = {"coupling": "paired", "structure_pairing": False, "alignment": list(MAPS[0])}
    run = open_run(job(work, **(STRUCTURE | changes)), Listener())
    assert run.config.aligned_by == MAPS[0] and run.domain0.alignment == IDENTITY


def test_held_out_pictures_are_moved_too(work):
    run = open_run(job(work, **(STRUCTURE | {"eval_every": 2, "alignment": list(MAPS[0])})), Listener())
    assert run.held_out is not None and run.held_out[0].alignment == MAPS[0] == run.domain0.alignment
    assert run.held_out[1].alignment == run.domain1.alignment == IDENTITY


def test_vectors_of_moved_pictures_are_kept_apart(work):
    from rfp.train.pairing import embeddings

    plain, *_ = embeddings(open_run(job(work, **(STRUCTURE | {"alignment": [1, 0, 0, 0, 1, 0]})), Listener()))
    there, *_ = embeddings(open_run(job(work, **(STRUCTURE | {"alignment": list(MAPS[0])})), Listener()))
    again, *_ = embeddings(open_run(job(work, **(STRUCTURE | {"alignment": [1, 0, 0, 0, 1, 0]})), Listener()))
    torch.testing.assert_close(plain, again, rtol=0, atol=0)
    assert (plain - there).abs().max() > 0.1


def test_a_domain_is_moved_at_the_size_of_its_crops_and_counts_its_memory(work):
    domain = open_domain([work / "dark"], 16, cache_bytes=10_000)
    before = domain.read(3)
    domain.align(MAPS[0])
    small = before.resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(domain.crop(3, Crop()), moved(np.asarray(small), MAPS[0]))
    assert domain.cache_bytes == 10_000 - 16 * 16 * 4
    assert isinstance(domain, Domain)


@pytest.mark.parametrize("wrong", [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0], [9, 0, 0, 0, 1, 0], "auto"])
def test_a_map_that_is_none_is_a_config_mistake(wrong):
    with pytest.raises(ConfigError, match="alignment"):
        tiny(alignment=wrong)


@pytest.mark.parametrize("noise", [False, True])
def test_noise_and_pairs_by_name_take_no_alignment_over_with_weights(work, noise):
    """Training moves neither, so the bundle must not."""
    weights = SimpleNamespace(config=tiny(alignment=list(MAPS[0])))
    domain1 = open_domain([work / "bright"], 16)
    domain0 = Noise(0, (3, 16, 16)) if noise else domain1
    config = tiny(alignment=None, coupling="random" if noise else "paired")
    assert resolved(config, domain0, domain1, weights).aligned_by == IDENTITY
    assert resolved(tiny(alignment=None), domain1, domain1, weights).aligned_by == MAPS[0]


def test_core_ml_pictures_say_that_they_do_not_move(work, tmp_path):
    finish(job(work, **(STRUCTURE | {"alignment": list(MAPS[0])})))
    with pytest.raises(UsageError, match="moves pictures before it translates"):
        export_bundle(work / "run", tmp_path / "out", formats=["coreml"], coreml_images=True)


def test_noise_is_not_moved():
    with pytest.raises(ConfigError, match="alignment: noise is everywhere alike"):
        noise_domain(tiny(alignment=list(MAPS[0]), saliency_loss_weight=0), 0)


def test_pairs_of_a_flow_that_learned_from_pairs_are_not_moved_either(work, monkeypatch):
    """`rfp distill` of what `rfp reflow` trained: its pictures were moved when the first flow made its pairs."""
    finish(job(work, **(STRUCTURE | {"alignment": list(MAPS[0])})))
    monkeypatch.chdir(work)
    moves, align = [], Domain.align
    monkeypatch.setattr(Domain, "align", lambda self, a: moves.append(a) or align(self, a))
    about = ["--pairs", "128", "--images", "10", "--device", "cpu"]
    for command in (["reflow", "run"], ["distill", "run-reflowed"]):
        assert CliRunner().invoke(app, [*command, *about]).exit_code == 0
    assert moves == [MAPS[0], IDENTITY, IDENTITY, IDENTITY]
    newest = ckpt.load(ckpt.find(work / "run-reflowed-distilled-1"))
    assert newest.config.aligned_by == MAPS[0]  # which the bundle still does
