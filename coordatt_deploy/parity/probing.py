"""Values that no image gives: a wrong weight hides behind a dead channel, a missing bound behind values below it.

Layers whose value may be anything near what it is hand on their reference value with noise, as wide as the value
itself and wide enough to cross the bounds of an activation that reads it. What no input at all can give proves nothing,
so noise respects what the network itself says of a value:

    a mean of values that are never negative is not below the least of them, nor above the greatest of negative ones
    a mean of one value is that value
    what is 0 on the images and stays 0 on stirred values is 0 by construction (the rows of a padding), unless the whole
    channel is: the weights behind a dead channel are looked at

Where torch itself then gives NaN or infinity (a logarithm, a root), ``ReferenceLayers.probe`` narrows the noise of what
is read there, to the range of the image and then to nothing; see ``Noise``.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.operators import Trait, having, probed_ranges
from coordatt_deploy.graph.repeats import repeated_calls
from coordatt_deploy.parity.reference_rounding import RoundingError

Values = dict[str, NDArray[np.float64]]

# What an activation gives lies on a curve and is left there, except that within its bounds every value can occur.
BOUNDED: Final = probed_ranges()
PERTURBED: Final = having(Trait.PERTURBED)
AVERAGES: Final = having(Trait.AVERAGE)
READS_BOUNDS: Final = having(Trait.READS_BOUNDS)
SPREADS: Final = frozenset({"std", "var", "layer_norm", "group_norm", "instance_norm"})  # converters make them of means
BEYOND: Final = 4.0  # standard deviation that takes many values past 6 and below -3


class Noise(enum.IntEnum):
    """How far noise takes a layer."""

    ANYWHERE = 0
    WITHIN_RANGE = 1
    """Between the least and the greatest value that the layer has in this case."""
    NOWHERE = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """Stirred values, float64, by layer id.

    Attributes:
        given: What the readers of each layer get.
        made: What each layer makes of what it gets.
        rounding: What rounding costs torch there.
    """

    given: Values
    made: Values
    rounding: dict[str, RoundingError]


class Stirring(fx.Interpreter):
    """Runs a graph in float64; chosen nodes hand on noise around their reference value.

    Attributes:
        given: What the readers of each node get.
        made: What each node makes of what it gets.
        stirred: What was handed on with noise, by the first of the nodes that compute the same.
        first: That one, for each of the others.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        around: Mapping[str, NDArray[np.float64]],
        nodes: frozenset[str],
        seed: int,
        noise: Mapping[str, Noise],
    ) -> None:
        """Prepare a run.

        Args:
            module: In float64.
            around: Reference value of each node that is stirred, if its operator allows that.
            nodes: Those to keep.
            seed: Of the noise.
            noise: By node; anywhere where it is not named.
        """
        super().__init__(module)
        self.nodes = nodes
        # What is computed twice may be one tensor of the file: whoever reads it gets the same noise.
        self.first = repeated_calls(module.graph)
        self.around = {self.first.get(name, name): value for name, value in around.items()}
        self.noise = {self.first.get(name, name): reach for name, reach in noise.items()}
        self.stirred: Values = {}
        self.random = np.random.default_rng(seed)
        self.given: Values = {}
        self.made: Values = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node, keep what it makes, and hand on what its readers are to get."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        if n.name in self.nodes:
            made = self.made[n.name] = value.numpy()
            first = self.first.get(n.name, n.name)
            if first in self.around and op_name(n) in PERTURBED and not _is_part(n) and not self._passes_on(n, made):
                if first not in self.stirred:
                    self.stirred[first] = self._stirred(n, self.around[first], made)
                value = torch.from_numpy(self.stirred[first])
            self.given[n.name] = value.numpy()
        return value

    def _stirred(self, n: fx.Node, reference: NDArray[np.float64], made: NDArray[np.float64]) -> NDArray[np.float64]:
        noise = self.random.standard_normal(reference.shape)
        reach = self.noise.get(self.first.get(n.name, n.name), Noise.ANYWHERE)
        if reach is Noise.NOWHERE:
            return reference
        name = op_name(n)
        if name in BOUNDED:
            found = _within(reference + (BOUNDED[name][1] - BOUNDED[name][0]) / 2 * noise, *BOUNDED[name])
        else:
            width = float(reference.std())
            if any(op_name(user) in READS_BOUNDS for user in n.users):
                width = max(width, BEYOND)
            found = np.where(_zero_by_construction(reference, made), 0.0, reference + width * noise)
        if name in AVERAGES:
            found = _on_one_side(found, self._source(n))
        return np.clip(found, reference.min(), reference.max()) if reach is Noise.WITHIN_RANGE else found

    def _source(self, n: fx.Node) -> NDArray[np.float64]:
        value: torch.Tensor = self.env[n.all_input_nodes[0]]
        return value.double().numpy()

    def _passes_on(self, n: fx.Node, made: NDArray[np.float64]) -> bool:
        """Whether a mean is what it was made of, one value each: a file may hold both in one tensor."""
        if op_name(n) not in AVERAGES:
            return False
        source = self._source(n)
        return source.size == made.size and np.array_equal(source.ravel(), made.ravel())


def _within(value: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Bring values between bounds: to the nearer one, but no whole channel to one of them, which would hide a weight.

    Of a map of one pixel behind a ReLU every other channel would be 0. Such a one is mirrored at the bounds instead.
    """
    found = np.clip(value, low, high)
    if found.ndim < 2:
        return found
    others = tuple(axis for axis in range(found.ndim) if axis != 1)
    hidden = (found == low).all(axis=others, keepdims=True) | (found == high).all(axis=others, keepdims=True)
    mirrored = low + np.abs((value - low + (high - low)) % (2 * (high - low)) - (high - low))
    return np.where(hidden, mirrored, found)


def _on_one_side(value: NDArray[np.float64], source: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep means of values that are all of one sign on that side of the value next to 0."""
    least, greatest = (source.min(), source.max()) if source.size else (0.0, 0.0)
    if least >= 0:
        return np.maximum(value, least)
    return np.minimum(value, greatest) if greatest <= 0 else value


def _zero_by_construction(reference: NDArray[np.float64], made: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the elements that are 0 whatever the layer reads, without channels (axis 1) that are 0 all over."""
    zero = (reference == 0) & (made == 0)
    if zero.ndim < 2:
        return np.zeros(zero.shape, np.bool_)
    dead = zero.all(axis=tuple(axis for axis in range(zero.ndim) if axis != 1), keepdims=True)
    found: NDArray[np.bool_] = zero & ~dead
    return found


def _is_part(node: fx.Node) -> bool:
    """Whether a file may hold a mean as a part of the deviation of the same values, which must get what it makes."""
    source = node.args[0] if op_name(node) == "mean" else None
    return isinstance(source, fx.Node) and any(op_name(user) in SPREADS for user in source.users)
