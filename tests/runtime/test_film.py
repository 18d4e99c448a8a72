import json
import os
import signal
import subprocess
import sys
import types
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import PurePosixPath

import av
import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FilmOptions, FlowOptions, UsageError, load_bundle, segments, translate
from rfp.runtime import frames as frames_module
from rfp.runtime.compare import compared
from rfp.runtime.media import Media
from rfp.runtime.tonemap import HDR, ToneMap
from rfp.runtime.whole import missing_bytes
from test_video import scene, watch, write_video

NATIVE = FlowOptions(size="native")


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.identity(), default_steps=1))


def film(bundle, source, target, **options):
    report = translate(bundle, [source], target, flow=NATIVE, film=FilmOptions(**options))
    assert not report.failed, report.failed
    return report.done[0].message


def packets(path):
    """(kind, bytes, pts in ms) of every packet in the file, by its stream."""
    with av.open(str(path)) as container:
        found = [
            (p.stream.index, bytes(p), round(float(p.pts * p.time_base), 3))
            for p in container.demux()
            if p.size and p.pts is not None
        ]
    return sorted(found, key=lambda p: p[0])


def rich_mkv(path):
    """Two sound tracks, SubRip, two chapters, metadata, a font, a cover."""
    plain = write_video(path.with_suffix(".mp4"), frames=50, audio="aac")
    cover = BytesIO()
    Image.fromarray(scene(0)).save(cover, "JPEG")
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        video, sound = source.streams.video[0], source.streams.audio[0]
        carried = {0: [out.add_stream_from_template(video, opaque=True)]}
        carried[1] = [out.add_stream_from_template(sound), out.add_stream_from_template(sound)]
        for stream, language in zip(carried[1], ("eng", "deu"), strict=True):
            stream.metadata["language"] = language
        words = out.add_mux_stream("subrip")
        words.time_base = Fraction(1, 1000)
        words.metadata["language"] = "fra"
        out.add_attachment("a.ttf", "application/x-truetype-font", b"font" * 50)
        out.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        out.metadata["title"] = "A film"
        out.set_chapters(
            [
                {
                    "id": i,
                    "start": i * 1000,
                    "end": i * 1000 + 1000,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": t},
                }
                for i, t in enumerate(("one", "two"))
            ]
        )
        for start, text in ((200, b"Bonjour"), (1200, b"Au revoir")):
            packet = av.Packet(text)
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = 500, Fraction(1, 1000), words
            out.mux(packet)
        for packet in source.demux():
            for stream in carried[packet.stream.index] if packet.size else ():
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base, copy.duration = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.duration,
                )
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                out.mux(copy)
    return path


def test_every_stream_that_the_container_takes_is_carried_over(bundle, tmp_path):
    source = rich_mkv(tmp_path / "a.mkv")
    assert film(bundle, source, tmp_path / "b.mkv") == ""
    with av.open(str(source)) as a, av.open(str(tmp_path / "b.mkv")) as b:
        kinds = ["video", "audio", "audio", "subtitle", "attachment", "video"]
        assert sorted(s.type for s in b.streams) == sorted(s.type for s in a.streams) == sorted(kinds)
        assert [s.metadata.get("language") for s in b.streams.audio] == ["eng", "deu"]
        assert b.streams.subtitles[0].metadata["language"] == "fra" and b.metadata["title"] == "A film"
        assert [c["metadata"]["title"] for c in b.chapters()] == ["one", "two"]
        assert b.streams.attachments[0].data == a.streams.attachments[0].data
        sound = [[bytes(p) for p in c.demux(c.streams.audio[1]) if p.size] for c in (a, b)]
        assert sound[0] == sound[1] and len(sound[0]) > 80
    texts = [
        [(p[1], p[2]) for p in packets(path) if p[1] in (b"Bonjour", b"Au revoir")]
        for path in (source, tmp_path / "b.mkv")
    ]
    assert len(texts[0]) == 2 and [t for t, _ in texts[0]] == [t for t, _ in texts[1]]
    assert np.abs(np.subtract([t for _, t in texts[0]], [t for _, t in texts[1]])).max() <= 0.025


