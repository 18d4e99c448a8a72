"""Peak memory of translating images far above the net's size, each variant in a process of its own.

python benchmarks/large_images.py [COUNT]
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
VARIANTS = ("as it is", "Pillow's own blocks", "Pillow's own blocks, all threads at once")


def measure(variant: str, folder: Path) -> None:
    import bundles
    from rfp.runtime import FlowOptions, media, translate

    if variant != VARIANTS[0]:
        Image.core.set_block_size(1 << 24)
    if variant == VARIANTS[2]:
        media.LARGE = media.MAX_PIXELS
    bundle = bundles.write_bundle(folder / "bundle", bundles.identity())
    out = tempfile.mkdtemp(dir=folder)
    report = translate(bundle, [folder / "in"], out, flow=FlowOptions(size=32, steps=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {variant} | {peak:,.0f} MiB | {report.seconds:.0f} s | {len(report.done)} done |", flush=True)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        image = Image.new("P", (12_000, 12_000))
        for i in range(count):
            image.save(Path(folder) / "in" / f"{i}.png", transparency=1, compress_level=1)
        for variant in VARIANTS:
            subprocess.run([sys.executable, __file__, variant, folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in VARIANTS:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 3)
