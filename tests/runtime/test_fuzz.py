"""Bad input: it ends as done or as one line that names the file, and the rest of the batch is done.

RFP_FUZZ is how many damaged files of each kind are tried: a few here, and 250 by `make fuzz`.
"""

import errno
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import bundles
import corpus
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rfp.runtime import BundleError, FlowOptions, RfpError, load_bundle, pictures, translate

EACH = int(os.environ.get("RFP_FUZZ", "16"))
SEED = int(os.environ.get("RFP_FUZZ_SEED", "0"))
QUICK = FlowOptions(steps=1, size="native", threads=1)
fuzzed = settings(
    max_examples=EACH,
    deadline=None,
    database=None,
    derandomize=not SEED,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(bundles.write_bundle(tmp_path_factory.mktemp("fuzz") / "bundle", bundles.blur()))


def files(folder):
    return {p for p in folder.rglob("*") if not p.is_dir() and p.suffix != ".jsonl"}


def check(bundle, sources, out):
    """Translate files and judge how each ended; a refusal of the whole is tried again file by file."""
    try:
        report = translate(bundle, sources, out, flow=QUICK)
    except RfpError as e:
        message = str(e)
        assert len(message.splitlines()) == 1 and any(str(s) in message for s in sources), message
        assert not files(out), "something was begun before the refusal"
        if len(sources) > 1:
            for i, source in enumerate(sources):
                check(bundle, [source], out / f"alone{i}")
        return
    resumable = set()
    for event in report.failed:
        reason = event.message.replace(event.source, "")  # a name may hold a newline, which the command escapes
        assert len(reason.splitlines()) == 1 and len(event.message) < 2000, event.message
        assert event.source in event.message or str(event.target) in event.message, event.message
        if "goes on after" in event.message:
            resumable.add(event.target.with_name(f".{event.target.name}.segments"))
    named = [event.source.partition("::")[0] for event in (*report.done, *report.failed)]
    assert {str(s) for s in sources if s.suffix != ".zip"} <= set(named)
    targets = {event.target for event in (*report.done, *report.failed)}
    assert {event.target for event in report.done} <= {p for p in files(out) if p.parent not in resumable} <= targets, (
        "left over, or not there"
    )


def write_damaged(folder, kind, count):
    folder.mkdir()
    rng = np.random.default_rng([SEED, zlib.crc32(kind.encode())])
    whole = corpus.samples(kind, folder.parent / "whole")
    paths = [folder / f"{i}.{kind}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(corpus.damaged(whole[i % len(whole)], rng))
    return paths


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "tif", "mp4", "mkv", "webm", "zip"])
@pytest.mark.timeout(1800)
def test_damaged_media_end_as_done_or_as_one_line(bundle, tmp_path, kind):
    paths = write_damaged(tmp_path / "in", kind, EACH)
    (tmp_path / "in" / "whole.png").write_bytes(corpus.image("PNG"))
    for i in range(0, EACH, 50):
        check(bundle, [*paths[i : i + 50], tmp_path / "in" / "whole.png"], tmp_path / f"out{i}")
        assert (tmp_path / f"out{i}" / "whole.png").exists() or kind == "zip"


GRAPHS = """
import resource, sys
from pathlib import Path
from rfp.runtime import FlowOptions, RfpError, translate
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for i, graph in enumerate(sys.argv[3:]):
    print("next:", graph, flush=True)
    try:
        report = translate(graph, [sys.argv[1]], f"{sys.argv[2]}/{i}", flow=FlowOptions(steps=2, threads=1))
        messages = [e.message for e in report.failed]
    except RfpError as e:
        messages = [str(e)]
        assert graph in str(e), e
    for message in messages:
        assert len(message.splitlines()) == 1, message
"""


@pytest.mark.timeout(1800)
def test_damaged_graphs_end_as_done_or_as_one_line_in_bounded_memory(tmp_path):
    graphs = write_damaged(tmp_path / "in", "onnx", EACH)
    (tmp_path / "a.png").write_bytes(corpus.image("PNG"))
    command = [sys.executable, "-c", GRAPHS, tmp_path / "a.png", tmp_path / "out", *graphs]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert ran.returncode == 0, (ran.returncode, ran.stdout.splitlines()[-1:], ran.stderr[-2000:])


