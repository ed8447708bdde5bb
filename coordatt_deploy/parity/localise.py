"""Run an artifact layer by layer and hand what it gives to the judge."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import InferenceError
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.layer_map import Layer, place_all, restore
from coordatt_deploy.parity.absent_layers import Judged
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.executors import LOCAL, Executor
from coordatt_deploy.parity.grid_ends import cut_off_by, inherited_from, outside_calibration
from coordatt_deploy.parity.layers import ArtifactLayers, LayerJudge
from coordatt_deploy.parity.reference_layers import GraphSubmodels, LayerReference, ReferenceLayers
from coordatt_deploy.parity.reference_rounding import RoundingError, max_noise
from coordatt_deploy.parity.shared_tensors import holders, viewed
from coordatt_deploy.parity.tensor_shapes import expected_shapes
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.submodels import Submodels
from coordatt_deploy.tensors import decode, dequantized, encode

Feeds = Mapping[str, NumberArray]
Tensors = Mapping[str, NumberArray]
Cases = Sequence[Feeds]
Ranges = Mapping[str, tuple[float, float]]

# Share of the elements of an inner class map that a file may have otherwise in one case, in float and in integers:
# where two classes are nearly alike rounding chooses, and a case may have a hundred elements.
OTHERWISE: Final = (0.01, 0.1)
MOST_UNREAD: Final = 24  # layers that are tried for reading past another; a right file has a few
PROBES: Final = 2  # cases on which the pieces are fed with stirred values as well


def localise(
    candidate: Candidate,
    cases: Cases,
    reference: ReferenceLayers,
    tolerance: Tolerance,
    *,
    where: Executor = LOCAL,
    step: Callable[[], None] = lambda: None,
) -> ArtifactLayers:
    """Judge every layer of *candidate* on *cases*.

    Args:
        candidate: Any format.
        cases: Feeds in the reference's layout.
        reference: Of the captured graph.
        tolerance: Its multiple is applied at every layer.
        where: The machine that it is run on.
        step: Called once per case.

    Raises:
        BundleError: The file or its map is damaged, or they do not belong together.
        MissingDependencyError: The runtime, or what is needed to cut the format apart, is not installed.
        InferenceError: The file cannot be run on one of the cases, and no layer of it is wrong on its own.
    """
    artifact, path = candidate.artifact, candidate.path
    judge = LayerJudge(candidate.layers, tolerance, tolerance.layer_sqnr_db)
    run = _Run(judge, reference, cases, candidate.ranges, rounded_on_data=candidate.rounded_on_data)
    difference = 0.0
    refused: InferenceError | None = None
    with (
        where.open_artifact(path, artifact) as final,
        where.open_artifact(path, artifact, run.tensors) as marked,
        where.open_pieces(path, artifact, run.tensors) as pieces,
    ):
        for number, feeds in enumerate(cases):
            own = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
            whole: Tensors | None = None
            try:
                whole, gap = _both(marked, final, own, artifact)
                difference = max(difference, gap)
            except InferenceError as error:  # then only the layers by themselves say what is wrong
                refused = refused or error
            if not run.case(number, feeds, whole, partial(_infer, pieces, artifact)):
                break
            step()
        if refused is None:
            run.stir_before_unread(partial(_infer, pieces, artifact))
    if refused is None:
        run.ask_again()
    found = ArtifactLayers(artifact, artifact.path, judge.rows(), difference)
    if refused is not None and found.first_diverging_layer is None:
        raise refused
    return found


def _both(marked: Runner, final: Runner, own: Feeds, artifact: Artifact) -> tuple[Tensors, float]:
    """Return all tensors of the marked file, and how far its outputs are from those of the final one."""
    whole, plain = marked.infer(own), final.infer(own)
    difference = 0.0
    for spec in artifact.outputs:
        gap = np.abs(decode(whole[spec.name], spec) - decode(plain[spec.name], spec))
        difference = max(difference, float(gap.max()) if gap.size else 0.0)
        whole[spec.name] = dequantized(whole[spec.name], spec)
    return whole, difference


def probed_values(
    candidate: Candidate, cases: Cases, reference: ReferenceLayers, tolerance: Tolerance
) -> tuple[Judged, ...]:
    """Return the stirred values that ``localise`` judges the layers of *candidate* on; none on integer grids.

    They are made again, not kept: of a large network they are many.
    """
    judge = LayerJudge(candidate.layers, tolerance, tolerance.layer_sqnr_db)
    run = _Run(judge, reference, cases, candidate.ranges)
    if run.on_grid or judge.limit_db is not None:
        return ()
    found = []
    for number, feeds in enumerate(cases[:PROBES]):
        probe = reference.probe(feeds, reference.reference(feeds), run.stirred, run.rounding, seed=number)
        found.append(Judged(feeds, probe.given, probe.made, stirred=True))
    return tuple(found)


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
    judge = LayerJudge(graph.layers, tolerance)
    run = _Run(judge, reference, cases)
    cut = GraphSubmodels(graph, run.tensors)
    for number, feeds in enumerate(cases):
        if not run.case(number, feeds, cut.infer(feeds, {}), cut.infer):
            break
        step()
    run.ask_again()
    return ArtifactLayers(None, name, judge.rows())


def _infer(pieces: Submodels, artifact: Artifact, feeds: Feeds, given: Tensors) -> Tensors:
    return pieces.infer({spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}, given)


class _Run:
    """Feeds one artifact's pieces with the reference, case by case, and counts what they make of it."""

    def __init__(
        self,
        judge: LayerJudge,
        reference: ReferenceLayers,
        cases: Cases,
        calibrated: Ranges | None = None,
        *,
        rounded_on_data: bool = False,
    ) -> None:
        self.judge, self.reference, self.calibrated = judge, reference, calibrated or {}
        judge.integral, self.cases = reference.integral, cases
        storage = judge.tolerance.storage
        self.on_grid = judge.tolerance.calibrated
        self.present = [layer for layer in judge.layers.layers if layer.parts]
        self.tensors = tuple(dict.fromkeys(part.tensor for layer in self.present for part in layer.parts))
        cuts = frozenset(layer.layer_id for layer in self.present)
        self.rounding = replace(
            reference.rounding(storage, cases, cuts, calibrated), sigmoid_error=judge.tolerance.sigmoid_error
        )
        self.stirred = holders(self.present) - reference.shared_means(cuts)
        self.makers = viewed(self.present)
        self.first = self.stirred - {layer for layer in self.stirred if reference.before(layer, cuts)}
        self.channelwise = {layer: reference.before(layer, cuts, unmixed=True) for layer in cuts if self.on_grid}
        self.mixed = {layer: reference.before(layer, cuts) for layer in self.channelwise}
        if self.on_grid and rounded_on_data:
            judge.adjusted = frozenset(layer for layer in cuts if reference.weighted(layer, cuts))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.probes: dict[int, Mapping[str, tuple[int, ...]]] = {}  # by case the shapes of its tensors

    def case(
        self,
        number: int,
        feeds: Mapping[str, NumberArray],
        whole: Mapping[str, NumberArray] | None,
        pieces: Callable[[Feeds, Tensors], Tensors],
    ) -> bool:
        """Count one case; False where tensors do not fit the map, so that what follows cannot be fed.

        Args:
            number: Of the case.
            feeds: In the reference's layout.
            whole: What the artifact made of them; None where it could not be run.
            pieces: Runs its pieces.
        """
        judge, reference = self.judge, self.reference
        exact = reference.reference(feeds)
        if whole is not None:
            rounding = reference.accumulated(feeds, self.rounding, exact)
            self._count(self.present, whole, exact.values, rounding, judge.whole)
            self.shapes = {name: np.shape(whole[name]) for name in self.tensors}
        if judge.misfits:
            return False
        shapes = self.shapes if whole is not None else expected_shapes(self.present, exact.values, self.shapes)
        if shapes is None:
            return False
        made = pieces(feeds, place_all(self.present, exact.values, shapes))
        local = reference.local(feeds, self.rounding, exact)
        # What is seen at a view is the rounding of the layer that made its tensor; the view itself rounds nothing.
        local |= {view: max_noise([local[item] for item in (view, *made_by)]) for view, made_by in self.makers.items()}
        self._count(self.present, made, exact.values, local, judge.alone)
        if self.judge.limit_db is None and number < PROBES:
            self.probes[number] = shapes
            self._probe(number, feeds, exact, shapes, pieces)
        return True

    def stir_before_unread(self, pieces: Callable[[Feeds, Tensors], Tensors]) -> None:
        """Judge layers that read past another one, and are beyond tolerance on stirred values alone, once more.

        Where a sum has a constant, TFLite's converter lets the next matrix product read the value without it, and puts
        the constant's product into the bias. Noise on the sum never arrives there: whatever lies in its tensor, the
        product stays the same. So the sum is not stirred, but what it is made of; that arrives both ways.

        Args:
            pieces: Runs the artifact's pieces.
        """
        judge = self.judge
        if self.on_grid or judge.misfits:
            return
        stirred = self.reference.perturbed(self.stirred)
        failing = [layer for layer in self.present if _on_stirred_values_alone(layer.layer_id, judge)]
        for layer in failing[:MOST_UNREAD]:
            unread = frozenset(
                source
                for direct in self._unread(layer, pieces)
                for source in ((direct,) if direct in stirred else self.reference.before(direct, stirred))
            )
            found: dict[str, LayerErrorStats] = {}
            for number, shapes in self.probes.items() if unread else ():
                feeds = self.cases[number]
                exact = self.reference.reference(feeds)
                probe = self.reference.probe(feeds, exact, self.stirred - unread, self.rounding, seed=number)
                made = pieces(feeds, place_all(self.present, probe.given, shapes))
                self._count([layer], made, probe.made, probe.rounding, found)
            judge.probed |= found

    def _unread(self, layer: Layer, pieces: Callable[[Feeds, Tensors], Tensors]) -> Iterator[str]:
        """Yield the layers before this one of which the artifact reads nothing: it is the same whatever they are."""
        tensors = {item.layer_id: {part.tensor for part in item.parts} for item in self.present}
        for number, shapes in list(self.probes.items())[:1]:
            feeds = self.cases[number]
            fed = place_all(self.present, self.reference.reference(feeds).values, shapes)
            usual = restore(layer, pieces(feeds, fed))
            for source in self.reference.before(layer.layer_id, frozenset(tensors)):
                other = {name: fed[name] + 1.0 + np.std(fed[name]) for name in tensors[source]}
                if np.array_equal(usual, restore(layer, pieces(feeds, {**fed, **other}))):
                    yield source

    def ask_again(self) -> None:
        """Where layers are beyond a multiple of torch's own rounding, allow what half a unit in the last place costs.

        In float, where torch may have rounded nothing by luck; nothing is asked where all are within, or do not fit.
        """
        judge, reference = self.judge, self.reference
        rows = ArtifactLayers(None, "", judge.rows())
        if judge.tolerance.weight_bits is not None or judge.limit_db is not None or judge.misfits or rows.passed:
            return
        for number, feeds in enumerate(self.cases):
            exact = reference.reference(feeds)
            judge.concede(judge.whole, number, reference.moved(feeds, self.rounding, {}, exact.values))
            judge.concede(judge.alone, number, reference.moved(feeds, self.rounding, exact.values, exact.values))
            if number < PROBES:
                probe = reference.probe(feeds, exact, self.stirred, self.rounding, seed=number)
                judge.concede(judge.probed, number, reference.moved(feeds, self.rounding, probe.given, probe.made))

    def _probe(
        self,
        number: int,
        feeds: Feeds,
        exact: LayerReference,
        shapes: Mapping[str, tuple[int, ...]],
        pieces: Callable[[Feeds, Tensors], Tensors],
    ) -> None:
        """Count what the pieces make of stirred values."""
        stirred, judged = self.stirred, self.stirred
        if self.on_grid:  # grids end where calibration ended; only the input takes anything an image may hold
            feeds = {name: _stirred(value, number) for name, value in feeds.items()}
            stirred, judged = frozenset(), self.first
        probe = self.reference.probe(feeds, exact, stirred, self.rounding, seed=number)
        made = pieces(feeds, place_all(self.present, probe.given, shapes))
        own = [layer for layer in self.present if layer.layer_id in judged]
        self._count(own, made, probe.made, probe.rounding, self.judge.probed, calibrated=False)

    def _count(
        self,
        present: Sequence[Layer],
        tensors: Mapping[str, NumberArray],
        expected: Mapping[str, NDArray[np.float64]],
        rounding: Mapping[str, RoundingError],
        tallies: dict[str, LayerErrorStats],
        *,
        calibrated: bool = True,
    ) -> None:
        cut_off: dict[str, NDArray[np.bool_]] = {}
        for layer in present:
            try:
                value = restore(layer, tensors)
                reference = expected[layer.layer_id]
                if value.shape != reference.shape:
                    raise ValueError(f"shape {value.shape}, expected {reference.shape}")
            except KeyError:
                self.judge.misfits.setdefault(layer.layer_id, "the runtime refuses to run it, fed with the reference")
                continue
            except ValueError as error:
                self.judge.misfits.setdefault(layer.layer_id, f"its tensor does not fit the layer map ({error})")
                continue
            own = inherited = None
            rounded = rounding[layer.layer_id]
            if layer.layer_id in self.reference.integral and self.judge.limit_db is None:
                value, reference, rounded = _same_elements(value, reference, rounded, self.judge.tolerance)
            elif self.on_grid:
                own = cut_off_by(layer, tensors, value, reference, rounded.step)
                sources = {name: cut_off[name] for name in self.mixed[layer.layer_id] if name in cut_off}
                inherited = inherited_from(sources, self.channelwise[layer.layer_id], own.shape)
                cut_off[layer.layer_id] = own | inherited
                inherited |= outside_calibration(own, reference, self.calibrated.get(layer.layer_id))
                own &= ~inherited
                if not calibrated:
                    inherited = own | inherited
            self.judge.add(tallies, layer.layer_id, value, reference, rounded, own, inherited)


