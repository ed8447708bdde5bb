"""Run an artifact layer by layer and hand what it gives to the judge."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.graph.capture import Graph
from coordatt_deploy.graph.layer_reference import GraphPieces, ReferenceLayers
from coordatt_deploy.layers import Layer, place_all, restore
from coordatt_deploy.parity.layer_parity import UNIT_ROUNDOFF, ArtifactLayers, LayerJudge, Tally
from coordatt_deploy.parity.outputs import Tolerance
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.pieces import cutter
from coordatt_deploy.specs import Artifact
from coordatt_deploy.tensors import decode, encode

Cases = Sequence[Mapping[str, NDArray[Any]]]

PROBES: Final = 2  # cases on which the pieces are fed with stirred values as well


def localise(
    bundle: Bundle,
    artifact: Artifact,
    cases: Cases,
    reference: ReferenceLayers,
    tolerance: Tolerance,
    *,
    limit_db: float | None = None,
    step: Callable[[], None] = lambda: None,
) -> ArtifactLayers:
    """Judge every layer of *artifact* on *cases*.

    Args:
        bundle: Holds it and its map.
        artifact: Any format.
        cases: Feeds in the reference's layout.
        reference: Of the captured graph.
        tolerance: Its multiple is applied at every layer.
        limit_db: For integer artifacts: the SQNR that each layer must reach.
        step: Called once per case.

    Raises:
        BundleError: The file or its map is damaged, or they do not belong together.
        MissingDependencyError: The runtime, or what is needed to cut the format apart, is not installed.
    """
    layers = bundle.layers(artifact)
    judge = LayerJudge(layers, tolerance, tolerance.basis, limit_db)
    run = _Run(judge, reference, limit_db is None and artifact.precision in UNIT_ROUNDOFF)
    path, opened = bundle.path(artifact.path), runtime(artifact.format)
    difference = 0.0
    with (
        opened.open_artifact(path, artifact) as final,
        opened.open_artifact(path, artifact, tensors=run.tensors) as marked,
        cutter(artifact.format).open_pieces(path, artifact, run.tensors) as pieces,
    ):
        for number, feeds in enumerate(cases):
            own = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
            whole, plain = marked.infer(own), final.infer(own)
            for spec in artifact.outputs:
                gap = np.abs(decode(whole[spec.name], spec) - decode(plain[spec.name], spec))
                difference = max(difference, float(gap.max()) if gap.size else 0.0)
            if not run.case(number, feeds, whole, partial(pieces.infer, own)):
                break
            step()
    return ArtifactLayers(artifact, artifact.path, judge.rows(), difference)


def localise_graph(
    name: str,
    graph: Graph,
    cases: Cases,
    reference: ReferenceLayers,
    tolerance: Tolerance,
    *,
    step: Callable[[], None] = lambda: None,
) -> ArtifactLayers:
    """Judge every layer of an edited torch graph, folded or lowered, run in float64.

    Its weights were rounded to float32 once more, which costs no more than computing in float32.

    Args:
        name: Of the stage, for the table.
        graph: With its layer map.
        cases: Feeds in the reference's layout.
        reference: Of the captured graph.
        tolerance: In multiples of torch-float32's rounding.
        step: Called once per case.
    """
    judge = LayerJudge(graph.layers, tolerance, tolerance.basis)
    run = _Run(judge, reference, probing=True)
    cut = GraphPieces(graph, run.tensors)
    for number, feeds in enumerate(cases):
        if not run.case(number, feeds, cut.infer(feeds, {}), partial(cut.infer, feeds)):
            break
        step()
    return ArtifactLayers(None, name, judge.rows())


class _Run:
    """Feeds one artifact's pieces with the reference, case by case, and counts what they make of it."""

    def __init__(self, judge: LayerJudge, reference: ReferenceLayers, probing: bool) -> None:
        self.judge, self.reference = judge, reference
        self.probing = probing  # not on an integer grid: it ends where calibration ended
        self.present = [layer for layer in judge.layers.layers if layer.parts]
        self.tensors = tuple(dict.fromkeys(part.tensor for layer in self.present for part in layer.parts))
        self.cuts = frozenset(layer.layer_id for layer in self.present)
        self.stirred = _own_tensors(self.present)
        self.makers = _makers(self.present)

    def case(
        self,
        number: int,
        feeds: Mapping[str, NDArray[Any]],
        whole: Mapping[str, NDArray[Any]],
        pieces: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
    ) -> bool:
        """Count one case; False where tensors do not fit the map, so that what follows cannot be fed."""
        judge, reference, basis = self.judge, self.reference, self.judge.precision
        exact = reference.reference(feeds)
        _count(judge, self.present, whole, exact.values, reference.accumulated(feeds, basis, exact), judge.whole)
        if judge.misfits:
            return False
        shapes = {name: np.shape(whole[name]) for name in self.tensors}
        made = pieces(place_all(self.present, exact.values, shapes))
        local = reference.local(feeds, basis, exact, self.cuts)
        # What is seen at a view is the rounding of the layer that made its tensor; the view itself rounds nothing.
        local |= {view: max(local[item] for item in (view, *made_by)) for view, made_by in self.makers.items()}
        _count(judge, self.present, made, exact.values, local, judge.alone)
        if self.probing and number < PROBES:
            probe = reference.probe(feeds, exact, self.stirred, seed=number)
            made = pieces(place_all(self.present, probe.given, shapes))
            rounding = reference.probed(feeds, basis, probe, self.cuts)
            own = [layer for layer in self.present if layer.layer_id in self.stirred]
            _count(judge, own, made, probe.made, rounding, judge.probed)
        return True


def _own_tensors(present: Sequence[Layer]) -> frozenset[str]:
    """Return the layers that no earlier layer shares a tensor with; the others are views of those."""
    taken: set[str] = set()
    found = []
    for layer in present:
        tensors = {part.tensor for part in layer.parts}
        if not tensors & taken:
            found.append(layer.layer_id)
        taken |= tensors
    return frozenset(found)


def _makers(present: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Return, for each layer that is a view of earlier layers' tensors, those layers."""
    holders: dict[str, list[str]] = {}
    found = {}
    for layer in present:
        shared = [holder for part in layer.parts for holder in holders.get(part.tensor, ())]
        if shared:
            found[layer.layer_id] = tuple(dict.fromkeys(shared))
        for part in layer.parts:
            holders.setdefault(part.tensor, []).append(layer.layer_id)
    return found


def _count(
    judge: LayerJudge,
    present: Sequence[Layer],
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[np.float64]],
    rounding: Mapping[str, float],
    tallies: dict[str, Tally],
) -> None:
    for layer in present:
        try:
            value = restore(layer, tensors)
            reference = expected[layer.layer_id]
            if value.shape != reference.shape:
                raise ValueError(f"shape {value.shape}, expected {reference.shape}")
        except (ValueError, KeyError) as error:
            judge.misfits.setdefault(layer.layer_id, f"its tensor does not fit the layer map ({error})")
            continue
        judge.add(tallies, layer.layer_id, value, reference, rounding[layer.layer_id])
