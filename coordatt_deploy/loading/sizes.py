"""Input sizes as the user writes them: ``224``, ``320x192`` (height x width), and ``96:320`` for a dynamic size.

ONNX and Core ML take a dynamic size. TFLite does not: its files are planned for one size, so fixed sizes are named that
cover the range instead.
"""

import re
from collections.abc import Sequence
from typing import Final

from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import FORMATS, Format

LARGEST: Final = 4096  # pixels: one float32 image of this size is 200 MB, and an activation of the first stage 1 GB
STEP: Final = 32  # the total stride of the usual backbones; sizes that are suggested are multiples of it

Bounds = tuple[int, int, int]
"""Smallest and largest height and width, and the number that every size is a multiple of."""


def check_size(size: tuple[int, int], smallest: int = 1) -> tuple[int, int]:
    """Return *size* if it lies between *smallest* and ``LARGEST``.

    Raises:
        UsageError: It does not.
    """
    for what, value in zip(("height", "width"), size, strict=True):
        if not smallest <= value <= LARGEST:
            raise UsageError(f"input {what} is {value} pixels; it must lie between {smallest} and {LARGEST}")
    return size


def parse_dynamic_size(text: str) -> Bounds:
    """Return smallest size, largest size and step of ``96:320`` or ``96:320:32``; they hold for height and width.

    Raises:
        UsageError: It is no such text, the bounds are the wrong way round, or hold no two multiples of the step.
    """
    found = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*(?::\s*([0-9]+)\s*)?", text)
    if found is None:
        raise UsageError(
            f"{text!r} is no range of sizes; give MIN:MAX in pixels: 96:320, or with the step that the model needs:"
            " 96:320:32"
        )
    low, high, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step < 1:
        raise UsageError(f"the step of {text!r} is {step}; it must be at least 1")
    check_size((low, high), smallest=2)
    first, last = -(-low // step) * step, high // step * step
    if first >= last:
        raise UsageError(f"{text!r} holds no two sizes that are multiples of {step}; give a wider range")
    return first, last, step


def size_within(bounds: Bounds, wanted: tuple[int, int]) -> tuple[int, int]:
    """Return the size nearest to *wanted* that a dynamic model takes: what it is captured with."""
    low, high, step = bounds
    height, width = (min(max(round(value / step) * step, low), high) for value in wanted)
    return height, width


def unseen_sizes(bounds: Bounds, captured: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return two sizes that the capture did not see, one tall and one wide, which between them touch both bounds.

    A frozen pooling kernel shows at either, and confused axes show at one of them. Both differ from the captured size
    in height and width wherever the range has enough sizes.
    """
    low, high, step = bounds
    near = {low, low + step, high - step, high, (low + high) // 2 // step * step}
    values = sorted(value for value in near if low <= value <= high)
    pairs = [(height, width) for height in values for width in values if height != width]

    def rank(size: tuple[int, int]) -> tuple[int, int]:
        new = sum(value != seen for value, seen in zip(size, captured, strict=True))
        return new, abs(size[0] - size[1])

    return max((p for p in pairs if p[0] > p[1]), key=rank), max((p for p in pairs if p[0] < p[1]), key=rank)


def formats_for_dynamic(
    bounds: Bounds, formats: Sequence[Format], *, asked: bool
) -> tuple[tuple[Format, ...], str | None]:
    """Return the formats that can be exported with a dynamic size, and what to say of the others.

    Args:
        bounds: Of the dynamic size.
        formats: The formats to export.
        asked: Whether the user named them; otherwise they are the default, and those whose files have one size are left
            out with a note.

    Raises:
        UsageError: The user asked for a format whose files have one size, or no other is left.
    """
    fixed = dict.fromkeys(name for name in formats if FORMATS[name].fixed_size_because is not None)
    kept = tuple(name for name in formats if FORMATS[name].fixed_size_because is None)
    if not fixed:
        return kept, None
    sizes = " ".join(f"--input-size {size}" for size in fixed_sizes(bounds))
    rows = [FORMATS[file_format] for file_format in fixed]
    why = "; ".join(f"{row.title} files have one input size: {row.fixed_size_because}" for row in rows)
    text = f"{why}; export fixed sizes instead, one bundle each: {sizes.replace(' --', ', --')}"
    if asked or not kept:
        others = [name for name in Format if FORMATS[name].fixed_size_because is None]
        raise UsageError(f"{text}; and name the others with {' '.join(f'--format {name}' for name in others)}")
    return kept, text


def fixed_sizes(bounds: Bounds, count: int = 3) -> tuple[int, ...]:
    """Return *count* sizes spread over the range, multiples of the step and of ``STEP`` where the range has such."""
    low, high, step = bounds
    values = [size for size in range(low, high + 1, step) if size % STEP == 0] or list(range(low, high + 1, step))
    spread = [values[index * (len(values) - 1) // (count - 1)] for index in range(count)]
    return tuple(dict.fromkeys(spread))
