"""Videos as training data: which frames, from where, and what they take of the disk."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import av
import numpy as np
import pytest
from films import count, counted, write_video
from rfp.runtime import MediaError, UsageError
from rfp.runtime.discovery import discover
from rfp.runtime.files import lock
from rfp.train import frame_cache
from rfp.train.domains import Crop, open_domain
from rfp.train.frame_cache import FrameCache, cache_folder
from rfp.train.job import Job
from rfp.train.opening import open_run
from trainings import Listener, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RFP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frame_cache, "_held", {})
    return tmp_path / "cache"


def numbers(domain):
    """What the frames of a domain say, in order."""
    return [count(np.asarray(domain.read(i))) for i in range(len(domain))]


def forget_locks():
    """As when the process that holds them ends."""
    for fd in frame_cache._held.values():
        os.close(fd)
    frame_cache._held.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="where Linux keeps caches")
def test_the_cache_lies_where_rfp_or_the_desktop_says_and_what_is_empty_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    places = (("~/a", "/b", "a"), ("", str(tmp_path / "b"), "b/rfp"), ("", "", ".cache/rfp"))
    for rfp, desktop, wanted in places:
        monkeypatch.setenv("RFP_CACHE", rfp)
        monkeypatch.setenv("XDG_CACHE_HOME", desktop)
        assert cache_folder() == tmp_path / wanted
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/rfp"


def test_a_video_is_all_of_its_frames_in_order_whatever_their_times(tmp_path):
    times = np.cumsum([1, 40, 40, 7, 333, 40, 12, 90] * 4).tolist()
    video = write_video(tmp_path / "v.mp4", times)
    domain = open_domain([video], 40)
    assert [count(np.asarray(domain.read(i))) for i in range(len(domain))] == list(range(len(times)))
    # Again at random: nothing depends on what was read before.
    assert [count(np.asarray(domain.read(i))) for i in (31, 0, 17)] == [31, 0, 17]


def test_frames_are_decoded_once_and_kept_at_the_size_of_the_crops(tmp_path, cache, monkeypatch):
    video = write_video(tmp_path / "v.mp4", range(0, 400, 40))
    first = open_domain([video], 16)
    assert min(first.read(0).size) == 20  # 1.25 × 16
    (kept,) = (cache / "frames").glob("*.rgb")
    assert cache_folder() == cache and kept.stat().st_size == 10 * 20 * 27 * 3
    about = json.loads(kept.with_suffix(".json").read_text())
    assert about["video"] == str(video) and about["frames"] == 10
    monkeypatch.setattr("rfp.train.frame_cache.open_video", None)
    again = open_domain([video], 16)
    assert (again.crop(3, Crop()) == first.crop(3, Crop())).all()
    for other in ({"size": 17}, {"cache": FrameCache(stride=2)}):  # another file, which would be decoded
        with pytest.raises(TypeError):
            open_domain([video], **({"size": 16} | other))


def test_a_zipped_video_is_read_too(tmp_path):
    write_video(tmp_path / "v.mp4", [0, 40])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        z.write(tmp_path / "v.mp4", "v.mp4")
    assert len(open_domain([tmp_path / "z.zip"], 16)) == 2


def test_videos_of_one_zip_and_of_one_name_after_another_are_kept_apart(tmp_path):
    long, short = (write_video(tmp_path / f"{n}.mp4", range(0, 40 * n, 40)) for n in (5, 2))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        z.write(long, "a.mp4")
        z.write(short, "b.mp4")
    assert numbers(open_domain([tmp_path / "z.zip"], 16)) == [0, 1, 2, 3, 4, 0, 1]
    assert len(open_domain([long], 16)) == 5
    short.replace(long)
    assert len(open_domain([long], 16)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_a_video_whose_name_is_no_text_is_decoded_once(tmp_path, cache):
    video = write_video(tmp_path / "v.mp4", [0, 40]).rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert numbers(open_domain([video], 16)) == numbers(open_domain([video], 16)) == [0, 1]
    assert len(list(cache.rglob("*.rgb"))) == 1


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_is_upright(tmp_path, rotation):
    plain = open_domain([write_video(tmp_path / "a.mp4", [0])], 48).read(0)
    turned = open_domain([write_video(tmp_path / "b.mp4", [0], rotation)], 48).read(0)
    wanted = np.rot90(np.asarray(plain), rotation // 90).astype(int)
    assert np.abs(np.asarray(turned) - wanted).mean() < 3


def test_the_frames_before_the_damage_are_kept(tmp_path):
    video = write_video(tmp_path / "v.mkv", range(0, 4000, 40))
    data = video.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    domain = open_domain([tmp_path / "cut.mkv"], 40)
    assert 10 < len(domain) < 100 and [count(np.asarray(domain.read(i))) for i in range(10)] == list(range(10))


def test_damage_in_the_middle_is_listed_and_the_frames_before_it_are_kept(tmp_path):
    video = write_video(tmp_path / "v.mp4", range(0, 4000, 40))
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    video.write_bytes(data)
    domain = open_domain([video], 40)
    assert numbers(domain) == list(range(len(domain))) and 20 < len(domain) < 80
    assert "v.mp4: cannot be decoded at about" in domain.skipped[0]
    assert domain.skipped[0].endswith(f"its {len(domain)} frames before that are used")
    assert open_domain([video], 40).skipped == domain.skipped  # also when they come from the cache


def test_a_playlist_that_calls_itself_mp4_opens_nothing(tmp_path):
    (tmp_path / "v.mp4").write_text(f"ffconcat version 1.0\nfile {write_video(tmp_path / 'w.mkv', [0]).name}\n")
    with pytest.raises(UsageError, match=r"v\.mp4"):
        open_domain([tmp_path / "v.mp4"], 16)


def test_an_avi_whose_header_lies_about_its_frames_gives_all_that_are_there(tmp_path):
    for claim in (3, 5000):
        path = tmp_path / f"{claim}.avi"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("mpeg4", rate=25, options={"qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(20):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(counted(i), format="rgb24")))
            out.mux(stream.encode(None))
        data = bytearray(path.read_bytes())
        for tag, offset in ((b"avih", 24), (b"strh", 40)):
            at = data.index(tag) + offset
            assert struct.unpack_from("<I", data, at) == (20,)
            struct.pack_into("<I", data, at, claim)
        path.write_bytes(data)
        assert numbers(open_domain([path], 40)) == list(range(20))


def test_every_nth_frame_is_taken_and_keeps_its_number_in_the_film(tmp_path):
    video = write_video(tmp_path / "v.mp4", np.cumsum([40, 7, 333] * 7).tolist())
    domain = open_domain([video], 40, cache=FrameCache(stride=4))
    assert numbers(domain) == [item.frame for item in domain.items] == [0, 4, 8, 12, 16, 20]


def test_a_dry_run_counts_the_frames_and_writes_nothing(tmp_path, cache):
    video = write_video(tmp_path / "v.mp4", range(0, 400, 40))
    domain = open_domain([video], 16, cache=FrameCache(dry_run=True))
    assert len(domain) == 10 and domain.undecoded == 10 * 20 * 27 * 3 and not cache.exists()
    assert len(open_domain([video], 16, cache=FrameCache(3, dry_run=True))) == 4
    open_domain([video], 16)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = open_domain([video], 16, cache=FrameCache(dry_run=True))
    assert again.undecoded == 0 and numbers(again) == numbers(open_domain([video], 16))
    assert before.keys() == set(cache.rglob("*"))


def test_a_dry_run_is_no_use_of_a_film_that_is_there(tmp_path, cache):
    video = write_video(tmp_path / "v.mp4", [0, 40])
    open_domain([video], 16)
    forget_locks()
    (kept,) = cache.rglob("*.rgb")
    os.utime(kept, ns=(1, 1))
    assert numbers(open_domain([video], 16, cache=FrameCache(dry_run=True))) == [0, 1]
    assert kept.stat().st_mtime_ns == 1 and not frame_cache._held


def test_a_film_of_another_size_is_another_although_its_time_is_the_same(tmp_path):
    long, short = (write_video(tmp_path / f"{n}.mp4", range(0, 40 * n, 40)) for n in (5, 2))
    for video in (long, short):
        os.utime(video, ns=(1, 1))
    assert len(open_domain([long], 16)) == 5
    short.replace(long)
    assert len(open_domain([long], 16)) == 2


def test_films_beyond_the_limit_are_refused_before_any_is_decoded(tmp_path, cache):
    for i in range(3):
        write_video(tmp_path / "d" / f"{i}.mp4", range(0, 400, 40))
    one = 10 * 20 * 27 * 3
    for dry_run in (False, True):
        with pytest.raises(UsageError, match=r"(?s)frames.*raise frame_cache_gigabytes.*RFP_CACHE.*frame_stride"):
            open_domain([tmp_path / "d"], 16, cache=FrameCache(1, 3 * one - 1, dry_run))
    assert not list(cache.rglob("*.rgb"))
    assert len(open_domain([tmp_path / "d"], 16, cache=FrameCache(1, 3 * one))) == 30


def test_room_is_never_made_of_films_that_are_wanted_beside_the_one_that_needs_it(tmp_path, cache):
    new, there, other = (write_video(tmp_path / f"{n}.mp4", range(0, 400, 40)) for n in range(3))
    one = 10 * 20 * 27 * 3
    for film in (there, other):
        open_domain([film], 16)
    forget_locks()
    kept = sorted(cache.rglob("*.rgb"))
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="frame_cache_gigabytes"):  # before anything is decoded or dropped
            open_domain([new, there], 16, cache=FrameCache(1, 2 * one - 1, dry_run))
        assert sorted(cache.rglob("*.rgb")) == kept
    notes = []
    assert numbers(open_domain([new, there], 16, 0, notes.append, FrameCache(limit=2 * one))) == 2 * list(range(10))
    assert [note.split()[0] for note in notes] == ["dropping", "decoding"]


def test_room_is_never_made_of_films_of_the_other_domain_of_the_run(tmp_path, cache):
    """Domain 1's film is in the cache, unused: decoding domain 0's dropped it, to be decoded again at once."""
    new, there, idle = (write_video(tmp_path / f"{n}.mp4", range(0, 400, 40)) for n in range(3))
    one = 10 * 20 * 27 * 3
    for film in (there, idle):
        open_domain([film], 16)
        time.sleep(0.01)
    forget_locks()
    room = {"max_size": 16, "frame_cache_gigabytes": 2 * one / 10**9, "saliency_loss_weight": 0}
    for dry_run in (True, False):
        listener = Listener()
        run = open_run(Job(tiny(**room), (new,), (there,), tmp_path / "run", device="cpu"), listener, dry_run)
        assert run.domain1.undecoded == 0 and numbers(run.domain1) == list(range(10))
    assert numbers(run.domain0) == list(range(10))
    assert [note.split()[0] for note in listener.notes] == ["dropping", "decoding"]
    forget_locks()
    room["frame_cache_gigabytes"] = 2 * one / 10**9 - 1e-9
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="frame_cache_gigabytes"):
            open_run(Job(tiny(**room), (idle,), (there,), tmp_path / "run", device="cpu"), listener, dry_run)
    assert len(list(cache.rglob("*.rgb"))) == 2


def test_a_film_that_has_more_frames_than_were_counted_stops_at_the_limit(tmp_path, cache, monkeypatch):
    video = write_video(tmp_path / "v.mp4", range(0, 4000, 40))
    monkeypatch.setattr(frame_cache, "survey", lambda *args: frame_cache.Survey(1, 20, 27))
    monkeypatch.setattr(frame_cache, "CHECK_EVERY", 20 * 27 * 3 * 5)
    with pytest.raises(UsageError, match="frame_cache_gigabytes"):
        open_domain([video], 16, cache=FrameCache(limit=20 * 27 * 3 * 50))
    assert not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size]


def test_a_full_disk_is_an_error_and_not_a_shorter_film(tmp_path, cache, monkeypatch):
    video = write_video(tmp_path / "v.mp4", range(0, 400, 40))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(UsageError, match=r"0\.00 GB free on the disk; raise"):
        open_domain([video], 16)
    monkeypatch.undo()
    monkeypatch.setenv("RFP_CACHE", str(cache))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left on device; raise frame_cache_gigabytes"):
        open_domain([video], 16)


def test_a_cache_folder_that_cannot_be_is_an_error(tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", [0])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RFP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be kept there: .*RFP_CACHE"):
        open_domain([video], 16)


def test_room_is_made_by_what_is_idle_the_least_recently_used_first_and_never_by_what_is_in_use(tmp_path, cache):
    videos = [write_video(tmp_path / f"{i}.mp4", range(0, 400, 40)) for i in range(4)]
    limit = FrameCache(limit=3 * 10 * 20 * 27 * 3)
    notes = []

    def kept():
        return {json.loads(p.read_text())["video"][-5] for p in (cache / "frames").glob("*.json")}

    for i in (0, 1, 2):
        open_domain([videos[i]], 16, 0, notes.append, limit)
        forget_locks()
        time.sleep(0.01)
    first = open_domain([videos[0]], 16, 0, notes.append, limit)  # used again, and held
    open_domain([videos[3]], 16, 0, notes.append, limit)
    assert kept() == {"0", "2", "3"} and any(n.startswith("dropping frames that nothing uses") for n in notes)
    open_domain([videos[1]], 16, 0, notes.append, limit)  # 0 and 3 are held
    assert kept() == {"0", "1", "3"} and numbers(first) == list(range(10))
    with pytest.raises(UsageError, match="in use"):
        open_domain([videos[2]], 16, 0, notes.append, limit)
    assert kept() == {"0", "1", "3"}


def test_use_counts_a_dry_run_drops_nothing_and_a_film_as_large_as_the_room_fits(tmp_path, cache, monkeypatch):
    videos = [write_video(tmp_path / f"{i}.mp4", range(0, 400, 40)) for i in range(3)]
    one = 10 * 20 * 27 * 3
    for i in (0, 1, 0):
        open_domain([videos[i]], 16)
        forget_locks()
        time.sleep(0.01)
    open_domain([videos[2]], 16, cache=FrameCache(limit=2 * one, dry_run=True))
    assert len(list(cache.rglob("*.rgb"))) == 2
    open_domain([videos[2]], 16, cache=FrameCache(limit=2 * one))
    assert open_domain([videos[0]], 16, cache=FrameCache(dry_run=True)).undecoded == 0
    assert open_domain([videos[1]], 16, cache=FrameCache(dry_run=True)).undecoded == one
    forget_locks()
    monkeypatch.setattr(frame_cache, "CHECK_EVERY", 20 * 27 * 3 * 3)
    assert len(open_domain([videos[1]], 16, cache=FrameCache(limit=one))) == 10


def test_a_film_without_frames_is_left_to_others(tmp_path, cache, monkeypatch):
    """Whoever else wants it is told the same, and need not wait for this process to end."""

    def none(media, *args):
        raise MediaError(f"{media}: holds no frame")

    monkeypatch.setattr(frame_cache, "read", none)
    film = write_video(tmp_path / "a.mp4", [0, 40])
    with pytest.raises(UsageError, match="holds no frame"):
        open_domain([film], 16, 1 << 20)
    (name,) = (cache / "frames").glob("*.lock")
    with name.open("r+") as other:
        assert lock(other.fileno(), shared=False, wait=False)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_film_whose_decoding_was_given_up_is_left_to_others(tmp_path, cache, monkeypatch, error):
    def given_up(*args):
        raise error

    monkeypatch.setattr(frame_cache, "write_json", given_up)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        open_domain([write_video(tmp_path / "a.mp4", [0, 40])], 16)
    (name,) = (cache / "frames").glob("*.lock")
    with name.open("r+") as other:
        assert lock(other.fileno(), shared=False, wait=False)


def test_what_a_killed_process_left_counts_once_and_makes_room(tmp_path, cache):
    one = 10 * 20 * 27 * 3
    left = cache / "frames" / ".0123.partial.rgb"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(one))
    videos = [write_video(tmp_path / f"{i}.mp4", range(0, 400, 40)) for i in range(2)]
    open_domain([videos[0]], 16, cache=FrameCache(limit=2 * one))
    assert left.exists()
    open_domain([videos[1]], 16, cache=FrameCache(limit=2 * one))
    assert not left.exists()


@pytest.mark.parametrize("left", [".{}.partial.rgb", "{}.rgb"])
def test_what_a_killed_process_left_of_a_film_takes_no_room_from_that_film(tmp_path, cache, left):
    one, video = 10 * 20 * 27 * 3, write_video(tmp_path / "v.mp4", range(0, 400, 40))
    open_domain([video], 16)
    forget_locks()
    (kept,) = cache.rglob("*.rgb")
    kept.rename(kept.with_name(left.format(kept.stem)))
    kept.with_suffix(".json").unlink()
    assert len(open_domain([video], 16, cache=FrameCache(limit=one))) == 10


def test_the_length_of_a_film_takes_no_memory(tmp_path):
    most = []
    for frames in (40, 400):
        video = write_video(tmp_path / f"{frames}.mp4", range(0, frames * 40, 40))
        tracemalloc.start()
        frame_cache.open_films(discover([video]), 48, FrameCache(), print)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < most[0] + 400_000  # the frames between them take 3.3 MB


DECODE = """
import sys
from pathlib import Path
from rfp.train.domains import open_domain
domain = open_domain([Path(sys.argv[1])], 40, 0, lambda text: print(text, flush=True))
import hashlib
print(len(domain), hashlib.md5(domain.items[0].frames.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_processes_that_want_one_film_at_once_decode_it_once_and_a_killed_one_leaves_nothing_wrong(tmp_path, cache):
    video = write_video(tmp_path / "v.mp4", range(0, 255 * 40, 40))
    command = [sys.executable, "-c", DECODE, str(video)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline().startswith("decoding about 255 frames")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    texts = [child.communicate(timeout=60)[0] for child in children]
    assert sum("decoding" in text for text in texts) == 1
    assert len({text.splitlines()[-1] for text in texts}) == 1
    assert numbers(open_domain([video], 40)) == list(range(255))
    assert len(list(cache.rglob("*.rgb"))) == 1 and not list(cache.rglob(".*.rgb"))


@pytest.mark.parametrize("text", ['{"frames": 1e400, "height": 1, "width": 1, "problem": ""}', "[" * 200_000])
def test_a_description_that_is_none_is_made_anew(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    (tmp_path / "x.rgb").write_bytes(bytes(3))
    assert frame_cache._cached(tmp_path / "x") is None