def test_mp4_gets_subtitles_in_its_own_form_and_the_cover(bundle, tmp_path):
    message = film(bundle, rich_mkv(tmp_path / "a.mkv"), tmp_path / "b.mp4")
    assert "attachment left out" in message
    with av.open(str(tmp_path / "b.mp4")) as b:
        assert len(b.streams.audio) == 2 and b.streams.subtitles[0].codec_context.name == "mov_text"
        assert len(b.streams.video) == 2 and len(b.chapters()) == 2 and b.metadata["title"] == "A film"
        texts = [bytes(p)[2:] for p in b.demux(b.streams.subtitles[0]) if p.size > 2]
    assert texts == [b"Bonjour", b"Au revoir"]


def test_webm_gets_opus_and_webvtt(bundle, tmp_path):
    message = film(bundle, rich_mkv(tmp_path / "a.mkv"), tmp_path / "b.webm")
    assert "does not take aac" in message
    with av.open(str(tmp_path / "b.webm")) as b:
        assert [s.codec_context.name for s in b.streams.audio] == ["opus", "opus"]
        assert b.streams.subtitles[0].codec_context.name == "webvtt"
        sound = np.concatenate([f.to_ndarray() for f in b.decode(audio=0)], axis=1)
    assert 1.9 < sound.shape[1] / 48000 < 2.1 and 0.05 < sound.std() < 0.2


def test_start_and_end_keep_picture_and_sound_together(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=100, audio="aac")
    film(bundle, source, tmp_path / "b.mp4", start=1.0, end=3.0)
    times, frames, sound = watch(tmp_path / "b.mp4")
    assert np.allclose(times, np.arange(50) / 25, atol=0.001)
    for i in (0, 49):
        assert np.abs(frames[i].astype(int) - scene(25 + i)).mean() < 4
    whole = dict(watch(source)[2])
    assert len(sound) > 80 and all(abs(whole[data] - 1 - t) < 0.002 for data, t in sound)


@pytest.mark.parametrize("how", ["side", "wipe"])
def test_compare_shows_source_and_translation(tmp_path, how):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.towards(0.0), default_steps=1))
    source = write_video(tmp_path / "a.mp4", frames=80)
    film(bundle, source, tmp_path / "b.mp4", compare=how)
    frame = watch(tmp_path / "b.mp4")[1][75].astype(int)  # 3 s: the line of the wipe is at the right end
    before = watch(source)[1][75]
    assert np.abs(frame[:, :60] - before[:, :60]).mean() < 4
    if how == "side":
        assert frame.shape[1] == 128 and np.abs(frame[:, 64:] - 128).mean() < 4  # one step towards 0 is there: grey
    else:
        first = watch(tmp_path / "b.mp4")[1][0].astype(int)
        assert np.abs(first[:, 8:] - 128).mean() < 4


def test_the_line_of_a_wipe_is_white_and_goes_across_and_back_in_six_seconds():
    """By a cosine: after a sixth of that time it is at a quarter of the width."""
    before, after = np.full((20, 801, 3), 10, np.uint8), np.full((20, 801, 3), 90, np.uint8)
    for seconds, line in ((0, 0), (1, 200), (1.5, 400), (3, 800), (4.5, 400), (5, 200), (6, 0)):
        out = compared(before, after, "wipe", seconds)
        assert np.array_equal(out, np.broadcast_to(out[:1, :, :1], out.shape))
        row = [10] * line + [255] * min(2, 801 - line) + [90] * max(0, 799 - line)
        assert out[0, :, 0].tolist() == row
    assert np.array_equal(before, np.full_like(before, 10)) and np.array_equal(after, np.full_like(after, 90))


