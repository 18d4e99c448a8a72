"""Zips as data: what is passed over, what is refused, and threads that read from one."""

import struct
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rfp.runtime import MediaError, UsageError, media
from rfp.runtime.discovery import discover
from rfp.runtime.media import paths, read_image
from rfp.runtime.plan import plan


@pytest.fixture(autouse=True)
def no_zip_open(monkeypatch):
    monkeypatch.setattr(media, "_zips", {})


def png(level: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(out, "PNG")
    return out.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def patch(path: Path, signature: bytes, offset: int, value: bytes) -> None:
    """Overwrite bytes `offset` after each `signature`."""
    data = bytearray(path.read_bytes())
    at = data.find(signature)
    while at >= 0:
        data[at + offset : at + offset + len(value)] = value
        at = data.find(signature, at + 4)
    path.write_bytes(data)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def test_names_that_lead_out_of_a_zip_or_were_not_put_there_by_a_person_are_passed_over(tmp_path):
    bad = ("/abs.png", "../up.png", "a/../../up.png", "..\\up.png", "C:\\abs.png", "C:/abs.png", "__MACOSX/._a.png")
    good = ("a/b.png", "a..b.png", "10.png", "9.png")
    found = discover([write_zip(tmp_path / "z.zip", dict.fromkeys((*bad, ".hidden.png", *good), png(9)))])
    assert [m.member for m in found] == ["9.png", "10.png", "a..b.png", "a/b.png"]


def test_an_encrypted_member_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "z.zip", {"a.png": png(9)})
    patch(path, LOCAL, 6, struct.pack("<H", 1))
    patch(path, CENTRAL, 8, struct.pack("<H", 1))
    with pytest.raises(MediaError, match=r"z\.zip::a\.png: cannot be read: .*encrypted"):
        read_image(discover([path])[0])


def test_a_member_that_says_it_is_huge_is_refused_unread_and_one_that_lies_gives_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_MEMBER_BYTES", 1 << 20)
    path = write_zip(tmp_path / "z.zip", {"a.png": bytes((1 << 20) + 1)})
    (item,) = discover([path])
    with monkeypatch.context() as unread:
        unread.setattr(zipfile.ZipFile, "open", None)
        with pytest.raises(MediaError, match=r"z\.zip::a\.png: unpacks to more than 1 MiB"):
            item.open()
    patch(path, LOCAL, 22, struct.pack("<I", 100))
    patch(path, CENTRAL, 24, struct.pack("<I", 100))
    with pytest.raises(MediaError, match=r"a\.png"):
        item.open()


def test_a_zip_whose_members_lie_over_one_another_is_refused(tmp_path):
    path = write_zip(tmp_path / "z.zip", {f"{i}.png": bytes(1 << 16) + bytes(range(256)) * 9 for i in range(9)})
    patch(path, CENTRAL, 20, struct.pack("<I", path.stat().st_size // 4))
    with pytest.raises(MediaError, match=r"z\.zip: its members lie over one another"):
        discover([path])


def test_threads_read_from_one_open_zip_each_its_own_member(tmp_path, monkeypatch):
    items = discover([write_zip(tmp_path / "z.zip", {f"{i}.png": png(i) for i in range(200)})])
    opened, init = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *a, **k: opened.append(a) or init(self, *a, **k))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(200), 5))
    with ThreadPoolExecutor(8) as pool:
        levels = list(pool.map(lambda i: read_image(items[i]).getpixel((0, 0))[0], order))
    assert levels == order.tolist() and len(opened) == 1


def test_names_that_a_zip_does_not_call_utf_8_but_that_are_keep_their_letters(tmp_path):
    path = write_zip(tmp_path / "mac.zip", {"ß/日本 ü.png": png(9), "a.png": png(5)})
    patch(path, b"PK\3\4", 6, b"\0\0")
    patch(path, b"PK\1\2", 8, b"\0\0")
    plain, found = discover([path])
    assert (str(plain.relative), str(found.relative)) == ("mac/a.png", "mac/ß/日本 ü.png")
    assert np.asarray(read_image(found)).max() == 9


def test_names_in_letters_of_dos_are_read_as_such(tmp_path):
    path = write_zip(tmp_path / "dos.zip", {"x.png": png(9), "a.png": png(5)})
    path.write_bytes(path.read_bytes().replace(b"x.png", b"\x81.png"))
    _, found = discover([path])
    assert str(found.relative) == "dos/ü.png" and np.asarray(read_image(found)).max() == 9


def test_more_zips_than_are_kept_open_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "ZIPS_OPEN", 2)
    items = [m for i in range(5) for m in discover([write_zip(tmp_path / f"{i}.zip", {"a.png": png(i)})])]
    with ThreadPoolExecutor(4) as pool:
        levels = list(pool.map(lambda i: read_image(items[i % 5]).getpixel((0, 0))[0], range(50)))
    assert levels == [i % 5 for i in range(50)] and len(media._zips) == 2


def test_names_that_no_file_can_have_are_not_there():
    with pytest.raises(UsageError, match="no such file or folder"):
        discover(paths(["x" * 5000]))
    with pytest.raises(UsageError, match="no such file or folder"):
        discover(paths(["~nobody-of-this-name/x"]))


def test_names_are_in_natural_order_through_folders_and_zips(tmp_path):
    order = ["01.png", "1.png", "a 2.png", "A 10.PNG", "b.png", "b/9.png", "b/10.png", "p9.png", "p10/1.png", "ä.png"]
    for name in order:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    write_zip(tmp_path / "in" / "p9 more.zip", {"2.png": b"", "10.png": b"", "sub\\1.png": b""})
    found = discover([tmp_path / "in"])
    order[7:7] = ["p9 more/2.png", "p9 more/10.png", "p9 more/sub/1.png"]
    assert [str(item.relative) for item in found] == order
    assert found[8].member == "10.png" and found[8].path == tmp_path / "in" / "p9 more.zip"
    assert [item.path for item in found[:2]] == [tmp_path / "in" / name for name in order[:2]]


def test_a_plan_holds_the_names_of_its_files_and_little_else(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "picture 0.png").touch()
    for i in range(1, 2000):
        (tmp_path / "in" / f"picture {i}.png").hardlink_to(tmp_path / "in" / "picture 0.png")
    tracemalloc.start()
    jobs = plan([tmp_path / "in"], tmp_path / "out")
    ours = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(True, f"*{m}.py") for m in ("discovery", "plan")]
    )
    tracemalloc.stop()
    assert len(jobs) == 2000 and jobs[1999].target == tmp_path / "out" / "picture 1999.png"
    held = sum(trace.size for trace in ours.traces)  # without Python's own table of interned names
    assert held < 100 * len(jobs)  # bytes; as objects, with their paths, they took 1,400 each


def test_large_members_are_in_memory_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "LARGE_MEMBER", 100)
    path = write_zip(tmp_path / "z.zip", {f"{i}.png": bytes(1000) for i in range(6)} | {"small.png": bytes(50)})
    at_once, most = [0], [0]

    def unpack(archive, name):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.02)
        at_once[0] -= 1
        return b""

    monkeypatch.setattr(media, "read_member", unpack)

    def read(item):
        with pytest.raises(MediaError):
            read_image(item)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, [item for item in discover([path]) if item.member != "small.png"]))
    assert most[0] == 1
    with discover([path])[6].room(), ThreadPoolExecutor(1) as pool:  # a small one waits for none
        pool.submit(read, next(item for item in discover([path]) if item.member == "small.png")).result(timeout=30)
