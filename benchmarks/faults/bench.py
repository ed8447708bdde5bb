"""Plant faults into copies of a bundle's artifacts, and see what the parity report says."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.faults.coreml_file import CoremlFile
from benchmarks.faults.executorch_file import ExecutorchFile
from benchmarks.faults.files import Array, EditedFile, Op
from benchmarks.faults.onnx_file import OnnxFile
from benchmarks.faults.planters import FAULTS, Place, Planter
from benchmarks.faults.tflite_file import TfliteFile
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.errors import DeployError
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import weight
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.layer_map import LayerMap, place_all, restore
from coordatt_deploy.logs import captured
from coordatt_deploy.parity.bundle_cases import candidate_of, golden_cases
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import choose_cases
from coordatt_deploy.parity.error_statistics import by_channel
from coordatt_deploy.parity.executors import LOCAL
from coordatt_deploy.parity.layers import ArtifactLayers
from coordatt_deploy.parity.localise import localise
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.tolerances import TOLERANCES, tolerance_of
from coordatt_deploy.tensors import encode

FILES: Final[Mapping[Format, type[EditedFile]]] = {
    Format.ONNX: OnnxFile,
    Format.TFLITE: TfliteFile,
    Format.COREML: CoremlFile,
    Format.EXECUTORCH: ExecutorchFile,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault.

    Attributes:
        planted: The layers that may be named; empty where the file has no place for the fault.
        detected: Some layer is beyond tolerance.
        named: The first one is among *planted*.
        said: The report's sentence.
        size: Of a missed fault in an integer file: how far it moves the worst channel of its layers, in multiples of
            what rounding costs there.
        allowed: What the judge allows there, in the same unit; a fault below it cannot be told from rounding.
    """

    fault: str
    seed: int
    planted: tuple[str, ...]
    detected: bool
    named: bool
    said: str
    size: float | None = None
    allowed: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it was planted and not named."""
        return bool(self.planted) and not (self.detected and self.named)

    @property
    def too_small(self) -> bool:
        """Whether it moves its layers by less than is allowed."""
        return self.size is not None and self.allowed is not None and self.size < self.allowed


class Bench:
    """One bundle, its reference run once, faults planted into copies of its artifacts."""

    def __init__(self, root: Path, cases: int = 2) -> None:
        torch.set_num_threads(1)
        self.bundle = open_bundle(root)
        self.reference = _Remembered(load_graph(root / "reference"))
        inputs, golden = self.bundle.golden("inputs"), self.bundle.manifest.golden
        chosen = choose_cases([case.name for case in golden])
        images = [i for i in chosen if golden[i].image][:1]
        noise = [i for i in chosen if golden[i].name.startswith("noise")][:1]
        sizes = [i for i in chosen if golden[i].name.startswith(("noise_", "batch_of_"))]  # of a dynamic model
        picked = list(dict.fromkeys([*images, *noise, *chosen]))[:cases] + sizes
        self.cases = [{name: values[index] for name, values in inputs.items()} for index in picked]
        self.trials: dict[str, list[Any]] = {}
        self.candidates: dict[str, Candidate] = {}

    def judge(self, bundle: Bundle, artifact: Artifact) -> ArtifactLayers:
        """Judge every layer of *artifact*, as it lies in *bundle*."""
        candidate = replace(
            self.candidate(artifact), artifact=artifact, path=bundle.path(artifact.path), layers=bundle.layers(artifact)
        )
        return localise(candidate, self.cases_of(artifact), self.reference, tolerance_of(artifact, TOLERANCES))

    def candidate(self, artifact: Artifact) -> Candidate:
        """Return *artifact* as it lies in the bundle, with all that judging it takes."""
        if artifact.path not in self.candidates:
            self.candidates[artifact.path] = candidate_of(self.bundle, artifact, golden_cases(self.bundle))
        return self.candidates[artifact.path]

    def cases_of(self, artifact: Artifact) -> list[Any]:
        """Return what the layers of *artifact* are judged on."""
        if not tolerance_of(artifact, TOLERANCES).calibrated:
            return self.cases
        if artifact.path not in self.trials:
            cases = self.candidate(artifact).cases
            self.trials[artifact.path] = cases.feeds(choose_cases(cases.names, cases.images, most=12))
        return self.trials[artifact.path]

    def plant(self, artifact: Artifact, fault: str | Planter, seed: int) -> Outcome:
        """Edit a copy of *artifact* and judge it; the same fault and seed give the same edit."""
        planter = FAULTS[fault] if isinstance(fault, str) else fault
        fault = fault if isinstance(fault, str) else fault.__name__
        with tempfile.TemporaryDirectory() as folder:
            bundle = Bundle(Path(folder), self.bundle.manifest)
            for relative in (artifact.path, artifact.layers):
                source, target = self.bundle.path(relative), Path(folder) / relative
                target.parent.mkdir(exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
            layers = bundle.layers(artifact)
            file = FILES[artifact.format](bundle.path(artifact.path))
            before = [copy.copy(op) for op in file.ops]
            random = np.random.default_rng([seed, *fault.encode()])
            planted = planter(Place(file, layers, artifact, self.norms, random, self.shapes))
            if not planted:
                return Outcome(fault, seed, (), False, False, "no place")
            file.save()
            expected = expected_layers(before, planted, layers)
            with captured(Path(folder) / "log"):
                try:
                    found = self.judge(bundle, artifact)
                except DeployError as error:
                    return Outcome(fault, seed, expected, True, False, f"cannot be run: {error}")
                first = found.first_diverging_layer
                outcome = Outcome(fault, seed, expected, found.passed is not True, first in expected, found.sentence())
                if outcome.missed and artifact.recipe is None and self.changes_nothing(bundle, artifact, expected):
                    # Such as a weight that only ever meets padding: 80 of the 98 of a 7x7 kernel on a map of 2x2.
                    return Outcome(fault, seed, (), False, False, "changes no value of its layers on any image")
                if outcome.missed and artifact.recipe is not None:
                    size, allowed = self.size(bundle, artifact, found, expected)
                    if size == 0.0:
                        return Outcome(fault, seed, (), False, False, "changes no value of its layers on any image")
                    outcome = replace(outcome, size=size, allowed=allowed)
        return outcome

    def changes_nothing(self, planted: Bundle, artifact: Artifact, layers: Sequence[str]) -> bool:
        """Whether every value of *layers*, each fed with the reference, is the same to the last bit in *planted*."""
        compared = False
        for sick, well in zip(self._alone(planted, artifact), self._alone(self.bundle, artifact), strict=True):
            for layer in sick.keys() & well.keys() & set(layers):
                compared = True
                if not np.array_equal(sick[layer], well[layer], equal_nan=True):
                    return False
        return compared

    def size(
        self, planted: Bundle, artifact: Artifact, found: ArtifactLayers, layers: Sequence[str]
    ) -> tuple[float, float]:
        """Measure how far the fault in *planted* moves the worst channel of *layers*, each fed with the reference.

        Returns:
            That, and what is allowed in that channel, both in multiples of what rounding costs there.
        """
        rows = {row.layer_id: row.local for row in found.rows if row.layer_id in layers}
        moved: dict[str, list[Array]] = {}
        for sick, well in zip(self._alone(planted, artifact), self._alone(self.bundle, artifact), strict=True):
            for layer in rows.keys() & sick.keys():
                moved.setdefault(layer, []).append(by_channel(np.square(sick[layer] - well[layer])))
        worst = (0.0, 1.0)
        for layer, squares in moved.items():
            if (tally := rows[layer]) is not None:
                size, allowed = tally.in_units_of_rounding(np.mean(squares, axis=0))
                worst = max(worst, (size, allowed))
        return worst

    def _alone(self, bundle: Bundle, artifact: Artifact) -> Iterator[dict[str, Array]]:
        """Give, for each case, every layer's value where it is fed with the reference."""
        present = [layer for layer in bundle.layers(artifact).layers if layer.parts]
        names = tuple(dict.fromkeys(part.tensor for layer in present for part in layer.parts))
        path = bundle.path(artifact.path)
        with LOCAL.open_artifact(path, artifact, names) as whole, LOCAL.open_pieces(path, artifact, names) as pieces:
            for feeds in self.cases_of(artifact):
                own = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
                shapes = {name: np.shape(value) for name, value in whole.infer(own).items()}
                made = pieces.infer(own, place_all(present, self.reference.reference(feeds).values, shapes))
                yield {layer.layer_id: restore(layer, made) for layer in present}

    def scaled(self, artifact: Artifact, change: float, seed: int) -> Outcome:
        """Plant a fault that multiplies all weights of a layer by 1 + *change*."""

        def scale(place: Place) -> Sequence[Op]:
            op, weights, _ = next(place.weighted())
            place.file.put(op, (weights * (1 + change)).astype(weights.dtype), None)
            return [op]

        return self.plant(artifact, scale, seed)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every layer's value at the size of the capture."""
        return {layer: value.shape for layer, value in self.reference.reference(self.cases[0]).values.items()}

    @cached_property
    def norms(self) -> Mapping[str, tuple[Array, Array]]:
        """Running variance and shift of every BatchNorm of the captured graph, by layer id."""
        graph, found = self.reference.graph, {}
        nodes = {node.name: node for node in graph.module.graph.nodes}
        for layer, name in self.reference.nodes.items():
            node = nodes[name]
            if node.target is torch.ops.aten.batch_norm.default:
                shift, variance = weight(graph.module, node.args[2]), weight(graph.module, node.args[4])
                if shift is not None and variance is not None:
                    found[layer] = (variance.numpy(), shift.numpy())
        return found


