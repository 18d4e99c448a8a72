"""GroupNorm's statistics, measured over some calls of a graph and given to others: so tiles become one picture.

And where a tile lies in its picture, for graphs that work that out of the size of what they are given.

Exported graphs hold each GroupNorm as an InstanceNormalization over its groups, x [B, G, N]. `opened_up` makes of each
a function that takes means and variances and tells its own. It changes the serialised graph as it stands in the bundle,
by the few rules of protobuf that this needs: so no bundle carries a second graph, and the runtime needs nothing more.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BundleError
from .pixels import Float

GIVEN, MEASURED, SHARE = "rfp.given.{}", "rfp.measured.{}", "rfp.share"
"""Inputs of an opened graph beside its own: for each norm in its order float32 [1, G, 2] (mean, variance) or [1, 1, 2];
and float32 [1]: 1 normalises by these, 0 by what the norm sees. Outputs: what it sees, float32 [B, G, 2]."""
PLACE, GIVEN_PLACE = "place", "rfp.place"
"""The value of an exported graph that says where its pixels lie, [B, 2, H, W], and the input of an opened one."""
_DOMAIN, _NORM = "rfp", "GroupNorm"
_FUNCTION = """
axis = Constant value_ints=2
own_mean = ReduceMean x axis
centred = Sub x own_mean
squares = Mul centred centred
own_variance = ReduceMean squares axis
own = Concat own_mean own_variance axis=2
gap = Sub given own
part = Mul gap share
used = Add own part
mean variance = Split used axis=2 num_outputs=2
epsilon = Constant value_float=@epsilon
above = Add variance epsilon
deviation = Sqrt above
column = Constant value_ints=-1,1
scale_column = Reshape scale column
bias_column = Reshape bias column
factor = Div scale_column deviation
shift = Mul factor mean
offset = Sub bias_column shift
scaled = Mul x factor
y = Add scaled offset
"""
"""y = (x − mean) / √(variance + ε) · scale + bias, with mean and variance between the norm's own and those given."""


class Frame(NamedTuple):
    """Where a tile begins in its picture, and the size of that; pixels."""

    top: int
    left: int
    height: int
    width: int

    def place(self, rows: int, columns: int, factor: int) -> Float:
        """Where values of a tile lie, each of `factor` px a side: row and column, float32 [1, 2, rows, columns].

        As `train.unet.whole` has it of the whole picture: from -1 to 1 over its middle square.
        """

        def axis(begin: int, n: int, side: int) -> Float:
            centres = begin + factor * (np.arange(n, dtype=np.float32) + 0.5)
            return np.clip((2 * centres - side) / min(self.height, self.width), -1, 1)

        where = axis(self.top, rows, self.height), axis(self.left, columns, self.width)
        return np.stack(np.meshgrid(*where, indexing="ij"))[None].astype(np.float32)


class Norms:
    """The statistics of every norm in every call of one translation, averaged over tiles.

    A tile's calls come in the same order each time. `begin` starts a tile, `agree` makes what was measured since the
    last time the statistics that all later tiles are normalised by.
    """

    frame = Frame(0, 0, 1, 1)
    """Where the present tile lies."""

    def __init__(self) -> None:
        self._known: list[list[Float]] = []
        self._sums: list[list[npt.NDArray[np.float64]]] = []
        self._call = 0
        self._tiles = 0

    def begin(self, frame: Frame) -> None:
        self.frame = frame
        self._call = 0
        self._tiles += 1

    def known(self) -> list[Float] | None:
        """For the present call: float32 [1, G, 2] for each norm; None where nothing is agreed yet."""
        return self._known[self._call] if self._known else None

    def add(self, measured: Sequence[Float]) -> None:
        """What the norms saw in the present call, each float32 [1, G, 2]. Variances add up with those of the means."""
        pairs = (np.moveaxis(a.astype(np.float64), -1, 0) for a in measured)
        moments = [np.stack([mean, variance + mean * mean], -1) for mean, variance in pairs]
        if self._call == len(self._sums):
            self._sums.append(moments)
        else:
            self._sums[self._call] = [a + b for a, b in zip(self._sums[self._call], moments, strict=True)]
        self._call += 1

    @property
    def measured(self) -> bool:
        """Whether anything was, since the last time: nets without norms have no statistics."""
        return bool(self._sums)

    def agree(self) -> None:
        self._known = [[_mean_and_variance(total / self._tiles) for total in call] for call in self._sums]
        self._sums, self._tiles = [], 0