def test_damaged_manifests_are_refused_by_name_or_understood(tmp_path, bundle):
    whole = bundle.path.with_name("rfp.json").read_bytes()
    rng = np.random.default_rng(SEED)
    (tmp_path / "velocity.onnx").write_bytes(bundle.model)
    for _ in range(EACH):
        (tmp_path / "rfp.json").write_bytes(corpus.damaged(whole, rng))
        _manifest_is_judged(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@fuzzed
@given(data=st.data())
def test_manifests_with_any_value_anywhere_are_refused_by_name_or_understood(bundle, data):
    values = json.loads(bundle.path.with_name("rfp.json").read_bytes())
    place = values if data.draw(st.booleans()) else values["graphs"][0]
    place[data.draw(st.sampled_from(sorted(place)) | st.text())] = data.draw(json_values)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "velocity.onnx").write_bytes(bundle.model)
        (Path(folder) / "rfp.json").write_text(json.dumps(values))
        _manifest_is_judged(Path(folder))


def _manifest_is_judged(folder):
    try:
        load_bundle(folder)
    except RfpError as e:
        assert len(str(e).splitlines()) == 1 and str(folder) in str(e)


MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 ", b"GIF89a", b"II*\0", b"BM", b"PK\3\4"]
MAGIC += [b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF\x40\0\0\0AVI ", b"#EXTM3U\n", b"\0\0\1\xba"]


@fuzzed
@given(
    start=st.sampled_from(MAGIC),
    rest=st.binary(max_size=300),
    suffix=st.sampled_from(["png", "jpg", "webp", "tif", "bmp", "mp4", "mkv", "webm", "avi", "mpg", "zip", "gif"]),
)
def test_any_bytes_under_any_suffix(bundle, start, rest, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(start + rest)
        check(bundle, [path], Path(folder) / "out")


@fuzzed
@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4, unique=True))
def test_zips_with_any_names(bundle, names):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(f"{name}.png"), corpus.image("PNG"))
        check(bundle, [path], Path(folder) / "out")
        assert {p.name for p in Path(folder).iterdir()} <= {"a.zip", "out"}


LIMITED = """
import resource, sys
from rfp.__main__ import main
for limit in sys.argv.pop(1).split(","):
    name, value = limit.split("=")
    resource.setrlimit(getattr(resource, name), (int(value), int(value)))
main()
"""


def rfp(*arguments, limits=f"RLIMIT_AS={6 << 30}"):
    command = [sys.executable, "-c", LIMITED, limits, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=240)


def odd(folder):
    """Files that end as done and files that fail, by name."""
    png = corpus.image("PNG")
    good = {
        b"two words.png": png,
        b"new\nline.png": png,
        b"br[ac]k*ets?.png": png,
        b"\x1b[31mred.png": png,
        b"not utf-8 \xff.png": png,
        b"jpeg inside.png": corpus.image("JPEG"),
        b"16 bit.png": corpus.image("PNG", "I;16"),
        b"cmyk.jpg": corpus.image("JPEG", "CMYK"),
        b"palette.png": corpus.image("PNG", "P", transparency=3),
        b"film.mp4": corpus.film("mp4"),
        b"film \xfe\n.mkv": corpus.film("mkv"),
    }
    bad = {
        b"zero.png": b"",
        b"zero.mp4": b"",
        b"zero.zip": b"",
        b"cut.png": png[:-60],
        b"cut.jpg": corpus.image("JPEG")[:200],
        b"cut.mp4": good[b"film.mp4"][:600],
        b"film.png": good[b"film.mp4"],
        b"picture.mp4": png,
        b"playlist.mp4": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"bomb.png": corpus.png_of(30_000, 30_000),
        b"wide bomb.png": corpus.png_of(2**31 - 1, 2**31 - 1),
        b"bad \xff\n.png": b"no",
    }
    for name, data in (good | bad).items():
        (folder / os.fsdecode(name)).write_bytes(data)
    for width, height in ((1, 1), (1, 20_000), (20_000, 1)):
        corpus.Image.new("RGB", (width, height)).save(folder / f"{width}x{height}.png")
    return len(good) + 3, len(bad)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="names and limits are those of Unix")
