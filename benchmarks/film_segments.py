"""What segments cost: the same film by an identity net, in one segment and in many; CPU time and size.

python benchmarks/film_segments.py FILM.mp4
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import bundles
from rfp.runtime import FlowOptions, load_bundle, translate, video


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(bundles.write_bundle(Path(folder) / "bundle", bundles.identity(), default_steps=1))
        seconds: dict[int, list[float]] = {}
        size: dict[int, int] = {}
        for _ in range(1):
            for frames in (1 << 30, 125):
                video.SEGMENT = frames
                out = Path(folder) / f"{frames}.mp4"
                began = time.process_time()
                report = translate(bundle, [sys.argv[1]], out, flow=FlowOptions(size="native"), overwrite=True)
                seconds.setdefault(frames, []).append(time.process_time() - began)
                assert not report.failed, report.failed
                size[frames] = out.stat().st_size
        for frames, each in seconds.items():
            time_ratio, size_ratio = min(each) / min(seconds[1 << 30]), size[frames] / size[1 << 30]
            print(f"{frames:>10} a segment: {time_ratio:.2f}x the CPU time, {size_ratio:.3f}x the bytes of one segment")


if __name__ == "__main__":
    main()
