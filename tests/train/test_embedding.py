import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rfp.train import checkpoint as ckpt
from rfp.train import embedding, embedding_cache
from rfp.train.domains import open_domain
from rfp.train.embedders import build_embedder, thumbnail
from rfp.train.embedding import embed
from rfp.train.embedding_cache import NAME, EmbeddingCache
from rfp.train.job import Job
from rfp.train.opening import open_run
from rfp.train.pairing import embeddings
from rfp.train.run import Interrupted
from rfp.train.training import train
from test_domains import write_video
from trainings import Listener, assert_same, draw_domains, finish, job, noisy, tiny

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RFP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def work(tmp_path, folder):
    draw_domains(tmp_path)
    return tmp_path


class Told(list):
    """Notes, and what was computed."""

    computed = 0

    def progress(self, done, count, rate):
        assert 0 < done <= count and rate > 0
        self.computed = done


def embedder(**changes):
    return replace(build_embedder(tiny(structure_embedder="thumbnail"), CPU, lambda path: ""), **changes)


def run(domain, folder, told=None, **changes):
    told = Told() if told is None else told
    cache = EmbeddingCache(folder, told.append)
    vectors = embed(domain, embedder(**changes), cache, CPU, told.progress)
    cache.close()
    return vectors, told.computed


def rows(folder, table):
    with sqlite3.connect(folder / NAME) as db:
        return db.execute(f"SELECT * FROM {table}").fetchall()


def test_a_second_training_computes_and_reads_nothing(work, folder, monkeypatch):
    domain = open_domain([work / "dark"], 16)
    first, computed = run(domain, folder)
    assert computed == 7 and first.dtype == torch.float16 and first.shape == (7, 192)
    monkeypatch.setattr(embedding, "read_image", None)
    monkeypatch.setattr(embedding_cache, "_md5", None)
    again, computed = run(open_domain([work / "dark"], 32), folder)  # whatever the size trained at
    assert computed == 0 and torch.equal(again, first)


def test_more_pictures_than_are_hashed_at_once_are_all_kept(work, folder, monkeypatch):
    monkeypatch.setattr(embedding_cache, "HASHED_AT_ONCE", 3)
    domain = open_domain([work / "dark"], 16)
    assert [run(domain, folder)[1] for _ in range(2)] == [7, 0] and len(rows(folder, "files")) == 7


def test_vectors_are_the_pictures_own_in_their_order(work, folder):
    domain = open_domain([work / "dark"], 16)
    vectors, _ = run(domain, folder)
    for i, item in enumerate(domain.items):
        with Image.open(item.media.path) as image:
            square = np.array(image.resize((64, 64), Image.Resampling.LANCZOS, box=(0, 2, 20, 22)))
        x = torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(vectors[i].float(), thumbnail(x)[0], atol=2e-3, rtol=0)


def test_only_what_is_new_or_changed_is_computed(work, folder):
    whole, _ = run(open_domain([work / "dark"], 16), folder)
    (work / "dark" / "3.png").rename(work / "dark" / "9.png")  # the same bytes
    Image.fromarray(noisy(70, 50)).save(work / "dark" / "0.png")
    Image.fromarray(noisy(70, 51)).save(work / "dark" / "5b.png")
    after, computed = run(open_domain([work / "dark"], 16), folder)
    assert computed == 2
    # 0* 1 2 4 5 5b* 6 9 (was 3)
    assert torch.equal(after[[1, 2, 3, 4, 6, 7]], whole[[1, 2, 4, 5, 6, 3]])
    assert not torch.equal(after[0], whole[0])
    os.utime(work / "dark" / "1.png", ns=(1, 1))  # touched: hashed again, and found to be the same
    assert run(open_domain([work / "dark"], 16), folder)[1] == 0


def test_another_embedder_or_revision_is_kept_apart(work, folder):
    domain = open_domain([work / "dark"], 16)
    run(domain, folder)
    assert run(domain, folder, name="thumbnail/2")[1] == 7
    assert run(domain, folder)[1] == 0
    assert sorted({name for name, *_ in rows(folder, "embeddings")}) == ["thumbnail/1", "thumbnail/2"]


