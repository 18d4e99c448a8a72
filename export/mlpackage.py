"""A net as a Core ML package: an ML program for macOS 14, iOS 17 and later, the same bytes each time.

The sinusoids of 1000·t and what feeds them are float32 in every package: half precision would move t = 0.92 by 0.6 %.
"""

import io
import json
import logging
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..runtime.errors import ExportError
from .mil import MODEL_FILE, WEIGHTS_FOLDER
from .sizes import Sizes

KNOWN_PAIR = {"coremltools": "9.0", "torch": "2.13.0"}
"""What the tests ran with, last."""
PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
"""Bits of an entry of the palette that the weights come from, by precision."""
NORMALISATION = frozenset({"reduce_mean", "sub", "square", "sqrt", "real_div", "batch_norm", "layer_norm"})
"""What GroupNorm and LayerNorm become in coremltools; `add` and `reshape` between these belong to them too."""
_NAMESPACE = uuid.UUID("5b1f3a52-63a4-4d86-9d6e-0f1c1b1d7a10")


@dataclass(frozen=True)
class Description:
    """What Xcode shows of a package, and the manifest that it carries under `key`."""

    about: str
    inputs: dict[str, str]
    output: dict[str, str]
    author: str = ""
    licence: str = ""
    version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """How a net is to be converted.

    Args:
        sizes: heights and widths of the first input.
        multiple: of which they are multiples.
        precision: fp32; fp16; or, with fp16 arithmetic, weights of 8 bits (int8) or out of a palette (palette8, 6, 4).
        float32_normalisation: keep normalisations in float32, where fp16 does not hold their squares.
        image: the first input and the output are RGB pictures in place of arrays.
    """

    sizes: Sizes
    multiple: int
    precision: str = "fp16"
    float32_normalisation: bool = False
    image: bool = False


def write_package(
    net: nn.Module, inputs: dict[str, Tensor], output: str, wanted: Wanted, said: Description, path: Path
) -> None:
    """Write `net` as the package `path`.

    Args:
        inputs: examples by name; heights and widths of the first come from `wanted.sizes`, its batch and channels from
            here, the others keep their shape.

    Raises:
        ExportError: torch or coremltools cannot convert the net; the message names the pair known to work.
    """
    with quiet() as ct:
        try:
            model = _compressed(ct, _converted(ct, net.eval(), inputs, output, wanted), wanted.precision)
        except Exception as e:  # torch.export and coremltools raise many kinds
            known = " with ".join(f"{name} {version}" for name, version in KNOWN_PAIR.items())
            raise ExportError(
                f"{path.name}: coremltools {ct.__version__} could not convert what torch {torch.__version__} exported "
                f"({_first_line(e)}); the pair known to work is {known}"
            ) from e
        model.author, model.license, model.version = said.author, said.licence, said.version
        model.short_description = said.about
        for name, text in said.inputs.items():
            model.input_description[name] = text
        for name, text in said.output.items():
            model.output_description[name] = text
        for name, text in said.metadata.items():
            model.user_defined_metadata[name] = text
        _save(model, path)


def _converted(ct: Any, net: nn.Module, inputs: dict[str, Tensor], output: str, wanted: Wanted) -> Any:
    first, *rest = inputs
    varies = wanted.sizes.varies
    example = inputs[first].new_zeros(*inputs[first].shape[:2], *wanted.sizes.example(wanted.multiple))
    dims = {axis: wanted.multiple * torch.export.Dim("hw"[axis - 2]) for axis in (2, 3) if varies[axis - 2]}
    program = torch.export.export(
        net,
        (example, *(inputs[name] for name in rest)),
        dynamic_shapes=(dims, *({} for _ in rest)) if dims else None,
    ).run_decompositions({})
    shape = _shape(ct, tuple(example.shape[:2]), wanted.sizes)
    if wanted.image:
        rgb = ct.colorlayout.RGB
        types = [ct.ImageType(first, shape=shape, color_layout=rgb, scale=1 / 127.5, bias=[-1.0] * 3)]
        outputs = [ct.ImageType(output, color_layout=rgb)]
    else:
        types = [ct.TensorType(first, shape=shape, dtype=np.float32)]
        outputs = [ct.TensorType(output, dtype=np.float32)]
    types += [ct.TensorType(name, shape=tuple(inputs[name].shape), dtype=np.float32) for name in rest]
    precision: Any = ct.precision.FLOAT32
    if wanted.precision != "fp32":
        precision = ct.transform.FP16ComputePrecision(op_selector=_in_half(wanted.float32_normalisation))
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.macOS14,
        compute_precision=precision,
        inputs=types,
        outputs=outputs,
        skip_model_load=True,
    )


