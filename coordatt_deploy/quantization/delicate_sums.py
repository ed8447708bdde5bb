"""Sums that integer grids spoil: those that a division or a logarithm is taken of.

A runtime ends at a divisor that its grid rounds to zero, as a variance plus a small number on a constant image. A
logarithm takes ratios: on a grid that reaches to exp(5), steps of 0.6 leave nothing of log(1 + exp(x)) below 0 (1.3 dB
were measured at the output). So the steps from the last layer, mean or sum on stay in float.
"""

from collections.abc import Iterable, Mapping, Sequence


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