def _mean_and_variance(moments: npt.NDArray[np.float64]) -> Float:
    mean, square = np.moveaxis(moments, -1, 0)
    return np.stack([mean, np.maximum(square - mean * mean, 0)], -1).astype(np.float32)


def opened_up(model: bytes) -> tuple[bytes, int, bool]:
    """A serialised ONNX graph whose norms take and tell statistics, how many norms there are, and whether it takes
    its place as well.

    Raises:
        BundleError: it is no serialised graph.
    """
    try:
        out, count, placed = bytearray(), 0, False
        for number, raw, content in _fields(memoryview(model)):
            if number == 7 and content is not None:  # ModelProto.graph
                graph, count, placed = _graph(content)
                raw = _message(7, graph)
            out += raw
        out += _message(8, _message(1, _DOMAIN) + _number(2, 1)) + _message(25, _function())
    except (IndexError, ValueError) as e:
        raise BundleError(f"the graph is damaged ({e}); export it again") from e
    return (bytes(out), count, placed) if count else (model, 0, False)


def _graph(content: memoryview) -> tuple[bytes, int, bool]:
    """GraphProto: each InstanceNormalization (nodes are field 1) becomes a call of the function.

    What makes PLACE, by repeating its first input for each picture or rounding it to half, makes it of GIVEN_PLACE.
    """
    out, count, placed = bytearray(), 0, False
    for number, raw, node in _fields(content):
        if number == 1 and node is not None:
            parts = list(_fields(node))
            outputs, kinds = (
                [bytes(value) for n, _, value in parts if n == wanted and value is not None] for wanted in (2, 4)
            )
            if outputs == [PLACE.encode()]:
                first = [part[0] for part in parts].index(1)
                parts[first] = (1, _message(1, GIVEN_PLACE), None)
                raw = _message(1, b"".join(part[1] for part in parts))
                placed = True
            if kinds == [b"InstanceNormalization"]:  # what comes later in a message overrides, or is added
                more = _message(1, GIVEN.format(count)) + _message(1, SHARE) + _message(2, MEASURED.format(count))
                raw = _message(1, bytes(node) + more + _message(4, _NORM) + _message(7, _DOMAIN))
                count += 1
        out += raw
    for i in range(count):
        out += _message(11, _value(GIVEN.format(i), 3)) + _message(12, _value(MEASURED.format(i), 3))
    if placed:
        out += _message(11, _value(GIVEN_PLACE, 4))
    return bytes(out + _message(11, _value(SHARE, 1))), count, placed


def _value(name: str, axes: int) -> bytes:
    """ValueInfoProto of a float32 tensor of so many axes of any length."""
    tensor = _number(1, 1) + _message(2, _message(1, b"") * axes)
    return _message(1, name) + _message(2, _message(1, tensor))


def _function() -> bytes:
    """FunctionProto: x, scale, bias, given, share → y, own."""
    out = _message(1, _NORM) + _message(10, _DOMAIN) + _message(6, "epsilon")
    out += b"".join(_message(4, name) for name in ("x", "scale", "bias", "given", "share"))
    out += b"".join(_message(5, name) for name in ("y", "own"))
    for line in _FUNCTION.strip().splitlines():
        outputs, _, call = line.partition(" = ")
        kind, *words = call.split()
        node = b"".join(_message(2, name) for name in outputs.split()) + _message(4, kind)
        for word in words:
            name, equals, value = word.partition("=")
            node += _message(5, _attribute(name, value)) if equals else _message(1, name)
        out += _message(7, node)
    return out + _message(9, _message(1, "") + _number(2, 20))


def _attribute(name: str, value: str) -> bytes:
    """AttributeProto: an int, ints, or the function's own attribute of that name."""
    if value.startswith("@"):
        return _message(1, name) + _message(21, value[1:]) + _number(20, 1)
    if name.endswith("ints"):
        return _message(1, name) + b"".join(_number(8, int(n)) for n in value.split(",")) + _number(20, 7)
    return _message(1, name) + _number(3, int(value)) + _number(20, 2)


def _fields(message: memoryview) -> Iterator[tuple[int, bytes, memoryview | None]]:
    """Each field's number and bytes, and what is in it where it is a text or a message."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at)
        content = None
        match key & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(message, at)
                content = message[at : at + length]
                at += length
            case 5:
                at += 4
            case kind:
                raise ValueError(f"a field of kind {kind}")
        if at > len(message):
            raise ValueError("cut short")
        yield key >> 3, bytes(message[begin:at]), content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _number(field: int, value: int) -> bytes:
    return _encoded(field << 3) + _encoded(value % (1 << 64))


def _message(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _encoded(field << 3 | 2) + _encoded(len(data)) + data


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
