"""The model that an export starts from: loaded, captured, and changed in the ways that the user asked for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from coordatt_deploy.artifact_specs import OutputKind, Preprocessing, TensorSpec
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.graph.call_arguments import outputs
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.output_kinds import output_kinds
from coordatt_deploy.graph.output_regions import output_regions
from coordatt_deploy.graph.passes.branches import merge_branches
from coordatt_deploy.graph.randomness import check_deterministic
from coordatt_deploy.loading.bake_preprocessing import bake
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source
from coordatt_deploy.manifest import Manifest, MergedBranches
from coordatt_deploy.progress import Stages


@dataclass(frozen=True, slots=True, eq=False)
class CapturedModel:
    """What an export starts from.

    Attributes:
        source: The loaded model; with its preprocessing inside where that was asked for.
        graph: Captured, and the reference of the bundle.
        state: What the weights' hash is of; None where branches were merged, so that none is of these weights.
        merged: What became of branches; None where that was not asked for.
        replaced: The preprocessing of the app that baking made part of the network; the model's own without it.
        said_kinds: What outputs are, by name, where the user says it.
    """

    source: LoadedModel
    graph: Graph
    state: Mapping[str, torch.Tensor] | None
    merged: tuple[MergedBranches, ...] | None
    replaced: Preprocessing
    said_kinds: Mapping[str, OutputKind] = field(default_factory=dict)

    def manifest(self, command: str) -> Manifest:
        """Return what is known of the bundle before there is any artifact.

        Raises:
            UsageError: An output is of a type that no file for phones has.
        """
        known = {name: kind for name, kind in self.source.output_kinds.items() if name in self.graph.outputs}
        returned = zip(outputs(self.graph.module.graph), self.graph.outputs, strict=True)
        return Manifest(
            model=self.source.spec,
            inputs=self.graph.inputs,
            outputs=tuple(_output_spec(node, name) for node, name in returned),
            command=command,
            regions=output_regions(self.graph),
            output_kinds={**known, **output_kinds(self.graph), **self.said_kinds},
        )


def load_captured(plan: ExportPlan, stages: Stages) -> CapturedModel:
    """Load the model and capture it; merge its branches and bake its preprocessing where the plan says so.

    Raises:
        UsageError: See ``load.resolve`` and ``capture_source``; it draws random numbers; nothing is there to merge, or
            the preprocessing cannot be baked in; an output that the plan speaks of is not there.
    """
    with stages.stage("load model"):
        source = resolve(plan.model)
    with stages.stage("capture"):
        graph = capture_source(source)
        check_deterministic(graph)
    merged, state = None, source.module.state_dict()
    if plan.reparameterize:
        source, graph, merged = _merged(source, graph)
    replaced = source.spec.preprocessing
    if plan.bake:
        source, graph = bake(source, graph, softmax=plan.softmax)
    for name in plan.output_kinds:
        if name not in graph.outputs:
            raise UsageError(f"--output {name}: the model has no such output; {nearest(name, graph.outputs)}")
    return CapturedModel(source, graph, None if merged else state, merged, replaced, plan.output_kinds)


def _merged(source: LoadedModel, graph: Graph) -> tuple[LoadedModel, Graph, tuple[MergedBranches, ...]]:
    """Merge the branches; the bundle is another one than that of the network as it was trained."""
    after, merged = merge_branches(graph)
    if not merged:
        raise UsageError(
            "--reparameterize found no branches to merge: no sum of convolutions (with BatchNorm, 1x1 or identity"
            " beside them) of one value; leave it out"
        )
    state = f"{source.spec.source_sha256} reparameterized"
    name, digest = f"{source.spec.name}_reparameterized", hashlib.sha256(state.encode()).hexdigest()
    return replace(source, spec=replace(source.spec, name=name, source_sha256=digest)), after, merged


def _output_spec(node: fx.Node, name: str) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    if value.dtype.is_complex:
        raise UsageError(
            f"{name}, an output, is {dtype}; files for phones give real numbers: return torch.view_as_real(...) of it"
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(name, shape, dtype, "NCHW"[: len(shape)] if len(shape) <= 4 else "")
