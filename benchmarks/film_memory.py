"""Peak memory of translating a whole film against its first 20 s, each in a process of its own, by an identity net:

python benchmarks/film_memory.py FILM.mp4 --minutes 10

FILM is repeated, packet by packet, until it is so long; every frame of it is decoded, resized, translated and encoded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import av

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

CHILD = """import json, resource, sys, time
from rfp.runtime import FilmOptions, FlowOptions, translate
end, size = float(sys.argv[4]) or None, int(sys.argv[5]) or "native"
began, counted, peaks = time.monotonic(), 0, {}
def tell(event):
    if event.kind == "frames" and event.count % 250 == 0:
        peaks[event.count] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
report = translate(sys.argv[1], [sys.argv[2]], sys.argv[3], flow=FlowOptions(steps=1, size=size, device="cpu"),
                   film=FilmOptions(end=end, codec=sys.argv[6]), on_event=tell)
assert not report.failed, report.failed
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak": round(peak, 1), "seconds": round(time.monotonic() - began, 1), "at frame": peaks}))
"""


def repeated(source: Path, target: Path, seconds: float) -> int:
    """Write `source` again and again until it lasts so long; the frames of the result."""
    frames, offset = 0, 0.0
    with av.open(str(target), "w") as out:
        streams: dict[int, av.stream.Stream] = {}
        while offset < seconds:
            with av.open(str(source)) as once:
                kept = [*once.streams.video[:1], *once.streams.audio[:1]]
                for stream in kept if not streams else ():
                    streams[stream.index] = out.add_stream_from_template(stream, opaque=True)
                longest = 0.0
                for packet in once.demux(kept):
                    if packet.dts is None or packet.pts is None:
                        continue
                    frames += packet.stream.type == "video"
                    longest = max(longest, float((packet.pts + packet.duration) * packet.time_base))
                    moved = round(offset / packet.time_base)
                    packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
            offset += longest
    return frames


def main() -> None:
    import bundles

    parser = argparse.ArgumentParser()
    parser.add_argument("film", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--size", type=int, default=32, help="0 for native")
    parser.add_argument("--codec", default="h264")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.write_bundle(folder / "bundle", bundles.identity(), default_steps=1)
        frames = repeated(args.film, folder / "long.mp4", args.minutes * 60)
        print(f"{args.film.name} for {args.minutes:g} minutes: {frames} frames", flush=True)
        peaks = []
        for end in (20, 0):
            command = [sys.executable, "-c", CHILD, bundle, folder / "long.mp4", folder / f"{end}.mp4"]
            ran = subprocess.run([*map(str, command), str(end), str(args.size), args.codec], check=True, stdout=-1)
            said = json.loads(ran.stdout)
            peaks.append(said["peak"])
            at = {int(k): v for k, v in said["at frame"].items()}
            some = [at[k] for k in list(at)[:: max(1, len(at) // 8)]]
            what = f"first {end} s" if end else "whole film"
            print(f"{what}: peak {said['peak']} MiB in {said['seconds']} s; on the way {some}", flush=True)
        print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