def test_a_folder_of_oddities_is_done_but_for_the_bad_ones_each_in_one_line(bundle, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good, bad = odd(folder)
    (folder / "up").symlink_to(folder)
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "nowhere.png").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.png")
    ran = rfp("translate", bundle.path.parent, folder, "-o", folder / "out", "--steps", 1, "--size", "native")
    said = (ran.stdout + ran.stderr).decode("utf-8")  # strictly: what reaches the terminal is text
    assert ran.returncode == 1 and "Traceback" not in said and "\x1b" not in said, said
    lines = [line for line in ran.stdout.decode().splitlines() if line.startswith("failed: ")]
    bad += 2  # the links that lead nowhere; the one to the folder itself is passed over
    assert len(lines) == bad and all(str(folder) in line for line in lines), said
    assert "900000000 pixels" in said and r"bad \udcff\n.png" in said
    whole = {p for p in files(folder / "out") if not p.name.startswith("cut.mp4")}
    assert len(whole) == good and not [p for p in whole if p.name.startswith(".")], whole
    again = rfp(
        "translate", bundle.path.parent, folder, "-o", folder / "out", "--steps", 1, "--size", "native", "--json"
    )
    assert again.returncode == 1, again.stderr
    values = json.loads(again.stdout)
    assert (values["done"], values["skipped"], values["failed"]) == (0, good, bad)
    assert any("bad \udcff\n.png" in failure["source"] for failure in values["failures"])


@pytest.mark.parametrize("place", ["file", "proc", "loop", "long"])
def test_outputs_that_cannot_be_written_fail_by_name(bundle, tmp_path, place):
    outputs = {
        "file": tmp_path / "file" / "below",
        "proc": Path("/proc/rfp"),  # where root may not write either
        "loop": tmp_path / "loop" / "below",
        "long": tmp_path / ("x" * 300),
    }
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "in").mkdir()
    for name, data in (("a.png", corpus.image("PNG")), ("b.mp4", corpus.film("mp4"))):
        (tmp_path / "in" / name).write_bytes(data)
    try:
        report = translate(bundle, [tmp_path / "in"], outputs[place], flow=QUICK)
    except RfpError as e:
        assert str(outputs[place]) in str(e) and len(str(e).splitlines()) == 1
    else:
        assert not report.done and [str(e.source) in e.message or str(e.target) in e.message for e in report.failed]
        assert len(report.failed) == 2


