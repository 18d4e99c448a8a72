"""The streams beside the picture, where a container makes trouble of them; each was seen on a real file."""

from fractions import Fraction
from io import BytesIO

import av
import bundles
import numpy as np
import pytest
from PIL import Image
from rfp.runtime import FilmOptions, FlowOptions, load_bundle, streams, translate
from rfp.runtime.cut import Cut
from test_video import scene, watch, write_video


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(bundles.write_bundle(tmp_path / "bundle", bundles.identity(), default_steps=1))


def through(bundle, source, target, **options):
    report = translate(bundle, [source], target, flow=FlowOptions(size="native"), film=FilmOptions(**options))
    assert not report.failed, report.failed[0].message
    return report.done[0].message


def tone(codec, path, channels="stereo", rate=48000, frames=50):
    """A film with 440 Hz in `codec`."""
    form = av.Codec(codec, "w").audio_formats[0].name
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream(codec, rate=rate, layout=channels, bit_rate=128_000)
        for i in range(frames):
            out.mux(video.encode(av.VideoFrame.from_ndarray(scene(i), format="rgb24")))
        out.mux(video.encode(None))
        wave = np.sin(np.arange(rate * frames // 25) * 2 * np.pi * 440 / rate).astype(np.float32) * 0.5
        block = av.AudioFrame.from_ndarray(np.repeat(wave[None], sound.layout.nb_channels, 0), "fltp", channels)
        block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(form, channels, rate, frame_size=sound.codec_context.frame_size or 1024)
        for part in (block, None):
            for frame in resampler.resample(part):
                out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


def heard(path):
    """Mono samples at 8 kHz, from the first one on, and its time in s."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", 8000)
        frames = [f for frame in [*container.decode(audio=0), None] for f in resampler.resample(frame)]
    return np.concatenate([f.to_ndarray()[0] for f in frames]), float(frames[0].pts * frames[0].time_base)


@pytest.mark.parametrize(
    ("codec", "name", "channels", "rate"),
    [
        ("pcm_u8", "a.avi", "stereo", 11025),
        ("adpcm_ms", "a.avi", "mono", 22050),
        ("wmav2", "a.avi", "stereo", 48000),
        ("pcm_f32le", "a.mkv", "5.1", 48000),
        ("pcm_s16le", "a.mkv", "stereo", 192000),
    ],
)
def test_sound_that_mp4_does_not_take_is_made_anew_whatever_its_channels_and_rate(
    bundle, tmp_path, codec, name, channels, rate
):
    """AVI and Matroska name no channel layout for most codecs; of PCM MP4 says so only when its index is written."""
    source = tone(codec, tmp_path / name, channels, rate)
    message = through(bundle, source, tmp_path / "b.mp4")
    assert message in ("", f"audio made anew: .mp4 does not take {codec}")
    before, began = heard(source)
    after, begins = heard(tmp_path / "b.mp4")
    assert abs(begins - began) < 0.03 and abs(len(after) - len(before)) < 8000 * 0.1
    with av.open(str(tmp_path / "b.mp4")) as b:
        assert b.streams.audio[0].channels == av.AudioLayout(channels).nb_channels
    for samples in (before, after):
        spectrum = np.abs(np.fft.rfft(samples[2000:10000]))
        assert spectrum.argmax() == 440 and spectrum[430:450].sum() > 0.5 * spectrum.sum()


def test_sound_made_anew_begins_and_ends_with_the_cut(bundle, tmp_path):
    source = tone("pcm_s16le", tmp_path / "a.mkv")
    through(bundle, source, tmp_path / "b.mp4", start=0.8, end=1.4)
    samples, begins = heard(tmp_path / "b.mp4")
    assert abs(begins) < 0.03 and abs(len(samples) / 8000 - 0.6) < 0.1


def test_sound_made_anew_runs_evenly_though_its_times_were_rounded(bundle, tmp_path):
    """Matroska's are whole ms, and a frame of AAC lasts 23.2."""
    through(bundle, tone("pcm_f32le", tmp_path / "a.mkv", rate=44100), tmp_path / "b.mp4")
    times = [time for _, time in watch(tmp_path / "b.mp4")[2]]
    assert len(times) > 80 and np.abs(np.diff(times) - 1024 / 44100).max() < 1e-5


def test_a_stream_that_is_refused_packets_later_costs_that_stream_alone(bundle, tmp_path):
    source = tone("eac3", tmp_path / "a.mkv")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in [bytes(p) for p in container.demux(audio=0) if p.size][8:]:
            at = data.find(packet)
            data[at : at + len(packet)] = b"\xff" * len(packet)
    source.write_bytes(data)
    assert "audio made anew: .mp4 does not take eac3" in through(bundle, source, tmp_path / "b.mp4")
    assert len(watch(tmp_path / "b.mp4")[1]) == 50 and 0.1 < len(heard(tmp_path / "b.mp4")[0]) / 8000 < 0.5
    assert not list(tmp_path.glob(".*"))


def test_a_stream_with_which_a_file_is_written_but_not_read_again_is_left_out(bundle, tmp_path):
    """ID3 tags of a broadcast, which the MOV muxer takes."""
    source = tmp_path / "a.mpg"
    with av.open(str(write_video(tmp_path / "p.mp4", audio="aac"))) as a, av.open(str(source), "w", "mpegts") as out:
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in a.streams}
        tags = out.add_data_stream("timed_id3")
        for i, packet in enumerate(p for p in a.demux() if p.size):
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
            if i % 10 == 0:
                data = av.Packet(b"ID3 of a station")
                data.pts, data.dts, data.time_base, data.stream = packet.dts, packet.dts, packet.time_base, tags
                out.mux(data)
    assert "data left out: .mov does not take timed_id3" in through(bundle, source, tmp_path / "b.mov")
    _, frames, sound = watch(tmp_path / "b.mov")
    assert len(frames) == 30 and len(sound) > 20


def test_what_cannot_be_made_anew_either_is_left_out(bundle, tmp_path, monkeypatch):
    def fails(*args):
        raise av.ArgumentError(22, "no such encoder")

    monkeypatch.setattr(streams, "sound", fails)
    source = tone("pcm_u8", tmp_path / "a.avi")
    assert "audio left out: .mp4 refused it" in through(bundle, source, tmp_path / "b.mp4")
    assert len(watch(tmp_path / "b.mp4")[1]) == 50


def remuxed(source, target, shift=0.0, tags=(), mangle=lambda packet: None):
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in container.streams}
        streams[0].metadata.update(tags)
        streams[0].codec_context.framerate = container.streams.video[0].average_rate
        for packet in container.demux():
            if packet.size:
                packet.pts, packet.dts = (t + round(shift / packet.time_base) for t in (packet.pts, packet.dts))
                mangle(packet)
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_matroska_file_that_starts_late_is_whole(bundle, tmp_path, suffix):
    source = remuxed(write_video(tmp_path / "p.mp4", audio="aac"), tmp_path / "a.mkv", shift=12.5)
    assert through(bundle, source, tmp_path / f"b{suffix}") == ""
    assert np.allclose(watch(tmp_path / f"b{suffix}")[0], watch(source)[0], atol=0.001)


