"""Read the ATen calls of a captured graph: operator, arguments and sizes, whichever way they were written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from coordatt_deploy.graph.graph import operator_name


def kind(node: Any) -> str:
    """Operator name without the underscore of an in-place variant; empty for what is no call."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    return operator_name(node).removesuffix("_")


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def source(node: fx.Node) -> fx.Node:
    """Return the first argument of a call that takes a tensor there."""
    first: Any = node.args[0]
    assert isinstance(first, fx.Node)  # noqa: S101 - the callers know the operator
    return first


def is_number(value: Any) -> bool:
    """Whether *value* is a plain number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pair(value: Any) -> tuple[Any, Any]:
    """Read a kernel size, stride or padding: one number for both axes, or one for each."""
    if not isinstance(value, Sequence):
        return value, value
    if not value:
        return 0, 0
    return (value[0], value[1]) if len(value) > 1 else (value[0], value[0])


def sizes(node: fx.Node) -> tuple[Any, ...]:
    """Return the shape of a call's tensor; a dynamic size is a symbol."""
    value: torch.Tensor = node.meta["val"]
    return tuple(value.shape)


def same_size(first: Any, second: Any) -> bool:
    """Whether two sizes are equal at every input size; each is a number, a symbol, or a node that computes one."""
    return bool(_expression(first) == _expression(second))


def _expression(size: Any) -> Any:
    value = size.meta["val"] if isinstance(size, fx.Node) else size
    return value.node.expr if isinstance(value, torch.SymInt) else value


def product(user: fx.Node, node: fx.Node) -> tuple[float, fx.Node | None] | None:
    """Read *user* as ``node * number`` (the number, None) or ``node * other`` (1, other); None if it is neither."""
    if kind(user) not in {"mul", "div"} or user.kwargs or len(user.args) != 2:
        return None
    left, right = user.args
    if kind(user) == "div":
        return (1 / float(right), None) if left is node and is_number(right) and right else None  # type: ignore[arg-type]
    other = right if left is node else left
    if is_number(other):
        return float(other), None  # type: ignore[arg-type]
    return (1.0, other) if isinstance(other, fx.Node) and other is not node else None
