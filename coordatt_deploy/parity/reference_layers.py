"""What every layer of the captured graph should give, and what rounding alone makes of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision, Storage
from coordatt_deploy.graph.call_arguments import input_node
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import lost_in_float16
from coordatt_deploy.graph.graph import Feeds, Graph, op_name
from coordatt_deploy.graph.operators import Trait, having, probed_ranges
from coordatt_deploy.graph.repeats import repeated_calls
from coordatt_deploy.parity.reference_rounding import WEIGHTED, Rounder, Rounding, RoundingError, compare

Values = dict[str, NDArray[np.float64]]

# What an activation gives lies on a curve and is left there, except that within its bounds every value can occur.
BOUNDED: Final = probed_ranges()
PERTURBED: Final = having(Trait.PERTURBED)
READS_BOUNDS: Final = having(Trait.READS_BOUNDS)
SPREADS: Final = frozenset({"std", "var", "layer_norm", "group_norm", "instance_norm"})  # converters make them of means
BEYOND: Final = 4.0  # standard deviation that takes many values past 6 and below -3


@dataclass(frozen=True, slots=True)
class LayerReference:
    """One golden case, layer by layer.

    Attributes:
        values: float64, by layer id, in the captured graph's layout.
        outputs: The values of the graph's outputs, float64, by name.
    """

    values: Values
    outputs: Values


class ReferenceLayers:
    """Evaluates the captured graph layer by layer; made once, asked for each golden case."""

    def __init__(self, graph: Graph) -> None:
        """Prepare the captured *graph*; ``integral`` are its layers of positions, classes and masks."""
        self.graph = graph
        self.nodes = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers if layer.parts}
        self._double: fx.GraphModule | None = None
        self._exact = prepare(graph, nodes=frozenset(self.nodes.values()))
        values = {node.name: node.meta.get("val") for node in graph.module.graph.nodes}
        self.integral = frozenset(
            layer
            for layer, node in self.nodes.items()
            if isinstance(value := values[node], torch.Tensor) and not value.is_floating_point()
        )

    def reference(self, feeds: Feeds) -> LayerReference:
        """Return every layer's value in float64."""
        found = self._exact(feeds)
        return LayerReference(
            {layer: found[node] for layer, node in self.nodes.items()},
            {name: found[name] for name in self.graph.outputs},
        )

    def sources(self, layer_id: str) -> tuple[str, ...]:
        """Return the layers that a layer reads directly, in the order of its arguments; the inputs are not layers."""
        layer_of = {node: layer for layer, node in self.nodes.items()}
        node = self._node(layer_id)
        return tuple(layer_of[item.name] for item in node.all_input_nodes if item.name in layer_of)

    def before(self, layer_id: str, cuts: frozenset[str], *, unmixed: bool = False) -> tuple[str, ...]:
        """Return the layers of *cuts* that a layer is made of, with none of them in between.

        Args:
            layer_id: The layer.
            cuts: Layers that the artifact has a tensor for.
            unmixed: Only those of which each channel goes into one channel alone.
        """
        if unmixed and self.mixes(layer_id):
            return ()
        found: list[str] = []
        for source in self.sources(layer_id):
            found += (source,) if source in cuts else self.before(source, cuts, unmixed=unmixed)
        return tuple(dict.fromkeys(found))

    def weighted(self, layer_id: str, cuts: frozenset[str]) -> bool:
        """Whether there are weights in what makes a layer of the layers of *cuts* before it."""
        node = self._node(layer_id)
        sources = [source for source in self.sources(layer_id) if source not in cuts]
        return op_name(node) in WEIGHTED or any(self.weighted(source, cuts) for source in sources)

    def mixes(self, layer_id: str) -> bool:
        """Whether each channel of a layer comes out of several channels."""
        node = self._node(layer_id)
        if op_name(node) not in WEIGHTED:
            return False
        weights = input_node(node, WEIGHTED[op_name(node)], "weight")
        return not (weights is not None and weights.meta["val"].ndim > 1 and weights.meta["val"].shape[1] == 1)

    def _node(self, layer_id: str) -> fx.Node:
        found: fx.Node = next(node for node in self.graph.module.graph.nodes if node.name == self.nodes[layer_id])
        return found

    def ranges(self, cases: Iterable[Feeds]) -> dict[str, tuple[float, float]]:
        """Return the least and greatest value of each layer on *cases*, 0 included, in float32."""
        run = prepare(self.graph, dtype=torch.float32, nodes=frozenset(self.nodes.values()))
        found: dict[str, tuple[float, float]] = {}
        for feeds in cases:
            values = run(feeds)
            for layer, node in self.nodes.items():
                low, high = found.get(layer, (0.0, 0.0))
                found[layer] = (min(low, float(values[node].min())), max(high, float(values[node].max())))
        return found

    def rounding(
        self,
        storage: Storage,
        cases: Sequence[Feeds],
        cuts: frozenset[str],
        calibrated: Mapping[str, tuple[float, float]] | None = None,
    ) -> Rounding:
        """Say how torch is to round, to be compared with an artifact of that *storage*.

        Args:
            storage: How the artifact stores values and weights.
            cases: What it will be judged on: where values are stored as integers, their grids follow from these.
            cuts: Layers that the artifact has a tensor for.
            calibrated: The least and greatest value of each layer on the data that the grids were measured on. One
                image that goes far makes the steps of all others coarse.
        """
        ranges = {self.nodes[layer]: ends for layer, ends in (calibrated or {}).items() if layer in self.nodes}
        for feeds in cases if storage.values is Precision.INT8 else ():
            for layer, value in self.reference(feeds).values.items():
                low, high = ranges.get(self.nodes[layer], (0.0, 0.0))
                ranges[self.nodes[layer]] = (min(low, float(value.min())), max(high, float(value.max())))
        spared = lost_in_float16(self.graph.module) if storage.values is Precision.FP16 else frozenset()
        return Rounding(storage, frozenset(self.nodes[layer] for layer in cuts), ranges, spared=spared)

    def accumulated(self, feeds: Feeds, rounding: Rounding, reference: LayerReference) -> dict[str, RoundingError]:
        """Return the error of each layer when torch itself rounds from the input on."""
        return self._errors(feeds, rounding, {}, reference.values)

    def local(self, feeds: Feeds, rounding: Rounding, reference: LayerReference) -> dict[str, RoundingError]:
        """Return the error of each layer when torch rounds, and goes on from the reference at the cuts."""
        return self._errors(feeds, rounding, reference.values, reference.values)

    def probed(self, feeds: Feeds, rounding: Rounding, probe: "Probe") -> dict[str, RoundingError]:
        """The same, for the values of *probe*; nothing is cut off, as nothing was calibrated on them."""
        return self._errors(feeds, replace(rounding, clips=False), probe.given, probe.made)

    def _errors(self, feeds: Feeds, rounding: Rounding, given: Values, made: Values) -> dict[str, RoundingError]:
        exact = {self.nodes[layer]: value for layer, value in given.items() if self.nodes[layer] in rounding.cuts}
        rounder = Rounder(self.graph.module, rounding, exact, frozenset(self.nodes.values()))
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])).float() for spec in self.graph.inputs]
        with torch.no_grad():
            rounder.run(*tensors)
        return {
            layer: compare(rounder.kept[node], made[layer], rounder.steps.get(node, 0.0))
            for layer, node in self.nodes.items()
        }

    def probe(
        self,
        feeds: Feeds,
        reference: LayerReference,
        stirred: frozenset[str],
        seed: int,
    ) -> "Probe":
        """Make values that no image gives, and what every layer makes of them in float64.

        A wrong weight hides behind a dead channel, and a missing bound behind values that never reach it. So the
        layers *stirred* hand on their reference value with noise, as wide as the value itself and wide enough to cross
        the bounds of an activation that reads it.

        Args:
            feeds: The inputs; they are not stirred.
            reference: What every layer makes of these inputs.
            stirred: Layers that the artifact has a tensor of their own for.
            seed: The seed of the noise.
        """
        names = {self.nodes[layer]: reference.values[layer] for layer in stirred}
        stirring = _Perturbation(self._exact_module(), names, frozenset(self.nodes.values()), seed)
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])) for spec in self.graph.inputs]
        with torch.no_grad():
            stirring.run(*(item.double() if item.is_floating_point() else item for item in tensors))
        return Probe(
            {layer: stirring.given[node] for layer, node in self.nodes.items()},
            {layer: stirring.made[node] for layer, node in self.nodes.items()},
        )

    def _exact_module(self) -> fx.GraphModule:
        if self._double is None:
            self._double = copy.deepcopy(self.graph.module).to(torch.float64)
        return self._double


