"""The runtime as a library: arrays in their order, pickled, watching, and on Ray."""

import pickle
import re
import threading
import time
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FilmOptions, FlowOptions, FolderOptions, MediaError, Translator, UsageError, translate
from rfp.runtime import watch as watch_module
from rfp.runtime.flow import Flow
from rfp.runtime.watch import watch

NATIVE = FlowOptions(size="native", steps=2)


def picture(seed, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path):
    return bundles.write_bundle(tmp_path / "bundle", bundles.blur())


def test_pictures_come_in_order_whatever_their_sizes_and_as_the_command_writes_them(bundle, tmp_path):
    photos = [picture(i, 16 + 8 * (i % 5 == 3)) for i in range(23)]
    (tmp_path / "in").mkdir()
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / "in" / f"{i}.png")
    translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=NATIVE)
    made = list(Translator(bundle, NATIVE).images(photos))
    assert [m.shape for m in made] == [p.shape for p in photos]
    for i, pixels in enumerate(made):
        with Image.open(tmp_path / "out" / f"{i}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
    same = Translator(bundle, NATIVE).images([tmp_path / "in/0.png", Image.fromarray(photos[1])])
    assert all(np.array_equal(a, b) for a, b in zip(same, made[:2], strict=True))


def test_a_translator_is_lazy_and_may_be_pickled_after_use(bundle, tmp_path):
    assert Translator(tmp_path / "not there yet") is not None
    translator = Translator(bundle, NATIVE)
    first = next(translator.images([picture(0)]))
    again = next(pickle.loads(pickle.dumps(translator)).images([picture(0)]))
    assert np.array_equal(first, again)


def test_an_endless_iterable_is_read_only_a_little_ahead(bundle):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield picture(read)

    made = Translator(bundle, FlowOptions(size="native", batch=2)).images(endless())
    for _ in range(5):
        next(made)
    made.close()
    assert read <= 5 + 2 * 6


def test_wrong_pictures_are_said_so(bundle):
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), Image.new("RGB", (0, 4))):
        with pytest.raises(MediaError, match="wanted uint8"):
            list(Translator(bundle).images([wrong]))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: FilmOptions(start="3"), "start is '3'; wanted seconds"),
        (lambda: FilmOptions(end=True), "end is True; wanted seconds"),
        (lambda: FilmOptions(crf="20"), "crf is '20'; wanted a number"),
        (lambda: FolderOptions(shard=3), "shard is 3; wanted two numbers"),
        (lambda: FolderOptions(shard=("1", "2")), "shard's number of parts is '2'"),
        (lambda: FolderOptions(settled="1"), "settled is '1'; wanted seconds"),
        (lambda: FlowOptions(steps="4"), "steps is '4'; wanted 1 to 10000"),
    ],
)
def test_options_of_the_wrong_type_are_said_so(made, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        made()


def test_a_video_is_written_and_never_over_another_unasked(bundle, tmp_path):
    from films import write_video

    source, out = write_video(tmp_path / "a.mp4", range(0, 400, 40)), tmp_path / "b.mkv"
    translator = Translator(bundle, NATIVE)
    seen = []
    translator.video(source, out, on_frames=lambda count, total: seen.append(count))
    assert seen[-1] == 10 and out.stat().st_size > 0
    for target in (out, source, tmp_path / "b.txt"):
        with pytest.raises(UsageError):
            translator.video(source, target)


def test_watching_takes_what_is_new_and_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "SETTLED", 0.2)
    folder, stop, passes = tmp_path / "in", threading.Event(), []
    folder.mkdir()
    out = folder / "out"

    def once():
        passes.append(sorted(p.name for p in folder.glob("*.png")))
        out.mkdir(exist_ok=True)
        (out / f"{len(passes)}.png").write_bytes(b"made")

    thread = threading.Thread(target=watch, args=([folder], out, once, stop, 0.05))
    thread.start()
    try:
        time.sleep(0.3)
        assert passes == []  # an empty folder is one to wait for
        for wanted, name in enumerate(("a.png", "b.png"), 1):
            (folder / name).write_bytes(b"x")
            for _ in range(100):
                time.sleep(0.05)
                if len(passes) == wanted:
                    break
        time.sleep(0.5)
    finally:
        stop.set()
        thread.join()
    assert passes == [["a.png"], ["a.png", "b.png"]]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_example_for_apps_gives_the_same_bytes_without_rfp(bundle, monkeypatch, reverse):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    from graph_alone import translated

    photos = [picture(0), picture(1, 13, 21), picture(2, 1, 9)]
    made = Translator(bundle, FlowOptions(size="native", reverse=reverse)).images(photos)
    assert all(np.array_equal(translated(bundle, p, reverse), m) for p, m in zip(photos, made, strict=True))
    bundles.write_bundle(bundle, bundles.blur(), alignment=(1.1, 0.0, 0.0, 0.0, 1.0, 0.0))
    with pytest.raises(SystemExit, match="moved besides"):
        translated(bundle, photos[0])


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # Ray's own, at every import
def test_ray_gives_the_same_bytes_as_one_process(bundle, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install 'ray[data]'")
    pytest.importorskip("pandas", reason="pip install 'ray[data]'")
    docs = str(Path(__file__).parents[2] / "docs")
    monkeypatch.syspath_prepend(docs)
    monkeypatch.setenv("PYTHONPATH", docs)  # for the workers
    import ray_map_batches

    photos = [picture(i) for i in range(1200)]
    flow = FlowOptions(size="native", steps=2, threads=1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        dataset = ray.data.from_items([{"number": i, "image": photo} for i, photo in enumerate(photos)])
        rows = ray_map_batches.translated(dataset, Translator(bundle, flow), 2).take_all()
    finally:
        ray.shutdown()
    assert sorted(row["number"] for row in rows) == list(range(1200))
    alone = list(Translator(bundle, flow).images(photos))
    assert all(row["image"].tobytes() == alone[row["number"]].tobytes() for row in rows)


def test_what_shares_a_batch_with_a_bad_picture_comes_first(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(Flow, "batch", lambda self, width, height: 4)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    made = Translator(bundle).images([picture(0), picture(1), tmp_path / "bad.png"])
    assert len([next(made), next(made)]) == 2
    with pytest.raises(MediaError, match=r"bad\.png"):
        next(made)


def test_one_path_is_no_list_of_pictures(bundle, tmp_path):
    with pytest.raises(UsageError, match="wanted a list"):
        next(Translator(bundle).images("photo.png"))
    with pytest.raises(MediaError, match="a picture is a list"):
        next(Translator(bundle).images([[1, 2]]))
