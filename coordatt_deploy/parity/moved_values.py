"""What rounding can cost, where torch's own float32 happens to round nothing: exact values, moved by half a unit.

The mean of equal values is exact in torch, and the next kernel's is off by a unit in the last place; behind it stands a
division by a deviation of 0, or a comparison with 0. So where a file is beyond a multiple of torch's own error, the
reference is asked how much depends on the last digits at that very input. Every value that is computed, and every input
and weight, is moved in float64 as rounding may move it,

    value * (1 + u * x),   x uniform between -1 and 1,   u the unit roundoff of the storage type

and what the network, or the layer, then gives is what rounding costs there (Monte Carlo arithmetic; Parker, 1997).
Where the runtime's sigmoid is off by as much wherever it is, a sigmoid is moved by that (``Tolerance.sigmoid_error``),
and what is computed from a small one, a product say, by what that makes of it.
Where the input decides nothing but noise, that is much; where it does not, it is no more than torch's own error.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision, Storage
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import lost_in_float16
from coordatt_deploy.graph.graph import Feeds, Graph, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.parity.absences import MOVES
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.reference_rounding import Rounder, Rounding
from coordatt_deploy.parity.tolerances import UNIT_ROUNDOFF, Tolerance

SAMPLES: Final = 2  # of a layer alone
# Of the whole: where layers magnify one after another, what arrives is a matter of luck. On a checkerboard a gated map
# of fbnetv3_b (random weights) was off by 15, 40, 46, 79, 84, 141, 170 and 612 in eight samples, by 52 in torch itself.
SAMPLES_OF_THE_WHOLE: Final = 8
# What only chooses among values, or moves them, rounds nothing.
ROUNDS_NOTHING: Final = (
    MOVES | having(Trait.MOVES)
    | {
        "stack", "unbind", "narrow", "tile", "flip",
        "roll", "index", "index_select", "gather", "pad", "constant_pad_nd", "reflection_pad2d",
        "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "relu", "relu6", "clamp",
        "clamp_min", "clamp_max", "hardtanh", "abs", "neg", "sign", "floor", "ceil", "round", "maximum",
        "minimum", "amax", "amin", "max", "min", "max_pool1d", "max_pool2d", "adaptive_max_pool2d", "topk",
        "sort", "where", "masked_fill", "upsample_nearest2d",
    }
)  # fmt: skip


def half_a_unit(
    precision: Precision, seed: int, sigmoid_error: float = 0.0
) -> Callable[[fx.Node, torch.Tensor], torch.Tensor]:
    """Return what moves every value by at most half a unit in the last place of *precision*.

    Args:
        precision: Of the storage.
        seed: Of the noise.
        sigmoid_error: What a sigmoid is moved by at least; see ``Tolerance``.
    """
    generator, unit = torch.Generator().manual_seed(seed), UNIT_ROUNDOFF[precision]

    def moved(node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        by = unit * value.abs()
        if op_name(node) == "sigmoid":
            by = by.clamp(min=sigmoid_error)
        return value + by * (2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1)

    return moved


def exact_nodes(module: fx.GraphModule) -> frozenset[str]:
    """Return the names of the calls that round nothing."""
    return frozenset(node.name for node in module.graph.nodes if op_name(node) in ROUNDS_NOTHING)


def moved_cases(graph: Graph, cases: ParityCases, tolerance: Tolerance) -> dict[str, list[NumberArray]]:
    """Return what the captured graph makes of each case where every value is moved, by output.

    Of ``SAMPLES_OF_THE_WHOLE`` of them, and of torch's own run with statistics summed as files sum them, it is the one
    that is farthest from what it should be, for each output and case.
    """
    spared, precision = exact_nodes(graph.module), tolerance.basis
    runs: list[Callable[[Feeds], Mapping[str, NumberArray]]] = [
        prepare(graph, dtype=torch.float64, after=half_a_unit(precision, seed, tolerance.sigmoid_error), spared=spared)
        for seed in range(SAMPLES_OF_THE_WHOLE)
    ]
    runs.append(partial(_with_statistics_summed, graph, precision))
    found: dict[str, list[NumberArray]] = {}
    for index, feeds in enumerate(cases.feeds(range(len(cases.names)))):
        samples = [run(feeds) for run in runs]
        for name, values in cases.outputs.items():
            exact = np.asarray(values[index], np.float64)
            farthest = max(samples, key=lambda sample: _distance(sample[name], exact))
            found.setdefault(name, []).append(farthest[name])
    return found


def _with_statistics_summed(graph: Graph, precision: Precision, feeds: Feeds) -> dict[str, NumberArray]:
    spared = lost_in_float16(graph.module) if precision is Precision.FP16 else frozenset()
    rounding = Rounding(Storage(precision), frozenset(), spared=spared, sums_statistics=True)
    rounder = Rounder(graph.module, rounding, {}, frozenset())
    with torch.no_grad():
        values = rounder.run(*(torch.from_numpy(np.asarray(feeds[spec.name])) for spec in graph.inputs))
    return {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}


def _distance(value: NumberArray, exact: NDArray[np.float64]) -> float:
    error = np.abs(np.asarray(value, np.float64) - exact)
    return float(np.max(error, initial=0.0, where=np.isfinite(error))) + float(np.mean(error > 0)) * 1e-30


class Moving(fx.Interpreter):
    """Runs a graph in float64 and moves every value; after each cut its readers go on from the exact value, moved.

    Attributes:
        kept: The value of every node asked for.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        exact: Mapping[str, NDArray[np.float64]],
        nodes: frozenset[str],
        rounding: Rounding,
        seed: int,
    ) -> None:
        """Prepare a run.

        Args:
            module: In float64.
            exact: What the readers of a node go on from, for each node that the artifact is cut at.
            nodes: Those to keep.
            rounding: What to move by: the storage's precision, and what a sigmoid is off by.
            seed: Of the noise.
        """
        super().__init__(module)
        self.exact, self.nodes, self.spared = exact, nodes, exact_nodes(module)
        self.moved = half_a_unit(rounding.storage.values, seed, rounding.sigmoid_error)
        # What an artifact is fed with is stored in it, not computed by it.
        self.stored = half_a_unit(rounding.storage.values, seed + SAMPLES_OF_THE_WHOLE)
        self.kept: dict[str, NumberArray] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node, keep its value as rounding would store it, and hand on the exact one where there is one."""
        value = super().run_node(n)
        is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_real:
            value = value.double() if n.name in self.spared else self.moved(n, value.double())
        if n.name in self.nodes:
            self.kept[n.name] = value.numpy()
        if n.name not in self.exact:
            return value
        given = torch.from_numpy(np.ascontiguousarray(self.exact[n.name]))
        return self.stored(n, given) if is_real else given