def test_links_that_go_round_are_no_input_and_no_output(bundle, tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    (tmp_path / "a.png").write_bytes(corpus.image("PNG"))
    with pytest.raises(RfpError, match=r"loop\.png: no such file"):
        translate(bundle, [loop], tmp_path / "out")
    report = translate(bundle, [tmp_path / "a.png"], loop, flow=QUICK)
    assert len(report.done) + len(report.skipped) == 1 and tmp_path / "a.png" in files(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_in_place_of_files_are_refused_unread(bundle, tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(RfpError, match=r"a\.png"):
        translate(bundle, [tmp_path / "a.png"], tmp_path / "out")
    make(tmp_path / "rfp.json")
    with pytest.raises(BundleError, match=r"rfp\.json"):
        load_bundle(tmp_path)


def test_one_stem_with_two_suffixes(bundle, tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(corpus.image("PNG"))
    assert len(translate(bundle, [tmp_path], tmp_path / "out", flow=QUICK).done) == 2
    for name in ("a.mp4", "a.avi"):
        (tmp_path / name).write_bytes(corpus.film("mp4"))
    report = translate(bundle, [tmp_path], tmp_path / "out", flow=QUICK)
    assert [e.source for e in report.done] == [str(tmp_path / "a.avi")]
    assert [e.message for e in report.failed] == [
        f"{tmp_path / 'a.mp4'}: would become {tmp_path / 'out' / 'a.mp4'}, as {tmp_path / 'a.avi'} does; rename one"
    ]


def test_zip_members_that_do_not_unpack_fail_alone(bundle, tmp_path):
    data = bytearray(corpus.archive())
    with zipfile.ZipFile(corpus.BytesIO(data)) as archive:
        for info in archive.infolist()[1:]:
            at = info.header_offset + 30 + len(info.filename) + 9
            data[at : at + 40] = bytes([255]) * 40
    (tmp_path / "b.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("n.png", corpus.image("PNG"))
    nameless = (tmp_path / "a.zip").read_bytes().replace(b"n.png", b"\0.png")
    (tmp_path / "a.zip").write_bytes(nameless)
    (tmp_path / "c.png").write_bytes(corpus.image("PNG"))
    report = translate(bundle, [tmp_path], tmp_path / "out", flow=QUICK)
    assert {Path(e.source).name for e in report.done} == {"b.zip::stored.png", "c.png"}
    assert {e.source.partition("b.zip::")[2] for e in report.failed} == {"b/10.bmp", "c/10.bmp", "d/10.bmp"}


def test_zip_members_with_names_of_any_length(bundle, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("9" * 5000, "x" * 300, "fine"):
            archive.writestr(f"{name}.png", corpus.image("PNG"))
    report = translate(bundle, [tmp_path / "a.zip"], tmp_path / "out", flow=QUICK)
    assert len(report.done) == 1 and len(report.failed) == 2


def test_a_manifest_that_leads_out_of_its_folder_or_names_no_file(bundle, tmp_path):
    values = json.loads(bundle.path.with_name("rfp.json").read_bytes())
    for name in ("../velocity.onnx", "/etc/passwd", "\ud800.onnx", "x" * 300, "pipe"):
        values["graphs"][0]["file"] = name
        (tmp_path / "rfp.json").write_text(json.dumps(values))
        (tmp_path / "pipe").exists() or os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BundleError) as e:
            load_bundle(tmp_path)
        assert len(str(e.value).splitlines()) == 1


def test_graphs_with_operators_of_their_own_and_of_other_shapes(tmp_path):
    (tmp_path / "a.png").write_bytes(corpus.image("PNG"))
    custom = bundles.identity()
    custom.graph.node[-1].domain, custom.graph.node[-1].op_type = "evil.example", "Run"
    custom.opset_import.add(domain="evil.example", version=1)
    small = bundles.identity()
    small.graph.node[-1].op_type = "ReduceMean"
    for i, model in enumerate((custom, small)):
        with pytest.raises(BundleError, match=r"velocity\.onnx|velocity graph"):
            translate(bundles.write_bundle(tmp_path / str(i), model), [tmp_path / "a.png"], tmp_path / "out")
    assert not files(tmp_path / "out")


@pytest.fixture
def full_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_for_a_moment_costs_no_picture(bundle, tmp_path, monkeypatch):
    source = tmp_path / "small.png"
    source.write_bytes(corpus.image("PNG"))
    tries = []

    def save_picture(*args):
        tries.append(args)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pictures.save_picture(*args)

    monkeypatch.setattr("rfp.runtime.saving.save_picture", save_picture)
    report = translate(bundle, [source], tmp_path / "out", flow=QUICK)
    assert len(tries) == 2 and [e.target.name for e in report.done] == ["small.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk_fails_what_does_not_fit_and_leaves_nothing_half(bundle, tmp_path, full_disk):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    (tmp_path / "in" / "small.png").write_bytes(corpus.image("PNG"))
    for suffix in ("png", "tif", "webp"):
        corpus.Image.fromarray(noise).save(tmp_path / "in" / f"large.{suffix}")
    (tmp_path / "in" / "film.mp4").write_bytes(corpus.film("mp4"))
    (full_disk / "filler").write_bytes(bytes(1 << 15))
    report = translate(bundle, [tmp_path / "in"], full_disk, flow=QUICK)
    assert {Path(e.source).stem for e in report.failed} >= {"large"}
    assert "small.png" in {Path(e.source).name for e in report.done}
    resumable = any("goes on after" in e.message for e in report.failed)
    left = {p for p in files(full_disk) if not (resumable and p.parent.name == ".film.mp4.segments")}
    assert left == {full_disk / "filler", *(e.target for e in report.done)}
