"""What every layer of the captured graph should give, and what rounding alone makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.capture import Feeds, Graph, prepare
from coordatt_deploy.specs import Precision

Values = dict[str, NDArray[np.float64]]


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
        exact = {self.nodes[layer]: reference.values[layer] for layer in cuts}
        recorder = _Restarting(self.graph.module, exact, frozenset(self.nodes.values()), STORAGE[precision])
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])).float() for spec in self.graph.inputs]
        with torch.no_grad():
            recorder.run(*tensors)
        return {layer: _greatest(recorder.kept[node], reference.values[layer]) for layer, node in self.nodes.items()}


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
            value = value if self.after is None else self.after(value)
            if n.name in self.nodes:
                self.kept[n.name] = value.numpy()
            if n.name in self.exact:
                value = torch.from_numpy(np.asarray(self.exact[n.name])).float()
                value = value if self.after is None else self.after(value)
        elif n.name in self.nodes:
            self.kept[n.name] = value.numpy()
        return value


def _greatest(value: NDArray[Any], reference: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(np.asarray(value, np.float64) - reference))) if reference.size else 0.0
