"""What a folder keeps, what its ledger knows, and how it is split."""

import json
import mimetypes
import os
import sys
import threading
import zipfile
from dataclasses import replace
from io import BytesIO

import bundles
import numpy as np
import pytest
from films import write_video
from PIL import Image, ImageCms, ImageSequence
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational
from rfp.runtime import (
    FilmOptions,
    FlowOptions,
    FolderOptions,
    Graph,
    PictureOptions,
    UsageError,
    images,
    ledger,
    load_bundle,
    media,
    translate,
)
from rfp.runtime.files import lock, write_text
from rfp.runtime.ledger import model_hash

NATIVE = FlowOptions(size="native")


def picture(seed, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.identity()))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(picture(i)).save(tmp_path / "in" / "sub" / f"{i}.png")
    return tmp_path / "in"


def lines(out, name="translate.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def counts(report):
    return len(report.done), len(report.skipped), len(report.failed)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_and_profile_are_kept_and_the_orientation_is_applied(bundle, tmp_path, suffix):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    if suffix != "tiff":  # where it would be the size of the file itself
        exif[0x0100] = 999
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    exif.get_ifd(0x8769)[0xA002] = 999
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(0)).save(source, exif=exif, icc_profile=profile)
    assert not translate(bundle, [source], tmp_path / f"b.{suffix}", flow=NATIVE).failed
    with Image.open(tmp_path / f"b.{suffix}") as image:
        kept = image.getexif()
        assert image.size == (24, 32) and image.info["icc_profile"] == profile
        assert kept[0x010F] == "Maker" and kept.get(0x0112, 1) == 1 and kept.get(0x0100) in (None, 24)
        if suffix != "tiff":  # Pillow writes plain tags there
            inner = kept.get_ifd(0x8769)
            assert inner[0x9003] == "2026:01:02 03:04:05" and 0xA002 not in inner
            assert kept.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_xmp_is_kept(bundle, tmp_path, suffix):
    xmp, options = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\xc3\xa4</x:xmpmeta>', {}
    if suffix == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif suffix == "tiff":
        options["tiffinfo"] = {700: xmp, 315: "An author"}
    else:
        options["xmp"] = xmp
    Image.fromarray(picture(0)).save(tmp_path / f"a.{suffix}", **options)
    assert not translate(bundle, [tmp_path / f"a.{suffix}"], tmp_path / f"b.{suffix}", flow=NATIVE).failed
    with Image.open(tmp_path / f"b.{suffix}") as image:
        assert image.info["xmp"] == xmp
        assert suffix != "tiff" or image.getexif()[315] == "An author"


def test_a_grey_profile_and_damaged_exif_are_left_out(bundle, tmp_path):
    grey = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    grey[16:20] = b"GRAY"
    Image.fromarray(picture(0)).convert("L").save(
        tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff", icc_profile=bytes(grey)
    )
    assert not translate(bundle, [tmp_path / "a.jpg"], tmp_path / "b.jpg", flow=NATIVE).failed
    with Image.open(tmp_path / "b.jpg") as image:
        assert "icc_profile" not in image.info and not len(image.getexif())


def test_format_and_quality_are_as_asked_and_clashes_fail_alone(bundle, tmp_path, photos):
    Image.fromarray(picture(9)).save(photos / "sub" / "1.bmp")
    sizes = []
    for quality in (20, 95):
        out = tmp_path / f"out{quality}"
        report = translate(bundle, [photos], out, flow=NATIVE, pictures=PictureOptions("webp", quality))
        assert counts(report) == (6, 0, 1) and "would become" in report.failed[0].message
        assert sorted(p.name for p in (out / "sub").iterdir()) == [f"{i}.webp" for i in range(6)]
        sizes.append((out / "sub" / "0.webp").stat().st_size)
    assert sizes[0] < sizes[1] / 1.5


def timeline(path):
    """Frames with their time of beginning, and the loop."""
    with Image.open(path) as image:
        shown, at = [], 0
        for frame in ImageSequence.Iterator(image):
            frame.load()
            shown.append((at, np.asarray(frame.convert("RGB"))))
            at += frame.info["duration"]
        return shown, at, image.info.get("loop")


