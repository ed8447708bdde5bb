"""Sizes as the user writes them: ``224``, ``320x192`` (height x width), ``96:320`` (dynamic), ``1:8`` for a batch.

ONNX and Core ML take both. TFLite does not: its files are planned for one size, so fixed sizes are named that cover the
range instead.
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

BatchBounds = tuple[int, int]
"""Smallest and largest batch: how many images the network takes at once."""

LARGEST_BATCH: Final = 4096
LARGEST_TRIED: Final = 8  # images: all layers of so many at 224 pixels are a gigabyte, and a wrong batch shows at three


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


def parse_dynamic_batch(text: str) -> BatchBounds:
    """Return the smallest and the largest batch of ``1:8``.

    Raises:
        UsageError: It is no such text, or the bounds are the wrong way round or impossible.
    """
    found = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*", text)
    if found is None:
        raise UsageError(f"{text!r} is no range of batches; give MIN:MAX in images: 1:8")
    low, high = int(found[1]), int(found[2])
    if low < 1 or high > LARGEST_BATCH:
        raise UsageError(f"{text!r} is a batch from {low} to {high} images; it must lie between 1 and {LARGEST_BATCH}")
    if low >= high:
        raise UsageError(
            f"{text!r} holds no two batches; give the smaller one first, as in 1:8 (a fixed batch of 4 images is"
            " --batch-size 4)"
        )
    return low, high


def batch_within(bounds: BatchBounds, taken: Sequence[int] = ()) -> int:
    """Return the batch that a dynamic one is captured with: the smallest from 2 on that no fixed first axis has.

    torch.export takes an axis of one for what there always is.

    Args:
        bounds: Of the batch.
        taken: First axes of inputs that do not share the batch.

    Raises:
        UsageError: Every batch within the bounds is taken.
    """
    low, high = bounds
    free = [size for size in range(max(2, low), min(high, max(2, low) + len(taken)) + 1) if size not in taken]
    if not free:
        fixed = ", ".join(map(str, sorted(set(taken))))
        raise UsageError(
            f"--dynamic-batch {low}:{high}: inputs with a first axis of {fixed} cannot be told from those that share"
            " the batch; widen the range, or give all inputs the same first axis in --input-shape"
        )
    return free[0]


def unseen_batches(bounds: BatchBounds, captured: int) -> tuple[int, ...]:
    """Return batches that the capture did not see: the smallest, the largest (of those that are tried), one between.

    Where the range has nothing else, the captured one is among them.
    """
    low, high = bounds[0], min(bounds[1], max(bounds[0] + 2, LARGEST_TRIED))
    between = next((size for size in range(low + 1, high) if size != captured), low)
    return tuple(sorted({low, between, high}))


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
    bounds: Bounds | None, formats: Sequence[Format], *, asked: bool
) -> tuple[tuple[Format, ...], str | None]:
    """Return the formats that can be exported with a dynamic size or batch, and what to say of the others.

    Args:
        bounds: Of the dynamic size; None where the batch alone is dynamic.
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
    what = "batch" if bounds is None else "input size"
    instead = (
        "export it without --dynamic-batch, into a bundle of its own: it then takes one image"
        if bounds is None
        else "export fixed sizes instead, one bundle each: "
        + ", ".join(f"--input-size {size}" for size in fixed_sizes(bounds))
    )
    rows = [FORMATS[file_format] for file_format in fixed]
    text = "; ".join(f"{row.title} files have one {what}: {row.fixed_size_because}" for row in rows) + f"; {instead}"
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