def test_a_source_of_another_size_is_compared_at_the_size_of_its_translation():
    source, after = np.zeros((40, 60, 3), np.uint8), np.full((20, 32, 3), 90, np.uint8)
    source[20:, :30] = 200  # lower left
    out = compared(source, after, "side", 0)
    assert out.shape == (20, 64, 3) and (out[:, 32:] == 90).all()
    assert (out[14:, :12] == 200).all() and not out[:6, :32].any() and not out[:, 20:32].any()


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "found"),
    [
        ("h264", ".mp4", "yuv444p", "h264"),
        ("hevc", ".mp4", "yuv420p10le", "hevc"),
        ("av1", ".webm", None, "av1"),
        ("vp9", ".mkv", None, "vp9"),
        ("ffv1", ".mkv", None, "ffv1"),
        ("prores", ".mov", "yuv422p10le", "prores"),
        ("prores_ks", ".mkv", "yuv444p10le", "prores"),
        ("libx265", ".mov", None, "hevc"),
    ],
)
def test_codecs_and_pixel_formats(bundle, tmp_path, codec, suffix, pix_fmt, found):
    source = write_video(tmp_path / "a.mp4", frames=12, size=(96, 64))
    film(bundle, source, tmp_path / f"b{suffix}", codec=codec, pix_fmt=pix_fmt)
    with av.open(str(tmp_path / f"b{suffix}")) as b:
        context = b.streams.video[0].codec_context
        assert found in (context.name, context.codec.canonical_name)
        assert context.codec_tag == "hvc1" or found != "hevc"  # Apple's players take no other
        assert pix_fmt is None or context.pix_fmt == pix_fmt
    times, frames, _ = watch(tmp_path / f"b{suffix}")
    assert np.allclose(times, np.arange(12) / 25, atol=0.002)
    for i, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - scene(i, (96, 64))).mean() < 6


def test_a_narrow_film_in_hevc_leaves_the_memory_beside_it_alone(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=16, size=(48, 32))
    code = (
        "import sys; from rfp.runtime import FilmOptions, translate\n"
        "report = translate(sys.argv[1], sys.argv[2:3], sys.argv[3], film=FilmOptions(codec='hevc'))\n"
        "assert not report.failed, report.failed"
    )
    checked = os.environ | {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}  # glibc's; else it is luck
    command = [sys.executable, "-c", code, tmp_path / "bundle", source, tmp_path / "b.mp4"]
    subprocess.run(command, env=checked, check=True, timeout=120)


@pytest.mark.parametrize(("codec", "suffix"), [("prores", ".mov"), ("ffv1", ".mkv"), ("vp9", ".webm")])
def test_the_segments_of_every_codec_join_at_the_times_of_their_frames(bundle, tmp_path, monkeypatch, codec, suffix):
    monkeypatch.setattr(segments, "SEGMENT", 4)
    monkeypatch.setattr("rfp.runtime.video.SEGMENT", 4)
    times = [0, 33, 35, 90, 91, 300, 1000, 1010, 1500, 1533]
    source = write_video(tmp_path / "a.mp4", frames=10, times=times)
    film(bundle, source, tmp_path / f"b{suffix}", codec=codec)
    found, frames, _ = watch(tmp_path / f"b{suffix}")
    assert np.abs(np.array(found) * 1000 - times).max() <= 1
    assert all(np.abs(frame.astype(int) - scene(i)).mean() < 6 for i, frame in enumerate(frames))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", None),
        (".mkv", None),
        (".mov", None),
        (".webm", None),
        (".mkv", "av1"),
        (".webm", "av1"),
        (".mp4", "vp9"),
        (".mkv", "ffv1"),
    ],
)
def test_a_pixel_aspect_is_kept(bundle, tmp_path, suffix, codec):
    source, target = tmp_path / "a.mkv", tmp_path / f"b{suffix}"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(4, 3)
        if codec == "av1":
            video.metadata["title"] = "ä title"
        for i in range(3):
            out.mux(video.encode(av.VideoFrame.from_ndarray(scene(i), format="rgb24")))
        out.mux(video.encode(None))
    assert film(bundle, source, target, codec=codec) == ""
    with av.open(str(target)) as b:
        assert abs(b.streams.video[0].sample_aspect_ratio - Fraction(4, 3)) < 0.01
        assert b.streams.video[0].metadata.get("title") == ("ä title" if codec == "av1" and suffix != ".mp4" else None)
        assert len(list(b.decode(video=0))) == 3
    if suffix in (".mkv", ".webm"):
        check_ebml(target.read_bytes())