def test_a_time_code_track_is_carried_over_and_falls_away_with_its_first_frame(bundle, tmp_path):
    source = remuxed(write_video(tmp_path / "p.mp4"), tmp_path / "a.mov", tags={"timecode": "01:00:00:00"})
    for target, options in (("b.mov", {}), ("b.mp4", {}), ("c.mov", {"start": 0.4})):
        assert through(bundle, source, tmp_path / target, **options) == ""
        with av.open(str(tmp_path / target)) as b:
            assert b.streams.video[0].metadata.get("timecode") == (None if options else "01:00:00:00")
            assert b.streams.video[0].average_rate == 25


def test_what_an_edit_list_hides_stays_hidden(bundle, tmp_path):
    """As in MP4s that were cut without encoding: a second of sound before the beginning."""
    source = remuxed(write_video(tmp_path / "p.mp4", frames=60, audio="aac"), tmp_path / "a.mp4", shift=-1.0)
    assert through(bundle, source, tmp_path / "b.mkv") == ""
    times, frames, sound = watch(tmp_path / "b.mkv")
    assert len(frames) == 35 and times[0] < 0.15 and sound[0][1] <= times[0]
    assert np.abs(frames[0].astype(int) - scene(25)).mean() < 4


def test_sound_before_zero_comes_along(bundle, tmp_path):
    source = write_video(tmp_path / "a.webm", codec="libvpx", audio="libopus")
    through(bundle, source, tmp_path / "b.mkv")
    assert watch(source)[2][0][1] < 0 and watch(tmp_path / "b.mkv")[2] == watch(source)[2]


@pytest.mark.parametrize(("suffix", "times"), [(".mp4", [0, 1, 2, 3, 9]), (".mkv", [0, 1, 1, 1, 9])])
def test_times_that_go_back_are_held_up(tmp_path, suffix, times):
    """As in recordings that were joined byte by byte: a muxer refuses them."""
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        sound = out.add_stream("aac", rate=48000)
        handle = streams._copying(sound, sound, Cut(Fraction(0), None, None), suffix)
        for before, after in zip([0, 1, 1, 0, 9], times, strict=True):
            packet = av.Packet(b"x")
            packet.pts = packet.dts = before
            packet.time_base = Fraction(1, 1000)
            assert [(p.pts, p.dts) for p in handle(packet)] == [(after, after)]


def test_a_cover_is_missed_where_there_is_no_place_for_it(bundle, tmp_path):
    plain, cover = write_video(tmp_path / "p.mp4", frames=5), BytesIO()
    Image.fromarray(scene(0)).save(cover, "JPEG")
    with av.open(str(plain)) as source, av.open(str(tmp_path / "a.mkv"), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0], opaque=True)
        out.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        for packet in source.demux():
            if packet.size:
                packet.stream = video
                out.mux(packet)
    assert through(bundle, tmp_path / "a.mkv", tmp_path / "b.mp4") == ""
    assert "cover left out: .mov does not take mjpeg" in through(bundle, tmp_path / "a.mkv", tmp_path / "b.mov")
    with av.open(str(tmp_path / "b.mp4")) as b:
        assert [bytes(p) for p in b.demux(b.streams.video[1]) if p.size] == [cover.getvalue()]
