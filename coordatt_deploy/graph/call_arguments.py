"""Read the ATen calls of a captured graph: arguments and sizes, whichever way they were written."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

import torch
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.graph.graph import op_name

_Bound = tuple[int, str, float | None]
# Position, name and default of the lower and of the upper bound.
_CLAMP_ARGUMENTS: Final[Mapping[str, tuple[_Bound | None, _Bound | None]]] = {
    "hardtanh": ((1, "min_val", -1.0), (2, "max_val", 1.0)),
    "clamp": ((1, "min", None), (2, "max", None)),
    "clamp_min": ((1, "min", None), None),
    "clamp_max": (None, (1, "max", None)),
}


def argument(node: fx.Node, index: int, name: str, default: Argument = None) -> Argument:
    """Return an argument given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def integer(node: fx.Node, index: int, name: str, default: int | None = None) -> int:
    """Return an argument that is an integer, such as an axis or a number of groups.

    Raises:
        TypeError: It is anything else.
    """
    value = argument(node, index, name, default)
    if not isinstance(value, int):
        raise TypeError(f"{node.name}: {name} is {value!r}, which is not an integer")
    return value


def integers(value: Argument) -> tuple[int, ...]:
    """Return the axes that an argument lists; a single one may stand without a list.

    Raises:
        TypeError: There is something other than integers.
    """
    listed = value if isinstance(value, Sequence) else (value,)
    found = tuple(item for item in listed if isinstance(item, int))
    if len(found) != len(listed):
        raise TypeError(f"{value!r} does not list integers alone")
    return found


def input_node(node: fx.Node, index: int, name: str) -> fx.Node | None:
    """Return an argument that another node computes; None for a constant, or where it is left out."""
    value = argument(node, index, name)
    return value if isinstance(value, fx.Node) else None


def source(node: fx.Node) -> fx.Node:
    """Return the first argument of a call that takes a tensor there."""
    first = node.args[0]
    assert isinstance(first, fx.Node)  # noqa: S101 - the callers know the operator
    return first


def listed_nodes(value: Argument) -> tuple[fx.Node, ...]:
    """Return the nodes that an argument lists, such as the tensors of a concatenation.

    Raises:
        TypeError: It is not a list of nodes.
    """
    listed = value if isinstance(value, Sequence) else ()
    found = tuple(item for item in listed if isinstance(item, fx.Node))
    if not isinstance(value, Sequence) or len(found) != len(listed):
        raise TypeError(f"{value!r} does not list nodes alone")
    return found


def outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the nodes that a captured graph returns, in order."""
    (node,) = graph.find_nodes(op="output")
    return listed_nodes(node.args[0])


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether *value* is a plain number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pair(value: Argument) -> tuple[Argument, Argument]:
    """Read a kernel size, stride or padding: one number for both axes, or one for each."""
    if not isinstance(value, Sequence):
        return value, value
    if not value:
        return 0, 0
    return (value[0], value[1]) if len(value) > 1 else (value[0], value[0])


def static_pair(value: Argument) -> tuple[int, int]:
    """Read a kernel size, stride or padding as ``pair`` does, where both sizes are known.

    Raises:
        TypeError: A size is not an integer.
    """
    first, second = integers(pair(value))
    return first, second


def sizes(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """Return the shape of a call's tensor; a dynamic size is a symbol."""
    value: torch.Tensor = node.meta["val"]
    return tuple(value.shape)


def same_size(first: object, second: object) -> bool:
    """Whether two sizes are equal at every input size; each is a number, a symbol, or a node that computes one."""
    return bool(_expression(first) == _expression(second))


def _expression(size: object) -> object:
    value = size.meta["val"] if isinstance(size, fx.Node) else size
    return value.node.expr if isinstance(value, torch.SymInt) else value


def product(user: fx.Node, node: fx.Node) -> tuple[float, fx.Node | None] | None:
    """Read *user* as ``node * number`` (the number, None) or ``node * other`` (1, other); None if it is neither."""
    if op_name(user) not in {"mul", "div"} or user.kwargs or len(user.args) != 2:
        return None
    left, right = user.args
    if op_name(user) == "div":
        return (1 / float(right), None) if left is node and is_number(right) and right else None
    other = right if left is node else left
    if is_number(other):
        return float(other), None
    return (1.0, other) if isinstance(other, fx.Node) and other is not node else None


def clamp_bounds(node: object) -> tuple[float | None, float | None]:
    """Return the numbers that *node* clamps its input between; None where it is not bounded by a number."""
    name = op_name(node)
    if not isinstance(node, fx.Node) or name not in _CLAMP_ARGUMENTS:
        return {"relu6": (0.0, 6.0), "relu": (0.0, None)}.get(name, (None, None))
    low, high = (None if item is None else argument(node, *item) for item in _CLAMP_ARGUMENTS[name])
    return (float(low) if is_number(low) else None), (float(high) if is_number(high) else None)