def check_ebml(data):
    """Every element of the header lies within its parent, up to the parent's end, and every checksum is right."""
    masters = {0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x55B0, 0x1549A966, 0x1254C367, 0x7373, 0x67C8}

    def number(at, marked):
        width = 9 - data[at].bit_length()
        value = int.from_bytes(data[at : at + width], "big")
        return (value if marked else value - (1 << 7 * width)), at + width

    def walk(at, end):
        crc, first = None, True
        while at < end:
            name, at = number(at, True)
            if name == 0x1F43B675:
                return
            size, at = number(at, False)
            assert at + size <= end
            if name == 0xBF:
                assert first
                crc = data[at : at + 4], at + 4
            elif name in masters:
                walk(at, at + size)
            at, first = at + size, False
        assert at == end
        assert crc is None or crc[0] == zlib.crc32(data[crc[1] : end]).to_bytes(4, "little")

    walk(0, len(data))


def test_crf_trades_size_for_quality(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4")
    for crf in (10, 40):
        film(bundle, source, tmp_path / f"{crf}.mp4", crf=crf)
    assert (tmp_path / "40.mp4").stat().st_size < 0.7 * (tmp_path / "10.mp4").stat().st_size


def test_what_cannot_be_is_said_before_anything_is_written(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=2)
    for options, message in [
        ({"codec": "h266"}, "not known"),
        ({"codec": "prores"}, ".mp4 does not take prores"),
        ({"codec": "h264_nvenc"}, "needs an NVIDIA GPU and its driver, and (did not start|is not in PyAV's FFmpeg)"),
        ({"codec": "hevc_qsv"}, "needs an Intel GPU and its driver, and (did not start|is not in PyAV's FFmpeg)"),
        ({"codec": "hevc_videotoolbox"}, "needs a Mac, and is not in PyAV's FFmpeg"),
        ({"codec": "h264_vaapi"}, "needs a GPU with a VA-API driver"),
        ({"codec": "ffv1"}, "does not take ffv1"),
        ({"crf": 99}, "0 to 51"),
        ({"pix_fmt": "rgb24"}, "wanted yuv420p"),
    ]:
        with pytest.raises(UsageError, match=message):
            translate(bundle, [source], tmp_path / "b.mp4", flow=NATIVE, film=FilmOptions(**options))
    with pytest.raises(UsageError, match="an end after the start"):
        FilmOptions(start=3, end=2)
    assert not (tmp_path / "b.mp4").exists()


CHILD = """
import os, sys
from rfp.runtime import FilmOptions, FlowOptions, load_bundle, segments, translate
segments.SEGMENT = 20
from rfp.runtime import video
video.SEGMENT = 20
def tell(event):
    if event.kind == "frames" and event.count == int(sys.argv[4]):
        os.kill(os.getpid(), 9)
translate(sys.argv[1], [sys.argv[2]], sys.argv[3], flow=FlowOptions(size="native"), steady=0.8, on_event=tell)
"""


@pytest.mark.slow
@pytest.mark.parametrize("vary", [False, True])
def test_a_film_killed_at_any_frame_ends_up_packet_for_packet_as_if_it_had_not_been(tmp_path, vary):
    folder = bundles.write_bundle(tmp_path / "bundle", bundles.towards(0.25), default_steps=2)
    rng = np.random.default_rng(0)
    times = [int(t) for t in np.cumsum(rng.choice([5, 33, 200], 90))] if vary else None
    source = write_video(tmp_path / "a.mp4", frames=90, times=times, audio="aac")
    for name, stops in (("whole", [0]), ("broken", [13, 33, 47, 89, 0])):
        for stop in stops:
            command = [sys.executable, "-c", CHILD, folder, source, tmp_path / f"{name}.mp4", str(stop)]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert ended.returncode == (-signal.SIGKILL if stop else 0), ended.stderr
            if stop == 47:
                kept = sorted(p.name for p in (tmp_path / ".broken.mp4.segments").glob("0*"))
                assert kept[:2] == ["000000.nut", "000001.nut"] and not (tmp_path / "broken.mp4").exists()
    assert packets(tmp_path / "whole.mp4") == packets(tmp_path / "broken.mp4")
    assert np.allclose(watch(tmp_path / "whole.mp4")[0], watch(source)[0], atol=0.001)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "broken.mp4", "bundle", "whole.mp4"]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_file_that_is_cut_short_says_so_and_gives_the_good_part(bundle, tmp_path, name):
    source = write_video(tmp_path / name, frames=200, codec="mpeg4", audio="mp3")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    report = translate(bundle, [source], tmp_path / "b.mkv", flow=NATIVE)
    assert len(report.failed) == 1 and "it is cut short" in report.failed[0].message
    assert 50 < len(watch(tmp_path / "b.mkv")[1]) < 150
    film(bundle, source, tmp_path / "c.mkv", end=1.0)  # of which nothing is missing


