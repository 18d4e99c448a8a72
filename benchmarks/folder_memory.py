"""Peak memory of translating many small pictures against few, each in a process of its own, with a velocity of zero:

python benchmarks/folder_memory.py --many 100000 --few 1000

Each count runs twice into the same folder: the second run skips everything by the ledger.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

CHILD = """import json, resource, sys, time
from rfp.runtime import FlowOptions, translate
began = time.monotonic()
report = translate(sys.argv[1], [sys.argv[2]], sys.argv[3], flow=FlowOptions(steps=1, size="native", device="cpu"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([len(report.done), len(report.skipped), round(peak, 1), round(time.monotonic() - began, 1)]))
"""


def main() -> None:
    import bundles

    parser = argparse.ArgumentParser()
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundles.write_bundle(folder / "bundle", bundles.identity())
        for count in (args.few, args.many):
            inputs = folder / f"in {count}"
            inputs.mkdir()
            for i in range(count):
                if i % 20_000 == 0:
                    source = inputs / f"picture {i}.png"
                    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(source)
                else:
                    (inputs / f"picture {i}.png").hardlink_to(source)
            for _ in range(2):
                command = [sys.executable, "-c", CHILD, str(bundle), str(inputs), str(folder / f"out {count}")]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
                print(f"{count:>7} pictures: done, skipped, peak MiB, seconds = {said}", flush=True)


if __name__ == "__main__":
    main()