@dataclass(frozen=True, slots=True)
class Probe:
    """Stirred values, float64, by layer id.

    Attributes:
        given: What the readers of each layer get.
        made: What each layer makes of what it gets.
    """

    given: Values
    made: Values


class _Perturbation(fx.Interpreter):
    """Runs a graph in float64; chosen nodes hand on noise around their reference value."""

    def __init__(
        self,
        module: fx.GraphModule,
        around: Mapping[str, NDArray[np.float64]],
        nodes: frozenset[str],
        seed: int,
    ) -> None:
        super().__init__(module)
        self.nodes = nodes
        # What is computed twice may be one tensor of the file: whoever reads it gets the same noise.
        self.first = repeated_calls(module.graph)
        self.around = {self.first.get(name, name): value for name, value in around.items()}
        self.stirred: Values = {}
        self.random = np.random.default_rng(seed)
        self.given: Values = {}
        self.made: Values = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        if n.name in self.nodes:
            self.made[n.name] = value.numpy()
            first = self.first.get(n.name, n.name)
            if first in self.around and op_name(n) in PERTURBED and not _is_part(n):
                if first not in self.stirred:
                    self.stirred[first] = self._stirred(n, self.around[first])
                value = torch.from_numpy(self.stirred[first])
            self.given[n.name] = value.numpy()
        return value

    def _stirred(self, n: fx.Node, reference: NDArray[np.float64]) -> NDArray[np.float64]:
        noise = self.random.standard_normal(reference.shape)
        name = op_name(n)
        if name in BOUNDED:
            low, high = BOUNDED[name]
            return np.clip(reference + (high - low) / 2 * noise, low, high)
        width = float(reference.std())
        if any(op_name(user) in READS_BOUNDS for user in n.users):
            width = max(width, BEYOND)
        return reference + width * noise


