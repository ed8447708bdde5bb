"""What every layer of the captured graph should give, and what rounding alone makes of it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.graph.capture import Feeds, Graph, operator_name, prepare
from coordatt_deploy.graph.summing import in_sequence
from coordatt_deploy.specs import Precision

Values = dict[str, NDArray[np.float64]]

# Layers whose value may be anything near what it is: sums, means, products with weights. What an activation gives lies
# on a curve and is left there, except that within its bounds every value can occur.
BOUNDED: Final = {"relu6": (0.0, 6.0), "relu": (0.0, 12.0)}
STIRRED: Final = frozenset({
    "conv2d", "convolution", "linear", "addmm", "batch_norm", "adaptive_avg_pool2d", "avg_pool2d", "mean", *BOUNDED,
})  # fmt: skip
READS_BOUNDS: Final = frozenset({"relu6", "relu", "hardtanh", "clamp", "hardswish", "hardsigmoid", "add", "sigmoid"})
BEYOND: Final = 4.0  # standard deviation that takes many values past 6 and below -3


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half().float()


STORAGE: Final[Mapping[Precision, Callable[[torch.Tensor], torch.Tensor] | None]] = {
    Precision.FP32: None,
    Precision.FP16: _half,
}


@dataclass(frozen=True, slots=True)
class LayerReference:
    """One golden case, layer by layer.

    Attributes:
        values: float64, by layer id, in the captured graph's layout.
        outputs: The same for the graph's outputs, by name.
    """

    values: Values
    outputs: Values


class ReferenceLayers:
    """Evaluates the captured graph layer by layer; made once, asked for each golden case."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers if layer.parts}
        self._double: fx.GraphModule | None = None
        self._exact = prepare(graph, nodes=frozenset(self.nodes.values()))
        self._rounded = {
            precision: prepare(graph, dtype=torch.float32, nodes=frozenset(self.nodes.values()), after=after)
            for precision, after in STORAGE.items()
        }

    def reference(self, feeds: Feeds) -> LayerReference:
        """Return every layer's value in float64."""
        found = self._exact(feeds)
        return LayerReference(
            {layer: found[node] for layer, node in self.nodes.items()},
            {name: found[name] for name in self.graph.outputs},
        )

    def sources(self, layer_id: str) -> tuple[str, ...]:
        """Return the layers that a layer reads directly, in the order of its arguments; the inputs are none."""
        layer_of = {node: layer for layer, node in self.nodes.items()}
        (node,) = [item for item in self.graph.module.graph.nodes if item.name == self.nodes[layer_id]]
        return tuple(layer_of[item.name] for item in node.all_input_nodes if item.name in layer_of)

    def accumulated(self, feeds: Feeds, precision: Precision, reference: LayerReference) -> dict[str, float]:
        """Return the greatest error of each layer when torch itself computes in *precision* from the input on."""
        found = self._rounded[precision](feeds)
        return {layer: _greatest(found[node], reference.values[layer]) for layer, node in self.nodes.items()}

    def local(
        self, feeds: Feeds, precision: Precision, reference: LayerReference, cuts: frozenset[str]
    ) -> dict[str, float]:
        """Return the greatest error of each layer when torch computes in *precision* from the reference at the *cuts*.

        Args:
            feeds: The inputs.
            precision: fp32, or fp16 for float16 storage.
            reference: Of these inputs.
            cuts: Layers whose readers get the reference's value: those that the artifact has a tensor for.
        """
        return self._rounding(feeds, precision, reference.values, reference.values, cuts)

    def probed(self, feeds: Feeds, precision: Precision, probe: "Probe", cuts: frozenset[str]) -> dict[str, float]:
        """The same, for the values of *probe*."""
        return self._rounding(feeds, precision, probe.given, probe.made, cuts)

    def _rounding(
        self, feeds: Feeds, precision: Precision, given: Values, made: Values, cuts: frozenset[str]
    ) -> dict[str, float]:
        exact = {self.nodes[layer]: given[layer] for layer in cuts}
        recorder = _Restarting(self.graph.module, exact, frozenset(self.nodes.values()), STORAGE[precision])
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])).float() for spec in self.graph.inputs]
        with torch.no_grad():
            recorder.run(*tensors)
        return {layer: _greatest(recorder.kept[node], made[layer]) for layer, node in self.nodes.items()}

    def probe(self, feeds: Feeds, reference: LayerReference, stirred: frozenset[str], seed: int) -> "Probe":
        """Make values that no image gives, and what every layer makes of them in float64.

        A wrong weight hides behind a dead channel, and a missing bound behind values that never reach it. So the
        layers *stirred* hand on their reference value with noise, as wide as the value itself and wide enough to cross
        the bounds of an activation that reads it.

        Args:
            feeds: The inputs; they are not stirred.
            reference: Of these inputs.
            stirred: Layers that the artifact has a tensor of their own for.
            seed: Of the noise.
        """
        names = {self.nodes[layer]: reference.values[layer] for layer in stirred}
        stirring = _Stirring(self._exact_module(), names, frozenset(self.nodes.values()), seed)
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


