import struct
from fractions import Fraction

import av
import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FlowOptions, load_bundle, translate


def scene(index, size=(64, 48)):
    """uint8 [H, W, 3]: smooth colours, a bright square that moves, all of it far from grey."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([40 + 180 * x / width, 60 + 150 * y / height, 200 - 120 * x / width], -1)
    pixels[8:20, 4 + index % 30 : 16 + index % 30] = (230, 40, 60)
    return np.rint(pixels).astype(np.uint8)


def write_video(
    path, frames=30, size=(64, 48), times=None, audio=None, rotation=None, codec="libx264", matrix=6, flags="faststart"
):
    """A video of `scene`; `times` in ms make the rate vary, `audio` names a codec for a second of noise a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": flags} if path.suffix == ".mp4" else {}) as out:
        video = out.add_stream(codec, rate=25, options={"crf": "8"} if codec == "libx264" else {})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            video.codec_context.colorspace = matrix
        else:
            video.codec_context.time_base = Fraction(1, 25)
        if rotation is not None:
            video.set_display_rotation(rotation)
        sound = out.add_stream(audio, rate=48000) if audio else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(i, size), format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709" if matrix == 1 else "ITU601", dst_color_range="MPEG"
            )
            frame.pts = times[i] if times else i * 40 if codec == "libx264" else i
            frame.time_base = video.codec_context.time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound:
            noise = np.random.default_rng(0).normal(0, 0.1, (2, frames * 1920)).astype(np.float32)
            for k in range(0, noise.shape[1] - 960, 960):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(noise[:, k : k + 960]), "fltp", "stereo")
                block.sample_rate, block.pts, block.time_base = 48000, k, Fraction(1, 48000)
                out.mux(sound.encode(av_convert(sound, block)))
            out.mux(sound.encode(None))
    return path


def av_convert(sound, block):
    if sound.codec_context.format.name == "fltp":
        return block
    return av.AudioResampler(format=sound.codec_context.format.name, layout="stereo").resample(block)[0]


def watch(path):
    """Times in s and upright RGB of every frame, and the audio packets as (bytes, time)."""
    times, frames, packets = [], [], []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0) if not container.streams.audio else container.demux():
            if packet.stream.type == "audio" and packet.dts is not None:
                packets.append((bytes(packet), float(packet.pts * packet.time_base)))
            elif packet.stream.type == "video":
                for frame in packet.decode():
                    times.append(float(frame.pts * frame.time_base))
                    frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    return times, frames, packets


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.identity(), default_steps=1))


def through(bundle, source, target, **options):
    report = translate(bundle, [source], target, flow=FlowOptions(**{"size": "native"} | options))
    assert not report.failed, report.failed
    return report


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
def test_frames_times_and_audio_packets_come_through(bundle, tmp_path, suffix):
    source = write_video(tmp_path / "a.mp4", audio="aac")
    through(bundle, source, tmp_path / f"b{suffix}")
    (times, frames, packets), (times2, frames2, packets2) = watch(source), watch(tmp_path / f"b{suffix}")
    assert len(frames2) == len(frames) == 30
    assert [p for p, _ in packets2] == [p for p, _ in packets] and len(packets) > 20
    # AAC begins before zero by what the decoder throws away, and Matroska begins at zero: all of it moves by 21 ms
    moved = 0.0213 if suffix == ".mkv" else 0.0
    assert np.abs(np.subtract(times2, times) - moved).max() <= 0.001
    assert np.abs(np.subtract([t for _, t in packets2], [t for _, t in packets]) - moved).max() <= 0.001
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(frames, frames2, strict=True)) < 2.5


@pytest.mark.parametrize(
    ("matrix", "size"), [(1, (64, 48)), (6, (64, 48)), (2, (64, 48)), (1, (96, 720)), (6, (96, 720))]
)
def test_no_velocity_gives_the_colours_back_whatever_the_matrix(bundle, tmp_path, matrix, size):
    source = write_video(tmp_path / "a.mp4", frames=3, size=size, matrix=matrix)
    through(bundle, source, tmp_path / "b.mp4")
    _, before, _ = watch(source)
    _, after, _ = watch(tmp_path / "b.mp4")
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert np.abs((a.astype(int) - b).mean(axis=(0, 1))).max() < 2
        assert np.abs(b.astype(int) - scene(i, size)).mean() < 4