def box(kind, data=bytes(40), wide=False):
    """Of ISO/IEC 14496-12: its length, in 32 or 64 bits, its kind, its data."""
    length = len(data) + (16 if wide else 8)
    return (b"\0\0\0\1" + kind + length.to_bytes(8, "big") if wide else length.to_bytes(4, "big") + kind) + data


def riff(length, says=None):
    """A part of an AVI file."""
    return b"RIFF" + (length if says is None else says).to_bytes(4, "little") + bytes(length)


def element(size, data=bytes(40)):
    """A Matroska file of an empty header and a segment that says its size so."""
    return b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67" + size + data


@pytest.mark.parametrize(
    ("data", "lacks"),
    [
        (box(b"ftyp") + box(b"mdat") + box(b"moov"), 0),
        ((box(b"ftyp") + box(b"mdat") + box(b"moov"))[:-7], 7),
        ((box(b"ftyp") + box(b"moov") + box(b"mdat", wide=True))[:-9], 9),
        ((box(b"ftyp") + box(b"moov") + box(b"mdat", wide=True) + box(b"free"))[:-9], 0),  # the film is whole
        (box(b"ftyp") + box(b"moov") + b"\0\0\0\0mdat" + bytes(40), 0),  # up to the end, wherever that is
        (box(b"text")[:-9], 0),
        (riff(40) + riff(41) + b"\0" + riff(42), 0),
        ((riff(40) + riff(41) + b"\0" + riff(42))[:-8], 8),
        (riff(41), 0),
        (riff(40, says=0) + riff(40)[:-8], 0),  # nor does a recording of this kind
        (riff(40, says=0xFFFFFFFF), 0),
        (element(b"\xa8"), 0),
        (element(b"\xa8")[:-5], 5),
        (element(b"\x01\0\0\0\0\0\0\x28")[:-5], 5),
        (element(b"\xff"), 0),  # a recording under way does not say
        (element(b"\x01" + b"\xff" * 7), 0),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "lacks",
)
def test_a_file_that_ends_early_lacks_what_it_says(data, lacks):
    assert missing_bytes(BytesIO(data)) == lacks


def test_segments_of_other_settings_are_not_taken(tmp_path):
    key = {"steps": 1}
    with segments.work_on(tmp_path / "a.mp4", key) as work:
        work.next_file().write_bytes(b"x")
        work.add(segments.Segment(1, 0, 0))
    with segments.work_on(tmp_path / "a.mp4", key) as work:
        assert work.frames == 1
    with segments.work_on(tmp_path / "a.mp4", {"steps": 2}) as work:
        assert work.frames == 0
    assert not list(tmp_path.iterdir())


def grey_ramp(path, transfer, light, mastered=None):
    """10 bits, BT.2020: from left to right the signals of so much light in cd/m², 8 columns each."""
    options = {"crf": "1", "x265-params": "log-level=none"}
    if mastered:
        display = f"G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L({mastered * 10_000},50)"
        options["x265-params"] += f":master-display={display}"
    signal = {"PQ": pq, "HLG": hlg}[HDR[transfer]](np.array(light))
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx265", rate=25, options=options)
        video.width, video.height, video.pix_fmt = 8 * len(light), 64, "yuv420p10le"
        frame = av.VideoFrame(video.width, 64, "yuv420p10le")
        for tags in (video.codec_context, frame):
            tags.color_primaries, tags.color_trc, tags.colorspace, tags.color_range = 9, transfer, 9, 1
        for plane, values in zip(frame.planes, (64 + 876 * signal.repeat(8), [512], [512]), strict=True):
            rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
            rows[:, : plane.width] = np.rint(values)
            plane.update(rows.tobytes())
        for i in range(3):
            frame.pts = i
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def pq(light):
    """SMPTE ST 2084, equation 5.2."""
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light):
    """ARIB STD-B67 after the inverse of its OOTF for a display of 1,000 cd/m² (ITU-R BT.2100, gamma 1.2)."""
    scene = (light / 1000) ** (1 / 1.2)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


