"""Films whose every frame says its number."""

from fractions import Fraction

import av
import numpy as np


def counted(i, width=64, height=48):
    """A frame with the bits of i as black and white columns, and the top half darker than the bottom."""
    bits = np.repeat([(i >> b & 1) * 200 for b in range(8)], width // 8)
    pixels = np.repeat(bits[None, :, None], height, axis=0).repeat(3, axis=2)
    return (pixels + np.where(np.arange(height) < height / 2, 0, 50)[:, None, None]).astype(np.uint8)


def count(pixels):
    h, w = pixels.shape[:2]
    columns = pixels[h // 8 : h // 4].mean(axis=(0, 2))
    return sum(int(columns[int((b + 0.5) * w / 8)] > 100) << b for b in range(8))


def write_video(path, times, rotation=None, gop=12):
    """Frames that count, shown at `times` in ms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10", "g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(counted(i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