@pytest.mark.parametrize(("suffix", "near"), [("gif", 40), ("webp", 24), ("png", 0.01)])
@pytest.mark.parametrize("loop", [0, 3])
def test_animations_keep_frames_durations_and_loop(bundle, tmp_path, suffix, near, loop):
    durations = [40, 200, 80, 120]
    stills = [np.full((24, 32, 3), level, np.uint8) for level in (10, 200, 90, 250)]
    for i, still in enumerate(stills):
        still[4:12, 4 * i : 4 * i + 8] = (250, 20, 30)
    first, *rest = map(Image.fromarray, stills)
    source = tmp_path / f"a.{suffix}"
    exact = {"lossless": True} if suffix == "webp" else {}
    first.save(source, save_all=True, append_images=rest, duration=durations, loop=loop, **exact)
    out = tmp_path / f"b.{suffix}"
    assert not translate(bundle, [source], out, flow=NATIVE).failed
    (frames, length, looped), (frames2, length2, looped2) = timeline(source), timeline(out)
    assert [at for at, _ in frames2] == [at for at, _ in frames] and (length2, looped2) == (length, looped)
    for (_, a), (_, b) in zip(frames, frames2, strict=True):
        assert np.abs(a.astype(int) - b).mean() < near


def test_an_animation_changes_its_format_or_says_that_it_cannot(bundle, tmp_path):
    first, *rest = (Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (0, 120, 250))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[50, 100, 150])  # plays once
    translate(bundle, [tmp_path / "a.gif"], tmp_path / "b.webp", flow=NATIVE)
    frames, length, loop = timeline(tmp_path / "b.webp")
    assert [at for at, _ in frames] == [0, 50, 150] and (length, loop) == (300, 1)
    report = translate(bundle, [tmp_path / "a.gif"], tmp_path / "b.jpg", flow=NATIVE)
    assert "only the first frame" in report.done[0].message


@pytest.mark.parametrize(("suffix", "sides"), [("jpg", "65,500"), ("webp", "16,383"), ("gif", "65,535")])
def test_a_picture_longer_than_its_format_takes_fails_alone(bundle, tmp_path, suffix, sides):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1, 10_000)).save(tmp_path / "in" / f"long.{suffix}")  # 16 px wide 160,000 long
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / "short.png")
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=FlowOptions(size=16))
    assert counts(report) == (1, 0, 1)
    assert f"16×160000 px; .{suffix} takes {sides} px a side at most" in report.failed[0].message


@pytest.mark.parametrize(("suffix", "most"), [("gif", "655,350"), ("webp", "16,777,215")])
def test_a_frame_shown_for_longer_than_its_format_can_fails_alone(bundle, tmp_path, suffix, most):
    (tmp_path / "in").mkdir()
    slow, often = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    slow.save(tmp_path / "in" / "slow.png", save_all=True, append_images=[often], duration=[10, 20_000_000])
    often.save(tmp_path / "in" / "often.png", save_all=True, append_images=[slow], duration=10, loop=100_000)
    pictures = PictureOptions(format=suffix)
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=NATIVE, pictures=pictures)
    assert counts(report) == (1, 0, 1)
    assert f"a frame is shown for 20,000,000 ms; .{suffix} takes {most}" in report.failed[0].message
    assert timeline(tmp_path / "out" / f"often.{suffix}")[2] == 65_535


