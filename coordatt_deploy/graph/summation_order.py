"""Means and sums as phones take them: one element after another in float32.

torch sums in 32 lanes and in a tree, so its own rounding of a mean over n elements hardly grows with n. TFLite's and
ONNX Runtime's kernels add one after another, which costs up to n roundings: over a 32x32 map 20 times as much as
torch's order was measured. What a correct file may differ by must be measured in the order that files compute in.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import integers
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.operators import Trait, having

POOLS: Final = having(Trait.POOL | Trait.AVERAGE)


def in_sequence(node: fx.Node, source: object, result: torch.Tensor) -> torch.Tensor:
    """Return *result* summed one element after another, where *node* is a mean or a sum; else *result* itself.

    Args:
        node: The call.
        source: What it takes first.
        result: What torch made of it.
    """
    if not isinstance(source, torch.Tensor) or source.dtype != torch.float32 or result.dtype != torch.float32:
        return result
    axes = _averaged(node, source, result)
    if not axes:
        return result
    count = math.prod(source.shape[axis] for axis in axes)
    last = torch.movedim(source, axes, tuple(range(-len(axes), 0))).reshape(-1, count)
    sums = np.add.accumulate(last.numpy(), axis=1, dtype=np.float32)[:, -1]
    return torch.from_numpy(sums / np.float32(1 if op_name(node) == "sum" else count)).reshape(result.shape)


def _averaged(node: fx.Node, source: torch.Tensor, result: torch.Tensor) -> tuple[int, ...]:
    """The axes of *source* that the call averages, or sums, completely; none where it does anything else."""
    operator = op_name(node)
    if operator in ("mean", "sum"):
        given = node.args[1] if len(node.args) > 1 else None
        listed = range(source.ndim) if given is None else integers(given)
        return tuple(sorted(axis % source.ndim for axis in listed))
    if operator not in POOLS or source.ndim != 4 or result.ndim != 4:
        return ()
    axes = tuple(axis for axis in (2, 3) if result.shape[axis] == 1 < source.shape[axis])
    if any(result.shape[axis] != source.shape[axis] for axis in (2, 3) if axis not in axes):
        return ()
    if operator == "avg_pool2d":
        window = node.args[1]
        covered = [source.shape[axis] if axis in axes else 1 for axis in (2, 3)]
        if not isinstance(window, Sequence) or list(window) != covered or len(node.args) > 3:
            return ()
    return axes
