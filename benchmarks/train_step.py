"""What the saliency loss costs: forward mode, as rfp trains, against the same loss by differentiating twice backwards.

    python benchmarks/train_step.py [--backbones resnet18 resnet34 resnet50] [--sizes 64 128] [--batch 4] [--repeats 3]

Runs train/velocity_step.py's own step with the preset tiny's velocity net, once as it is and once with `see` exchanged
for the reference, in turn and in one process: read the ratios. Saved: bytes that autograd keeps for the backward pass
of the saliency part, weights left out. Peak: how far one step raises the resident memory (Linux). The classifier's
weights are random; that changes neither time nor memory.
"""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rfp.train import loss
from rfp.train.reading import load_config, validate
from rfp.train.run import Run, Silence
from rfp.train.saliency import build_saliency_net
from rfp.train.velocity_net import build_velocity_net
from rfp.train.velocity_step import velocity_step
from torch import Tensor

FORWARD = loss.see


def twice_backward(h: loss.Features, xt: Tensor, u: Tensor) -> Tensor:
    """∇h(x_t)ᵀu without forward mode: the vector-Jacobian product Jᵀw is linear in w, so its own is Ju."""
    with torch.enable_grad():
        xt = xt.detach().contiguous().requires_grad_()
        features = h(xt)
        w = torch.zeros_like(features, requires_grad=True)
        (pulled,) = torch.autograd.grad(features, xt, w, create_graph=True)
        (tangent,) = torch.autograd.grad(pulled, w, u, create_graph=True)
    return tangent


WAYS = {"forward": FORWARD, "twice backward": twice_backward}


class Case:
    """A net, a classifier and a batch, of one of the sizes."""

    def __init__(self, backbone: str, size: int, batch: int) -> None:
        net = {"type": "ResNetSaliencyNet", "backbone": backbone, "pretrained": False}
        base = load_config("tiny").model_dump(mode="json")
        values = base | {
            "max_size": size,
            "saliency_net": net,
            "saliency_loss_weight": 0.1,
            "train_batch_size": batch,
            "train_minibatch_size": batch,
        }
        self.config = validate(values)
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.h = build_saliency_net(self.config.saliency_net).to(self.device).eval().requires_grad_(False)
        self.v = build_velocity_net(self.config).to(self.device)
        self.v.head[-1].weight.data.normal_(0, 1e-3)  # a new net's velocity is 0, whose gradient tells nothing
        self.x0, self.x1 = torch.rand(2, batch, 3, size, size) * 2 - 1
        nothing: Any = None
        self.run = Run(Path(), self.config, 0, self.device, nothing, nothing, Silence())

    def step(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """One whole update."""
        figures = velocity_step(self.run, self.v, self.h.features, [optimizer], self.x0, self.x1, self.x0[:, :2], 0)
        return {k: float(v) for k, v in figures.items()}

    def saliency(self) -> Tensor:
        """The saliency term and its gradient by the velocity alone."""
        error = (self.x1 - self.x0).to(self.device).requires_grad_()
        xt = ((self.x0 + self.x1) / 2).to(self.device)
        loss.see(self.h.features, xt, error).square().sum().backward()
        assert error.grad is not None
        return error.grad


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each call, all in turn, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            gc.collect()
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def by(way: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` with that way of looking through h."""

    def there() -> Any:
        loss.see = WAYS[way]
        try:
            return call()
        finally:
            loss.see = FORWARD

    return there


def saved_bytes(call: Callable[[], object], weights: set[int]) -> int:
    """Bytes of the distinct storages that autograd keeps during `call`, at their highest sum."""
    live: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            live[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(live.values())


def check_equal(case: Case) -> float:
    """How far the two ways' gradients are apart: ‖a − b‖/‖a‖, in double precision."""
    case.h.double()
    x = case.x0, case.x1
    case.x0, case.x1 = (z.double() for z in x)
    a, b = (by(way, case.saliency)() for way in WAYS)
    case.h.float()
    case.x0, case.x1 = x
    apart = float((a - b).norm() / a.norm())
    assert apart < 1e-10, f"the gradients differ by {apart:.1e}"
    return apart


def peak(call: Callable[[], object]) -> float:
    """MB by which `call` raises the resident memory of this process at most (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 1024


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def compare(backbone: str, size: int, batch: int, repeats: int) -> str:
    """One row of the table."""
    case = Case(backbone, size, batch)
    apart = check_equal(case)
    optimizer = torch.optim.AdamW(case.v.parameters(), lr=0.0)
    calls = {f"step {way}": by(way, lambda: case.step(optimizer)) for way in WAYS}
    calls |= {f"part {way}": by(way, case.saliency) for way in WAYS}
    t = interleaved(calls, repeats)
    weights = {p.untyped_storage().data_ptr() for net in (case.h, case.v) for p in [*net.parameters(), *net.buffers()]}
    saved = {way: saved_bytes(by(way, case.saliency), weights) / 2**20 for way in WAYS}
    rss = {way: peak(calls[f"step {way}"]) for way in WAYS}
    f, b = WAYS

    def ratio(kind: str) -> str:
        return f"{t[f'{kind} {f}']:.2f} / {t[f'{kind} {b}']:.2f} s = **{t[f'{kind} {f}'] / t[f'{kind} {b}']:.2f}×**"

    return (
        f"| {backbone} | {size} | {ratio('step')} | {ratio('part')} | {saved[f]:.0f} / {saved[b]:.0f} MB = "
        f"{saved[f] / saved[b]:.2f}× | {rss[f]:.0f} / {rss[b]:.0f} MB = {rss[f] / rss[b]:.2f}× | {apart:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet34", "resnet50"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(
        "| backbone | px | whole step | saliency part | saved for backward (part) | peak of a step | gradients apart |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for backbone in args.backbones:
        for size in args.sizes:
            print(compare(backbone, size, args.batch, args.repeats), flush=True)


if __name__ == "__main__":
    main()