def test_pages_of_a_tiff_are_kept_each_in_its_size(bundle, tmp_path):
    pages = [Image.fromarray(picture(i, 16 + 8 * i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    translate(bundle, [tmp_path / "a.tiff"], tmp_path / "b.tiff", flow=NATIVE)
    with Image.open(tmp_path / "b.tiff") as image:
        for i, page in enumerate(ImageSequence.Iterator(image)):
            assert np.array_equal(np.asarray(page), np.asarray(pages[i]))


def test_the_ledger_tells_what_was_done_and_by_what(bundle, tmp_path, photos):
    import hashlib

    (photos / "bad.png").write_bytes(b"no")
    translate(bundle, [photos], tmp_path / "out", flow=FlowOptions(steps=3))
    written = {line["output"]: line for line in lines(tmp_path / "out")}
    assert len(written) == 7
    good, bad = written["sub/0.png"], written["bad.png"]
    for key, path in (("input", photos / "sub/0.png"), ("result", tmp_path / "out/sub/0.png")):
        assert good[key] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert good["model"] == bundle.manifest.graphs[0].sha256 and good["settings"] == {"steps": 3, "size": 32}
    assert good["error"] is None and good["seconds"] > 0 and "bad.png" in bad["error"] and bad["result"] is None


def test_what_changed_is_done_again_and_nothing_else(bundle, tmp_path, photos):
    out = tmp_path / "out"
    assert counts(translate(bundle, [photos], out)) == (6, 0, 0)
    assert counts(translate(bundle, [photos], out)) == (0, 6, 0)
    Image.fromarray(picture(99)).save(photos / "sub/0.png")  # another input
    os.utime(photos / "sub/1.png", ns=(1, 1))  # the same input, touched
    assert counts(translate(bundle, [photos], out)) == (1, 5, 0)
    assert counts(translate(bundle, [photos], out, flow=FlowOptions(steps=2))) == (6, 0, 0)  # other settings
    assert counts(translate(bundle, [photos], out, flow=FlowOptions(steps=2, batch=1, threads=1))) == (0, 6, 0)
    neutral = FlowOptions(steps=2, batch=1, threads=1, device="cpu", precision="fp32")
    assert counts(translate(bundle.path.parent, [photos], out, flow=neutral)) == (0, 6, 0)
    for path in (out / "sub").iterdir():  # copied to another disk, say
        os.utime(path, ns=(2, 2))
    assert counts(translate(bundle.path.parent, [photos], out, flow=neutral)) == (0, 6, 0)
    other = load_bundle(bundles.write_bundle(tmp_path / "other", bundles.towards(0)))  # another model
    assert counts(translate(other, [photos], out, flow=FlowOptions(steps=2))) == (6, 0, 0)
    assert np.asarray(Image.open(out / "sub/0.png")).std() < 30


def test_what_others_made_or_changed_is_never_touched_unasked(bundle, tmp_path, photos):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub/0.png").write_bytes(b"mine")
    translate(bundle, [photos], out)
    Image.fromarray(picture(50)).save(out / "sub/1.png")  # retouched by hand
    retouched = (out / "sub/1.png").read_bytes()
    report = translate(bundle, [photos], out, flow=FlowOptions(steps=2))
    assert counts(report) == (4, 2, 0)
    said = {event.target.name: event.message for event in report.skipped}
    assert "not in rfp's ledger" in said["0.png"] and "changed since" in said["1.png"]
    assert (out / "sub/0.png").read_bytes() == b"mine" and (out / "sub/1.png").read_bytes() == retouched
    assert counts(translate(bundle, [photos], out, overwrite=True)) == (6, 0, 0)


def test_what_is_known_by_size_and_time_is_not_read_again(bundle, tmp_path, photos, monkeypatch):
    translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    monkeypatch.setattr(ledger, "sha256", None)
    report = translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (0, 6, 0) and {event.message for event in report.skipped} == {""}


def test_an_input_of_another_size_has_changed_although_its_time_has_not(bundle, tmp_path, photos):
    translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    before = (photos / "sub/0.png").stat()
    Image.fromarray(picture(99, 30)).save(photos / "sub/0.png")
    os.utime(photos / "sub/0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts(translate(bundle, [photos], tmp_path / "out", flow=NATIVE)) == (1, 5, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_folder_is_the_same_however_its_path_is_spelt(bundle, tmp_path, photos):
    translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    Image.fromarray(picture(99)).save(photos / "sub/0.png")
    (tmp_path / "link").symlink_to(photos)
    assert counts(translate(bundle, [tmp_path / "link"], tmp_path / "out", flow=NATIVE)) == (1, 5, 0)


def test_the_hash_of_a_model_is_of_all_that_belongs_to_it(bundle):
    def packaged(*sums):
        files = [f"{i}.mlpackage" for i in range(len(sums))]
        graphs = [Graph(file, "fp16", of * 64, 1, format="coreml") for file, of in zip(files, sums, strict=True)]
        packages = {file: bundle.path.with_name(file) for file in files}
        return replace(bundle, model=b"", manifest=replace(bundle.manifest, graphs=tuple(graphs)), packages=packages)

    models = [bundle, *(replace(bundle, **{part: part.encode()}) for part in ("model", "encoder", "decoder"))]
    models += [replace(bundle, data={"weights": b"more"}), *(packaged(*sums) for sums in ("a", "b", "ab", "ba"))]
    assert model_hash(bundle) == bundle.manifest.graphs[0].sha256
    assert len({model_hash(model) for model in models}) == len(models)


def test_a_torn_or_foreign_ledger(bundle, tmp_path, photos):
    out = tmp_path / "out"
    translate(bundle, [photos], out, folder=FolderOptions(limit=3))
    with (out / "translate.jsonl").open("ab") as f:
        f.write(b'{"output": "sub/3.p')
    assert counts(translate(bundle, [photos], out)) == (3, 3, 0)
    assert counts(translate(bundle, [photos], out)) == (0, 6, 0)
    (out / "translate.jsonl.old").write_text("no ledger by its name")
    assert counts(translate(bundle, [photos], out)) == (0, 6, 0)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/translate.jsonl").write_text("a translation memory\n")
    with pytest.raises(UsageError, match="rename it"):
        translate(bundle, [photos], tmp_path / "theirs")
    assert (tmp_path / "theirs/translate.jsonl").read_text() == "a translation memory\n"


def test_a_link_that_leads_nowhere_is_never_touched_unasked(bundle, tmp_path, photos):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub/2.png").symlink_to("on a disk that is not there.png")
    report = translate(bundle, [photos], out)
    assert counts(report) == (5, 1, 0) and "not in rfp's ledger" in report.skipped[0].message
    assert (out / "sub/2.png").is_symlink()


def test_an_empty_ledger_and_one_from_before_places_were_written_are_gone_on_with(bundle, tmp_path, photos):
    out = tmp_path / "out"
    out.mkdir()
    (out / "translate.jsonl").write_text("\n\n")
    assert counts(translate(bundle, [photos], out)) == (6, 0, 0)
    before = [json.loads(line) for line in (out / "translate.jsonl").read_text().split("\n") if line]
    (out / "translate.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "place"}) + "\n" for line in before)
    )
    Image.fromarray(picture(99)).save(photos / "sub/0.png")
    assert counts(translate(bundle, [photos], out)) == (1, 5, 0)


def test_a_picture_that_another_process_is_writing_fails_alone(bundle, tmp_path, photos):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    theirs = tmp_path / "out" / "sub" / ".0.partial.png"
    with theirs.open("wb") as f:
        assert lock(f.fileno(), shared=False)
        report = translate(bundle, [photos], tmp_path / "out")
        assert counts(report) == (5, 0, 1) and "another rfp is writing it" in report.failed[0].message
        assert theirs.exists()
    assert counts(translate(bundle, [photos], tmp_path / "out")) == (1, 5, 0) and not theirs.exists()


def test_shards_are_stable_cover_everything_once_and_their_ledgers_merge(bundle, tmp_path, photos):
    for i in range(40):
        Image.fromarray(picture(i)).save(photos / f"more {i}.png")
    out, parts = tmp_path / "out", []
    for i in (1, 2, 3):
        report = translate(bundle, [photos], out, folder=FolderOptions(shard=(i, 3)))
        parts.append({line["output"] for line in lines(out, f"translate.{i}-of-3.jsonl")})
        assert len(report.done) == len(parts[-1]) >= 5
    assert sum(map(len, parts)) == len(set.union(*parts)) == 46
    assert counts(translate(bundle, [photos], out)) == (0, 46, 0)  # the whole reads all three
    (photos / "sub/0.png").unlink()
    Image.fromarray(picture(7)).save(photos / "new.png")
    assert counts(translate(bundle, [photos], out, folder=FolderOptions(shard=(1, 3))))[0] <= 1


def test_each_ledger_of_a_folder_is_gone_by(bundle, tmp_path, photos):
    for i in (1, 2, 3):
        translate(bundle, [photos], tmp_path / "out", flow=NATIVE, folder=FolderOptions(shard=(i, 3)))
    report = translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (0, 6, 0) and {event.message for event in report.skipped} == {""}
    assert counts(translate(bundle, [photos], tmp_path / "out", flow=FlowOptions(size=16))) == (6, 0, 0)


def test_limit_and_shuffle_choose_the_same_few_each_time(bundle, tmp_path, photos):
    quick = FolderOptions(shuffle=True, limit=2)
    chosen = []
    for name in ("a", "b"):
        assert counts(translate(bundle, [photos], tmp_path / name, folder=quick)) == (2, 0, 0)
        chosen.append({line["output"] for line in lines(tmp_path / name)})
    assert chosen[0] == chosen[1] != {"sub/0.png", "sub/1.png"}
    assert counts(translate(bundle, [photos], tmp_path / "a")) == (4, 2, 0)


def test_exif_of_a_photo_fits_a_tiff(bundle, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif)
    report = translate(bundle, [tmp_path / "a.jpg"], tmp_path / "out", pictures=PictureOptions("tiff"))
    with Image.open(tmp_path / "out" / "a.tiff") as image:
        assert not report.failed and image.getexif()[0x010F] == "Maker"


def test_odd_tags_of_a_photo_are_left_out_of_a_tiff_and_the_others_kept(bundle, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[282], exif[283] = "Maker", 300.0, IFDRational(1, 0)
    exif[296], exif[300], exif[318], exif[336], exif[50706] = 9, 7, 5, (0, 255), "abc"
    Image.fromarray(picture(0)).save(tmp_path / "a.png", exif=exif)
    report = translate(bundle, [tmp_path / "a.png"], tmp_path / "out", pictures=PictureOptions("tiff"))
    assert not report.failed, report.failed
    with Image.open(tmp_path / "out" / "a.tiff") as image:
        found = image.getexif()
        assert (found[0x010F], found[282]) == ("Maker", 300) and not {296, 300, 318, 336, 50706} & found.keys()


@pytest.mark.parametrize("stem", ["x" * 251, "ä" * 125])
def test_names_as_long_as_a_file_system_takes(bundle, tmp_path, stem):
    from test_video import write_video

    (tmp_path / "in").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "in" / f"{stem}.png")
    write_video(tmp_path / "v.mp4", frames=3).rename(tmp_path / "in" / f"{stem}.mp4")
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (2, 0, 0), report.failed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [f"{stem}.mp4", f"{stem}.png", "translate.jsonl"]
    )
    report = translate(bundle, [tmp_path / "in"], tmp_path / "webp", flow=NATIVE, pictures=PictureOptions("webp", 90))
    if len(stem) == 251:  # one byte too long
        assert counts(report) == (1, 0, 1) and "name too long" in report.failed[0].message
    else:
        assert counts(report) == (2, 0, 0)


def test_another_picture_of_the_same_name_from_elsewhere_is_not_replaced(bundle, tmp_path):
    for folder, seed in (("card1", 1), ("card2", 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(seed)).save(tmp_path / folder / "IMG_0001.png")
    translate(bundle, [tmp_path / "card1"], tmp_path / "out", flow=NATIVE)
    before = (tmp_path / "out" / "IMG_0001.png").read_bytes()
    report = translate(bundle, [tmp_path / "card2"], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (0, 1, 0) and "another input of that name" in report.skipped[0].message
    assert (tmp_path / "out" / "IMG_0001.png").read_bytes() == before
    (tmp_path / "card1").rename(tmp_path / "moved")  # the same picture elsewhere is the same picture
    assert counts(translate(bundle, [tmp_path / "moved"], tmp_path / "out", flow=NATIVE)) == (0, 1, 0)
    assert counts(translate(bundle, [tmp_path / "moved"], tmp_path / "out", flow=FlowOptions(size=16))) == (1, 0, 0)
    assert counts(translate(bundle, [tmp_path / "card2"], tmp_path / "out", overwrite=True)) == (1, 0, 0)


def test_pictures_of_one_name_size_and_time_are_told_apart_by_where_they_lie(bundle, tmp_path):
    for folder, seed in (("card1", 1), ("card2", 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(seed)).save(tmp_path / folder / "IMG_0001.bmp")
        os.utime(tmp_path / folder / "IMG_0001.bmp", ns=(1, 1))
    translate(bundle, [tmp_path / "card1"], tmp_path / "out", flow=NATIVE)
    report = translate(bundle, [tmp_path / "card2"], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (0, 1, 0) and "another input of that name" in report.skipped[0].message


def test_options_for_films_want_a_film_somewhere_and_not_in_each_part(bundle, tmp_path, photos):
    film = FilmOptions(crf=20)
    for options in ({"film": film}, {"steady": 0.5}):
        with pytest.raises(UsageError, match="there is none"):
            translate(bundle, [photos], tmp_path / "out", **options)
    write_video(photos / "film.mp4", [0, 40, 80])
    parts = [
        translate(bundle, [photos], tmp_path / "out", film=film, flow=NATIVE, folder=FolderOptions(shard=(i, 4)))
        for i in (1, 2, 3, 4)
    ]
    assert sum(len(part.done) for part in parts) == 7 and not any(part.failed for part in parts)


def test_options_for_pictures_want_a_picture_and_quality_a_format_that_has_one(bundle, tmp_path, photos):
    source = write_video(tmp_path / "film.mp4", [0, 40, 80])
    for pictures in (PictureOptions("png"), PictureOptions(quality=50)):
        with pytest.raises(UsageError, match="options for pictures were given"):
            translate(bundle, [source], tmp_path / "out", pictures=pictures)
    (tmp_path / "bad.zip").write_bytes(b"none")
    report = translate(bundle, [tmp_path / "bad.zip"], tmp_path / "out", pictures=PictureOptions("png"))
    assert counts(report) == (0, 0, 1)  # and no word of options
    with pytest.raises(UsageError, match="quality is of JPEG and WebP"):
        PictureOptions("png", 50)


def test_a_link_that_leads_nowhere_is_listed(bundle, tmp_path, photos):
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "round.jpg").symlink_to("round.jpg")
    (photos / "gone.txt").symlink_to("nowhere.txt")
    report = translate(bundle, [photos], tmp_path / "out", flow=NATIVE)
    assert counts(report) == (6, 0, 2) and all("leads to no file" in event.message for event in report.failed)


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("x.jpg", PictureOptions("png"), "leave one of the two out"),
        ("x.heic", PictureOptions(), "is not written as .heic"),
        ("x.svg", PictureOptions(), "is not written as .svg"),
    ],
)
def test_a_name_that_says_what_is_not_done_is_refused(bundle, tmp_path, photos, output, options, said):
    mimetypes.add_type("image/heic", ".heic")  # known from Python 3.13 on, or by the system
    with pytest.raises(UsageError, match=said):
        translate(bundle, [photos / "sub" / "0.png"], tmp_path / output, pictures=options)
    with pytest.raises(UsageError, match="is the name of a file"):
        translate(bundle, [photos / "sub" / "0.png", photos / "sub" / "1.png"], tmp_path / "both.png")
    assert not list(tmp_path.glob("x*")) and not (tmp_path / "both.png").exists()


def test_numbers_without_a_range_are_refused_and_an_empty_file_is_called_unknown(bundle, tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty.png").touch()
    report = translate(bundle, [tmp_path / "float.tif", tmp_path / "empty.png"], tmp_path / "out", flow=NATIVE)
    said = sorted(event.message for event in report.failed)
    assert "of no known format" in said[0] and "floating-point" in said[1] and "<_io" not in said[0]


def test_large_pictures_of_large_members_wait_for_one_another_in_one_order(bundle, tmp_path, monkeypatch):
    """Who holds the place of a large member waits for that of a large picture, and nobody the other way round."""
    monkeypatch.setattr(media, "LARGE_MEMBER", 1)
    monkeypatch.setattr(media, "LARGE", 1)
    monkeypatch.setattr(images, "KEPT", 0)  # so each is decoded again when it is written
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for i in range(40):
            data = BytesIO()
            Image.fromarray(picture(i)).save(data, "PNG")
            archive.writestr(f"{i}.png", data.getvalue())
    flow, reports = FlowOptions(size=16, upscale="resize"), []
    work = threading.Thread(
        target=lambda: reports.append(translate(bundle, [tmp_path / "z.zip"], tmp_path / "out", flow=flow)), daemon=True
    )
    work.start()
    work.join(100)
    assert counts(*reports) == (40, 0, 0)


def test_a_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target, flushed = tmp_path / "a.txt", []
    monkeypatch.setattr(
        os, "fsync", lambda fd: flushed.append((os.fstat(fd).st_ino, os.fstat(fd).st_size, target.exists()))
    )
    write_text(target, "all of it")
    assert flushed == [(target.stat().st_ino, 9, False)] and [*tmp_path.iterdir()] == [target]