class _Stirring(fx.Interpreter):
    """Runs a graph in float64; chosen nodes hand on noise around their reference value."""

    def __init__(
        self, module: fx.GraphModule, around: Mapping[str, NDArray[np.float64]], nodes: frozenset[str], seed: int
    ) -> None:
        super().__init__(module)
        self.around, self.nodes = around, nodes
        self.random = np.random.default_rng(seed)
        self.given: Values = {}
        self.made: Values = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        if n.name in self.nodes:
            self.made[n.name] = value.numpy()
            if n.name in self.around and operator_name(n) in STIRRED:
                value = torch.from_numpy(self._stirred(n, self.around[n.name]))
            self.given[n.name] = value.numpy()
        return value

    def _stirred(self, n: fx.Node, reference: NDArray[np.float64]) -> NDArray[np.float64]:
        noise = self.random.standard_normal(reference.shape)
        name = operator_name(n)
        if name in BOUNDED:
            low, high = BOUNDED[name]
            return np.clip(reference + (high - low) / 2 * noise, low, high)
        width = float(reference.std())
        if any(operator_name(user) in READS_BOUNDS for user in n.users if user.op == "call_function"):
            width = max(width, BEYOND)
        return reference + width * noise


class _Restarting(fx.Interpreter):
    """Runs a graph in float32; after each cut its readers go on from the exact value."""

    def __init__(
        self,
        module: fx.GraphModule,
        exact: Mapping[str, NDArray[np.float64]],
        nodes: frozenset[str],
        after: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        super().__init__(module)
        self.exact, self.nodes, self.after = exact, nodes, after
        self.kept: dict[str, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            if n.op == "call_function" and n.args and isinstance(n.args[0], fx.Node):
                value = in_sequence(n, operator_name(n), self.env[n.args[0]], value)
            value = value if self.after is None else self.after(value)
            if n.name in self.nodes:
                self.kept[n.name] = value.numpy()
            if n.name in self.exact:
                value = torch.from_numpy(np.asarray(self.exact[n.name])).float()
                value = value if self.after is None else self.after(value)
        elif n.name in self.nodes:
            self.kept[n.name] = value.numpy()
        return value


class GraphPieces:
    """An edited graph cut apart at *tensors*, run in float64."""

    def __init__(self, graph: Graph, tensors: tuple[str, ...]) -> None:
        self.graph, self.tensors = graph, frozenset(tensors)
        self.module = copy.deepcopy(graph.module).to(torch.float64)

    def infer(self, feeds: Feeds, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return what each piece makes of the values *given* to the readers of the cuts; without any, the whole."""
        cut = _Cut(self.module, given, self.tensors)
        inputs = [torch.from_numpy(np.asarray(feeds[spec.name])) for spec in self.graph.inputs]
        with torch.no_grad():
            cut.run(*(item.double() if item.is_floating_point() else item for item in inputs))
        return cut.made


class _Cut(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, given: Mapping[str, NDArray[Any]], nodes: frozenset[str]) -> None:
        super().__init__(module)
        self.values, self.nodes = given, nodes
        self.made: dict[str, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        if n.name in self.nodes:
            self.made[n.name] = value.numpy()
        return torch.from_numpy(np.ascontiguousarray(self.values[n.name])) if n.name in self.values else value


def _greatest(value: NDArray[Any], reference: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(np.asarray(value, np.float64) - reference))) if reference.size else 0.0