LIGHT = [0.5, 5, 20, 58, 100, 203, 400, 1000]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transfer", "mastered"), [(16, None), (18, None), pytest.param(16, 1000, marks=pytest.mark.extra)]
)
def test_hdr_is_mapped_to_sdr(bundle, tmp_path, transfer, mastered):
    """In a film that is turned, too."""
    plain = grey_ramp(tmp_path / "p.mp4", transfer, LIGHT, mastered)
    with av.open(str(plain)) as a, av.open(str(tmp_path / "a.mp4"), "w") as out:
        video = out.add_stream_from_template(a.streams.video[0], opaque=True)
        video.set_display_rotation(90)
        for packet in a.demux():
            if packet.size:
                packet.stream = video
                out.mux(packet)
    assert "mapped to SDR (BT.709)" in film(bundle, tmp_path / "a.mp4", tmp_path / "b.mp4", crf=1)
    with av.open(str(tmp_path / "b.mp4")) as b:
        frame = next(b.decode(video=0))
        assert (frame.color_trc, frame.color_primaries, frame.format.name) == (1, 1, "yuv420p")
    levels = watch(tmp_path / "b.mp4")[1][0][::-1][4::8, 32].astype(int)
    assert np.ptp(levels, axis=1).max() <= 6  # grey stays grey
    grey = levels.mean(axis=1)
    assert (np.diff(grey) > 15).all() and grey[0] < 30 and grey[-1] > 245
    assert 90 < grey[3] < 130 and 160 < grey[5] < 190  # 58 cd/m² is mid-grey, and 203 paper white with room above it


def test_a_film_that_changes_on_the_way_is_mapped_as_it_is_then(monkeypatch):
    """One graph, which takes seconds, as long as nothing changes; unmastered PQ goes by HLG; SDR passes as it is."""
    made = []

    def graph(frame, bounded):
        made.append((frame.width, HDR[frame.color_trc], bounded))
        number = len(made)
        return types.SimpleNamespace(push=lambda frame: None, pull=lambda: number)

    monkeypatch.setattr("rfp.runtime.tonemap._graph", graph)
    frames, to_sdr = [], ToneMap()
    for transfer, width in ((16, 32), (16, 32), (18, 32), (18, 64), (18, 64), (1, 64), (18, 64)):
        frames.append(av.VideoFrame(width, 16, "yuv420p10le"))
        frames[-1].color_trc = transfer
    assert [to_sdr(frame) for frame in frames] == [1, 1, 2, 3, 3, frames[5], 3]
    assert made == [(32, "PQ", False), (32, "HLG", True), (64, "HLG", True)]


