"""What rounding alone makes of every layer: torch computes in float32 and rounds where an artifact would.

    float16:  every value and every weight to the nearest float16, where float16 has one (``graph.float16_range``)
    int8:     Q(x) = s * clip(round(x / s), low / s, high / s), s = (high - low) / 255 from the range of the layer
    weights:  w = s * round(w / s), s = max |w| / (2^(bits - 1) - 1) for each output channel

The error of this, against float64, is what an artifact is allowed a multiple of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision, Storage
from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.float16_range import rounded_to_float16
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.lowering.activations import find_activations
from coordatt_deploy.graph.operators import Trait, having, integer_ranges, weight_positions
from coordatt_deploy.graph.sequential_statistics import with_statistics_in_sequence
from coordatt_deploy.graph.summation_order import begun_at_half, bias_first, in_sequence
from coordatt_deploy.metrics import without_shared_infinities
from coordatt_deploy.quantization.delicate_sums import leads_to, too_wide
from coordatt_deploy.quantization.simulate import MASKING, SOFTMAXES

WEIGHTED: Final = weight_positions()
KEEPS_GRID: Final = having(Trait.KEEPS_GRID)
CHOOSES: Final = having(Trait.CHOOSES)
FIXED: Final = integer_ranges()
# Which argument must not be 0, and what a file computes of it beforehand that quantizers leave in float.
DIVIDES: Final = {"div": 1, "reciprocal": 0, "rsqrt": 0, "log": 0}
STEPS: Final = frozenset({"add", "mul", "sqrt", "view", "reshape"})
STARTS: Final = frozenset({"mean", "sum", "adaptive_avg_pool2d", "avg_pool2d"})  # where such steps begin


@dataclass(frozen=True, eq=False)
class Rounding:
    """How torch rounds.

    Attributes:
        storage: What it rounds to.
        cuts: The names of the nodes that the artifact has a tensor for; integers are stored there.
        ranges: The least and greatest value of each node, 0 included; for integers.
        clips: Whether what lies beyond the range is cut off. Not for values that nothing was calibrated on.
        spared: The names of the nodes that stay in float32 in an artifact of float16, in float in one of integers.
        sums_statistics: Whether mean and variance of normalisations are summed one element after another.
        sigmoid_error: What a sigmoid of the runtime is off by, however small its values are; see ``Tolerance``.
    """

    storage: Storage
    cuts: frozenset[str]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clips: bool = True
    spared: frozenset[str] = frozenset()
    sums_statistics: bool = False
    sigmoid_error: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundingError:
    """What rounding costs at one layer in one case.

    Attributes:
        greatest: The greatest error of all elements.
        noise: Mean square error of each channel (axis 1); of all elements where there is no such axis.
        step: The step of the integer grid that the layer is stored on; 0 where it is stored on none.
        share: Of the elements that are not the reference's.
    """

    greatest: float
    noise: NDArray[np.float64]
    step: float = 0.0
    share: float = 0.0


def compare(value: NumberArray, reference: NDArray[np.float64], step: float = 0.0) -> RoundingError:
    """Return how far *value* is from the reference; NaN where both are infinite and not alike."""
    value, reference = without_shared_infinities(value, reference)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(value, np.float64) - reference)
    axes = tuple(axis for axis in range(error.ndim) if axis != 1 or error.ndim < 2)
    noise = np.atleast_1d(np.mean(np.square(error), axis=axes))
    share = float(np.mean(error > 0)) if error.size else 0.0
    return RoundingError(float(np.max(error)) if error.size else 0.0, noise, step, share)


def max_noise(errors: Sequence[RoundingError]) -> RoundingError:
    """Return what a layer is off by that holds the values of several: the greatest error, and its own channels' noise.

    Args:
        errors: The error of the layer itself, then those of the layers that made its values.
    """
    own = errors[0]
    noise = own.noise
    for other in errors[1:]:
        if other.noise.shape == own.noise.shape:
            noise = np.maximum(noise, other.noise)
    return RoundingError(max(error.greatest for error in errors), noise, own.step, max(error.share for error in errors))


class Rounder(fx.Interpreter):
    """Runs a graph in float32 and rounds; after each cut its readers go on from the exact value, where one is given.

    Attributes:
        kept: The value of every node asked for, as it is stored.
        steps: The step of each integer grid, by the node's name.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        rounding: Rounding,
        exact: Mapping[str, NDArray[np.float64]],
        nodes: frozenset[str],
    ) -> None:
        super().__init__(module)
        self.rounding, self.exact, self.nodes = rounding, exact, nodes
        self.kept: dict[str, NumberArray] = {}
        self.steps: dict[str, float] = {}
        in_float32 = rounding.storage.values is Precision.FP32
        found = find_activations(module) if in_float32 else ()
        self.gated = {item.source: item.output for item in found if item.op_name == "hardsigmoid"}
        self.before_gates: dict[str, list[object]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node, round its value, keep that, and hand on the exact value where one is given."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            if n.op == "call_function" and n.args and isinstance(n.args[0], fx.Node):
                value = in_sequence(n, self.env[n.args[0]], value)
            if op_name(n) == "linear" and self.rounding.storage.values is Precision.FP32:
                value = bias_first(self._arguments(n), value)
            if n.name in self.before_gates:
                value = begun_at_half(self.before_gates.pop(n.name), value)
            if n.name in self.gated and op_name(n) in ("linear", "conv2d"):
                self.before_gates[self.gated[n.name]] = self._arguments(n)
            if self.rounding.sums_statistics and n.op == "call_function":
                value = with_statistics_in_sequence(n, self._arguments(n), value)
            value = self._stored(n, value)
            if n.name in self.nodes:
                self.kept[n.name] = value.numpy()
            if n.name in self.exact:
                value = self._stored(n, torch.from_numpy(np.asarray(self.exact[n.name])).float())
        elif n.name in self.nodes:
            self.kept[n.name] = value.numpy()
        return value

    def _arguments(self, node: fx.Node) -> list[object]:
        return [self.env[item] if isinstance(item, fx.Node) else item for item in node.args]

    def _stored(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        storage = self.rounding.storage
        if node.op == "get_attr":
            if storage.weight_bits is not None and (axis := _output_axis(node)) is not None:
                return _coarse(value, axis, storage.weight_bits)
            return value if storage.values is not Precision.FP16 else rounded_to_float16(value)
        if node.name in self.rounding.spared:
            return _in_eleven_bits(value) if storage.values is Precision.INT8 else value
        if storage.values is Precision.FP16:
            return rounded_to_float16(value)
        if storage.values is Precision.INT8 and (node.op == "placeholder" or node.name in self.rounding.cuts):
            low, high = self._range(node, value)
            step = (high - low) / (2**storage.value_bits - 1)
            self.steps[node.name] = step
            return _snapped(value, low, high, step, clips=self.rounding.clips)
        return value

    def _range(self, node: fx.Node, value: torch.Tensor) -> tuple[float, float]:
        if node.op == "placeholder":
            return min(0.0, float(value.min())), max(0.0, float(value.max()))
        if op_name(node) in FIXED:
            return FIXED[op_name(node)]
        low, high = self.rounding.ranges.get(node.name, (float(value.min()), float(value.max())))
        sharing = list(node.all_input_nodes) if op_name(node) in KEEPS_GRID else []
        if all(op_name(user) in CHOOSES for user in node.users):  # read elsewhere it has a grid of its own
            sharing += node.users
        for other in sharing:
            if other.name in self.rounding.spared:
                continue
            first, last = self.rounding.ranges.get(other.name, (low, high))
            low, high = min(low, first), max(high, last)
        return min(low, 0.0), max(high, 0.0)


def before_divisions(module: fx.GraphModule) -> frozenset[str]:
    """Return the nodes that lead to divisors and logarithms by sums and products: what integers round to 0 there.

    Quantizers leave those in float (``quantization.delicate_sums``).
    """
    made_of = {
        node.name: [item.name for item in node.all_input_nodes]
        for node in module.graph.nodes
        if op_name(node) in STEPS and node.op == "call_function"
    }
    made_of |= {node.name: [] for node in module.graph.nodes if op_name(node) in STARTS and node.op == "call_function"}
    starts = [
        source.name
        for node in module.graph.nodes
        if op_name(node) in DIVIDES
        and isinstance(source := argument(node, DIVIDES[op_name(node)], "other"), fx.Node)
        and source.op != "get_attr"
    ]
    return frozenset(leads_to(starts, made_of))


def beyond_grids(module: fx.GraphModule, ranges: Mapping[str, tuple[float, float]]) -> frozenset[str]:
    """Return the nodes that no integer grid can hold, as a mask of minus infinity makes them.

    Quantizers leave those in float (``quantization.delicate_sums``).

    Args:
        module: The captured graph.
        ranges: Least and greatest value of each node.
    """
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    reads = {node.name: [item.name for item in node.all_input_nodes] for node in calls}
    return frozenset(
        too_wide(
            ranges,
            [reads[node.name][0] for node in calls if op_name(node) in SOFTMAXES],
            {node.name: reads[node.name] for node in calls if op_name(node) in MASKING},
        )
    )


def _output_axis(node: fx.Node) -> int | None:
    """Return the axis of a weight along its outputs; None for what is not a weight."""
    for user in node.users:
        name = op_name(user)
        if name in WEIGHTED and argument(user, WEIGHTED[name], "weight") is node:
            return 1 if name == "addmm" else 0
        if name in ("t", "transpose", "permute") and any(op_name(reader) in ("addmm", "mm") for reader in user.users):
            return 0
    return None


def _coarse(weights: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    others = [at for at in range(weights.ndim) if at != axis]
    step = weights.abs().amax(others, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, torch.round(weights / step.clamp_min(1e-30)) * step, weights)


def _in_eleven_bits(value: torch.Tensor) -> torch.Tensor:
    """Round as float16 does, in which Core ML stores what is on no grid, but to no end of its range.

    Nor of float32's: a mask's least number would become minus infinity, and NaN behind the next softmax.
    """
    mantissa, exponent = torch.frexp(value.double())
    rounded = torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)
    limits = torch.finfo(value.dtype)
    return torch.where(torch.isfinite(rounded), rounded.clamp(limits.min, limits.max), rounded).to(value.dtype)


def _snapped(value: torch.Tensor, low: float, high: float, step: float, *, clips: bool) -> torch.Tensor:
    if not step > 0:
        return value
    first, last = round(low / step), round(high / step)  # 0 is on the grid
    steps = torch.round(value / step)
    return (torch.clamp(steps, first, last) if clips else steps) * step
