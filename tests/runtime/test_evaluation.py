"""What `evaluate` says of flows whose answer is known."""

import json
import shutil
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image, ImageFilter
from rfp.runtime import UsageError, evaluation, load_bundle
from rfp.runtime.discovery import discover
from rfp.runtime.evaluation import centre_square, evaluate, squares
from rfp.runtime.features import FeatureNet, describe
from rfp.runtime.judging import Judge, Scene, _looks
from rfp.runtime.metrics import l1, psnr, ssim, texture_energy
from rfp.runtime.noise import noises
from rfp.runtime.pixels import to_uint8

MEANS = FeatureNet("means", 8, lambda x: x)


def draw(folder: Path, n: int, seed: int, blur: float = 0, size: tuple[int, int] = (32, 32)) -> Path:
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)
        image.filter(ImageFilter.GaussianBlur(blur)).save(folder / "sub" / f"{i}.png")
    return folder


def read(folder: Path) -> np.ndarray:
    n = len(list(folder.rglob("*.png")))
    return np.stack([np.asarray(Image.open(folder / "sub" / f"{i}.png")) for i in range(n)])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Sharp pictures, the same blurred, and other blurred ones."""
    work = tmp_path_factory.mktemp("evaluation")
    draw(work / "sharp", 12, 0)
    draw(work / "soft", 12, 0, blur=1.0)
    draw(work / "others", 20, 1, blur=1.0)
    return work


def figures(evaluation, group):
    return {f.name: f for f in evaluation.groups[group]}


@pytest.fixture(scope="module")
def still(work):
    bundle = load_bundle(bundles.write_bundle(work / "still", bundles.identity()))
    return evaluate(bundle, work / "sharp", work / "others", work / "soft", judge=Judge(MEANS))


def test_a_flow_that_does_nothing_is_as_far_as_the_untouched_input(still):
    for group in ("realism", "content kept", "distance to truth"):
        for figure in still.groups[group]:
            assert figure.translated == pytest.approx(figure.untouched), (group, figure.name)
    kept = figures(still, "content kept")
    assert kept["structure"].translated == pytest.approx(0, abs=1e-6) and kept["ssim"].translated == 1
    assert kept["edges"].translated == pytest.approx(1) and kept["ssim"].real < 0.99
    assert figures(still, "round trip")["psnr"].translated > 78


def test_distances_to_the_truth_are_those_of_the_metrics(work, still):
    out, truth = read(work / "sharp"), read(work / "soft")
    found = {name: f.translated for name, f in figures(still, "distance to truth").items()}
    wanted = {"psnr": psnr(out, truth), "ssim": ssim(out, truth), "l1": l1(out, truth)}
    wanted["texture"] = texture_energy(out, truth)
    a, b = (describe(MEANS, x).grids.astype(np.float64) for x in (out, truth))
    wanted["feature"] = np.mean(1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_real_against_real_is_the_floor_and_an_answer_that_is_right_reaches_it(work):
    bundle = load_bundle(bundles.write_bundle(work / "blur", bundles.blur()))
    steps1 = evaluate(bundle, work / "sharp", work / "others", steps=1)
    kid = figures(steps1, "realism")["kid"]
    assert abs(kid.real) < kid.untouched / 10 and kid.translated < kid.untouched / 3
    texture = figures(steps1, "realism")["texture"]
    assert texture.untouched > 3 and abs(texture.real - 1) < 0.3
    assert set(steps1.groups) == {"realism", "content kept", "round trip"}
    assert steps1.counts == {"target": 20, "source": 12, "translated": 12} and steps1.steps == 1


def test_the_truth_alone_serves_as_real_ones_and_its_halves_as_the_floor(work):
    bundle = load_bundle(bundles.write_bundle(work / "still2", bundles.identity()))
    kid = figures(evaluate(bundle, work / "sharp", truth=work / "soft"), "realism")["kid"]
    assert kid.translated == kid.untouched and kid.real < kid.untouched


def test_towards_black_fools_a_classifier_of_darkness_one_way_only(work):
    bundle = load_bundle(bundles.write_bundle(work / "dark", bundles.towards(-1.0)))
    judge = Judge(classifier=lambda x: 1 - x.mean(axis=(1, 2, 3)) / 255)
    found = evaluate(bundle, work / "sharp", work / "others", judge=judge, steps=1)
    there = figures(found, "classifier")["fooling rate"]
    assert there.translated == 1 and there.untouched < 1
    back = evaluate(bundle, work / "sharp", work / "others", judge=judge, steps=1, reverse=True)
    assert figures(back, "classifier")["fooling rate"].translated > 0  # x − (c − x): away from black


def test_each_folder_is_listed_once_and_what_it_holds_that_is_damaged_is_told_once(work, tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr(evaluation, "discover", lambda *args: listed.append(args[0][0].name) or discover(*args))
    for name in ("sharp", "soft"):
        shutil.copytree(work / name, tmp_path / name)
        (tmp_path / name / "bad.zip").write_bytes(b"no")
    bundle = load_bundle(bundles.write_bundle(tmp_path / "b", bundles.identity()))
    found = evaluate(bundle, tmp_path / "sharp", work / "others", tmp_path / "soft")
    assert listed == ["others", "sharp", "soft"]
    assert [failure.partition(":")[0] for failure in found.failed] == [
        str(tmp_path / name / "bad.zip") for name in ("sharp", "soft")
    ]


def test_squares_are_cut_as_in_training():
    from rfp.train.domains import Crop

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    assert np.abs(centre_square(image, 32).astype(int) - Crop().apply(image, 32)).max() <= 1


def test_names_pair_source_and_truth_and_what_has_none_is_said(work):
    bundle = load_bundle(bundles.write_bundle(work / "still3", bundles.identity()))
    few = draw(work / "few", 5, 0)
    found = evaluate(bundle, work / "sharp", truth=few)
    assert found.counts["truth"] == found.counts["translated"] == 5
    assert found.notes == ["7 pictures of the source have no truth of their name, and were left out"]
    assert figures(found, "distance to truth")["l1"].translated == 0
    with pytest.raises(UsageError, match="share 0 names"):
        evaluate(bundle, work / "sharp", truth=work / "few" / "sub")


def test_a_generative_bundle_is_judged_by_realism_alone(work):
    bundle = load_bundle(bundles.write_bundle(work / "noise", bundles.identity(), generative=True))
    found = evaluate(bundle, target=work / "others")
    assert set(found.groups) == {"realism"} and found.counts == {"target": 20, "translated": 20}
    with pytest.raises(UsageError, match="from noise"):
        evaluate(bundle, work / "sharp")


def test_the_limit_and_bad_pictures(work):
    bundle = load_bundle(bundles.write_bundle(work / "still4", bundles.identity()))
    bad = draw(work / "bad", 6, 0)
    (bad / "sub" / "9.png").write_bytes(b"no")
    found = evaluate(bundle, bad)
    assert found.counts["source"] == 6 and len(found.failed) == 1 and "9.png" in found.failed[0]
    assert evaluate(bundle, work / "sharp", limit=4).counts["source"] == 4
    with pytest.raises(UsageError, match="limit is 2"):
        evaluate(bundle, bad, limit=2)
    with pytest.raises(UsageError, match="--source"):
        evaluate(bundle)


def test_json_holds_only_finite_numbers(still):
    text = json.dumps(still.as_json(), allow_nan=False)
    assert json.loads(text)["figures"]["realism"]["kid"]["better"] == "lower"


def test_no_torch_was_needed():
    import subprocess

    code = "import sys, rfp.runtime.evaluation; assert not {'torch', 'rfp.train', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_limit_is_of_pairs_though_the_folders_differ_in_number(work, tmp_path):
    """Each folder thinned by itself kept few of the names that both have, and blamed the names."""
    shutil.copytree(work / "others", tmp_path / "some")
    for i in (3, 11):
        (tmp_path / "some" / "sub" / f"{i}.png").unlink()
    bundle = load_bundle(bundles.write_bundle(tmp_path / "still", bundles.identity()))
    result = evaluate(bundle, tmp_path / "some", truth=work / "others", judge=Judge(MEANS), limit=9)
    assert result.counts["source"] == result.counts["truth"] == 9 and not result.notes
    back = evaluate(bundle, work / "others", truth=tmp_path / "some", judge=Judge(MEANS), limit=9)
    assert back.counts["source"] == 9 and back.notes == [
        "2 pictures of the source have no truth of their name, and were left out"
    ]


def test_a_generative_bundle_without_anything_to_judge_by_is_refused_at_once(tmp_path):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "b", bundles.towards(0.5), generative=True))
    with pytest.raises(UsageError, match="give a target, or a classifier"):
        evaluate(bundle)


@pytest.mark.parametrize(("solver", "there", "back"), [("euler", 0.5**2, 1.5**2), ("heun", 0.625**2, 1.625**2)])
def test_the_round_trip_goes_there_and_back_by_the_steps_and_the_solver_that_were_asked_for(work, solver, there, back):
    """v = −x shrinks every picture about grey, and backwards makes it grow."""
    bundle = load_bundle(bundles.write_bundle(work / solver, bundles.towards(0.0)))
    found = figures(evaluate(bundle, work / "sharp", steps=2, solver=solver), "round trip")["psnr"]
    before = read(work / "sharp")

    def grown(x: np.ndarray, by: float) -> np.ndarray:
        return np.rint(127.5 + by * (x - 127.5)).clip(0, 255).astype(np.uint8)

    out = grown(before, there)
    wanted = [psnr(grown(out, back), before), psnr(out, before)]
    assert [found.translated, found.untouched] == pytest.approx(wanted, abs=0.1)


def test_a_limit_takes_pictures_from_all_of_a_folder(work):
    found, failed = squares(work / "sharp", 32, 4)
    assert found.names == ["sub/0", "sub/3", "sub/6", "sub/9"] and not failed
    np.testing.assert_array_equal(found.pixels, read(work / "sharp")[[0, 3, 6, 9]])


def test_what_a_generative_bundle_makes_are_the_first_pictures_of_its_noise(tmp_path):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "b", bundles.identity(), generative=True))
    seen = []
    evaluate(bundle, judge=Judge(classifier=lambda x: seen.append(x) or np.zeros(len(x))), limit=5)
    np.testing.assert_array_equal(np.concatenate(seen), to_uint8(noises((3, 32, 32), 0, range(5))))


def test_a_truth_that_cannot_be_read_moves_none_of_the_others(work, tmp_path):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "b", bundles.identity()))
    shutil.copytree(work / "sharp", tmp_path / "truth")
    (tmp_path / "truth" / "sub" / "2.png").write_bytes(b"no")
    found = evaluate(bundle, work / "sharp", truth=tmp_path / "truth")
    assert found.counts["translated"] == 11 and len(found.failed) == 1
    assert figures(found, "distance to truth")["l1"].translated == 0


def test_the_floor_is_of_other_real_pictures_than_those_that_all_are_compared_with():
    real = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    _, reals, others = _looks(Scene(real[:7], real=real))
    assert others is not None and len(others) == 7
    assert sorted([*np.ravel(reals), *np.ravel(others)]) == list(range(20))
