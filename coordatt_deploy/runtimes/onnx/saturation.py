"""Where ONNX Runtime's int8 answers on an x86 host are not what an ARM device will compute.

Without VNNI, its x86 kernels multiply pairs of 8-bit numbers and add them in 16 bits, where the sum stops at the limit:

    min(x0 * w0 + x1 * w1, 32767),   0 <= x <= 255,  -127 <= w <= 127

With |w| <= 64 (weights of seven bits: the quantizer's ``reduce_range``) no pair can reach it, since 255 * 128 < 32767.
ARM's kernels and those with VNNI add four products in 32 bits. Dense and grouped convolutions and matrix products are
affected, depthwise convolutions are not, and signed activations are turned into unsigned ones first. So ONNX Runtime
1.32 did: on a CPU with AVX-512 VNNI all of them were exact; under an emulated one with AVX2 alone (``qemu-x86_64 -cpu
Haswell``) 66 to 78 % of the int8 outputs of dense and grouped convolutions with 8-bit weights differed, and none of the
depthwise ones or of those with 7-bit weights.

Such a CPU can compute what the others do: with the session option ``session.disable_quant_qdq`` ONNX Runtime leaves the
grids in the graph and runs what lies between them in float (``runner.EXACT_SUMS``). A sum of products of 8-bit integers
is then as exact as the kernels' 32-bit one, but for the rounding of float32.

The file itself says how wide its weights are. Boards have no onnx package, so the few fields needed are read from the
protocol buffer's wire format (https://protobuf.dev/programming-guides/encoding, onnx.proto).
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.errors import BundleError
from coordatt_deploy.host import Host

SEVEN_BITS: Final = 64
X86: Final = frozenset(("x86_64", "amd64", "i386", "i686", "x86"))
# In Linux's words, as coordatt_deploy.host tells them.
VNNI: Final = frozenset(("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"))

# onnx.proto: field numbers, and the number of the data type int8.
GRAPH, NODE, INITIALIZER = 7, 1, 5
OP_TYPE: Final = 4
QUANTIZERS: Final = frozenset((b"QuantizeLinear", b"DynamicQuantizeLinear", b"QLinearConv", b"QLinearMatMul",
                               b"ConvInteger", b"MatMulInteger"))  # fmt: skip
DIMS, DATA_TYPE, INT32_DATA, NAME, RAW_DATA, DATA_LOCATION = 1, 2, 5, 8, 9, 14
INT8: Final = 3

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class WeightRange:
    """How wide the int8 weights of an ONNX file are, depthwise convolutions left out.

    Attributes:
        tensors: How many such weights there are.
        wide: How many of them have a value beyond seven bits.
        greatest: Greatest absolute value of all; 0 where there are none.
    """

    tensors: int
    wide: int
    greatest: int


def saturation_risk(weights: WeightRange, architecture: str, features: Collection[str]) -> str | None:
    """Why int8 results of this file on this host may differ from an ARM device's, as a clause; None where they can't.

    Args:
        weights: Of the ONNX file.
        architecture: Of the host, as ``platform.machine()`` says it.
        features: Of its CPU, as ``coordatt_deploy.host`` lists them.
    """
    if weights.wide == 0 or not can_saturate(architecture, features):
        return None
    return (
        f"this x86 CPU has no VNNI: sums of two 8-bit products saturate at 16 bits here, and {weights.wide} of"
        f" {weights.tensors} int8 weights use more than 7 bits (greatest {weights.greatest}, safe up to {SEVEN_BITS});"
        " ARM64 and CPUs with VNNI do not saturate"
    )


def saturation_cause(path: Path, machine: Host) -> str | None:
    """Why the results of the artifact at *path* on *machine* may differ from an ARM device's; None where they can't.

    Args:
        path: The artifact on disk; read only where the machine could saturate.
        machine: Where it is run.
    """
    if not can_saturate(machine.architecture, machine.features):
        return None
    try:
        if not has_integer_values(path):
            return None
        return saturation_risk(weight_range(path), machine.architecture, machine.features)
    except BundleError as error:
        return f"this x86 CPU has no VNNI, and whether int8 sums saturate here cannot be told: {error}"


def can_saturate(architecture: str, features: Collection[str]) -> bool:
    """Whether ONNX Runtime's int8 kernels add in 16 bits on such a CPU."""
    return architecture.lower() in X86 and VNNI.isdisjoint(features)


def has_integer_values(path: Path) -> bool:
    """Whether the ONNX file at *path* brings values onto integer grids: with int8 weights alone nothing is multiplied.

    Raises:
        BundleError: It is no ONNX file.
    """
    try:
        nodes = _nested(memoryview(path.read_bytes()), GRAPH, NODE)
        return any(
            number == OP_TYPE and isinstance(value, memoryview) and bytes(value) in QUANTIZERS
            for node in nodes
            for number, _, value in _fields(node)
        )
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path.name} cannot be read as an ONNX file: {error}; build it again") from None


def weight_range(path: Path) -> WeightRange:
    """Return how wide the int8 weights of the ONNX file at *path* are.

    Raises:
        BundleError: It is no ONNX file, or keeps its weights elsewhere.
    """
    try:
        weights = [_int8_weight(tensor) for tensor in _nested(memoryview(path.read_bytes()), GRAPH, INITIALIZER)]
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path.name} cannot be read as an ONNX file: {error}; build it again") from None
    greatest = [int(np.abs(weight.astype(np.int16)).max()) for weight in weights if weight is not None]
    wide = sum(value > SEVEN_BITS for value in greatest)
    return WeightRange(tensors=len(greatest), wide=wide, greatest=max(greatest, default=0))


def _int8_weight(tensor: memoryview) -> NDArray[np.int8] | None:
    """Return the values of an int8 weight; None for another tensor: zero points, biases, depthwise kernels."""
    dims: list[int] = []
    data_type, raw, listed, elsewhere = 0, b"", list[int](), False
    for number, wire, value in _fields(tensor):
        if number == DIMS:
            dims += _integers(wire, value)
        elif number == DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == RAW_DATA and isinstance(value, memoryview):
            raw = bytes(value) if data_type in (0, INT8) else b""
        elif number == INT32_DATA:
            listed += _integers(wire, value)
        elif number == DATA_LOCATION:
            elsewhere = value == 1
    depthwise = len(dims) == 4 and dims[1] == 1
    if data_type != INT8 or len(dims) < 2 or depthwise or 0 in dims:
        return None
    if elsewhere:
        raise ValueError("its weights are in another file")
    # Negative numbers stand in the list as 64-bit two's complement.
    values = np.frombuffer(raw, np.int8) if raw else np.array(listed, np.uint64).astype(np.int64).astype(np.int8)
    if values.size != math.prod(dims):
        raise ValueError(f"a weight has {values.size} values for shape {dims}")
    return values


def _nested(message: memoryview, *path: int) -> Iterator[memoryview]:
    """Yield every submessage that is reached by the field numbers of *path*."""
    for number, _, value in _fields(message):
        if number == path[0] and isinstance(value, memoryview):
            if len(path) == 1:
                yield value
            else:
                yield from _nested(value, *path[1:])


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) of one message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == VARINT:
            integer, at = _varint(message, at)
            yield key >> 3, wire, integer
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} does not exist")
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, wire, message[at : at + size]
        at += size


def _integers(wire: int, value: int | memoryview) -> list[int]:
    """Return the numbers of a repeated integer field, packed or one by one."""
    if isinstance(value, int):
        return [value]
    if wire != BYTES:
        raise ValueError("an integer has a fixed width")
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at *at*, seven bits per byte, and where the next field begins."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
