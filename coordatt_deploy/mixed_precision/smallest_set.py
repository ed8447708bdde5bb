"""The smallest set of layers, from the front of a ranking, that passes a test: by doubling and halving.

The test comes from the caller: whether an artifact with these layers in float holds a limit.
"""

from collections.abc import Callable, Sequence
from typing import Final

from coordatt_deploy.quantization.sensitivity import LayerCost

PRUNED: Final = 12  # most kept layers of which each is tried in int8 again
WHOLE: Final = 3  # further layers that the recipe may get where the artifact made the whole way misses the limit


def prune(
    kept: Sequence[LayerCost], ranking: Sequence[LayerCost], whole: Callable[[Sequence[LayerCost]], bool]
) -> list[LayerCost] | None:
    """Return the fewest of *kept*, from its front, that hold when made the whole way; WHOLE more if need be.

    Args:
        kept: What the quick artifacts found, in the order of the ranking.
        ranking: All layers; never all of them are kept.
        whole: Whether an artifact with these layers in float holds.
    """
    fails, kept = 0, list(kept)
    for _ in range(WHOLE + 1):
        if len(kept) == len(ranking):
            return None
        if whole(kept):
            break
        fails, kept = len(kept), [*kept, *[cost for cost in ranking if cost not in kept][:1]]
    else:
        return None
    works = len(kept)
    while works - fails > 1:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if whole(kept[:middle]) else (middle, works)
    return kept[:works]


def smallest_passing_set(
    ranking: Sequence[LayerCost], holds: Callable[[Sequence[LayerCost]], bool]
) -> list[LayerCost] | None:
    """Return the fewest layers, from the front of *ranking*, that must be kept in float; None if all would be.

    Args:
        ranking: The costliest first.
        holds: Whether the drop holds with these layers in float; taken to hold for more of them if it does for some.
    """
    if holds([]):
        return []
    fails, works = 0, 1
    most = len(ranking) - 1  # with the last one as well nothing would be left in int8
    while works < most and not holds(ranking[:works]):
        fails, works = works, min(2 * works, most)
    if works >= most and (most < 1 or not holds(ranking[:most])):
        return None
    works = min(works, most)
    while works - fails > 1:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if holds(ranking[:middle]) else (middle, works)
    kept = list(ranking[:works])
    for cost in reversed(kept[:-1]) if len(kept) <= PRUNED else ():
        fewer = [other for other in kept if other is not cost]
        kept = fewer if holds(fewer) else kept
    return kept
