"""No layer that computes may be absent from an artifact without a proof of where its value went.

A converter that takes an epsilon for 0 drops a sum, and nothing differs until an image leaves a channel dead. So the
map's own word is not enough. Of a layer without a tensor one of these must hold, by the captured graph:

    unused      no output depends on it
    constant    it depends on no input: it was computed beforehand
    moved       its elements are those of what it reads: turned, cut, copied, or passed through at inference; a mean
                over one place is that place
    neutral     it adds exactly 0, or multiplies by exactly 1
    needed      what reads it cannot be had without it: nothing that it reads has its shape
    seen        without it, what reads it would be beyond the tolerance on some case, and that was judged

The last is tried out: the layer is taken out of the captured graph, and what reads it is compared with what it should
be. A layer that was fused into a later one is held to the same where it is an operation with a constant.
"""

import copy
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph, op_name, weight
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.layer_map import Layer, LayerMap
from coordatt_deploy.metrics import sqnr_db_of_energies
from coordatt_deploy.parity.error_statistics import by_channel
from coordatt_deploy.parity.layers import LayerRow
from coordatt_deploy.parity.reference_layers import ReferenceLayers

Feeds = Mapping[str, NumberArray]

MOVES: Final = (
    having(Trait.LAYOUT) | having(Trait.SPLIT) | having(Trait.BROADCASTS) | having(Trait.IDENTITY)
    | having(Trait.DROPOUT) | {"expand", "expand_as", "repeat", "getitem", "slice", "select", "cat"}
)  # fmt: skip
WITH_CONSTANT: Final = frozenset({
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "clamp", "clamp_min", "clamp_max",
})  # fmt: skip
NEUTRAL: Final = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}


class Absence(enum.Enum):
    """Why a layer may be absent."""

    UNUSED = "no output depends on it"
    CONSTANT = "it depends on no input"
    MOVED = "its elements are those of what it reads"
    NEUTRAL = "it changes nothing"
    NEEDED = "what reads it cannot be had without it"
    SEEN = "what reads it was judged, and would be beyond tolerance without it"


def unproven_absences(
    layers: LayerMap, reference: ReferenceLayers, rows: Sequence[LayerRow], cases: Sequence[Feeds]
) -> str | None:
    """Say which layers of an artifact are absent without a proof; None where each has one.

    Args:
        layers: The artifact's map.
        reference: Of the captured graph.
        rows: The verdicts on all layers.
        cases: What they were judged on.
    """
    by_id = {row.layer_id: row for row in rows}
    lost = [
        layer.layer_id
        for layer in layers.layers
        if (layer.absent is not None or (layer.seen_through is not None and layer.operator in WITH_CONSTANT))
        and why_absent(layer, layers, reference, by_id, cases) is None
    ]
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
) -> Absence | None:
    """Return why *layer* may be absent; None where nothing proves it."""
    graph = reference.graph
    node = next(item for item in graph.module.graph.nodes if item.name == reference.nodes[layer.layer_id])
    reason = by_graph(graph, node)
    if reason is not None or (layer.seen_through is not None and not _has_constant(graph, node)):
        return reason or Absence.SEEN
    stand_in = _stand_in(node)
    if stand_in is None:
        return Absence.NEEDED
    present = {reference.nodes[item.layer_id]: item.layer_id for item in layers.layers if item.parts}
    readers = {reader: rows[present[reader]] for reader in _readers(node, present) if present[reader] in rows}
    return Absence.SEEN if _seen(graph, node, stand_in, readers, cases) else None


def by_graph(graph: Graph, node: fx.Node) -> Absence | None:
    """Return why the value of *node* need not be in a file, as far as the graph itself says so."""
    if not any(item.op == "output" for item in _reached(node, lambda at: at.users)):
        return Absence.UNUSED
    if not any(item.op == "placeholder" for item in _reached(node, lambda at: at.all_input_nodes)):
        return Absence.CONSTANT
    if op_name(node) in MOVES or _averages_one_place(node):
        return Absence.MOVED
    neutral = NEUTRAL.get(op_name(node))
    if neutral is not None and len(node.args) > 1 and not node.kwargs and _is_all(graph, node.args[1], neutral):
        return Absence.NEUTRAL
    return None


def _averages_one_place(node: fx.Node) -> bool:
    """Whether a mean over axes is over axes of size 1, or a pool has a window for each place: then nothing changes."""
    if op_name(node) not in ("mean", "adaptive_avg_pool2d"):
        return False
    before, after = (list(item.meta["val"].shape) for item in (node.all_input_nodes[0], node))
    if not all(isinstance(size, int) for size in (*before, *after)):
        return False
    if op_name(node) == "mean":  # it may leave out axes, but none of several elements
        before, after = ([size for size in sizes if size != 1] for sizes in (before, after))
    return before == after


def _reached(node: fx.Node, onward: Callable[[fx.Node], Iterable[fx.Node]]) -> Iterator[fx.Node]:
    """Yield all nodes that *onward* leads to from *node*, step by step."""
    open_ends, seen = list(onward(node)), set()
    while open_ends:
        item = open_ends.pop()
        if item not in seen:
            seen.add(item)
            open_ends += onward(item)
            yield item


def _is_all(graph: Graph, value: object, wanted: float) -> bool:
    if isinstance(value, int | float):
        return float(value) == wanted
    tensor = weight(graph.module, value)
    return tensor is not None and bool((tensor == wanted).all())


def _has_constant(graph: Graph, node: fx.Node) -> bool:
    return any(
        isinstance(value, int | float) or ((held := weight(graph.module, value)) is not None and held.numel() == 1)
        for value in node.args
    )


def _stand_in(node: fx.Node) -> fx.Node | None:
    """What a converter that drops the node would hand on: what it reads, of the same shape."""
    wanted = node.meta["val"]
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        if source.op != "get_attr" and value is not None and getattr(value, "shape", None) == wanted.shape:
            return source
    return None


def _readers(node: fx.Node, present: Mapping[str, str]) -> list[str]:
    """The nearest calls behind the node that the artifact has a tensor for."""
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


def _seen(
    graph: Graph, node: fx.Node, stand_in: fx.Node, readers: Mapping[str, LayerRow], cases: Sequence[Feeds]
) -> bool:
    """Whether a reader would be beyond its tolerance without the node, on a case that it was judged on."""
    if not readers or not cases:
        return False
    module = copy.deepcopy(graph.module)
    nodes = {item.name: item for item in module.graph.nodes}
    nodes[node.name].replace_all_uses_with(nodes[stand_in.name])
    module.recompile()
    right = prepare(graph, nodes=frozenset(readers))
    without = prepare(replace(graph, module=module), nodes=frozenset(readers))
    return any(
        _differs(row, values[name], others[name])
        for values, others in ((right(feeds), without(feeds)) for feeds in cases)
        for name, row in readers.items()
    )


def _differs(row: LayerRow, value: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    tally = row.local or row.accumulated
    if tally is None or value.shape != other.shape:
        return tally is not None
    if not np.isfinite(other).all():
        return bool(np.isfinite(value).all())
    error = value - other
    if row.limit_db is not None:
        noise = float(np.sum(np.square(error)))
        return noise > 0 and sqnr_db_of_energies(float(np.sum(np.square(value))), noise) < row.limit_db
    size = np.sqrt(by_channel(np.square(error))).max() if tally.on_grid else np.abs(error).max(initial=0.0)
    return bool(size > tally.allowed)
