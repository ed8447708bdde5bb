"""Run an artifact layer by layer and hand what it gives to the judge."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.layer_parity import UNIT_ROUNDOFF, ArtifactLayers, LayerJudge, Tally
from coordatt_deploy.layer_reference import ReferenceLayers
from coordatt_deploy.layers import Layer, LayerMap, place, restore
from coordatt_deploy.parity import Tolerance
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
    present = [layer for layer in layers.layers if layer.parts]
    tensors = tuple(dict.fromkeys(part.tensor for layer in present for part in layer.parts))
    cuts = frozenset(layer.layer_id for layer in present)
    stirred = _own_tensors(present)
    probing = limit_db is None and artifact.precision in UNIT_ROUNDOFF  # an integer grid ends where calibration ended
    path, opened = bundle.path(artifact.path), runtime(artifact.format)
    difference = 0.0
    with (
        opened.open_artifact(path, artifact) as final,
        opened.open_artifact(path, artifact, tensors=tensors) as marked,
        cutter(artifact.format).open_pieces(path, artifact, tensors) as pieces,
    ):
        for number, feeds in enumerate(cases):
            exact = reference.reference(feeds)
            accumulated = reference.accumulated(feeds, tolerance.basis, exact)
            local = reference.local(feeds, tolerance.basis, exact, cuts)
            own = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
            whole, plain = marked.infer(own), final.infer(own)
            for spec in artifact.outputs:
                gap = np.abs(decode(whole[spec.name], spec) - decode(plain[spec.name], spec))
                difference = max(difference, float(gap.max()) if gap.size else 0.0)
            _count(judge, layers, whole, exact.values, accumulated, judge.whole)
            if judge.misfits:
                break  # what follows cannot be fed with the reference
            shapes = {name: np.shape(value) for name, value in whole.items()}
            made = pieces.infer(own, _given(present, exact.values, shapes))
            _count(judge, layers, made, exact.values, local, judge.alone)
            if probing and number < PROBES:
                probe = reference.probe(feeds, exact, stirred, seed=number)
                made = pieces.infer(own, _given(present, probe.given, shapes))
                rounding = reference.probed(feeds, tolerance.basis, probe, cuts)
                own_value = LayerMap(tuple(layer for layer in present if layer.layer_id in stirred))
                _count(judge, own_value, made, probe.made, rounding, judge.probed)
            step()
    return ArtifactLayers(artifact, artifact.path, judge.rows(), difference)


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


def _given(
    present: Sequence[Layer], values: Mapping[str, NDArray[np.float64]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    given: dict[str, NDArray[Any]] = {}
    for layer in present:
        given |= place(layer, values[layer.layer_id], {part.tensor: shapes[part.tensor] for part in layer.parts})
    return given


def _count(
    judge: LayerJudge,
    layers: LayerMap,
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[np.float64]],
    rounding: Mapping[str, float],
    tallies: dict[str, Tally],
) -> None:
    for layer in layers.layers:
        if layer.parts:
            try:
                value = restore(layer, tensors)
                reference = expected[layer.layer_id]
                if value.shape != reference.shape:
                    raise ValueError(f"shape {value.shape}, expected {reference.shape}")
            except (ValueError, KeyError) as error:
                judge.misfits.setdefault(layer.layer_id, f"its tensor does not fit the layer map ({error})")
                continue
            judge.add(tallies, layer.layer_id, value, reference, rounding[layer.layer_id])


def choose_cases(names: Sequence[str], most: int = 6) -> list[int]:
    """Choose golden cases for the layers: a few images, and tensors that no image gives.

    Two of the made-up tensors are always among them; a dead channel behind every image wakes up for noise.
    """
    wanted = [index for index, name in enumerate(names) if name.startswith(("noise", "checkerboard"))]
    others = [index for index in range(len(names)) if index not in wanted]
    stride = max(1, len(others) // max(1, most - len(wanted)))
    return sorted([*wanted, *others[::stride][: max(1, most - len(wanted))]])
