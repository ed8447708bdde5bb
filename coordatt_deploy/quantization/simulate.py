"""What quantization does to a graph, computed in torch: which values are stored, and the grids they are rounded to.

    Q(x) = (clip(round(x / scale) + zero_point, -128, 127) - zero_point) * scale

This is how every runtime's int8 form is meant to compute; each differs from it by the rounding inside its kernels. It
serves to prepare weights and to rank layers. Verdicts come from the artifacts themselves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.graph.call_arguments import kind
from coordatt_deploy.graph.graph import Graph, is_tensor
from coordatt_deploy.quantization.ranges import Range, of_values

Values = list[torch.Tensor]

TINY: Final = torch.finfo(torch.float32).tiny  # a step below it is 0 in float32

# The activations that runtimes compute inside the operator before them.
FUSED_BEHIND: Final = frozenset({"relu", "relu6", "hardtanh", "clamp"})
FUSES: Final = frozenset({"conv2d", "linear", "add"})
# Operators whose result is stored with the grid of their input.
MOVES: Final = frozenset({
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "split", "split_with_sizes", "slice",
    "max_pool2d", "upsample_nearest2d", "constant_pad_nd",
})  # fmt: skip
WEIGHTED: Final = frozenset({"conv2d", "linear"})


@dataclass(frozen=True, slots=True)
class Grid:
    """An int8 grid of 256 values."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, bounds: Range) -> "Grid":
        """Return the grid that covers *bounds*, with 0 on it."""
        scale = (bounds.high - bounds.low) / 255
        if not scale > TINY or not math.isfinite(scale):
            return cls(1.0, 0)
        return cls(scale, round(-128 - bounds.low / scale))

    def snap(self, value: torch.Tensor) -> torch.Tensor:
        """Round *value* to the grid."""
        steps = torch.clamp(torch.round(value / self.scale) + self.zero_point, -128, 127)
        return (steps - self.zero_point) * self.scale


SIGMOID: Final = Grid(1 / 256, -128)  # fixed in TFLite's kernels


def stored(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes whose value an int8 runtime rounds and stores."""
    names = set()
    for node in graph.module.graph.nodes:
        computed = is_tensor(node) and node.meta["val"].is_floating_point() and kind(node) not in MOVES
        if node.op == "placeholder" or (computed and not _is_fused(node)):
            names.add(node.name)
    return frozenset(names)


def _is_fused(node: fx.Node) -> bool:
    """Whether only the activation behind *node* is stored."""
    users = [user for user in node.users if is_tensor(user)]
    return kind(node) in FUSES and len(users) == 1 and kind(users[0]) in FUSED_BEHIND


def grid_of(node: fx.Node, values: Values, method: RangeMethod) -> Grid:
    """Choose the grid for a node from its float *values*."""
    if kind(node) == "sigmoid":
        return SIGMOID
    return Grid.of(of_values([value.numpy() for value in values], method))


def last_uses(graph: Graph) -> dict[fx.Node, fx.Node]:
    """Return, for each node, the last one that reads it."""
    return {source: node for node in graph.module.graph.nodes for source in node.all_input_nodes}


def apply(node: fx.Node, values: Mapping[fx.Node, Values], cases: int) -> Values:
    """Run one call on every case."""
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    results = []
    for case in range(cases):
        inputs = {source: value[case] for source, value in values.items()}
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        results.append(target(*arguments[0], **arguments[1]))
    return results


def sqnr_db(candidate: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Signal over noise of all cases together, in dB."""
    signal = sum(float(value.double().square().sum()) for value in reference)
    noise = sum(
        float((one.double() - other.double()).square().sum()) for one, other in zip(candidate, reference, strict=True)
    )
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
