"""Sums that integer grids spoil: those that a division, a logarithm or a softmax is taken of.

A runtime ends at a divisor that its grid rounds to zero, as a variance plus a small number on a constant image. A
logarithm takes ratios: on a grid that reaches to exp(5), steps of 0.6 leave nothing of log(1 + exp(x)) below 0 (1.3 dB
were measured at the output). So the steps from the last layer on stay in float, and the mean or sum that they begin
with: a grid for the means of all channels rounds those of the faint ones to zero.

A mask adds minus infinity, or -1e4, to the scores of what must not be looked at: on a grid that reaches so far the
scores of all else are one value, and runtimes end at a step of 1e36. So a value beyond float16 stays in float, and so
does what a softmax is taken of where a step would be coarser than COARSEST, as the quotient of two weights would be off
by more than exp(COARSEST); with them what reads them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

WIDEST: Final = 65504.0  # the greatest float16
COARSEST: Final = 0.5
GRID_STEPS: Final = 255


def leads_to(values: Iterable[str], made_of: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the tensors that lead to *values*, element by element, these included.

    Args:
        values: Divisors, and what logarithms are taken of.
        made_of: What each tensor is made of, of those that a step makes: a sum, a product, a root.
    """
    found: set[str] = set()
    waiting = list(values)
    while waiting:
        name = waiting.pop()
        if name in made_of and name not in found:
            found.add(name)
            waiting += made_of[name]
    return found


def too_wide(
    ranges: Mapping[str, tuple[float, float]], softmaxes: Iterable[str], made_of: Mapping[str, Sequence[str]]
) -> set[str]:
    """Return the tensors whose values no integer grid can hold.

    Args:
        ranges: Least and greatest value of each tensor on the calibration data.
        softmaxes: Names of the tensors that a softmax is taken of.
        made_of: What each tensor is made of, of those that a sum, a product, a choice or a view makes.
    """
    spans = {name: high - low for name, (low, high) in ranges.items()}
    coarse = {name for name, span in spans.items() if not span <= GRID_STEPS * COARSEST}
    beyond = {name for name, (low, high) in ranges.items() if not max(-low, high) <= WIDEST}
    return beyond | leads_to(coarse.intersection(softmaxes), {name: made_of[name] for name in coarse & made_of.keys()})


def touching(values: Collection[str], operations: Iterable[tuple[Collection[str], Collection[str]]]) -> set[str]:
    """Return what the operators make that make or read one of *values*.

    Args:
        values: Names of tensors.
        operations: Names of the tensors that each operator reads and makes.
    """
    found = set(values)
    return {name for reads, makes in operations if not found.isdisjoint([*reads, *makes]) for name in makes}
