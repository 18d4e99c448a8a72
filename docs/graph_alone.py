"""Translate a picture with the graphs of a bundle and nothing of rfp, as an app does:

python docs/graph_alone.py BUNDLE PICTURE OUT.png

What comes out is what `rfp translate --size native` makes on the same processor. Where rfp.json has an `alignment`,
pictures are moved by it besides, as docs/manifest.schema.json says: in Python by `moved` and `inverse` of
runtime/alignment.py, in JavaScript by those of export/site/flow.js.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


@cache
def graph(path: Path) -> Any:
    """Loading one takes longer than running it."""
    return onnxruntime.InferenceSession(path)


def translated(folder: Path, picture: Any, reverse: bool = False) -> Any:
    """uint8 [H, W, 3] of domain 0, RGB, as one of domain 1 as large; with `reverse` the other way."""
    manifest = json.loads((folder / "rfp.json").read_text(encoding="utf-8"))
    if manifest.get("alignment") or manifest.get("generative"):
        raise SystemExit(f"{folder}: its pictures are moved besides, or made from noise; this shows neither")

    def run(name: str, **inputs: Any) -> Any:
        return graph(folder / f"{name}.onnx").run(None, inputs)[0]

    height, width = picture.shape[:2]
    x = picture.astype(np.float32).transpose(2, 0, 1)[None] * np.float32(1 / 127.5) - np.float32(1)
    beyond = [(0, -side % manifest["multiple"]) for side in (height, width)]
    x = np.pad(x, [(0, 0), (0, 0), *beyond], mode="reflect")
    if manifest.get("latent"):
        x = run("encoder", x=x)
    steps = manifest["default_steps"]
    t0, dt = (1.0, -1 / steps) if reverse else (0.0, 1 / steps)
    for k in range(steps):
        x = x + np.float32(dt) * run("velocity", x=x, t=np.array([t0 + k * dt], np.float32))
    if manifest.get("latent"):
        x = run("decoder", z=x)
    levels = np.rint((x[0].transpose(1, 2, 0) + 1) * np.float32(127.5)).clip(0, 255)
    return levels.astype(np.uint8)[:height, :width]


if __name__ == "__main__":
    bundle, source, target = map(Path, sys.argv[1:])
    with Image.open(source) as image:
        Image.fromarray(translated(bundle, np.asarray(image.convert("RGB")))).save(target)
