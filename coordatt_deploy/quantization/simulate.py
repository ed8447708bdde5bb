"""What quantization does to a graph, computed in torch: which values are stored, and the grids they are rounded to.

    Q(x) = (clip(round(x / scale) + zero_point, -128, 127) - zero_point) * scale

This is how every runtime's int8 form is meant to compute; each differs from it by the rounding inside its kernels. It
serves to prepare weights and to rank layers. Verdicts come from the artifacts themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.graph.graph import Graph, is_call, is_tensor, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.metrics import sqnr_db_of_energies
from coordatt_deploy.quantization.delicate_sums import too_wide
from coordatt_deploy.quantization.ranges import Range, of_values

Values = list[torch.Tensor]

TINY: Final = torch.finfo(torch.float32).tiny  # a step below it is 0 in float32

FUSED_BEHIND: Final = having(Trait.FUSED_BEHIND)
FUSES: Final = having(Trait.FUSES)
MOVES: Final = having(Trait.MOVES)
WEIGHTED: Final = having(Trait.QUANTIZED_WEIGHT)


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


# What leads from a sum to a divisor, element by element.
TO_DIVISORS: Final = MOVES | {
    "add",
    "sub",
    "mul",
    "div",
    "sqrt",
    "pow",
    "square",
    "abs",
    "clamp",
    "clamp_min",
    "maximum",
}
# What leads from a mask to the softmax behind it, element by element.
MASKING: Final = MOVES | {"add", "sub", "mul", "div", "where", "masked_fill"}
SOFTMAXES: Final = frozenset({"softmax", "log_softmax"})
SIGMOID: Final = Grid(1 / 256, -128)  # fixed in TFLite's kernels


def stored_values(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes whose value an int8 runtime rounds and stores.

    Divisors are none: files compute them in float, since a grid would round a variance of nearly nothing to 0.
    """
    names = set()
    for node in graph.module.graph.nodes:
        fused = is_fused_into(node, [user for user in node.users if is_tensor(user)])
        if node.op == "placeholder" or (computes(node) and not fused):
            names.add(node.name)
    return frozenset(names - _divisors(graph))


def _divisors(graph: Graph) -> set[str]:
    """Names of what leads, element by element, to the divisor of a division by what the network computes."""
    divided = [source for node in graph.module.graph.nodes if (source := _divisor(node)) is not None]
    found: set[str] = set()
    while divided:
        node = divided.pop()
        if is_call(node) and node.name not in found and op_name(node) in TO_DIVISORS:
            found.add(node.name)
            divided += node.all_input_nodes
    return found


def _divisor(node: fx.Node) -> fx.Node | None:
    position = {"div": 1, "reciprocal": 0, "rsqrt": 0}.get(op_name(node))
    value = None if position is None else node.args[position]
    return value if isinstance(value, fx.Node) and is_call(value) else None


def computes(node: fx.Node) -> bool:
    """Whether a call gives floating values that are not merely those of its input, moved."""
    return is_tensor(node) and bool(node.meta["val"].is_floating_point()) and op_name(node) not in MOVES


def is_fused_into(node: fx.Node, users: Sequence[fx.Node]) -> bool:
    """Whether runtimes compute *node* in one go with the one activation that uses it, and store only its result."""
    return op_name(node) in FUSES and len(users) == 1 and op_name(users[0]) in FUSED_BEHIND


def grid_of(node: fx.Node, values: Values, method: RangeMethod) -> Grid | None:
    """Choose the grid for a node from its float *values*; None where files leave it in float, as no grid holds it."""
    if op_name(node) == "sigmoid":
        return SIGMOID
    low, high = (float(end) for end in (min(v.min() for v in values), max(v.max() for v in values)))
    ends = {node.name: (min(low, 0.0), max(high, 0.0))}
    if too_wide(ends, [node.name] if _before_softmax(node) else [], {node.name: []}):
        return None
    return Grid.of(of_values([value.numpy() for value in values], method))


def _before_softmax(node: fx.Node) -> bool:
    waiting, seen = list(node.users), set[fx.Node]()
    while waiting:
        user = waiting.pop()
        if op_name(user) in SOFTMAXES:
            return True
        if op_name(user) in MASKING and user not in seen:
            seen.add(user)
            waiting += user.users
    return False


def last_uses(graph: Graph) -> dict[fx.Node, fx.Node]:
    """Return, for each node, the last one that reads it."""
    return {source: node for node in graph.module.graph.nodes for source in node.all_input_nodes}


def apply(node: fx.Node, values: Mapping[fx.Node, Values], cases: int) -> Values:
    """Run one call on every case."""
    assert callable(node.target)  # noqa: S101 - the caller passes calls
    results = []
    for case in range(cases):
        inputs = {source: value[case] for source, value in values.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        results.append(node.target(*args, **kwargs))
    return results


def sqnr_db(candidate: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Signal over noise of all cases together, in dB."""
    signal = sum(float(value.double().square().sum()) for value in reference)
    noise = sum(
        float((one.double() - other.double()).square().sum()) for one, other in zip(candidate, reference, strict=True)
    )
    return sqnr_db_of_energies(signal, noise)
