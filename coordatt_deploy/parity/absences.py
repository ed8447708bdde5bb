"""Why a value need not be in a file, as far as the captured graph itself says so: nothing is tried out here."""

import enum
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import torch
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.graph.call_arguments import argument, integer, integers, pair
from coordatt_deploy.graph.graph import Graph, op_name, static_shape, weight
from coordatt_deploy.graph.operators import Trait, having

MOVES: Final = (
    having(Trait.LAYOUT) | having(Trait.SPLIT) | having(Trait.BROADCASTS) | having(Trait.IDENTITY)
    | having(Trait.DROPOUT) | {"expand", "expand_as", "repeat", "getitem", "slice", "select", "cat"}
)  # fmt: skip
NEUTRAL: Final = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}
COMMUTATIVE: Final = frozenset({"add", "mul"})
CASTS: Final = frozenset({"to", "_to_copy", "type_as"})
PADS: Final = frozenset({"pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"})


class Absence(enum.Enum):
    """Why a layer may be absent."""

    UNUSED = "no output depends on it"
    CONSTANT = "it depends on no input"
    MOVED = "its elements are those of what it reads"
    NEUTRAL = "it changes nothing"
    REPEATED = "the same call on the same values was judged"
    NEEDED = "what reads it cannot be had without it"
    SEEN = "what reads it was judged, and would be beyond tolerance without it"


def by_graph(graph: Graph, node: fx.Node) -> Absence | None:
    """Return why the value of *node* need not be in a file, as far as the graph itself says so."""
    if _is_one(node):
        return Absence.CONSTANT
    if not any(item.op == "output" for item in _reached(node, _dependent)):
        return Absence.UNUSED
    varying = _reached(node, lambda at: () if _is_one(at) else at.all_input_nodes)
    if not any(item.op == "placeholder" for item in varying):
        return Absence.CONSTANT
    if op_name(node) in MOVES or _takes_single_elements(node) or _moves_nothing(node) or _is_widening(node):
        return Absence.MOVED
    if _is_product_with_one(node):
        return Absence.NEUTRAL
    return Absence.NEUTRAL if _takes_neutral(graph, node) else None


def _dependent(node: fx.Node) -> list[fx.Node]:
    """The readers whose value depends on what they read."""
    return [user for user in node.users if not _is_one(user)]


def _is_one(node: fx.Node) -> bool:
    """Whether every element is 1 whatever the input is: a softmax along an axis of one element, perhaps moved."""
    while op_name(node) in MOVES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    if op_name(node) not in {"softmax", "_softmax"}:
        return False
    return static_shape(node.meta["val"])[integer(node, 1, "dim")] == 1


def _takes_neutral(graph: Graph, node: fx.Node) -> bool:
    """Whether a constant of a sum, difference, product or quotient leaves the other operand what it is."""
    name, neutral = op_name(node), NEUTRAL.get(op_name(node))
    if neutral is None or len(node.args) != 2 or node.kwargs:
        return False
    orders = (node.args, node.args[::-1]) if name in COMMUTATIVE else (node.args,)
    return any(
        isinstance(kept, fx.Node)
        and isinstance(kept.meta.get("val"), torch.Tensor)
        and kept.meta["val"].shape == node.meta["val"].shape
        and _is_all(graph, constant, neutral)
        for kept, constant in orders
    )


def _is_product_with_one(node: fx.Node) -> bool:
    """Whether a product has a factor of 1 and another of its own shape."""
    if op_name(node) != "mul" or len(node.args) != 2:
        return False
    factors = [item for item in node.args if isinstance(item, fx.Node) and "val" in item.meta]
    return len(factors) == 2 and any(
        _is_one(one) and other.meta["val"].shape == node.meta["val"].shape for one, other in (factors, factors[::-1])
    )


def _takes_single_elements(node: fx.Node) -> bool:
    """Whether a reduction or a pool has one element to each result: of a map of one pixel, or along an axis of one."""
    name, sources = op_name(node), node.all_input_nodes
    if not sources or not all(isinstance(at.meta.get("val"), torch.Tensor) for at in (sources[0], node)):
        return False
    before, after = static_shape(sources[0].meta["val"]), static_shape(node.meta["val"])
    if name in {"mean", "sum", "amax", "amin"}:
        return None not in before and math.prod(before) == math.prod(after)  # type: ignore[arg-type]
    if name in {"adaptive_avg_pool2d", "adaptive_max_pool2d"}:
        return before == after
    if name in {"avg_pool2d", "max_pool2d"}:
        return before == after and set(pair(argument(node, 1, "kernel_size"))) == {1}
    return False


def _moves_nothing(node: fx.Node) -> bool:
    """Whether a padding has no width, or turning and reversing find axes of one element, or whole turns."""
    name = op_name(node)
    if name in PADS:
        widths = _known(argument(node, 1, "pad" if name in ("pad", "constant_pad_nd") else "padding"))
        return widths is not None and not any(widths)
    if name not in ("roll", "flip") or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    shape = static_shape(node.meta["val"])
    if name == "flip":
        return all(shape[axis] == 1 for axis in _known(argument(node, 1, "dims")) or (0,))
    shifts, axes = _known(argument(node, 1, "shifts")), _known(argument(node, 2, "dims", ()))
    if not shifts or not axes or len(shifts) != len(axes):  # without axes it turns the flattened tensor
        return False
    turned = [(shift, shape[axis]) for shift, axis in zip(shifts, axes, strict=True)]
    return all(size is not None and shift % size == 0 for shift, size in turned)


def _known(value: Argument) -> tuple[int, ...] | None:
    """The numbers that an argument lists; None where one follows from a dynamic size."""
    try:
        return integers(value)
    except TypeError:
        return None


def _is_widening(node: fx.Node) -> bool:
    """Whether a cast keeps every value, but for the rounding of float32: files compute in nothing finer anyway."""
    if op_name(node) not in CASTS or not node.all_input_nodes:
        return False
    read, made = (item.meta.get("val") for item in (node.all_input_nodes[0], node))
    if not isinstance(read, torch.Tensor) or not isinstance(made, torch.Tensor):
        return False
    before, after = read.dtype, made.dtype
    if after in (torch.float32, torch.float64):
        return True
    exact = before is torch.bool or not (before.is_floating_point or after.is_floating_point)
    return exact and after.itemsize >= before.itemsize and after.is_signed


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