def _is_part(node: fx.Node) -> bool:
    """Whether a file may hold a mean as a part of the deviation of the same values, which must get what it makes."""
    source = node.args[0] if op_name(node) == "mean" else None
    return isinstance(source, fx.Node) and any(op_name(user) in SPREADS for user in source.users)


class GraphSubmodels:
    """An edited graph cut apart at *tensors*, run in float64."""

    def __init__(self, graph: Graph, tensors: tuple[str, ...]) -> None:
        self.graph, self.tensors = graph, frozenset(tensors)
        self.module = copy.deepcopy(graph.module).to(torch.float64)

    def infer(self, feeds: Feeds, given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Return what each piece makes of the values *given* to the readers of the cuts; without any, the whole."""
        cut = _Cut(self.module, given, self.tensors)
        inputs = [torch.from_numpy(np.asarray(feeds[spec.name])) for spec in self.graph.inputs]
        with torch.no_grad():
            cut.run(*(item.double() if item.is_floating_point() else item for item in inputs))
        return cut.made


class _Cut(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, given: Mapping[str, NumberArray], nodes: frozenset[str]) -> None:
        super().__init__(module)
        self.values, self.nodes = given, nodes
        self.made: dict[str, NumberArray] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        if n.name in self.nodes:
            self.made[n.name] = value.numpy()
        return torch.from_numpy(np.ascontiguousarray(self.values[n.name])) if n.name in self.values else value