def test_pictures_are_known_by_content_in_folders_and_zips_and_twice_the_same_is_computed_once(work, folder):
    run(open_domain([work / "dark"], 16), folder)
    with zipfile.ZipFile(work / "z.zip", "w") as z:
        for name, source in (("a/x.png", "2.png"), ("y.png", "4.png"), ("z.png", "../bright/0.png")):
            z.write(work / "dark" / source, name)
        z.write(work / "bright" / "0.png", "twice.png")
    domain = open_domain([work / "z.zip"], 16)
    vectors, computed = run(domain, folder)
    dark, _ = run(open_domain([work / "dark"], 16), folder)
    names = [item.media.member for item in domain.items]
    assert computed == 1 and names == ["a/x.png", "twice.png", "y.png", "z.png"]
    assert torch.equal(vectors[[0, 2]], dark[[2, 4]]) and torch.equal(vectors[1], vectors[3])
    assert run(domain, folder)[1] == 0


def test_frames_of_a_video_are_known_by_its_content_number_and_size(tmp_path, folder):
    domain = open_domain([write_video(tmp_path / "v.mp4", [0, 40, 80])], 16)
    first, computed = run(domain, folder)
    assert computed == 3 and len({tuple(v.tolist()) for v in first}) == 3
    (tmp_path / "v.mp4").rename(tmp_path / "w.mp4")
    again, computed = run(open_domain([tmp_path / "w.mp4"], 16), folder)
    assert computed == 0 and torch.equal(again, first)
    assert run(open_domain([tmp_path / "w.mp4"], 32), folder)[1] == 3  # decoded to another size


