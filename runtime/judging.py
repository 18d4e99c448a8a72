"""Translations beside their inputs, the truth and real pictures: every figure with its floor and its ceiling.

The floor is what real pictures get against other real ones, the ceiling what the untouched input gets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .distances import FEWEST, frechet_distance, kernel_distance
from .features import FeatureNet, Seen, apart, describe, in_units_of, outlines
from .metrics import edge_correlation, l1, laplacian_energy, psnr, ssim
from .pixels import Float, Uint8

Classifier = Callable[[Uint8], Sequence[float]]
"""uint8 [B, S, S, 3] → the probabilities that they are of domain 1."""
Better = Literal["lower", "higher", "1"]


@dataclass(frozen=True)
class Figure:
    """One measure: of the translations, of the untouched input, of real pictures; None where it cannot be taken.

    `margin` is half the width of the 95 % confidence interval of `translated`. A value that is not finite is None.
    """

    name: str
    about: str
    better: Better
    translated: float | None
    untouched: float | None = None
    real: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Judge:
    """What pictures are looked at with: a feature network or None, and a domain classifier or None."""

    net: FeatureNet | None = None
    classifier: Classifier | None = None


class Scene(NamedTuple):
    """What is judged, all uint8 [N, S, S, 3]: translations, their inputs, their truth, and real ones of the domain."""

    out: Uint8
    before: Uint8 | None = None
    truth: Uint8 | None = None
    real: Uint8 | None = None


def judged(
    scene: Scene, judge: Judge, name: str, reverse: bool, on_progress: Callable[[int, int], None]
) -> dict[str, list[Figure]]:
    """The figures by group, as far as the scene has what they need. `name` is that of the features."""
    looks, reals, others = _looks(scene)
    total, done = sum(map(len, looks.values())), 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        on_progress(done, total)

    seen = {k: describe(judge.net, pictures, count) for k, pictures in looks.items()}
    groups: dict[str, list[Figure]] = {}
    if reals is not None:
        groups["realism"] = _realism(scene, seen, reals, others, judge, name)
    if scene.before is not None:
        grids = {
            k: v for k, v in ((k, _grid(judge, seen[k], looks[k])) for k in looks) if k in ("out", "before", "truth")
        }
        what = (
            f"1 − cosine on a 4×4 grid of {name if judge.net and seen['out'].grids is not None else 'edge directions'}"
        )
        groups["content kept"] = _content(scene, grids, what)
        if scene.truth is not None:
            groups["distance to truth"] = _to_truth(scene, grids, what)
    if judge.classifier:
        groups["classifier"] = [_fooling(judge.classifier, scene, reverse)]
    return groups


def _looks(scene: Scene) -> tuple[dict[str, Uint8], Uint8 | None, Uint8 | None]:
    """What features are taken of; the real ones that all are compared with; and other real ones, for the floor."""
    looks = {k: v for k, v in (("out", scene.out), ("before", scene.before), ("truth", scene.truth)) if v is not None}
    if scene.real is None:
        return looks, scene.truth, None
    if scene.truth is not None:
        return looks | {"real": scene.real}, scene.real, scene.truth
    order = np.random.default_rng(0).permutation(len(scene.real))
    held = min(len(scene.out), len(order) // 2)
    if held < FEWEST:
        return looks | {"real": scene.real}, scene.real, None
    others, reals = scene.real[order[:held]], scene.real[order[held:]]
    return looks | {"real": reals, "others": others}, reals, others


def _realism(
    scene: Scene, seen: dict[str, Seen], reals: Uint8, others: Uint8 | None, judge: Judge, name: str
) -> list[Figure]:
    vectors = {k: v.vectors for k, v in seen.items()}
    base = vectors["real" if scene.real is not None else "truth"]
    compared = {"translated": vectors["out"], "untouched": vectors.get("before")}
    compared["real"] = vectors["truth"] if others is scene.truth else vectors.get("others")
    against = {"translated": base, "untouched": base, "real": base}
    if scene.real is None and len(base) >= 2 * FEWEST:  # of the truth alone one half is compared with the other
        compared["real"], against["real"] = base[0::2], base[1::2]
    kids, frechets = {}, {}
    for k, found in compared.items():
        if found is not None:
            y, x = (against[k], found) if judge.net else in_units_of(base, against[k], found)[1:]
            kids[k], frechets[k] = kernel_distance(x, y), frechet_distance(x, y)
    of_real = laplacian_energy(reals) or float("nan")
    texture = {
        k: laplacian_energy(x) / of_real
        for k, x in (("translated", scene.out), ("untouched", scene.before), ("real", others))
        if x is not None
    }
    about = f"in {name}, {len(scene.out)} against {len(reals)} real ones"
    milli = {k: 1000 * kid.value for k, kid in kids.items()}
    return [
        _figure("kid", f"kernel distance ×1000 {about}", "lower", milli, 1000 * kids["translated"].margin),
        _figure("frechet", f"Fréchet distance {about}", "lower", frechets),
        _figure("texture", "Laplacian energy over that of real ones", "1", texture),
    ]


def _figure(name: str, about: str, better: Better, of: dict[str, float], margin: float | None = None) -> Figure:
    finite = {k: v for k, v in of.items() if np.isfinite(v)}
    return Figure(name, about, better, finite.get("translated"), finite.get("untouched"), finite.get("real"), margin)


def _grid(judge: Judge, seen: Seen, pictures: Uint8) -> Float:
    return seen.grids if judge.net and seen.grids is not None else outlines(pictures)


def _content(scene: Scene, grids: dict[str, Float], what: str) -> list[Figure]:
    """Against the input. The real column is the truth's, where there is one: what a right translation keeps."""
    assert scene.before is not None
    columns = {"translated": ("out", scene.out), "untouched": ("before", scene.before), "real": ("truth", scene.truth)}
    structure, similar, edges = {}, {}, {}
    for column, (key, pictures) in columns.items():
        if pictures is not None:
            structure[column] = apart(grids[key], grids["before"])
            similar[column] = ssim(pictures, scene.before)
            edges[column] = edge_correlation(pictures, scene.before)
    return [
        _figure("structure", f"{what}, against the input", "lower", structure),
        _figure("ssim", "against the input", "higher", similar),
        _figure("edges", "correlation of edge strength with the input's", "higher", edges),
    ]