def _on_stirred_values_alone(layer_id: str, judge: LayerJudge) -> bool:
    """Whether a layer is within tolerance on the cases, and beyond it on stirred values."""
    alone, probed = judge.alone.get(layer_id), judge.probed.get(layer_id)
    if alone is None or probed is None or alone.excess > 1.0:
        return False
    return probed.excess > 1.0 or bool(probed.nonfinite)


def _same_elements(
    value: NDArray[np.float64], reference: NDArray[np.float64], rounding: RoundingError, tolerance: Tolerance
) -> tuple[NDArray[np.float64], NDArray[np.float64], RoundingError]:
    """Return the share of a class map, positions or a mask that is the reference's, what it should be, and rounding.

    How far one class is from another says nothing, and a row of them is no channel. So the share of the elements that
    differ is judged: a multiple of what rounding costs torch is allowed, and ``OTHERWISE`` at least.
    """
    least = OTHERWISE[tolerance.weight_bits is not None]
    allowed = max(tolerance.multiple * rounding.share, least) / tolerance.multiple
    share = np.mean(value == reference, keepdims=True).reshape(1) if value.size else np.ones(1)
    return share, np.ones(1), RoundingError(allowed, np.array([allowed**2]))


def _stirred(value: NumberArray, seed: int) -> NumberArray:
    """Add noise to an input, within the range that it has."""
    noise = np.random.default_rng(seed).standard_normal(value.shape) * float(value.std())
    return np.clip(value + noise, value.min(), value.max()).astype(value.dtype)
