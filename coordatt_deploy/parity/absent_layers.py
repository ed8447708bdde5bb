"""No layer that computes may be absent from an artifact without a proof of where its value went.

A converter that takes an epsilon for 0 drops a sum, and nothing differs until an image leaves a channel dead. So the
map's own word is not enough. Of a layer without a tensor one of these must hold, by the captured graph:

    unused      no output depends on it
    constant    it depends on no input: it was computed beforehand
    moved       its elements are those of what it reads: turned, cut, copied, or passed through at inference; a pool or
                a reduction of one element each
    neutral     it adds exactly 0, or multiplies by exactly 1, as a softmax along an axis of one element gives it
    needed      what reads it cannot be had without it: nothing that it reads has its shape
    seen        without it, what reads it would be beyond the tolerance on some case, and that was judged

The last is tried out: the layer is taken out of the captured graph, and what reads it is compared with what it should
be. A layer that was fused into a later one is held to the same where it is an operation with a constant; one of which
only the exporter's map says that what reads it took it up, in any case.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.graph.graph import Graph, weight
from coordatt_deploy.graph.repeats import repeated_calls
from coordatt_deploy.layer_map import TAKEN_UP, Layer, LayerMap
from coordatt_deploy.metrics import sqnr_db_of_energies
from coordatt_deploy.parity.absences import Absence, by_graph
from coordatt_deploy.parity.error_statistics import LayerErrorStats, by_channel
from coordatt_deploy.parity.layers import LayerRow
from coordatt_deploy.parity.probing import Values
from coordatt_deploy.parity.reference_layers import GraphSubmodels, ReferenceLayers

Feeds = Mapping[str, NumberArray]

WITH_CONSTANT: Final = frozenset({
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "clamp", "clamp_min", "clamp_max",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judged:
    """Values that the pieces of an artifact were fed with, and judged on.

    Attributes:
        feeds: The inputs.
        given: What the readers of each layer got, by layer id.
        made: What each layer makes of what it got.
        stirred: Whether they are values that no image gives; those have a verdict of their own.
    """

    feeds: Feeds
    given: Values
    made: Values
    stirred: bool = False


def unproven_absences(
    layers: LayerMap,
    reference: ReferenceLayers,
    rows: Sequence[LayerRow],
    cases: Sequence[Feeds],
    probes: Callable[[], Sequence[Judged]] = tuple,
) -> tuple[str, ...]:
    """Return the ids of the layers of an artifact that are absent without a proof.

    Args:
        layers: The artifact's map.
        reference: Of the captured graph.
        rows: The verdicts on all layers.
        cases: What they were judged on.
        probes: Makes the stirred values that they were judged on besides; asked for where the cases prove nothing.
    """
    by_id = {row.layer_id: row for row in rows}
    asked = [
        layer
        for layer in layers.layers
        if layer.absent is not None
        or (layer.seen_through is not None and (layer.operator in WITH_CONSTANT or layer.note == TAKEN_UP))
    ]
    lost = [layer for layer in asked if why_absent(layer, layers, reference, by_id, cases) is None]
    stirred = probes() if lost else ()
    if stirred:
        lost = [layer for layer in lost if why_absent(layer, layers, reference, by_id, cases, stirred) is None]
    return tuple(layer.layer_id for layer in lost)


def told(lost: Sequence[str]) -> str | None:
    """Say of which layers nothing shows that they are computed; None of none."""
    if not lost:
        return None
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return (
        f"{', '.join(lost[:3])}{more}: no tensor of the file holds the value, and nothing that was judged would differ"
        " without it; whether it is computed cannot be told"
    )


def why_absent(
    layer: Layer,
    layers: LayerMap,
    reference: ReferenceLayers,
    rows: Mapping[str, LayerRow],
    cases: Sequence[Feeds],
    probes: Sequence[Judged] = (),
) -> Absence | None:
    """Return why *layer* may be absent; None where nothing proves it."""
    graph = reference.graph
    node = node_of(layer, reference)
    reason = by_graph(graph, node)
    fused = layer.seen_through is not None and layer.note != TAKEN_UP
    if reason is not None or (fused and not _has_constant(graph, node)):
        return reason or Absence.SEEN
    present = {reference.nodes[item.layer_id]: item.layer_id for item in layers.layers if item.parts}
    if any(present[twin] in rows for twin in _twins(graph, node) & present.keys()):
        return Absence.REPEATED
    stand_in = stand_in_of(node)
    if stand_in is None:
        return Absence.NEEDED
    readers = {reader: rows[present[reader]] for reader in readers_of(node, present) if present[reader] in rows}
    if not readers:
        return None
    without = Without(reference, node, stand_in, present, tuple(readers))
    for number, fed in enumerate(probes or _golden(reference, cases)):
        others = without.infer(fed)
        for name, row in readers.items():
            tally = row.probed if fed.stirred else row.local or row.accumulated
            integral = present[name] in reference.integral
            if tally is not None and differs(
                fed.made[present[name]], others[name], tally, number, row.limit_db, integral=integral
            ):
                return Absence.SEEN
    return None


def _golden(reference: ReferenceLayers, cases: Sequence[Feeds]) -> Iterator[Judged]:
    for feeds in cases:
        values = reference.reference(feeds).values
        yield Judged(feeds, values, values)


class Without:
    """The captured graph without one of its calls, cut apart where the artifact is."""

    def __init__(
        self,
        reference: ReferenceLayers,
        node: fx.Node,
        stand_in: fx.Node,
        present: Mapping[str, str],
        readers: tuple[str, ...],
    ) -> None:
        """Take *node* out of the graph.

        Args:
            reference: Of the captured graph.
            node: The call.
            stand_in: What its readers read in its place.
            present: The layer ids of the calls that the artifact has a tensor for.
            readers: The calls that are asked for.
        """
        module = copy.deepcopy(reference.graph.module)
        nodes = {item.name: item for item in module.graph.nodes}
        nodes[node.name].replace_all_uses_with(nodes[stand_in.name])
        module.recompile()
        self.present = present
        self.pieces = GraphSubmodels(replace(reference.graph, module=module), readers)

    def infer(self, fed: Judged) -> dict[str, NumberArray]:
        """Return what the readers make of what they are fed with."""
        given = {name: fed.given[layer] for name, layer in self.present.items()}
        return self.pieces.infer(fed.feeds, given)


def node_of(layer: Layer, reference: ReferenceLayers) -> fx.Node:
    """Return the call of the captured graph that is *layer*."""
    wanted = reference.nodes[layer.layer_id]
    found: fx.Node = next(item for item in reference.graph.module.graph.nodes if item.name == wanted)
    return found


def _twins(graph: Graph, node: fx.Node) -> set[str]:
    """The calls that compute the same of the same values, itself aside."""
    first = repeated_calls(graph.module.graph)
    own = first.get(node.name, node.name)
    return {name for name in (own, *(name for name, of in first.items() if of == own)) if name != node.name}


def _has_constant(graph: Graph, node: fx.Node) -> bool:
    return any(
        isinstance(value, int | float) or ((held := weight(graph.module, value)) is not None and held.numel() == 1)
        for value in node.args
    )


def stand_in_of(node: fx.Node) -> fx.Node | None:
    """Return what a converter that drops the node would hand on: what it reads, of the same shape and type."""
    wanted = node.meta["val"]
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        if source.op != "get_attr" and isinstance(value, torch.Tensor) and _are_alike(value, wanted):
            return source
    return None


def _are_alike(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    return value.shape == wanted.shape and value.is_floating_point() == wanted.is_floating_point()


def readers_of(node: fx.Node, present: Mapping[str, str]) -> list[str]:
    """Return the nearest calls behind the node that the artifact has a tensor for."""
    found: dict[str, None] = {}
    open_ends, seen = list(node.users), set()
    while open_ends:
        user = open_ends.pop()
        if user.name in present:
            found[user.name] = None
        elif user not in seen:
            seen.add(user)
            open_ends += user.users
    return list(found)


def differs(
    value: NumberArray,
    other: NumberArray,
    tally: LayerErrorStats,
    number: int,
    limit_db: float | None = None,
    *,
    integral: bool = False,
) -> bool:
    """Whether *other* in the place of *value* would be beyond what a layer is allowed.

    Args:
        value: What the layer should give.
        other: What it would give instead.
        tally: Of the layer, with what it is allowed.
        number: Of the case in the tally.
        limit_db: The SQNR that layers need instead; None where they do not.
        integral: Whether the layer gives positions, classes or yes and no.
    """
    if value.shape != other.shape:
        return True
    if integral and limit_db is None:
        return bool(np.mean(value != other) > tally.allowed) if value.size else False
    value, other = np.asarray(value, np.float64), np.asarray(other, np.float64)
    if not np.isfinite(other).all():
        return bool(np.isfinite(value).all())
    error = value - other
    if limit_db is not None:
        noise = float(np.sum(np.square(error)))
        return noise > 0 and sqnr_db_of_energies(float(np.sum(np.square(value))), noise) < limit_db
    if tally.on_grid:
        return bool(np.sqrt(by_channel(np.square(error))).max() > tally.allowed)
    return bool(np.abs(error).max(initial=0.0) > tally.allowances[number])