def _to_truth(scene: Scene, grids: dict[str, Float], what: str) -> list[Figure]:
    assert scene.before is not None and scene.truth is not None
    columns = (("out", scene.out), ("before", scene.before))
    figures = [
        Figure(name, about, better, *(float(f(pictures, scene.truth)) for _, pictures in columns))
        for name, about, better, f in _PAIRED
    ]
    energy = laplacian_energy(scene.truth) or float("nan")
    names = ("translated", "untouched")
    texture = {n: laplacian_energy(pictures) / energy for n, (_, pictures) in zip(names, columns, strict=True)}
    figures.append(_figure("texture", "Laplacian energy over the truth's", "1", texture))
    return [*figures, Figure("feature", what, "lower", *(apart(grids[k], grids["truth"]) for k, _ in columns))]


_PAIRED: tuple[tuple[str, str, Better, Callable[[Uint8, Uint8], float]], ...] = (
    ("psnr", "dB, mean of the pictures' own", "higher", psnr),
    ("ssim", "7×7 windows", "higher", ssim),
    ("l1", "mean absolute difference, of 1", "lower", l1),
)


def _fooling(classifier: Classifier, scene: Scene, reverse: bool) -> Figure:
    def share(pictures: Uint8 | None) -> float | None:
        if pictures is None:
            return None
        p = np.concatenate([classifier(pictures[i : i + 64]) for i in range(0, len(pictures), 64)])
        return float(np.mean(p < 0.5 if reverse else p > 0.5))

    real = scene.real if scene.real is not None else scene.truth
    about = "share that the classifier takes for the domain translated into; alone it says little"
    return Figure("fooling rate", about, "higher", share(scene.out), share(scene.before), share(real))
