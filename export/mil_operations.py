"""MIL's operations in torch: those that rfp's nets are made of, as coremltools documents them for iOS 17.

Each takes its inputs by name: float32 or int64 tensors, and plain numbers and texts where MIL has scalars.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = dict[str, Any]


def _binary(f: Callable[[Any, Any], Any]) -> Callable[[Inputs], Any]:
    return lambda a: f(a["x"], a["y"])


def _unary(f: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda a: f(a["x"])


def _cast(a: Inputs) -> Any:
    """To the type that the operation declares; fp16 is rounded to where all results are."""
    if a["dtype"] in ("fp16", "fp32"):
        return a["x"].float()
    if a["dtype"] in ("int32", "int16", "uint16"):
        return a["x"].long()
    raise NotImplementedError(f"cast to {a['dtype']}")


def _concat(a: Inputs) -> Tensor:
    if a.get("interleave", False):
        raise NotImplementedError("interleaved concat")
    parts = [torch.as_tensor(v) for v in a["values"]]
    return torch.cat([v.reshape(1) if v.ndim == 0 else v for v in parts], dim=a["axis"])


def _conv(a: Inputs) -> Tensor:
    if a.get("pad_type", "valid") not in ("custom", "valid"):
        raise NotImplementedError(f"conv with pad_type {a['pad_type']}")
    x: Tensor = a["x"]
    if a.get("pad_type") == "custom":
        top, bottom, left, right = a["pad"].tolist()
        x = F.pad(x, (left, right, top, bottom))
    strides = a["strides"].tolist() if "strides" in a else 1
    dilations = a["dilations"].tolist() if "dilations" in a else 1
    return F.conv2d(x, a["weight"], a.get("bias"), strides, 0, dilations, a.get("groups", 1))


def _batch_norm(a: Inputs) -> Tensor:
    more = (a.get("gamma"), a.get("beta"), False, 0.0, a.get("epsilon", 1e-5))
    return F.batch_norm(a["x"], a["mean"], a["variance"], *more)


def _layer_norm(a: Inputs) -> Tensor:
    shape = [a["x"].shape[i] for i in a["axes"].tolist()]
    return F.layer_norm(a["x"], shape, a.get("gamma"), a.get("beta"), a.get("epsilon", 1e-5))


def _deviations_squared(a: Inputs) -> Tensor:
    x: Tensor = a["x"]
    axes = a["axes"].tolist()
    return (x - x.mean(axes, keepdim=True)).square()


def _gelu(a: Inputs) -> Tensor:
    match a.get("mode", "EXACT"):
        case "EXACT":
            return F.gelu(a["x"])
        case "TANH_APPROXIMATION":
            return F.gelu(a["x"], approximate="tanh")
        case mode:
            raise NotImplementedError(f"gelu with mode {mode}")


def _matmul(a: Inputs) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.get("transpose_x", False) else x
    return torch.matmul(x, y.transpose(-1, -2) if a.get("transpose_y", False) else y)


def _reduce_mean(a: Inputs) -> Tensor:
    x: Tensor = a["x"]
    return x.mean(a["axes"].tolist(), keepdim=a.get("keep_dims", False))


def _split(a: Inputs) -> tuple[Tensor, ...]:
    x: Tensor = a["x"]
    if "split_sizes" in a:
        sizes: list[int] = a["split_sizes"].tolist()
        return tuple(x.split(sizes, a["axis"]))
    parts: tuple[Tensor, ...] = x.chunk(a["num_splits"], a["axis"])
    return parts


def _slice_by_size(a: Inputs) -> Tensor:
    x: Tensor = a["x"]
    for axis, (begin, size) in enumerate(zip(a["begin"].tolist(), a["size"].tolist(), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _slice_by_index(a: Inputs) -> Tensor:
    x: Tensor = a["x"]
    flags = [a[k].tolist() if k in a else [False] * x.ndim for k in ("begin_mask", "end_mask", "squeeze_mask")]
    strides = a["stride"].tolist() if "stride" in a else [1] * x.ndim
    picks: list[int | slice] = []
    for begin, end, stride, first, last, one in zip(
        a["begin"].tolist(), a["end"].tolist(), strides, *flags, strict=True
    ):
        picks.append(begin if one else slice(None if first else begin, None if last else end, stride))
    return x[tuple(picks)]


def _gather(a: Inputs) -> Tensor:
    if a.get("batch_dims", 0):
        raise NotImplementedError("gather with batch_dims")
    indices = torch.as_tensor(a["indices"])
    axis = a.get("axis", 0)
    x: Tensor = a["x"]
    picked = x.index_select(axis, indices.flatten())
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _expand_dims(a: Inputs) -> Tensor:
    x = a["x"] if isinstance(a["x"], Tensor) else torch.tensor(a["x"])
    rank = x.ndim + len(a["axes"])
    for axis in sorted(i % rank for i in a["axes"].tolist()):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Inputs) -> Tensor:
    x: Tensor = a["x"]
    return x.squeeze(tuple(a["axes"].tolist())) if "axes" in a else x.squeeze()


def _upsample(a: Inputs) -> Tensor:
    factors = (float(a["scale_factor_height"]), float(a["scale_factor_width"]))
    return F.interpolate(a["x"], scale_factor=factors, mode="nearest")


def _pad(a: Inputs) -> Tensor:
    """MIL counts from the first of the padded axes on, torch from the last one back."""
    pairs = a["pad"].reshape(-1, 2).flip(0)
    match a.get("mode", "constant"):
        case "constant":
            return F.pad(a["x"], pairs.flatten().tolist(), value=float(a.get("constant_val", 0)))
        case "replicate":
            if pairs[2:].any():
                raise NotImplementedError(f"pad with mode replicate of {len(pairs)} axes")
            return F.pad(a["x"], pairs[:2].flatten().tolist(), mode="replicate")
        case mode:
            raise NotImplementedError(f"pad with mode {mode}")


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "add": _binary(operator.add),
    "sub": _binary(operator.sub),
    "mul": _binary(operator.mul),
    "real_div": _binary(operator.truediv),
    "floor_div": _binary(operator.floordiv),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "cos": _unary(torch.cos),
    "sin": _unary(torch.sin),
    "relu": _unary(F.relu),
    "silu": _unary(F.silu),
    "round": _unary(torch.round),
    "clip": lambda a: a["x"].clamp(a["alpha"], a["beta"]),
    "gelu": _gelu,
    "softmax": lambda a: a["x"].softmax(a["axis"]),
    "cast": _cast,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "reduce_mean": _reduce_mean,
    "concat": _concat,
    "split": _split,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "reshape": lambda a: a["x"].reshape(a["shape"].tolist()),
    "transpose": lambda a: a["x"].permute(a["perm"].tolist()),
    "tile": lambda a: a["x"].repeat(a["reps"].tolist()),
    "range_1d": lambda a: torch.arange(*(torch.as_tensor(a[k]).item() for k in ("start", "end", "step"))),
    "equal": _binary(operator.eq),
    "select": lambda a: torch.where(torch.as_tensor(a["cond"]), a["a"], a["b"]),
    "shape": lambda a: torch.tensor(a["x"].shape),
    "slice_by_size": _slice_by_size,
    "slice_by_index": _slice_by_index,
    "gather": _gather,
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], a["upscale_factor"]),
    "pixel_unshuffle": lambda a: F.pixel_unshuffle(a["x"], a["downscale_factor"]),
    "upsample_nearest_neighbor": _upsample,
    "pad": _pad,
}

ON_THE_WAY: dict[str, Callable[[Inputs], Tensor]] = {"layer_norm": _deviations_squared}
"""What an operation computes inside itself that may leave the range of fp16 though its result does not."""
