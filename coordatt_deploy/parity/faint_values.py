"""Values so faint that a constant beside them shows: the last thing that is tried with a layer that nothing proves.

A normalisation divides by the root of a variance plus 1e-6. On images, and on noise, the variance is a million times
that, so that no value there says whether the file adds anything. So the pieces that hold such layers are fed once more
with what the first golden case gives them, times 0.1, 0.01 and so on down to 0, until the captured graph without the
layer is told from the captured graph by more than is allowed. There the file is judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import InferenceError
from coordatt_deploy.layer_map import place_all, restore
from coordatt_deploy.parity.absent_layers import Judged, Without, differs, node_of, readers_of, stand_in_of
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.executors import Executor
from coordatt_deploy.parity.layers import LayerJudge, LayerRow
from coordatt_deploy.parity.probing import Values
from coordatt_deploy.parity.reference_layers import GraphSubmodels, ReferenceLayers
from coordatt_deploy.parity.reference_rounding import Rounding, RoundingError, max_noise
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.tensors import dequantized, encode

SCALES: Final = (*(10.0**-power for power in range(1, 10)), 0.0)

Feeds = Mapping[str, NumberArray]


def shown_on_faint_values(
    candidate: Candidate,
    feeds: Feeds,
    reference: ReferenceLayers,
    tolerance: Tolerance,
    lost: Sequence[str],
    where: Executor,
) -> dict[str, LayerRow]:
    """Judge layers that nothing else shows, where faint values show them.

    Args:
        candidate: The artifact.
        feeds: Of the case that is made faint.
        reference: Of the captured graph.
        tolerance: Its multiple is applied.
        lost: The ids of the layers.
        where: The machine that it is run on.

    Returns:
        A verdict for each layer that is shown, with the layer at which it is seen; nothing on integer grids.
    """
    if tolerance.weight_bits is not None or tolerance.layer_sqnr_db is not None:
        return {}
    return _Faint(candidate, feeds, reference, tolerance, where).verdicts(lost)


class _Faint:
    """One artifact and one case, made fainter and fainter."""

    def __init__(
        self,
        candidate: Candidate,
        feeds: Feeds,
        reference: ReferenceLayers,
        tolerance: Tolerance,
        where: Executor,
    ) -> None:
        self.candidate, self.feeds, self.reference, self.where = candidate, feeds, reference, where
        self.judge = LayerJudge(candidate.layers, tolerance)
        self.present = {reference.nodes[item.layer_id]: item for item in candidate.layers.layers if item.parts}
        cuts = frozenset(item.layer_id for item in self.present.values())
        rounding = reference.rounding(tolerance.storage, [feeds], cuts)
        self.rounding: Rounding = replace(rounding, sigmoid_error=tolerance.sigmoid_error)
        self.exact = reference.reference(feeds).values
        self.right = GraphSubmodels(reference.graph, tuple(self.present))

    def verdicts(self, lost: Sequence[str]) -> dict[str, LayerRow]:
        """Return the verdict on each of the layers that some scale shows."""
        layers = {item.layer_id: item for item in self.candidate.layers.layers}
        layer_of = {name: item.layer_id for name, item in self.present.items()}
        without: dict[str, Without] = {}
        for layer_id in lost:
            node = node_of(layers[layer_id], self.reference)
            stand_in, readers = stand_in_of(node), tuple(readers_of(node, layer_of))
            if stand_in is not None and readers:
                without[layer_id] = Without(self.reference, node, stand_in, layer_of, readers)
        found: dict[str, LayerRow] = {}
        for scale in SCALES:
            if without.keys() <= found.keys():
                break
            fed, costs = self._fed(scale)
            seen = {
                layer_id: reader
                for layer_id, graph in without.items()
                if layer_id not in found and (reader := self._shown(graph, fed, costs)) is not None
            }
            made = self._made(fed) if seen else {}
            for layer_id, reader in seen.items():
                tally = self._tally(reader, fed, costs, made.get(reader))
                operator = layers[layer_id].operator
                found[layer_id] = LayerRow(layer_id, operator, None, None, layer_of[reader], None, probed=tally)
        return found

    def _fed(self, scale: float) -> tuple[Judged, dict[str, RoundingError]]:
        """Return what the pieces are fed with at a scale, what they should make of it, and what rounding costs."""
        given: Values = {
            layer: value if layer in self.reference.integral else value * scale for layer, value in self.exact.items()
        }
        made = self.right.infer(self.feeds, {name: given[item.layer_id] for name, item in self.present.items()})
        by_layer = dict(self.exact) | {
            item.layer_id: np.asarray(made[name], np.float64) for name, item in self.present.items()
        }
        with np.errstate(all="ignore"):
            own = self.reference.local_errors(self.feeds, self.rounding, given, by_layer)
            moved = self.reference.moved(self.feeds, self.rounding, given, by_layer)
        return Judged(self.feeds, given, by_layer), {layer: max_noise([own[layer], moved[layer]]) for layer in own}

    def _shown(self, graph: Without, fed: Judged, costs: Mapping[str, RoundingError]) -> str | None:
        """The reader at which the graph without the layer is beyond what is allowed; None where there is none."""
        others = graph.infer(fed)
        for reader, other in others.items():
            layer = self.present[reader].layer_id
            value, cost = fed.made[layer], costs[layer]
            if layer in self.reference.integral or not (np.isfinite(value).all() and np.isfinite(cost.greatest)):
                continue
            if differs(value, other, self._tally(reader, fed, costs, value), 0):
                return reader
        return None

    def _made(self, fed: Judged) -> dict[str, NumberArray]:
        """What the file's own pieces make, by the name of the node; nothing where they cannot be run."""
        artifact, path = self.candidate.artifact, self.candidate.path
        present = list(self.present.values())
        tensors = tuple(dict.fromkeys(part.tensor for item in present for part in item.parts))
        own = {spec.name: encode(self.feeds[spec.name], spec) for spec in artifact.inputs}
        with (
            self.where.open_artifact(path, artifact, tensors) as marked,
            self.where.open_pieces(path, artifact, tensors) as pieces,
        ):
            try:
                whole = marked.infer(own)
                shapes = {name: np.shape(whole[name]) for name in tensors}
                made = pieces.infer(own, place_all(present, fed.given, shapes))
            except InferenceError:
                return {}
        made |= {spec.name: dequantized(made[spec.name], spec) for spec in artifact.outputs if spec.name in made}
        return {
            name: restore(item, made)
            for name, item in self.present.items()
            if all(part.tensor in made for part in item.parts)
        }

    def _tally(
        self, reader: str, fed: Judged, costs: Mapping[str, RoundingError], made: NumberArray | None
    ) -> LayerErrorStats:
        layer = self.present[reader].layer_id
        value = fed.made[layer]
        tallies: dict[str, LayerErrorStats] = {}
        actual = np.full_like(value, np.nan) if made is None else made
        self.judge.add(tallies, layer, actual, value, costs[layer])
        return tallies[layer]
