"""Sums as phones take them: one element after another in float32, a bias first.

torch sums in 32 lanes and in a tree, so its own rounding of a mean over n elements hardly grows with n. TFLite's and
ONNX Runtime's kernels add one after another, which costs up to n roundings: over a 32x32 map 20 times as much as
torch's order was measured. What a correct file may differ by must be measured in the order that files compute in.

A linear layer over n elements:

    torch:    y = (x_1 w_1 + ... + x_n w_n) + b         one rounding of the size of b
    XNNPACK:  y = ((b + x_1 w_1) + ...) + x_n w_n       n roundings of the size of b

Where b is large beside the sum, that is all the error there is: 20 times torch's was measured over 168 elements. A gate
clamp(y / 6 + 1/2, 0, 1) is written as a layer with a sixth of the weights and b / 6 + 1/2, which is always so: 17 times
torch's was measured over 240 elements.
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

ROWS: Final = 16  # of a linear layer that are summed so; all rows round alike, and a transformer has thousands
# The multiple of torch's rounding that a file is allowed is meant for an order of sums that nobody computed. Of an
# order that was, the greatest error varies with the last digits alone, by less than twice: a fourth of it is enough.
COMPUTED: Final = 4.0
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
    axes = averaged_axes(node, source, result)
    if not axes:
        return result
    count = math.prod(source.shape[axis] for axis in axes)
    last = torch.movedim(source, axes, tuple(range(-len(axes), 0))).reshape(-1, count)
    sums = np.add.accumulate(last.numpy(), axis=1, dtype=np.float32)[:, -1]
    return torch.from_numpy(sums / np.float32(1 if op_name(node) == "sum" else count)).reshape(result.shape)


def bias_first(values: Sequence[object], result: torch.Tensor) -> torch.Tensor:
    """Return *result* with the error that beginning at the bias would have, where that is what decides.

    Args:
        values: Of the arguments of a linear layer: x (..., n), weight (outputs, n) and bias (outputs), if it has one.
        result: What torch made of them in float32, (..., outputs).

    Returns:
        Where the bias is greater than the sum, and a ``COMPUTED`` part of the error of adding one after another is
        greater than that of torch's order: a value with that error. Else *result*.
    """
    operands = [value for value in values[:3] if isinstance(value, torch.Tensor)]
    if len(operands) < 3 or any(value.dtype != torch.float32 for value in (*operands, result)) or not result.numel():
        return result
    x, weight, bias = operands
    rows = x.reshape(-1, x.shape[-1])
    chosen = _chosen(rows)
    sums = rows[chosen].double() @ weight.double().T
    greater = bias.abs() > sums.abs()
    columns = greater.any(dim=0).nonzero()[:, 0]
    places = chosen[:, None], columns
    exact = (sums + bias)[:, columns]
    begun = torch.stack([_added_to(bias[columns], row, weight[columns]) for row in rows[chosen]])
    other = (begun - exact) / COMPUTED
    made = result.reshape(len(rows), -1).clone()
    decides = greater[:, columns] & (other.abs() > (made[places] - exact).abs())
    made[places] = torch.where(decides, (exact + other).float(), made[places])
    return made.reshape(result.shape)


def begun_at_half(values: Sequence[object], result: torch.Tensor) -> torch.Tensor:
    """Return hard-sigmoids with the error of sums that begin at b / 6 + 1/2, where that is greater than torch's.

    Args:
        values: Of the arguments of the layer that they are taken of: a linear one, x (..., n), or a convolution by one
            element, x (N, n, H, W); its weight and bias.
        result: What torch made of them in float32.

    Returns:
        Where a ``COMPUTED`` part of that error is greater than the error of torch's order: a value with it. Else, and
        for every other layer, *result*.
    """
    operands = [value for value in values[:3] if isinstance(value, torch.Tensor)]
    if len(operands) < 3 or any(value.dtype != torch.float32 for value in (*operands, result)) or not result.numel():
        return result
    x, weight, bias = operands
    if weight.ndim == 4:
        if weight.shape[1:] != (x.shape[1], 1, 1) or x.shape[2:] != result.shape[2:]:
            return result
        x, weight = x.movedim(1, -1), weight.flatten(1)
        return begun_at_half([x, weight, bias], result.movedim(1, -1)).movedim(-1, 1)
    if weight.ndim != 2 or x.shape[:-1] != result.shape[:-1]:
        return result
    rows = x.reshape(-1, x.shape[-1])
    chosen = _chosen(rows)
    exact = ((rows[chosen].double() @ weight.double().T + bias) / 6 + 0.5).clamp(0.0, 1.0)
    written = (bias.double() / 6 + 0.5).float(), (weight.double() / 6).float()
    begun = torch.stack([_added_to(written[0], row, written[1]) for row in rows[chosen]]).clamp(0.0, 1.0)
    other = (begun - exact) / COMPUTED
    made = result.reshape(len(rows), -1).clone()
    decides = other.abs() > (made[chosen] - exact).abs()
    made[chosen] = torch.where(decides, (exact + other).float(), made[chosen])
    return made.reshape(result.shape)


def _chosen(rows: torch.Tensor) -> torch.Tensor:
    """The places of a few rows, the first and the last among them."""
    return torch.linspace(0, len(rows) - 1, min(len(rows), ROWS)).round().long()


def _added_to(bias: torch.Tensor, row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Add the products of one row (n) to the bias, one after another in float32."""
    terms = torch.cat([bias[:, None], row * weight], dim=1)  # (outputs, 1 + n)
    return torch.from_numpy(np.add.accumulate(terms.numpy(), axis=1, dtype=np.float32)[:, -1])


def averaged_axes(node: fx.Node, source: torch.Tensor, result: torch.Tensor) -> tuple[int, ...]:
    """Return the axes of *source* that the call averages, or sums, completely; none where it does anything else."""
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
