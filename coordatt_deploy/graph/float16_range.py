"""Which calls of a graph must not compute in float16, because it cannot hold their numbers.

float16 holds magnitudes from 6e-8 (and has few digits below 6.1e-5) to 65504. Two things go wrong:

*Constants.* An epsilon of 1e-12 becomes 0, and a dead channel gives NaN; a mask of -3.4e38 becomes minus infinity, and
a row that is masked as a whole gives NaN. What reads the result of such a call is concerned as well, up to the one that
brings it back to ordinary numbers, and so is what reduces a feature map to the number that the epsilon is added to:

    y / (mean(y) + 1e-12)           the mean, the sum and the division
    y * rsqrt(mean(y^2) + 1e-10)    the square, the mean, the sum, the root and the product
    softmax(a + mask)               the sum and the softmax

*Values.* Beyond 65504 is infinity, and the next difference or product of infinities is NaN. Norms square what they read
on the way to an ordinary result.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.graph.execution import Values, prepare
from coordatt_deploy.graph.graph import Feeds, Graph, is_tensor, op_name, weight
from coordatt_deploy.graph.operators import weight_positions

GREATEST: Final = float(np.finfo(np.float16).max)
LIMIT: Final = GREATEST / 2  # of values: other images than those that were tried may be twice as bright
# Eight of float16's least steps: what is smaller is off by more than a sixteenth, or 0. An epsilon of 1e-6 stays.
SMALLEST: Final = 8 * 2.0**-24

# Their constants are weights, of which those near 0 add next to nothing to a sum.
WEIGHTED: Final = frozenset({*weight_positions(), "batch_norm", "embedding", "einsum", "matmul", "bmm", "mm"})
# They only move values, or leave what is tiny tiny and what is huge huge.
CARRIES: Final = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "transpose", "t",
    "expand", "expand_as", "repeat", "cat", "stack", "slice", "select", "split", "chunk", "getitem", "clone",
    "contiguous", "alias", "to", "_to_copy", "sqrt", "add", "sub", "rsub", "neg", "maximum", "minimum", "clamp",
    "clamp_min", "clamp_max", "rsqrt", "reciprocal", "pow", "abs", "square", "where", "masked_fill",
})  # fmt: skip
# They make of a feature map what an epsilon is added to.
REDUCES: Final = frozenset({"mean", "sum", "linalg_vector_norm", "norm", "amax", "max", "square", "sqrt", "pow", "abs"})
SQUARES: Final = frozenset({
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "linalg_vector_norm", "norm", "var", "std",
})  # fmt: skip


def rounded_to_float16(value: torch.Tensor) -> torch.Tensor:
    """Round to the nearest float16, but leave what is beyond it: whoever computes there keeps to float32."""
    return torch.where(value.abs() > GREATEST, value, value.half().to(value.dtype))


def prepare_in_float16(graph: Graph) -> Callable[[Feeds], Values]:
    """Make a captured graph ready to run as float16 storage makes it: float32, every value rounded that float16 holds.

    What ``lost_in_float16`` names stays in float32, as it does in the files.
    """
    spared = lost_in_float16(graph.module)
    return prepare(graph, dtype=torch.float32, after=lambda _, value: rounded_to_float16(value), spared=spared)


def beyond_float16(graph: Graph, cases: Iterable[Feeds]) -> dict[str, float]:
    """Return the calls whose values leave float16's range, with the greatest magnitude that each makes or reads.

    Args:
        graph: Any stage's graph.
        cases: Inputs in the reference's layout, as the network will meet them.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes if is_tensor(node)}
    run = prepare(graph, dtype=torch.float32, nodes=frozenset(nodes))
    greatest: dict[str, float] = {}
    for feeds in cases:
        values = {**run(feeds), **feeds}
        for name in (*nodes, *(spec.name for spec in graph.inputs)):
            greatest[name] = max(greatest.get(name, 0.0), float(np.max(np.abs(values[name]), initial=0.0)))
    found: dict[str, float] = {}
    for name, node in nodes.items():
        read = max((greatest.get(item.name, 0.0) for item in node.all_input_nodes), default=0.0)
        made = max(greatest[name], read, read**2 if op_name(node) in SQUARES else 0.0)
        if made > LIMIT:
            found[name] = made
    return found


def lost_in_float16(module: fx.GraphModule) -> frozenset[str]:
    """Return the names of the calls that float16 would rob of a constant, and of those that depend on its being there.

    Args:
        module: Any stage's.
    """
    found: set[str] = set()
    for node in module.graph.nodes:
        if is_tensor(node) and op_name(node) not in WEIGHTED and any(map(_does_not_fit, _constants(module, node))):
            found |= _until_ordinary(node) | _reduced_for(node)
    return frozenset(found)


def _constants(module: fx.GraphModule, node: fx.Node) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    for given in (*node.args, *node.kwargs.values()):
        held = given if isinstance(given, float) else weight(module, given)
        if isinstance(held, float):
            yield np.array(held)
        elif held is not None and held.is_floating_point():
            yield held.detach().double().numpy()


def _does_not_fit(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether the constant would be lost: one number that is too large, or all too small. Infinity is float16's too."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(sizes.size and (sizes.max() < SMALLEST or sizes.max() > GREATEST))


def _until_ordinary(first: fx.Node) -> set[str]:
    """The call and those behind it that read a value which float16 does not hold."""
    found: set[str] = set()
    open_ends = [first]
    while open_ends:
        node = open_ends.pop()
        if node.name in found or node.op != "call_function":
            continue
        found.add(node.name)
        reciprocal = op_name(node) == "div" and not isinstance(node.args[0], fx.Node)
        if op_name(node) in CARRIES or reciprocal or (node is first and op_name(node) in ("mul", "div")):
            open_ends += node.users
    return found


def _reduced_for(first: fx.Node) -> set[str]:
    """The reductions that make what the call reads, and the squares and roots between them."""
    found: set[str] = set()
    open_ends = [first]
    while open_ends:
        for before in open_ends.pop().all_input_nodes:
            is_square = op_name(before) == "mul" and before.args[0] is before.args[1]
            if before.name not in found and (is_square or op_name(before) in REDUCES):
                found.add(before.name)
                open_ends.append(before)
    return found
