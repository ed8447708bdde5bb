"""The part of parity that needs torch: every layer of every artifact, and inputs of the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Preprocessing
from coordatt_deploy.data.arrays import read_inputs
from coordatt_deploy.errors import BundleError, DeployError, MissingDependencyError
from coordatt_deploy.formats import Precision
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import prepare_in_float16
from coordatt_deploy.graph.graph import Graph, is_judged
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.passes.input_normalisation import baked_nodes
from coordatt_deploy.logs import logged
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.absent_layers import told, unproven_absences
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases, choose_cases
from coordatt_deploy.parity.executors import Executor
from coordatt_deploy.parity.failing_layer import save_failing
from coordatt_deploy.parity.faint_values import shown_on_faint_values
from coordatt_deploy.parity.layers import ArtifactLayers, check_map, kept, with_probe
from coordatt_deploy.parity.localise import localise, localise_graph, probed_values
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.result import ArtifactParity
from coordatt_deploy.parity.tolerances import Tolerance, Tolerances, tolerance_of, tolerance_of_graphs
from coordatt_deploy.progress import Stages

REMEDY: Final = (
    "scale what it reads so that its result depends less on the last digits, or compute it in the app in float64"
)

Feeds = Sequence[Mapping[str, NumberArray]]


@dataclass(frozen=True, slots=True)
class LayerRun:
    """What judging layers takes, whatever the artifact.

    Attributes:
        manifest: Of the bundle, for what is written of a failing layer.
        command: Likewise: what the user typed.
        reference: Of the captured graph.
        where: The machine that artifacts are run on.
        most_cases: On which a layer is judged.
        stages: Shows the progress.
        save_failing: Where the first failing layer of each artifact goes; None for nowhere.
    """

    manifest: Manifest
    command: str
    reference: ReferenceLayers
    where: Executor
    most_cases: int
    stages: Stages
    save_failing: Path | None

    def cases(self, cases: ParityCases, tolerance: Tolerance) -> Feeds:
        """Return the cases that layers are judged on."""
        if tolerance.calibrated:  # noise is told from a fault by more of it, and there is nothing else to look at
            return cases.feeds(choose_cases(cases.names, cases.images, 2 * self.most_cases))
        return cases.feeds(choose_cases(cases.names, most=self.most_cases))

    def with_layers(self, candidate: Candidate, verdict: ArtifactParity) -> ArtifactParity:
        """Add every layer's verdict."""
        if verdict.passed is None or verdict.tolerance is None:
            return verdict
        cases = self.cases(candidate.cases, verdict.tolerance)
        found = self._judged(candidate, verdict, cases, verdict.tolerance)
        if self.save_failing is not None and found.layers is not None and found.layers.passed is False:
            with logged(f"failing-{candidate.path.stem}"):
                save_failing(
                    candidate, found.layers, cases, self.reference, self.save_failing, self.where,
                    manifest=self.manifest, command=self.command,
                )  # fmt: skip
        return found

    def _judged(
        self, candidate: Candidate, verdict: ArtifactParity, cases: Feeds, tolerance: Tolerance
    ) -> ArtifactParity:
        artifact = candidate.artifact
        with self.stages.stage(f"layers {candidate.path.name}", len(cases)) as step:
            try:
                with logged(f"layers-{candidate.path.stem}"):
                    if candidate.damage is not None:
                        raise BundleError(candidate.damage)
                    check_map(candidate.layers, self.reference.nodes)
                    layers = localise(candidate, cases, self.reference, tolerance, where=self.where, step=step)
                    if not layers.judged:
                        raise BundleError(layers.sentence().partition(": ")[2])
            except MissingDependencyError as error:
                return replace(verdict, layers=ArtifactLayers(artifact, artifact.path, problem=str(error)))
            except DeployError as error:
                layers = ArtifactLayers(artifact, artifact.path, problem=str(error))
                problem = "; ".join(filter(None, [verdict.problem, str(error)]))
                return replace(verdict, layers=layers, passed=False, problem=problem)
        worn = layers.precision_lost_at
        if not verdict.provable and worn is not None:
            text = (
                f"{verdict.problem}; precision is lost at {worn.layer_id} ({worn.operator}), where {kept(worn.loses)}"
            )
            verdict = replace(verdict, problem=f"{text}: {REMEDY}")
        probes = partial(probed_values, candidate, cases, self.reference, tolerance)
        lost = unproven_absences(candidate.layers, self.reference, layers.rows, cases, probes)
        if lost:
            with logged(f"faint-{candidate.path.stem}"):
                faint = shown_on_faint_values(candidate, cases[0], self.reference, tolerance, lost, self.where)
            layers = replace(layers, rows=tuple(with_probe(row, faint.get(row.layer_id)) for row in layers.rows))
            lost = tuple(layer_id for layer_id in lost if layer_id not in faint)
        unproven = told(lost)
        if layers.passed is not False and unproven is None:
            return replace(verdict, layers=layers)
        beyond = layers.sentence().partition(": ")[2] if layers.passed is False else None
        problem = "; ".join(filter(None, [verdict.problem, beyond, unproven]))
        return replace(verdict, layers=layers, passed=False, problem=problem)

    def check_graphs(
        self, artifacts: Sequence[Artifact], cases: ParityCases, tolerances: Tolerances
    ) -> tuple[ArtifactLayers, ...]:
        """Judge the torch graphs between the captured one and the files: folded, and lowered for each runtime."""
        tolerance = tolerance_of_graphs(tolerances)
        feeds, reference, stages = self.cases(cases, tolerance), self.reference, self.stages
        with stages.stage("fold and lower again"):
            folded = fold_batchnorms(reference.graph)[0]
            targets = dict.fromkeys(
                target_of(item.format, item.target_cpu, integer=tolerance_of(item, tolerances).calibrated)
                for item in artifacts
            )
            graphs = {"torch, folded": folded}
            graphs |= {f"torch, lowered for {target}": lower(folded, target)[0] for target in targets}
        found = []
        for name, graph in graphs.items():
            with stages.stage(f"layers {name}", len(feeds)) as step:
                found.append(localise_graph(name, graph, feeds, reference, tolerance, step=step))
        return tuple(found)


