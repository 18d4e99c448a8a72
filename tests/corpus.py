"""Small files of every kind that rfp reads, and ways to damage them."""

import struct
import zipfile
import zlib
from io import BytesIO

import av
import bundles
import numpy as np
from PIL import Image

INTERESTING = [struct.pack(order + "I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF) for order in "<>"]


def picture(width=24, height=16):
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(kind, mode="RGB", **options):
    out = BytesIO()
    Image.fromarray(picture()).convert(mode).save(out, kind, **options)
    return out.getvalue()


def animation(kind):
    frames = [Image.fromarray(picture(24 + 0 * i)).rotate(90 * i) for i in range(3)]
    out = BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=40)
    return out.getvalue()


def film(suffix):
    """Eight frames and a tone."""
    muxer, video, audio = {
        "mp4": ("mp4", "libx264", "aac"),
        "mkv": ("matroska", "libx264", "aac"),
        "webm": ("webm", "libvpx-vp9", "libopus"),
    }[suffix]
    out = BytesIO()
    with av.open(out, "w", format=muxer) as container:
        pictures = container.add_stream(video, rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        tone = container.add_stream(audio, rate=48000)
        tone.layout = "mono"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * i, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        sound = np.sin(np.arange(960 * 16) / 20).astype(np.float32)
        for i in range(16):
            chunk = av.AudioFrame.from_ndarray(sound[None, i * 960 : (i + 1) * 960].copy(), "fltp", "mono")
            chunk.sample_rate, chunk.pts = 48000, i * 960
            container.mux(tone.encode(chunk))
        container.mux(pictures.encode(None))
        container.mux(tone.encode(None))
    return out.getvalue()


def archive():
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("stored.png", image("PNG"))
        for name, method in (("b", zipfile.ZIP_DEFLATED), ("c", zipfile.ZIP_BZIP2), ("d", zipfile.ZIP_LZMA)):
            z.writestr(f"{name}/10.bmp", image("BMP"), method)
    return out.getvalue()


def samples(suffix, folder):
    """Whole files of one suffix, as bytes."""
    if suffix in ("mp4", "mkv", "webm"):
        return [film(suffix)]
    if suffix == "onnx":
        models = bundles.identity(), bundles.blur(), bundles.cubic()
        return [(bundles.write_bundle(folder / str(i), m) / "velocity.onnx").read_bytes() for i, m in enumerate(models)]
    return {
        "png": lambda: [image("PNG"), image("PNG", "P"), image("PNG", "RGBA"), image("PNG", "I;16"), animation("PNG")],
        "jpg": lambda: [image("JPEG"), image("JPEG", "CMYK"), image("JPEG", progressive=True)],
        "webp": lambda: [image("WEBP"), image("WEBP", lossless=True), animation("WEBP")],
        "gif": lambda: [image("GIF", "P"), animation("GIF")],
        "tif": lambda: [image("TIFF"), image("TIFF", compression="tiff_lzw"), image("TIFF", "CMYK")],
        "zip": lambda: [archive()],
    }[suffix]()


def damaged(data, rng):
    """One to three of: bytes changed, numbers put in, a part cut out, repeated, cleared, put in; the end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        near = rng.random() < 0.5  # headers and indices lie at the ends
        at = (
            int(rng.integers(0, size + 1))
            if not near
            else int(rng.integers(0, 128)) * (1 if rng.random() < 0.7 else -1)
        )
        at = min(max(at % (size + 1), 0), size)
        length = int(rng.integers(1, max(2, min(64, size))))
        match int(rng.integers(0, 8)):
            case 0 | 1 | 2:
                for i in rng.integers(0, length, rng.integers(1, 5)):
                    if at + i < size:
                        data[at + i] = rng.integers(0, 256)
            case 3:
                data[at : at + 4] = INTERESTING[rng.integers(0, len(INTERESTING))]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = bytes([rng.choice([0, 255])]) * length
            case _:
                del data[max(1, size - int(rng.integers(1, size + 1))) :]
    return bytes(data)


def png_of(width, height):
    """A few bytes that say they are a picture of this size."""
    data = bytearray(image("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)
