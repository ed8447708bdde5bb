"""What every layer of the captured graph should give, and what rounding alone makes of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision, Storage
from coordatt_deploy.graph.call_arguments import input_node
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import GREATEST, lost_in_float16
from coordatt_deploy.graph.graph import Feeds, Graph, op_name
from coordatt_deploy.graph.repeats import same_means
from coordatt_deploy.parity.moved_values import SAMPLES, SAMPLES_OF_THE_WHOLE, Moving
from coordatt_deploy.parity.probing import PERTURBED, Noise, Probe, Stirring, Values
from coordatt_deploy.parity.reference_rounding import (
    WEIGHTED,
    Rounder,
    Rounding,
    RoundingError,
    before_divisions,
    beyond_grids,
    compare,
    max_noise,
)


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

    def perturbed(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* whose value may be anything near what it is, so that noise is added to it."""
        return frozenset(layer for layer in layers if op_name(self._node(layer)) in PERTURBED)

    def shared_means(self, cuts: frozenset[str]) -> frozenset[str]:
        """Return the means of *cuts* that another call takes as well, for which the artifact has no tensor of its own.

        What reads that other call may read the same tensor, or one inside a fused operator: nothing tells which.
        """
        layer_of = {node: layer for layer, node in self.nodes.items()}
        twins = same_means(self.graph.module.graph)
        return frozenset(
            layer for layer in cuts if any(layer_of.get(name) not in cuts for name in twins.get(self.nodes[layer], ()))
        )

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
        if storage.values is Precision.INT8:
            spared = beyond_grids(self.graph.module, ranges)
        rounding = Rounding(storage, frozenset(self.nodes[layer] for layer in cuts), ranges, spared=spared)
        if storage.values is not Precision.INT8 or not (divided := before_divisions(self.graph.module)):
            return rounding
        return rounding if self._is_finite(cases, rounding) else replace(rounding, spared=spared | divided)

    def _is_finite(self, cases: Sequence[Feeds], rounding: Rounding) -> bool:
        """Whether torch, rounding so, gives numbers where it gives numbers without; a divisor may round to 0."""
        exact = [self.reference(feeds) for feeds in cases]
        return all(
            np.isfinite(error.greatest) or not np.isfinite(reference.values[layer]).all()
            for feeds, reference in zip(cases, exact, strict=True)
            for layer, error in self.accumulated(feeds, rounding, reference).items()
        )

    def accumulated(self, feeds: Feeds, rounding: Rounding, reference: LayerReference) -> dict[str, RoundingError]:
        """Return the error of each layer when torch itself rounds from the input on."""
        return self.local_errors(feeds, rounding, {}, reference.values)

    def local(self, feeds: Feeds, rounding: Rounding, reference: LayerReference) -> dict[str, RoundingError]:
        """Return the error of each layer when torch rounds, and goes on from the reference at the cuts."""
        return self.local_errors(feeds, rounding, reference.values, reference.values)

    def local_errors(self, feeds: Feeds, rounding: Rounding, given: Values, made: Values) -> dict[str, RoundingError]:
        """Return the error of each layer when torch rounds, and goes on from *given* at the cuts.

        Args:
            feeds: The inputs.
            rounding: How torch is to round.
            given: What the readers of each layer go on from; empty to run from the input on.
            made: What each layer makes of that.
        """
        exact = {self.nodes[layer]: value for layer, value in given.items() if self.nodes[layer] in rounding.cuts}
        rounder = Rounder(self.graph.module, rounding, exact, frozenset(self.nodes.values()))
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])).float() for spec in self.graph.inputs]
        with torch.no_grad():
            rounder.run(*tensors)
        return {
            layer: compare(rounder.kept[node], made[layer], rounder.steps.get(node, 0.0))
            for layer, node in self.nodes.items()
        }

    def moved(self, feeds: Feeds, rounding: Rounding, given: Values, made: Values) -> dict[str, RoundingError]:
        """Return the error of each layer where every value is moved by half a unit in the last place.

        Or, if that is more, where normalisations sum their statistics as files do.

        Args:
            feeds: The inputs.
            rounding: How torch rounds: where the artifact is cut, and in which precision it stores values.
            given: What the readers of each layer go on from at the cuts; empty to run from the input on.
            made: What each layer makes of that.
        """
        exact = {self.nodes[layer]: value for layer, value in given.items() if self.nodes[layer] in rounding.cuts}
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])) for spec in self.graph.inputs]
        summed = self.local_errors(feeds, replace(rounding, sums_statistics=True), given, made)
        found = {layer: [error] for layer, error in summed.items()}
        for seed in range(SAMPLES if given else SAMPLES_OF_THE_WHOLE):
            kept = frozenset(self.nodes.values())
            run = Moving(self._exact_module(), exact, kept, rounding, seed)
            with torch.no_grad():
                run.run(*(item.double() if item.is_floating_point() else item for item in tensors))
            for layer, node in self.nodes.items():
                found[layer].append(compare(run.kept[node], made[layer]))
        return {layer: max_noise(errors) for layer, errors in found.items()}

    def probe(
        self, feeds: Feeds, reference: LayerReference, stirred: frozenset[str], rounding: Rounding, seed: int
    ) -> Probe:
        """Make values that no image gives, what every layer makes of them in float64, and what rounding costs there.

        Where torch's own result is not finite, a base below 0 say, or not a float16 where the image's is, what is read
        there is stirred less, until it is what it is on the image. Nothing is cut off, as nothing was calibrated on
        these values.

        Args:
            feeds: The inputs; they are not stirred.
            reference: What every layer makes of these inputs.
            stirred: Layers that the artifact has a tensor of their own for.
            rounding: How torch is to round.
            seed: The seed of the noise.
        """
        rounding, noise = replace(rounding, clips=False), dict[str, Noise]()
        while True:
            run = self._stir(feeds, reference, stirred, seed, noise)
            given = {layer: run.given[node] for layer, node in self.nodes.items()}
            made = {layer: run.made[node] for layer, node in self.nodes.items()}
            errors = self.local_errors(feeds, rounding, given, made)
            lost = {layer for layer, error in errors.items() if not np.isfinite(error.greatest)}
            if rounding.storage.values is Precision.FP16:
                lost |= {layer for layer in errors if _leaves_float16(made[layer], reference.values[layer])}
            moved = frozenset(layer for layer, node in self.nodes.items() if run.first.get(node, node) in run.stirred)
            narrowed = {
                source
                for layer in lost
                if lost.isdisjoint(self.sources(layer))
                for source in self.before(layer, moved)
                if noise.get(self._first_of(run, source)) is not Noise.NOWHERE
            }
            if not narrowed:
                return Probe(given, made, errors)
            for node in {self._first_of(run, source) for source in narrowed}:
                noise[node] = Noise(noise.get(node, Noise.ANYWHERE) + 1)

    def _first_of(self, run: Stirring, layer_id: str) -> str:
        node = self.nodes[layer_id]
        return run.first.get(node, node)

    def _stir(
        self,
        feeds: Feeds,
        reference: LayerReference,
        stirred: frozenset[str],
        seed: int,
        noise: Mapping[str, Noise],
    ) -> Stirring:
        around = {self.nodes[layer]: reference.values[layer] for layer in stirred}
        run = Stirring(self._exact_module(), around, frozenset(self.nodes.values()), seed, noise)
        tensors = [torch.from_numpy(np.asarray(feeds[spec.name])) for spec in self.graph.inputs]
        with torch.no_grad():
            run.run(*(item.double() if item.is_floating_point() else item for item in tensors))
        return run

    def _exact_module(self) -> fx.GraphModule:
        if self._double is None:
            self._double = copy.deepcopy(self.graph.module).to(torch.float64)
        return self._double


def _leaves_float16(stirred: NumberArray, reference: NumberArray) -> bool:
    """Whether only stirred values are beyond what float16 holds."""
    greatest, own = (float(np.abs(values).max(initial=0.0)) for values in (stirred, reference))
    return greatest > GREATEST >= own


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
        if n.name not in self.values:
            return value
        given = torch.from_numpy(np.ascontiguousarray(self.values[n.name]))
        return given.to(value.dtype)  # of a mask, truth values
