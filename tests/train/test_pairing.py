import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rfp.runtime import UsageError
from rfp.train.coupling import random_pairs, structure_pairs
from rfp.train.domains import Crop, open_domain
from rfp.train.job import Job
from rfp.train.opening import open_run
from rfp.train.pairing import couple, ever_drawn
from rfp.train.plan import plan
from trainings import Listener, draw_domains, finish, job, tiny

STRUCTURE = {"structure_pairing": True, "structure_candidates": 2, "saliency_loss_weight": 0}


@pytest.fixture
def work(tmp_path):
    draw_domains(tmp_path)
    return tmp_path


def test_coupling_by_either_key_is_the_same_training(work):
    named = {"coupling": "structure", "structure_candidates": 2, "saliency_loss_weight": 0}
    pairs = [couple(open_run(job(work, **changes), Listener()), 1) for changes in (STRUCTURE, named)]
    drawn = [[pair(k) for k in range(40)] for pair in pairs]
    assert drawn[0] == drawn[1]
    random = couple(open_run(job(work, coupling="random"), Listener()), 0)
    assert [random(k) for k in range(40)] == [random_pairs(7, 9, 0)(k) for k in range(40)] != drawn[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "random"), ({"coupling": "minibatch_ot"}, "transport within each 5 pairs"), (STRUCTURE, "2 nearest by hog")],
)
def test_the_plan_names_the_coupling(work, changes, said):
    assert any(line.startswith("coupling") and said in line for line in plan(job(work, **changes), Listener()))


def test_the_plan_of_pairs_by_name_finds_names_that_differ(work):
    with pytest.raises(UsageError, match="coupling paired: picture"):
        plan(job(work, coupling="paired"), Listener())
    both = Job(tiny(coupling="paired"), (work / "dark",), (work / "dark",), work / "planned", device="cpu")
    assert any("coupling  each with the one of its own name" in line for line in plan(both, Listener()))


def test_pairs_by_name_that_differ_are_refused_before_anything_is_written(work):
    for changes in ({}, {"eval_every": 2}):
        with pytest.raises(UsageError, match="coupling paired: picture none of domain 0 stands beside 7 of domain 1"):
            finish(job(work, coupling="paired", **changes))
        assert not (work / "run").exists()


def test_a_classifier_alone_needs_no_pairs(work):
    finish(replace(job(work, coupling="paired"), only="saliency"))
    assert (work / "run" / "checkpoints").is_dir()


def test_hubs_do_not_keep_any_picture_from_being_drawn(work):
    """All of domain 0 is nearest to picture 0 of domain 1: drawn both ways, nothing is left out."""
    near1, near0 = np.zeros((50, 1), np.int64), np.zeros((200, 1), np.int64)
    pair = structure_pairs(near1, near0, 0)
    assert ever_drawn(pair, 10**9, 50, 200) == (1, 1)
    assert ever_drawn(pair, 200, 50, 200)[1] == pytest.approx(0.5, abs=0.01)


def test_what_is_drawn_is_reported_and_logged_once(work):
    there = job(work, train_images=30, **STRUCTURE)
    notes = "\n".join(finish(there).notes)
    assert "draws 100.0% of domain 0 and 100.0% of domain 1 (paired one way only: " in notes
    first = json.loads((work / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["phase"], first["step"], first["drawn0"], first["drawn1"]) == ("velocity", 0, 1, 1)
    assert 0 < first["chosen0"] <= 1 and 0 < first["chosen1"] <= 1
    finish(job(work, train_images=40, **STRUCTURE))
    assert (work / "run" / "metrics.jsonl").read_text().count("chosen0") == 1


def test_too_short_a_training_to_see_every_picture_is_said(work):
    notes = "\n".join(finish(job(work, train_images=5, **STRUCTURE)).notes)
    assert "5 pairs are too few to draw every picture once; raise train_images to 18 or more" in notes


def test_the_proof_sheet_shows_fixed_pictures_beside_their_candidates_in_both_directions(work):
    finish(job(work, train_images=5, **STRUCTURE))
    with Image.open(work / "run" / "samples" / "pairings.png") as image:
        sheet = np.asarray(image)
    half = 16 + 2 + 2 * 16
    assert sheet.shape == (3 * 16, 2 * half + 8, 3)
    domains = [open_domain([work / name], 16) for name in ("dark", "bright")]
    for left, own, other in ((0, *domains), (half + 8, *domains[::-1])):
        crops = [other.crop(j, Crop()) for j in range(len(other))]
        for row in range(3):
            cells = sheet[16 * row : 16 * row + 16, left : left + half]
            assert (cells[:, :16] == own.crop(row * len(own) // 3, Crop())).all()
            shown = [cells[:, x : x + 16] for x in (18, 34)]
            assert all(any((cell == crop).all() for crop in crops) for cell in shown)
            assert (shown[0] != shown[1]).any()


def test_a_damaged_picture_of_a_pair_is_listed_and_none_stands_in_for_it(tmp_path):
    """Its partner would learn to be another picture."""
    draw_domains(tmp_path, 6, 6)
    whole = (tmp_path / "dark" / "2.png").read_bytes()
    (tmp_path / "dark" / "2.png").write_bytes(whole[: len(whole) // 2])
    listener = finish(job(tmp_path, coupling="paired", structure_pairing=False, saliency_loss_weight=0, train_images=5))
    assert any("skipped" in note and "2.png" in note for note in listener.notes), listener.notes


def test_what_turns_out_damaged_on_the_way_is_told(tmp_path):
    draw_domains(tmp_path)
    path = sorted((tmp_path / "dark").iterdir())[3]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    listener = finish(job(tmp_path, saliency_loss_weight=0))
    assert sum("skipped" in note and path.name in note for note in listener.notes) == 1, listener.notes