def by_layer(graph: Graph) -> ReferenceLayers:
    """Return the reference by layer: every tensor that a call of the model gives is one of them.

    Raises:
        BundleError: Some are not, so that nobody would judge them.
    """
    torch.set_num_threads(1)
    layers = ReferenceLayers(graph)
    tensors = {node.name for node in graph.module.graph.nodes if is_judged(node)}
    unnamed = sorted(tensors - set(layers.nodes.values()) - baked_nodes(graph))
    if unnamed:
        raise BundleError(
            f"graph.json names layers for {len(tensors) - len(unnamed)} of the {len(tensors)} tensors of its graph,"
            f" none for {unnamed[0]}; build the bundle again"
        )
    return layers


def cases_on(source: Path, graph: Graph, preprocessing: Preprocessing, stages: Stages) -> ParityCases:
    """Run the reference on the user's own inputs.

    Args:
        source: See ``data.arrays.read_inputs``.
        graph: The captured one.
        preprocessing: Of the model.
        stages: Shows the progress.

    Raises:
        UsageError: The inputs do not fit the model.
    """
    cases = read_inputs(source, graph.inputs, preprocessing, graph.images_at_once)
    torch.set_num_threads(1)
    runs = {
        None: prepare(graph),
        Precision.FP32: prepare(graph, dtype=torch.float32),
        Precision.FP16: prepare_in_float16(graph),
    }
    found: dict[Precision | None, dict[str, list[NumberArray]]] = {kind: {} for kind in runs}
    with stages.stage("reference in float64", len(cases.names)) as step:
        for index in range(len(cases.names)):
            feeds = {name: values[index] for name, values in cases.feeds.items()}
            for kind, run in runs.items():
                for name, value in run(feeds).items():
                    found[kind].setdefault(name, []).append(value)
            step()
    rounding = {kind: values for kind, values in found.items() if kind is not None}
    return ParityCases(cases.names, cases.feeds, found[None], rounding, (True,) * len(cases.names))
