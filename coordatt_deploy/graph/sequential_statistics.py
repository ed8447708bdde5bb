"""Normalisations whose statistics are summed as files sum them: one element after another in float32.

torch takes mean and variance in one pass and in many lanes; a file has a mean, a difference, a square and another mean,
each a sum in the kernel's own order. On noise that costs up to 5 times torch's own error (9 times of a variance). On a
constant map (black, white, the border of a padded image) the same rounding is repeated at every addition, while torch's
lanes add few equal values; behind it stands a division by the root of epsilon. There BatchNorm and InstanceNorm of
64 x 64 were measured to be off by 140 times torch's own error in ONNX Runtime, 24 times in LiteRT, and 6 times in Core
ML's order; one after another it is 880 times.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integers
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.summation_order import COMPUTED

# Place of the weight, the bias and the epsilon among the arguments.
NORMALISATIONS: Final[Mapping[str, tuple[int, int, int]]] = {
    "batch_norm": (1, 2, 7),
    "instance_norm": (1, 2, 7),
    "group_norm": (2, 3, 4),
    "layer_norm": (2, 3, 4),
}
SPREADS: Final = frozenset({"var", "std"})


def with_statistics_in_sequence(node: fx.Node, values: Sequence[object], result: object) -> object:
    """Return *result* with the error that sums of one element after another would have, where that decides.

    Args:
        node: The call.
        values: Of its arguments by position.
        result: What torch made of them in float32.

    Returns:
        Where a ``COMPUTED`` part of that error is greater than the error of torch's own order: a value with it. Else,
        and for every call that is no normalisation by its own statistics, *result*.
    """
    x = values[0] if values else None
    if not isinstance(x, torch.Tensor) or not isinstance(result, torch.Tensor) or not x.numel():
        return result
    if x.dtype != torch.float32 or result.dtype != torch.float32 or not _of_its_own(node, values):
        return result
    summed = _summed(node, values, x)
    if summed is None or summed.shape != result.shape:
        return result
    exact = _exact(node, values)
    error = (summed.double() - exact) / COMPUTED
    decides = torch.isfinite(error) & (error.abs() > (result.double() - exact).abs())
    return torch.where(decides, (exact + error).float(), result)


def _of_its_own(node: fx.Node, values: Sequence[object]) -> bool:
    """Whether the call takes the statistics of what it reads, and not known ones."""
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return False
    if op_name(node) in ("batch_norm", "instance_norm"):
        return len(values) > 5 and values[5] is True
    return op_name(node) in NORMALISATIONS or op_name(node) in SPREADS


def _summed(node: fx.Node, values: Sequence[object], x: torch.Tensor) -> torch.Tensor | None:
    if op_name(node) in SPREADS:
        return _spread(node, x)
    rows = _rows(node, values, x)
    if rows is None:
        return None
    weight, bias, eps = (values[at] if len(values) > at else None for at in NORMALISATIONS[op_name(node)])
    mean = _mean(rows)
    deviation = rows - mean
    scale = torch.rsqrt(_mean(deviation * deviation) + (eps if isinstance(eps, float) else 1e-5))
    normal = deviation * scale
    if op_name(node) == "batch_norm":
        made = normal.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
    else:
        made = normal.reshape(x.shape)
    trailing = (1,) * (x.ndim - 2) if op_name(node) != "layer_norm" else ()
    for given, apply in ((weight, torch.mul), (bias, torch.add)):
        if isinstance(given, torch.Tensor):
            made = apply(made, given.reshape(*given.shape, *trailing))
    return made


def _rows(node: fx.Node, values: Sequence[object], x: torch.Tensor) -> torch.Tensor | None:
    """The elements of *x* (rows, n), a row for each pair of mean and variance."""
    name = op_name(node)
    if name == "layer_norm":
        return x.reshape(-1, math.prod(integers(values[1])))  # type: ignore[arg-type]  # a list of sizes
    if name == "group_norm":
        return x.reshape(x.shape[0] * values[1], -1) if isinstance(values[1], int) else None
    if name == "batch_norm":
        return x.transpose(0, 1).reshape(x.shape[1], -1)
    return x.reshape(x.shape[0] * x.shape[1], -1)


def _spread(node: fx.Node, x: torch.Tensor) -> torch.Tensor | None:
    axes = argument(node, 1, "dim")
    if isinstance(axes, bool) or axes is None:
        return None
    axes = tuple(axis % x.ndim for axis in integers(axes))
    given = node.kwargs.get("correction", argument(node, 2, "unbiased", True))
    freedom = int(given) if isinstance(given, (bool, int, float)) else 1
    count = math.prod(x.shape[axis] for axis in axes)
    rows = torch.movedim(x, axes, tuple(range(-len(axes), 0))).reshape(-1, count)
    deviation = rows - _mean(rows)
    if count <= freedom:
        return None
    variance = _mean(deviation * deviation) * (count / (count - freedom))
    made = variance.sqrt() if op_name(node) == "std" else variance
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    left = [size for axis, size in enumerate(x.shape) if axis not in axes]
    keeps = node.kwargs.get("keepdim", len(node.args) > 3 and node.args[3])
    return made.reshape(kept if keeps else left)


def _mean(rows: torch.Tensor) -> torch.Tensor:
    """The mean of each row (rows, 1), summed one element after another in float32."""
    sums = np.add.accumulate(rows.numpy(), axis=1, dtype=np.float32)[:, -1:]
    return torch.from_numpy(sums / np.float32(rows.shape[1]))


def _exact(node: fx.Node, values: Sequence[object]) -> torch.Tensor:
    assert isinstance(node.target, torch._ops.OpOverload)  # noqa: S101 - the names are operators of ATen
    doubles = [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]
    exact: torch.Tensor = node.target(*doubles, **node.kwargs)
    return exact