def test_an_interrupted_embedding_goes_on_where_it_was(work, folder, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH", 2)
    domain = open_domain([work / "dark"], 16)

    class Stopped(Told):
        def progress(self, done, count, rate):
            if done == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(domain, folder, Stopped())
    assert len(rows(folder, "embeddings")) == 4
    after, computed = run(domain, folder)
    assert computed == 3 and torch.equal(after, run(domain, folder / "other")[0])


def test_ctrl_c_while_embedding_stops_and_the_same_training_goes_on(work, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH", 3)
    config = tiny(coupling="structure", structure_candidates=2, saliency_loss_weight=0)
    there = Job(config, (work / "dark",), (work / "bright",), work / "run", device="cpu")

    def press(phase, step):
        if (phase, step) == ("embedding bright", 6):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(there, Listener(press))
    assert not ckpt.checkpoints(work / "run")
    steps = finish(there).steps
    assert steps[0] == ("embedding bright", 3) and steps[1] == ("velocity", 1)
    monkeypatch.setenv("RFP_CACHE", str(work / "another"))
    finish(replace(there, folder=work / "whole"))
    assert_same(work / "run", work / "whole")


def test_a_damaged_picture_has_its_stand_ins_vector_which_is_not_kept(work, folder):
    bad = work / "dark" / "1.png"
    bad.write_bytes(bad.read_bytes()[:800])
    domain = open_domain([work / "dark"], 16)
    vectors, _ = run(domain, folder)
    torch.testing.assert_close(vectors[1].float(), vectors[2].float(), atol=0.02, rtol=0)
    assert len(rows(folder, "embeddings")) == 6 and run(domain, folder)[1] == 1
    assert "1.png" in domain.skipped[0]


def test_a_file_that_vanished_is_no_ones_content(work, folder):
    domain = open_domain([work / "dark"], 16)
    (work / "dark" / "2.png").unlink()
    run(domain, folder)
    assert len(rows(folder, "embeddings")) == 6 and len(rows(folder, "files")) == 6


@pytest.fixture
def contents(folder):
    """What a cache, opened anew each time, calls the pictures at some paths."""

    def of(*paths):
        cache = EmbeddingCache(folder, pytest.fail)
        found = cache.contents(open_domain(paths, 16).items)
        cache.close()
        return found

    return of


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_members_of_a_zip_are_told_apart_without_being_read_again(work, contents):
    names = ["0.png", "1.png", "2.png"]
    with zipfile.ZipFile(work / "z.zip", "w") as z:
        for name in names:
            z.write(work / "dark" / name, name)
    assert contents(work / "z.zip") == contents(work / "z.zip") == [md5(work / "dark" / name) for name in names]


@pytest.mark.parametrize("kept", ["size", "time"])
def test_a_picture_that_keeps_only_its_size_or_its_time_is_hashed_again(work, contents, kept):
    path = work / "dark" / "a.bmp"
    for seed, size, time in ((50, (20, 24), 1), (51, *{"size": ((20, 24), 2), "time": ((24, 24), 1)}[kept])):
        Image.fromarray(noisy(70, seed, size)).save(path)
        os.utime(path, ns=(time, time))
        assert contents(path) == [md5(path)]


def test_a_picture_that_changes_while_it_is_hashed_is_hashed_again(work, contents, monkeypatch):
    path, hashed = work / "dark" / "0.png", embedding_cache._md5

    def meanwhile(media):
        found = hashed(media)
        Image.fromarray(noisy(70, 50)).save(path)
        return found

    monkeypatch.setattr(embedding_cache, "_md5", meanwhile)
    contents(path)
    monkeypatch.undo()
    monkeypatch.setenv("RFP_CACHE", str(work / "cache"))
    assert contents(path) == [md5(path)]


def test_one_relative_path_in_two_folders_is_two_pictures(work, contents, monkeypatch):
    for name in ("dark", "bright"):
        Image.fromarray(noisy(70, len(name))).save(work / name / "a.bmp")
        os.utime(work / name / "a.bmp", ns=(1, 1))
        monkeypatch.chdir(work / name)
        assert contents(Path("a.bmp")) == [md5(work / name / "a.bmp")]


def test_what_cannot_be_read_has_no_vector_that_another_would_take(folder):
    cache, vectors = EmbeddingCache(folder, pytest.fail), np.ones((2, 8), np.float16)
    cache.save("e", ["", "a"], vectors)
    assert cache.load("e", ["", "a"], vectors) == [0]
    cache.close()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_a_picture_whose_name_is_no_text_is_kept_as_others_are(work, folder):
    (work / "dark" / "1.png").rename(work / "dark" / os.fsdecode(b"caf\xe9.png"))
    domain = open_domain([work / "dark"], 16)
    assert [run(domain, folder)[1] for _ in range(2)] == [7, 0] and len(rows(folder, "files")) == 7


@pytest.mark.parametrize("damage", ["text", "page", "cut"])
def test_a_damaged_cache_is_set_aside_and_training_goes_on(work, folder, damage):
    domain = open_domain([work / "dark"], 16)
    whole, _ = run(domain, folder)
    data = bytearray((folder / NAME).read_bytes())
    match damage:
        case "text":
            data = bytearray(b"this is no database at all, though long enough to look like one" * 20)
        case "page":
            data[4096:] = os.urandom(len(data) - 4096)
        case "cut":
            del data[5000:]
    (folder / NAME).write_bytes(data)
    told = Told()
    again, computed = run(domain, folder, told)
    assert torch.equal(again, whole) and computed == 7
    assert "damaged" in told[0] and "set aside as embeddings-1.damaged-1.sqlite, starting a new one" in told[0]
    assert (folder / "embeddings-1.damaged-1.sqlite").read_bytes() == data
    assert run(domain, folder)[1] == 0
    (folder / NAME).write_bytes(data)
    run(domain, folder)
    assert (folder / "embeddings-1.damaged-2.sqlite").exists()


@pytest.mark.parametrize("blob", [b"", b"\0" * 383, b"\xff" * 384, "text", None])
def test_a_vector_that_cannot_be_one_is_computed_again(work, folder, blob):
    domain = open_domain([work / "dark"], 16)
    whole, _ = run(domain, folder)
    with sqlite3.connect(folder / NAME) as db:
        db.execute("UPDATE embeddings SET vector = ? WHERE rowid = 3", (blob,))
    again, computed = run(domain, folder)
    assert computed == 1 and torch.equal(again, whole)
    assert run(domain, folder)[1] == 0


def test_a_cache_that_cannot_be_written_is_done_without(work, folder):
    folder.write_text("a file where the folder should be")
    told = Told()
    _, computed = run(open_domain([work / "dark"], 16), folder, told)
    assert computed == 7 and "cannot be used" in told[0] and len(told) == 1


def test_a_cache_locked_by_another_is_done_without_after_a_while(work, folder, monkeypatch):
    domain = open_domain([work / "dark"], 16)
    run(domain, folder)
    monkeypatch.setattr(embedding_cache, "WAIT_SECONDS", 0.1)
    Image.fromarray(noisy(70, 50)).save(work / "dark" / "new.png")
    with sqlite3.connect(folder / NAME, isolation_level=None) as db:
        db.execute("BEGIN EXCLUSIVE")
        told = Told()
        vectors, _ = run(open_domain([work / "dark"], 16), folder, told)
    assert len(vectors) == 8 and vectors.float().norm(dim=1).min() > 0.99 and "locked" in told[0]


def test_a_new_cache_that_another_process_turns_to_wal_is_waited_for_and_no_other_error_is():
    class Busy:
        def __init__(self, error, times):
            self.error, self.left = error, times

        def execute(self, statement):
            self.left -= 1
            if self.left >= 0:
                raise sqlite3.OperationalError(self.error)

    embedding_cache._use_wal(waited := Busy("database is locked", 2))
    assert waited.left == -1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        embedding_cache._use_wal(Busy("attempt to write a readonly database", 1))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from rfp.train.domains import open_domain
from rfp.train.embedding_cache import EmbeddingCache
cache = EmbeddingCache(Path(sys.argv[1]), lambda note: sys.exit(note))
items = open_domain([Path(sys.argv[2])], 16).items
print("ready", flush=True)
sys.stdin.readline()
for k in range(150):
    assert len(set(cache.contents(items))) == 7
    cache.save("e", [f"{k}-{i}" for i in range(4)], np.full((4, 8), k, np.float16))
"""


def test_two_processes_at_once_share_the_cache(work, folder):
    command = [sys.executable, "-c", WRITER, folder, work / "dark"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    vectors = np.zeros((600, 8), np.float16)
    told = Told()
    cache = EmbeddingCache(folder, told.append)
    assert cache.load("e", [f"{k}-{i}" for k in range(150) for i in range(4)], vectors) == [] == told
    assert (vectors == np.arange(150).repeat(4)[:, None]).all()
    cache.close()


PARTS = ((192, 1.0),)


def test_parts_are_centred_by_themselves_and_count_by_their_weight(work, folder):
    domain = open_domain([work / "dark"], 16)

    def two(x):
        return torch.cat([thumbnail(x), 50 * thumbnail(x).flip(1) + 7], dim=1)

    vectors, _ = run(domain, folder, name="two", width=384, embed=two, parts=((192, 1.0), (192, 0.5)))
    a, b = vectors.float().split(192, dim=1)
    torch.testing.assert_close(a.norm(dim=1) / b.norm(dim=1), torch.full((7,), 2.0), atol=5e-3, rtol=0)
    torch.testing.assert_close(a, 2 * b.flip(1), atol=0.02, rtol=0)  # whatever the part's own scale and offset
    torch.testing.assert_close(vectors.float().norm(dim=1), torch.ones(7), atol=1e-3, rtol=0)


def test_what_a_domain_has_in_common_is_taken_away_from_learned_vectors(work, folder):
    domain = open_domain([work / "dark"], 16)

    def lifted(x):
        return torch.nn.functional.normalize(thumbnail(x) + 5, dim=1)

    vectors, _ = run(domain, folder, name="lifted", embed=lifted, parts=PARTS)
    plain, _ = run(domain, folder)
    torch.testing.assert_close(vectors.float().norm(dim=1), torch.ones(7), atol=1e-3, rtol=0)
    assert vectors.float().mean(dim=0).norm() < 0.05
    wanted = torch.nn.functional.normalize(plain.float() - plain.float().mean(dim=0), dim=1)
    assert (vectors.float() * wanted).sum(dim=1).min() > 0.9
    assert run(domain, folder, name="lifted", embed=None, parts=PARTS)[0].equal(vectors)


def test_one_picture_has_a_finite_vector_even_less_its_domains_mean(tmp_path, folder):
    draw_domains(tmp_path, 1, 1)
    vectors, _ = run(open_domain([tmp_path / "dark"], 16), folder, parts=PARTS)
    assert vectors.isfinite().all()


def test_the_cache_lies_in_the_platforms_folder_and_is_reported(work, folder):
    listener = Listener()
    embeddings(open_run(job(work, coupling="structure"), listener))
    assert (folder / NAME).is_file()
    assert listener.steps == [("embedding dark", 7), ("embedding bright", 9)]
    listener = Listener()
    embeddings(open_run(job(work, coupling="structure"), listener))
    assert listener.steps == []