def test_a_cut_begins_with_the_frame_that_stands_on_the_screen(bundle, tmp_path):
    """As of slides and of screens that are recorded; what is shown for less than a frame more is left out."""
    source = write_video(tmp_path / "a.mkv", frames=6, times=[0, 40, 80, 2000, 2040, 5000])
    for start, end, times in ((1, None, [0, 1, 1.04, 4]), (0.05, None, [0.03, 1.95, 1.99, 4.95]), (3, 4, [0])):
        out = tmp_path / f"{start}.mkv"
        translate(bundle, [source], out, flow=NATIVE, film=FilmOptions(start=start, end=end))
        assert np.allclose(watch(out)[0], times, atol=0.002), watch(out)[0]
    report = translate(bundle, [source], tmp_path / "no.mkv", flow=NATIVE, film=FilmOptions(start=9))
    assert "holds no frame" in report.failed[0].message


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_no_link_that_lies_ready_leads_out_of_the_folder(bundle, tmp_path):
    source, out, theirs = write_video(tmp_path / "a.mp4", frames=5), tmp_path / "out", tmp_path / "theirs"
    out.mkdir()
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    (out / ".b.mp4.segments").symlink_to(theirs)
    report = translate(bundle, [source], out / "b.mp4", flow=NATIVE)
    assert "is a link" in report.failed[0].message and [p.name for p in theirs.iterdir()] == ["thesis.txt"]
    (out / ".b.mp4.segments").unlink()
    (out / ".b.partial.mp4").symlink_to(theirs / "thesis.txt")
    assert not translate(bundle, [source], out / "b.mp4", flow=NATIVE).failed
    assert (theirs / "thesis.txt").read_text() == "mine" and not (out / "b.mp4").is_symlink()


GOOD = {"frames": 1, "last": 0, "delay": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe")
@pytest.mark.parametrize(
    "state",
    [
        *([GOOD | change] for change in ({"frames": -9}, {"frames": 10**6}, {"last": 2**70}, {"delay": -1}, {"x": 1})),
        [GOOD] * 2,  # whose file is not there
        [{"frames": "1", "last": 0, "delay": 0}],
        [[]],
        3,
        None,
        "[" * 100_000,
        "pipe",
        "npz",
    ],
    ids=str,
)
def test_what_is_no_state_of_a_film_begins_it_anew(tmp_path, state):
    folder, key = tmp_path / ".a.mp4.segments", {"steps": 1}
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "000000.nut").write_bytes(b"x")
    if state == "pipe":
        os.mkfifo(folder / "film.json")
    elif isinstance(state, str) and state != "npz":
        (folder / "film.json").write_text(state)
    else:
        entries = [GOOD] if state == "npz" else state
        (folder / "film.json").write_text(json.dumps({"key": key, "segments": entries}))
    if state == "npz":
        np.savez(folder / "000001.npz", before=np.array([{}]), kept=1)  # a pickle
    with segments.work_on(tmp_path / "a.mp4", key) as work:
        assert work.frames == 0 and not (folder / "000000.nut").exists()
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]


def test_a_frame_larger_than_the_header_said_is_damage(tmp_path, monkeypatch):
    source = write_video(tmp_path / "a.mp4", frames=5)
    media = Media(source, "video", PurePosixPath("a.mp4"))
    with media.open() as stream, frames_module.open_video(media, stream) as (container, video):
        monkeypatch.setattr(frames_module, "MAX_FRAME", 64 * 48 - 1)
        with pytest.raises(av.InvalidDataError, match="above the limit"):
            list(frames_module._in_order(container, video, 1))