def test_a_rate_that_varies_keeps_its_times(bundle, tmp_path):
    times = [0, 33, 35, 90, 91, 300, 1000, 1010, 1500, 1533]
    source = write_video(tmp_path / "a.mp4", frames=10, times=times)
    for suffix in (".mp4", ".mkv", ".webm"):
        through(bundle, source, tmp_path / f"b{suffix}")
        assert np.abs(np.array(watch(tmp_path / f"b{suffix}")[0]) * 1000 - times).max() <= 1


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_is_written_upright(bundle, tmp_path, rotation):
    source = write_video(tmp_path / "a.mp4", frames=2, rotation=rotation)
    _, (before, *_), _ = watch(source)
    assert before.shape[:2] == ((64, 48) if rotation % 180 else (48, 64))
    through(bundle, source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - before).mean() < 3


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, -1, -1, 0), lambda frame: frame.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_a_mirrored_video_is_written_as_it_is_shown(bundle, tmp_path, matrix, shown):
    source = write_video(tmp_path / "a.mp4", frames=2)
    wanted = shown(watch(source)[1][0].astype(int))
    data, (a, b, c, d) = source.read_bytes(), matrix
    identity, given = (
        struct.pack(">9i", e << 16, f << 16, 0, g << 16, h << 16, 0, 0, 0, 1 << 30)
        for e, f, g, h in [(1, 0, 0, 1), (a, b, c, d)]
    )
    track = data.index(identity, data.index(b"tkhd"))
    source.write_bytes(data[:track] + given + data[track + len(given) :])
    through(bundle, source, tmp_path / "b.mp4")
    assert np.abs(watch(tmp_path / "b.mp4")[1][0].astype(int) - wanted).mean() < 3


def test_an_odd_size_gains_one_row_or_column(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=2)
    through(bundle, source, tmp_path / "b.mp4", size=33)
    assert watch(tmp_path / "b.mp4")[1][0].shape == (34, 44, 3)


def test_webm_gets_vp9_keeps_opus_and_says_that_it_cannot_hold_aac(bundle, tmp_path):
    opus = write_video(tmp_path / "a.mkv", audio="libopus")
    assert not through(bundle, opus, tmp_path / "a.webm").done[0].message
    assert [p for p, _ in watch(opus)[2]] == [p for p, _ in watch(tmp_path / "a.webm")[2]]
    aac = write_video(tmp_path / "b.mp4", audio="aac")
    assert "does not take aac" in through(bundle, aac, tmp_path / "b.webm").done[0].message
    assert len(watch(tmp_path / "b.webm")[1]) == 30


def test_avi_and_mpg_become_mp4(bundle, tmp_path):
    folder = tmp_path / "in"
    write_video(folder / "a.avi", codec="mpeg4", audio="libmp3lame")
    write_video(folder / "b.MPG", codec="mpeg2video", audio="mp2")
    report = through(bundle, folder, tmp_path / "out")
    assert sorted(e.target.name for e in report.done) == ["a.mp4", "b.mp4"]
    for event in report.done:
        (times, frames, packets), (times2, _, packets2) = watch(event.source), watch(event.target)
        assert len(frames) == 30 and np.abs(np.diff(times) - np.diff(times2)).max() <= 0.001
        assert [p for p, _ in packets] == [p for p, _ in packets2] and not event.message


def test_times_in_coding_order_are_put_in_order(bundle, tmp_path):
    """As in AVIs and some MP4s with B-frames: the decoder then hands the times out mixed up."""
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"bf": "2", "b_strategy": "0", "crf": "8"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(scene(3 * i), format="rgb24") for i in range(10)]
        packets = [packet for frame in [*frames, None] for packet in video.encode(frame)]
        for i, packet in enumerate(packets):
            packet.pts = packet.dts = i
            packet.time_base = Fraction(1, 25)
            out.mux(packet)
    assert sorted(watch(source)[0]) != watch(source)[0]
    through(bundle, source, tmp_path / "b.mp4")
    times, frames, _ = watch(tmp_path / "b.mp4")
    assert np.allclose(times, np.arange(10) / 25, atol=0.001)
    assert [np.argmin([np.abs(f - scene(3 * k).astype(int)).mean() for k in range(10)]) for f in frames] == [*range(10)]