def _shape(ct: Any, start: tuple[int, ...], sizes: Sizes) -> Any:
    if sizes.between is not None:
        low, high = sizes.between
        side = ct.RangeDim(low, high, default=sizes.choices[0][0])
        return ct.Shape((*start, side, ct.RangeDim(low, high, default=sizes.choices[0][1])))
    shapes = [(*start, *choice) for choice in sizes.choices]
    return ct.EnumeratedShapes(shapes, default=shapes[0]) if len(shapes) > 1 else ct.Shape(shapes[0])


def _compressed(ct: Any, model: Any, precision: str) -> Any:
    """The model with smaller weights where its precision says so."""
    from coremltools.optimize import coreml as optimize

    if precision == "int8":
        each = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")  # a scale for each output channel
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(each))
    if precision in PALETTES:  # from this size on coremltools clusters exactly, and so the same way each time
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=PALETTES[precision], weight_threshold=10_000)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(palette))
    return model


def _in_half(float32_normalisation: bool) -> Callable[[Any], bool]:
    """Chooses the operations that fp16 computes: all but the sinusoids with what feeds them, and normalisations."""
    kept: set[str] = set()

    def choose(operation: Any) -> bool:
        if not kept:  # asked for the first time, of a program as yet in float32
            waiting = [o for o in operation.enclosing_block.operations if o.op_type in ("sin", "cos")]
            while waiting:
                if (feeds := waiting.pop()).name not in kept:
                    kept.add(feeds.name)
                    waiting += [v.op for v in _variables(feeds) if v.op is not None]
            kept.add("")
        return operation.name not in kept and not (float32_normalisation and _normalises(operation))

    return choose


def _variables(operation: Any) -> list[Any]:
    """What an operation takes, lists taken apart."""
    given = [v for v in operation.inputs.values() if v is not None]
    return [w for v in given for w in (v if isinstance(v, tuple | list) else [v])]


def _normalises(operation: Any) -> bool:
    """Whether the operation is a part of a GroupNorm or LayerNorm."""
    if operation.op_type in NORMALISATION:
        return True
    if operation.op_type not in ("add", "reshape"):
        return False
    around = [child for out in operation.outputs for child in out.child_ops]
    around += [v.op for v in _variables(operation) if v.op is not None]
    return any(o.op_type in ("sqrt", "real_div", "batch_norm") for o in around)


def _save(model: Any, path: Path) -> None:
    """What Core ML reads of a saved package, and no more: coremltools adds random identifiers and its own traces."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved.mlpackage"
        model.save(str(saved))
        spec = type(model.get_spec())()
        spec.ParseFromString((saved / MODEL_FILE).read_bytes())
        (path / WEIGHTS_FOLDER).mkdir(parents=True)
        (path / MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
        items = {"model.mlmodel": "Core ML Model Specification", "weights": "Core ML Model Weights"}
        if (weights := saved / WEIGHTS_FOLDER / "weight.bin").is_file():
            (path / WEIGHTS_FOLDER / "weight.bin").write_bytes(weights.read_bytes())
        else:
            (path / WEIGHTS_FOLDER).rmdir()
            del items["weights"]
    identifiers = {name: str(uuid.uuid5(_NAMESPACE, name)) for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": "com.apple.CoreML",
                "description": text,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for name, text in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


@contextmanager
def quiet() -> Iterator[Any]:
    """coremltools without its progress bars and warnings; what goes wrong is raised.

    Raises:
        ExportError: it cannot be imported.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import coremltools as ct

            _mend()
        except Exception as e:
            known = " with ".join(f"{name} {version}" for name, version in KNOWN_PAIR.items())
            raise ExportError(
                f"coremltools does not start beside torch {torch.__version__} ({_first_line(e)}); the pair known to "
                f"work is {known}"
            ) from e
        logger.setLevel(logging.CRITICAL)
        try:
            yield ct
        finally:
            logger.setLevel(level)


def _mend() -> None:
    """Two of torch's operations that coremltools 9.0 converts to something else, found by the proof.

    `//` of two sizes becomes a float, which no shape is; `gelu(approximate="tanh")` loses its argument.
    """
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    def floor_divide(context: Any, node: Any) -> None:
        x, y = _get_inputs(context, node, expected=2)
        context.add(Builder.floor_div(x=x, y=y, name=node.name))

    def gelu(context: Any, node: Any) -> None:
        x, *rest = _get_inputs(context, node)
        (approximate,) = rest or _get_kwinputs(context, node, "approximate", default=["none"])
        tanh = getattr(approximate, "val", approximate) == "tanh"
        context.add(Builder.gelu(x=x, mode="TANH_APPROXIMATION" if tanh else "EXACT", name=node.name))

    register: Callable[..., Any] = register_torch_op
    register(torch_alias=["floordiv"], override=True)(floor_divide)
    register(override=True)(gelu)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
