"""Guest instructions per inference: which class an instruction belongs to, and what the plugin's marks say.

Instructions are not time, but they repeat. With the same versions of everything runs were equal to the last digit in
LiteRT and to 3e-6 in ONNX Runtime; another version of this package moves Python's share by some 1e-6.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.targets import InstructionCount

# (class, mask, value): the first rule with opcode & mask == value wins. Encodings: Arm Architecture Reference Manual,
# C4.1 "A64 instruction set encoding". The last three rules are whole encoding groups that take what is left.
RULES: Final = (
    # Float multiply-accumulate on vectors, float32 and float16, with a vector and with one element.
    ("fmla", 0xBFA0FC00, 0x0E20CC00),
    ("fmla", 0xBFE0FC00, 0x0E400C00),
    ("fmla", 0xBF80F400, 0x0F801000),
    ("fmla", 0xBFC0F400, 0x0F001000),
    # 8-bit dot products (sdot, udot, usdot, sudot), with a vector and with one element.
    ("sdot", 0x9FE0FC00, 0x0E809400),
    ("sdot", 0xBFE0FC00, 0x0E809C00),
    ("sdot", 0x9FC0F400, 0x0F80E000),
    ("sdot", 0xBFC0F400, 0x0F80F000),
    ("sdot", 0xBFC0F400, 0x0F00F000),
    # 8-bit matrix products (smmla, ummla, usmmla).
    ("smmla", 0xDFE0FC00, 0x4E80A400),
    ("smmla", 0xFFE0FC00, 0x4E80AC00),
    # Widening integer multiply-accumulate (smlal, umlal and their halves 2): int8 without dot products.
    ("smlal", 0x9F20FC00, 0x0E208000),
    ("smlal", 0x9F00F400, 0x0F002000),
    # Scalar float multiply-accumulate.
    ("fmadd", 0xFF208000, 0x1F000000),
    ("simd", 0x0E000000, 0x0E000000),
    ("memory", 0x0A000000, 0x08000000),
    ("branch", 0x1C000000, 0x14000000),
)
OTHER: Final = "other"

CLASSES: Final = (*dict.fromkeys(name for name, _, _ in RULES), OTHER)
"""``simd``: other vector and float instructions; ``memory``: loads and stores; ``other``: mostly integer arithmetic."""


def classify(opcode: int) -> str:
    """Return the class of a 32-bit A64 instruction, as the plugin finds it."""
    return next((name for name, mask, value in RULES if opcode & mask == value), OTHER)


def rules_text() -> str:
    """Return the rules in the form that the plugin reads."""
    return "".join(f"{name} {mask:08x} {value:08x}\n" for name, mask, value in RULES)


def parse_marks(text: str) -> dict[int, dict[str, int]]:
    """Return the counters at each mark from the plugin's output.

    Raises:
        ConversionError: It is not what the plugin writes.
    """
    marks: dict[int, dict[str, int]] = {}
    for line in text.splitlines():
        try:
            word, number, *fields = line.split()
            if word != "mark":
                raise ValueError(word)
            marks[int(number)] = {name: int(value) for name, value in (field.split("=") for field in fields)}
        except ValueError:
            raise ConversionError(
                f"the instruction counter wrote {line!r}, expected: mark NUMBER class=count …"
            ) from None
    return marks


def per_inference(marks: Mapping[int, Mapping[str, int]]) -> list[dict[str, int]]:
    """Return the instructions by class between the marks 2k and 2k + 1, for each inference k.

    Raises:
        ConversionError: A mark has no partner.
    """
    counts = []
    for begin, end in zip(range(0, len(marks), 2), range(1, len(marks) + 1, 2), strict=False):
        if begin not in marks or end not in marks:
            raise ConversionError(
                f"the instruction counter has marks {sorted(marks)}; expected a pair for each inference,"
                " so the guest ended early"
            )
        counts.append({name: marks[end][name] - marks[begin][name] for name in CLASSES})
    return counts


def summarise(counts: Sequence[Mapping[str, int]], runtime: str) -> InstructionCount:
    """Return the median inference among *counts*; of an even number the lower of the two in the middle."""
    totals = tuple(sum(count.values()) for count in counts)
    total = statistics.median_low(totals)
    return InstructionCount(
        total=total,
        classes={name: counts[totals.index(total)][name] for name in CLASSES},
        per_inference=totals,
        spread=(max(totals) - min(totals)) / total,
        runtime=runtime,
    )
