import json
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import BundleError, FlowOptions, UsageError, load_bundle, translate
from rfp.runtime import flow as flow_module
from rfp.runtime import images as images_module
from rfp.runtime.discovery import discover
from rfp.runtime.media import read_image


def picture(seed, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def load(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def make(tmp_path):
    def bundle(model=None, **changes):
        return load_bundle(bundles.write_bundle(tmp_path / "bundle", model or bundles.identity(), **changes))

    return bundle


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "in put [1]"
    for i in range(5):
        save(folder / "sub (a)" / f"frame {i}.PNG", picture(i, 24 + 8 * (i % 2)))
    return folder


def names(folder):
    """Of all files but the ledger."""
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in files if not name.startswith("translate"))


def test_no_velocity_gives_every_level_back(make, tmp_path):
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    source = save(tmp_path / "a.png", levels)
    report = translate(make(), [source], tmp_path / "b.png", flow=FlowOptions(size="native", steps=3))
    assert np.array_equal(load(tmp_path / "b.png"), levels) and len(report.done) == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("reverse", [False, True])
def test_euler_steps_meet_the_exact_answers(make, tmp_path, steps, reverse):
    pixels = picture(0)
    x = pixels / 127.5 - 1
    source = save(tmp_path / "a.png", pixels)
    sign = -1 if reverse else 1
    t = (np.arange(steps) / steps) if not reverse else 1 - np.arange(steps) / steps
    answers = {
        "towards": (bundles.towards(0.25), 0.25 + (1 - sign / steps) ** steps * (x - 0.25)),
        "cubic": (bundles.cubic(), x + sign * (3 * t**2).sum() / steps),
    }
    for name, (model, exact) in answers.items():
        translate(make(model), [source], tmp_path / f"{name}.png", flow=FlowOptions(steps=steps, reverse=reverse))
        wanted = np.clip((exact + 1) * 127.5, 0, 255)
        assert np.abs(load(tmp_path / f"{name}.png") - wanted).max() <= 0.501


def test_edges_are_padded_by_reflection_and_cropped_back(make, tmp_path):
    pixels = picture(1, 21, 19)
    bundle, source = make(bundles.blur(), multiple=8), save(tmp_path / "a.png", pixels)
    translate(bundle, [source], tmp_path / "b.png", flow=FlowOptions(steps=1, size=19))
    padded = np.pad(pixels / 127.5 - 1, ((0, 3), (0, 5), (0, 0)), mode="reflect")
    ring = np.pad(padded, ((1, 1), (1, 1), (0, 0)))
    mean = sum(ring[i : i + 24, j : j + 24] for i in range(3) for j in range(3)) / 9
    assert np.abs(load(tmp_path / "b.png") - (mean[:21, :19] + 1) * 127.5).max() <= 0.51


def test_the_batch_does_not_change_a_result(make, tmp_path, photos):
    bundle = make(bundles.blur())
    for batch in (1, 2, 5, "auto"):
        translate(bundle, [photos], tmp_path / f"out{batch}", flow=FlowOptions(batch=batch))
    for name in names(photos):
        first = load(tmp_path / "out1" / name)
        assert all(np.array_equal(load(tmp_path / f"out{b}" / name), first) for b in (2, 5, "auto"))


@pytest.mark.parametrize(
    ("size", "wanted"), [("model", (64, 32)), (16, (32, 16)), ("native", (90, 45)), (33, (66, 33))]
)
def test_the_short_side_gets_the_size_and_the_aspect_stays(make, tmp_path, size, wanted):
    source = save(tmp_path / "a.png", picture(0, 45, 90))
    translate(make(), [source], tmp_path / "b.png", flow=FlowOptions(size=size))
    assert load(tmp_path / "b.png").shape[1::-1] == wanted


def test_a_tree_is_mirrored_with_its_names_and_formats(make, tmp_path, photos):
    for suffix in ("jpg", "JPEG", "webp", "bmp", "tiff"):
        save(photos / f"é{suffix}.{suffix}", picture(0))
    report = translate(make(), [photos], tmp_path / "out")
    assert names(tmp_path / "out") == names(photos) and not report.failed
    with Image.open(tmp_path / "out" / "éJPEG.JPEG") as jpeg:
        assert jpeg.format == "JPEG" and jpeg.layer[0][1:3] == (1, 1)  # 4:4:4


def test_what_is_there_is_skipped_and_overwrite_does_it_again(make, tmp_path, photos):
    translate(make(), [photos], tmp_path / "out")
    (tmp_path / "out/sub (a)/frame 0.PNG").unlink()
    again = translate(make(), [photos], tmp_path / "out")
    assert (len(again.done), len(again.skipped)) == (1, 4)
    assert len(translate(make(), [photos], tmp_path / "out", overwrite=True).done) == 5


def test_a_bad_file_fails_by_name_and_the_others_are_done(make, tmp_path, photos):
    (photos / "torn.png").write_bytes((photos / "sub (a)/frame 0.PNG").read_bytes()[:300])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "bad.zip").write_bytes(b"PK no")
    (photos / "bad.mp4").write_bytes(b"no video")
    header = bytearray((photos / "sub (a)/frame 0.PNG").read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (photos / "huge.png").write_bytes(header)
    report = translate(make(), [photos], tmp_path / "out")
    assert len(report.done) == 5 and names(tmp_path / "out") == [f"sub (a)/frame {i}.PNG" for i in range(5)]
    said = {Path(e.source).name: e.message for e in report.failed}
    assert sorted(said) == ["bad.mp4", "bad.zip", "empty.jpg", "huge.png", "torn.png"]
    assert "60000" in said["huge.png"] and all(name in message for name, message in said.items())


def test_two_inputs_for_one_output_are_refused_before_any_work(make, tmp_path):
    for folder in ("a", "b"):
        save(tmp_path / folder / "x.png", picture(0))
    with pytest.raises(UsageError, match=r"would both become"):
        translate(make(), [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_are_never_overwritten(make, tmp_path, photos):
    file = photos / "sub (a)" / "frame 0.PNG"
    before = file.read_bytes()
    for inputs, output in (([photos], photos), ([file], file), ([file], file.parent), ([file], photos / "sub (a)")):
        with pytest.raises(UsageError, match="never overwritten"):
            translate(make(bundles.towards(0)), inputs, output, overwrite=True)
    assert file.read_bytes() == before


def test_an_output_inside_the_input_is_not_translated_again(make, tmp_path, photos):
    for _ in range(2):
        translate(make(bundles.towards(0)), [photos], photos / "out", overwrite=True)
    assert names(photos / "out") == [f"sub (a)/frame {i}.PNG" for i in range(5)]


def test_a_zip_becomes_a_folder_and_no_member_leaves_it(make, tmp_path):
    data = save(tmp_path / "a.png", picture(0)).read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("in/a.png", "../evil.png", "/abs.png", "in/../../up.png", "__MACOSX/a.png", ".hidden.png"):
            archive.writestr(name, data)
    report = translate(make(), [tmp_path / "set.zip"], tmp_path / "out")
    assert names(tmp_path / "out") == ["set/in/a.png"] and len(report.done) == 1
    assert not (tmp_path / "evil.png").exists() and not (tmp_path / "up.png").exists()


def test_every_kind_of_picture_comes_out_as_upright_rgb_over_white(make, tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    folder = tmp_path / "in"
    save(folder / "grey.png", grey)
    save(folder / "deep.png", grey.astype(np.uint16) * 257)
    Image.fromarray(grey).convert("P").save(folder / "palette.png")
    Image.fromarray(grey).convert("CMYK").save(folder / "cmyk.tif")
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    save(folder / "clear.png", clear)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    save(folder / "turned.png", np.dstack([grey] * 3), exif=exif)
    assert not translate(make(), [folder], tmp_path / "out").failed
    for name in ("grey.png", "deep.png", "palette.png"):
        assert np.abs(load(tmp_path / "out" / name)[..., 1].astype(int) - grey).max() <= 1
    assert np.abs(load(tmp_path / "out/cmyk.tif")[..., 1].astype(int) - grey).max() <= 3
    assert (load(tmp_path / "out/clear.png") == 255).all()
    assert np.array_equal(load(tmp_path / "out/turned.png")[..., 0], np.rot90(grey, -1))


def test_options_out_of_range_are_refused(make, tmp_path, photos):
    wrongs = {"steps": (0, 2.5), "size": (0, 10**6, "big"), "batch": (0, "many"), "threads": (0, True)}
    for name, wrong in ((name, wrong) for name, values in wrongs.items() for wrong in values):
        with pytest.raises(UsageError, match=name):
            FlowOptions(**{name: wrong})
    with pytest.raises(UsageError, match=r"steps is np.int64\(4\); wanted 1 to 10000"):
        FlowOptions(steps=np.int64(4))
    with pytest.raises(UsageError, match="no such file"):
        translate(make(), [tmp_path / "nowhere"], tmp_path / "out")
    for one in (photos, str(photos)):
        with pytest.raises(UsageError, match="inputs is the one path"):
            translate(make(), one, tmp_path / "out")
    with pytest.raises(UsageError, match="cannot be written"):
        translate(make(), [photos / "sub (a)/frame 0.PNG"], tmp_path / "out.mp4")
    with pytest.raises(BundleError):
        translate(tmp_path, [photos], tmp_path / "out")


def test_a_picture_beyond_the_memory_fails_before_the_net_sees_it(make, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(flow_module, "MOST_PIXELS", 2000)
    save(photos / "strip.png", picture(0, 2, 300))
    report = translate(make(), [photos], tmp_path / "out")
    assert len(report.done) == 5 and "4800×32 px" in report.failed[0].message


def test_values_that_are_not_finite_fail_the_picture(make, tmp_path, photos):
    report = translate(make(bundles.towards(float("nan"))), [photos], tmp_path / "out")
    assert len(report.failed) == 5 and "not finite" in report.failed[0].message


def test_a_picture_that_cannot_be_written_fails_alone(make, tmp_path, photos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub (a)").write_bytes(b"a file where a folder is needed")
    save(photos / "fine.png", picture(0))
    report = translate(make(), [photos], tmp_path / "out")
    assert len(report.done) == 1 and len(report.failed) == 5 and "cannot be written" in report.failed[0].message


def test_few_pictures_are_held_however_many_there_are(make, tmp_path, monkeypatch):
    data = save(tmp_path / "a.png", picture(0)).read_bytes()
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        (folder / f"{i}.png").write_bytes(data)
    held, most = 0, 0
    decode, write = images_module._decode, images_module.save

    def counted_decode(*args):
        nonlocal held, most
        held += 1
        most = max(most, held)
        return decode(*args)

    def counted_write(*args, **options):
        nonlocal held
        out = write(*args, **options)
        held -= 1
        return out

    monkeypatch.setattr(images_module, "_decode", counted_decode)
    monkeypatch.setattr(images_module, "save", counted_write)
    translate(make(), [folder], tmp_path / "out")
    assert most < 80 and held == 0


KILLED = """import sys
from rfp.runtime import FlowOptions, translate
translate(sys.argv[1], [sys.argv[2]], sys.argv[3], flow=FlowOptions(steps=20))"""


def test_kill_9_leaves_only_whole_files_and_the_next_run_goes_on(make, tmp_path):
    from test_video import write_video

    bundle, folder, out = make(bundles.blur()), tmp_path / "in", tmp_path / "out"
    for i in range(40):
        save(folder / f"{i}.png", picture(i, 64, 64))
    write_video(folder / "z.mp4", frames=90, size=(64, 64))
    translate(bundle, [folder], tmp_path / "whole", flow=FlowOptions(steps=20))
    for moment in (0.5, 0.8, 1.1, 1.6):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(bundle.path), str(folder), str(out)])
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for name in [n for n in names(out) if not n.startswith(".")]:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), f"{name} after {moment} s"
    report = translate(bundle, [folder], out, flow=FlowOptions(steps=20))
    assert not report.failed and names(out) == names(tmp_path / "whole") == names(folder)
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_importing_the_runtime_is_light():
    code = (
        "import sys, json, rfp.runtime; a = 'numpy' in sys.modules; rfp.runtime.translate;"
        "print(json.dumps([a, 'torch' in sys.modules, sorted(set(rfp.runtime.__all__) - set(dir(rfp.runtime)))]))"
    )
    out = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert out[:2] == [False, False]


def test_everything_public_is_there():
    import rfp.runtime

    assert all(getattr(rfp.runtime, name) is not None for name in rfp.runtime.__all__)
    assert callable(rfp.runtime.translate)
    with pytest.raises(AttributeError):
        _ = rfp.runtime.nothing


def test_a_zip_that_changes_is_read_anew(tmp_path):
    for level in (10, 200):
        data = save(tmp_path / "a.png", np.full((4, 4, 3), level, np.uint8)).read_bytes()
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.writestr("a.png", data)
            archive.writestr("pad.txt", b"." * level)
        (item,) = discover([tmp_path / "set.zip"])
        assert np.asarray(read_image(item)).max() == level
