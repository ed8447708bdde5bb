"""Layers that lie in one tensor of a file: the first holds it, the others are views of it."""

from collections.abc import Sequence

from coordatt_deploy.layer_map import Layer


def holders(present: Sequence[Layer]) -> frozenset[str]:
    """Return the layers that no earlier layer shares a tensor with; the others are views of those."""
    taken: set[str] = set()
    found = []
    for layer in present:
        tensors = {part.tensor for part in layer.parts}
        if not tensors & taken:
            found.append(layer.layer_id)
        taken |= tensors
    return frozenset(found)


def viewed(present: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Return, for each layer that is a view of earlier layers' tensors, those layers."""
    held: dict[str, list[str]] = {}
    found = {}
    for layer in present:
        shared = [holder for part in layer.parts for holder in held.get(part.tensor, ())]
        if shared:
            found[layer.layer_id] = tuple(dict.fromkeys(shared))
        for part in layer.parts:
            held.setdefault(part.tensor, []).append(layer.layer_id)
    return found