@pytest.mark.parametrize("how", ["noise", "cut", "empty"])
def test_a_damaged_video_fails_by_name_and_time_and_gives_the_good_part(bundle, tmp_path, how):
    source = write_video(tmp_path / "in" / "a.mp4", frames=100)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    if how == "noise":
        data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    source.write_bytes({"noise": data, "cut": data[:middle], "empty": b""}[how])
    report = translate(bundle, [tmp_path / "in"], tmp_path / "out")
    assert len(report.failed) == 1 and "a.mp4" in report.failed[0].message, report
    assert how == "empty" or " s: " in report.failed[0].message
    left = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.name != "translate.jsonl")
    assert left == ([] if how == "empty" else ["a.mp4"])
    if how != "empty":
        good = watch(tmp_path / "out/a.mp4")[1]
        assert 5 < len(good) < 100 and f"{len(good)} frames before it" in report.failed[0].message


def test_sound_ends_where_a_damaged_picture_does(bundle, tmp_path):
    source = write_video(tmp_path / "in" / "a.mp4", frames=100, audio="aac")
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = np.random.default_rng(0).bytes(2000)
    source.write_bytes(data)
    assert len(translate(bundle, [tmp_path / "in"], tmp_path / "out").failed) == 1
    times, _, sound = watch(tmp_path / "out/a.mp4")
    assert 0.5 < times[-1] < 3 and abs(max(time for _, time in sound) - times[-1]) < 0.1


def test_a_playlist_that_calls_itself_mp4_opens_nothing(bundle, tmp_path, monkeypatch):
    secret = write_video(tmp_path / "secret.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    (folder / "b.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    report = translate(bundle, [folder], tmp_path / "out")
    assert len(report.failed) == 2 and all("not a readable video" in e.message for e in report.failed)


def test_a_video_goes_through_the_net_like_its_frames(tmp_path):
    bundle = load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.towards(0.0), default_steps=2))
    source = write_video(tmp_path / "a.mp4", frames=5)
    seen = []
    translate(bundle, [source], tmp_path / "b.mp4", flow=FlowOptions(size="native", batch=2), on_event=seen.append)
    for before, after in zip(watch(source)[1], watch(tmp_path / "b.mp4")[1], strict=True):
        assert np.abs((before.astype(float) - 127.5) / 4 + 127.5 - after).mean() < 2.5
    assert [e.count for e in seen if e.kind == "frames"] == [1, 2, 3, 4, 5]
    assert seen[0].total == 1 and seen[-1].kind == "done"


def test_a_zipped_video_is_translated(bundle, tmp_path):
    import zipfile

    source = write_video(tmp_path / "a.mp4", frames=5, audio="aac")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(source, "clip one.mp4")
        archive.writestr("b.png", b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    report = translate(bundle, [tmp_path / "set.zip", tmp_path / "c.png"], tmp_path / "out")
    assert sorted(e.target.name for e in report.done) == ["c.png", "clip one.mp4"] and len(report.failed) == 1
    assert len(watch(tmp_path / "out/set/clip one.mp4")[1]) == 5


@pytest.mark.parametrize("how", ["mp4", "fragments", "mkv"])
def test_a_film_with_sound_cut_anywhere_is_never_taken_for_whole(bundle, tmp_path, how):
    """Where the cut goes through a packet of sound, or between two, FFmpeg ends without an error."""
    flags, suffix = (
        "frag_keyframe+empty_moov" if how == "fragments" else "faststart",
        ".mkv" if how == "mkv" else ".mp4",
    )
    whole = write_video(tmp_path / f"whole{suffix}", frames=60, audio="aac", flags=flags)
    through(bundle, whole, tmp_path / f"out{suffix}")
    data = whole.read_bytes()
    for percent in (55, 70, 80, 90, 97):
        (tmp_path / f"cut{percent}{suffix}").write_bytes(data[: len(data) * percent // 100])
    report = translate(bundle, sorted(tmp_path.glob("cut*")), tmp_path / "out", flow=FlowOptions(size="native"))
    assert len(report.failed) == 5 and not len(report.done)
    for event in report.failed:
        frames = len(watch(event.target)[1])
        assert 0 < frames <= 60 and f"{frames} frames before it" in event.message, event.message


def test_a_camera_s_own_data_after_a_film_are_not_taken_for_a_part_of_it(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=5)
    source.write_bytes(source.read_bytes() + b"\x7f\xff\xff\xffSEFT" + bytes(20))
    through(bundle, source, tmp_path / "b.mp4")


def test_a_second_run_over_a_damaged_film_fails_as_the_first_and_does_nothing(bundle, tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=100)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    first, second = (translate(bundle, [source], tmp_path / "out") for _ in range(2))
    assert [e.message for e in first.failed] == [e.message for e in second.failed] and len(second.failed) == 1
    lines = (tmp_path / "out" / "translate.jsonl").read_text().splitlines()
    assert len(lines) == 1