class _Remembered(ReferenceLayers):
    """Values of the reference, computed once: the same inputs come again with each fault."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.values: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]

    def reference(self, feeds: Any) -> Any:
        return self._once(("exact", id(feeds)), lambda: super(_Remembered, self).reference(feeds))

    def rounding(self, storage: Any, cases: Any, cuts: frozenset[str], calibrated: Any = None) -> Any:
        key = ("rounding", storage, id(cases), cuts)
        return self._once(key, lambda: super(_Remembered, self).rounding(storage, cases, cuts, calibrated))

    def accumulated(self, feeds: Any, rounding: Any, reference: Any) -> Any:
        key = ("whole", id(feeds), id(rounding))
        return self._once(key, lambda: super(_Remembered, self).accumulated(feeds, rounding, reference))

    def local(self, feeds: Any, rounding: Any, reference: Any) -> Any:
        key = ("local", id(feeds), id(rounding))
        return self._once(key, lambda: super(_Remembered, self).local(feeds, rounding, reference))

    def probe(self, feeds: Any, reference: Any, stirred: frozenset[str], rounding: Any, seed: int) -> Any:
        key = ("probe", id(reference), stirred, id(rounding), seed)  # stirred inputs follow from the seed
        return self._once(key, lambda: super(_Remembered, self).probe(feeds, reference, stirred, rounding, seed))


def expected_layers(ops: Sequence[Op], planted: Sequence[Op], layers: LayerMap) -> tuple[str, ...]:
    """Return the layers whose value comes out of the planted operators, or out of the next that the map knows."""
    mapped: dict[str, list[str]] = {}
    for layer in layers.layers:
        holder = layers.resolved(layer.layer_id)
        for part in holder.parts if holder is not None else ():
            mapped.setdefault(part.tensor, []).append(layer.layer_id)
    found: list[str] = []
    open_ends = [name for op in planted for name in op.outputs]
    while open_ends:
        name = open_ends.pop()
        if name in mapped:
            found += mapped[name]
        else:
            open_ends += [output for op in ops if name in op.inputs for output in op.outputs]
    return tuple(dict.fromkeys(found))
