"""Variants of an operator that converters treat differently, read off a call of it.

The table of operators (``operator_support``) has a row per operator and variant. A variant is a set of traits of the
call: what holds for a call with some traits holds for one with more.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integers
from coordatt_deploy.graph.graph import aten, op_name, static_shape


def variant(node: fx.Node) -> frozenset[str]:
    """Return the traits of a call that tell it from the usual form of its operator."""
    found = {name for name, holds in _OF_OPERATOR.get(op_name(node), {}).items() if holds(node)}
    value = node.args[0] if node.args else None
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    if isinstance(tensor, torch.Tensor):
        if tensor.ndim > 4:
            found.add("five axes" if tensor.ndim == 5 else "six axes")
        if tensor.dtype in {torch.float64, torch.complex64, torch.complex128}:
            found.add("wide type")
    return frozenset(found)


def _not_all(index: int, name: str, usual: int) -> Callable[[fx.Node], bool]:
    """Whether an argument of sizes has another than the usual one."""

    def holds(node: fx.Node) -> bool:
        value = argument(node, index, name, usual)
        return any(item != usual for item in integers(value)) if value else False

    return holds


def _is(index: int, name: str, wanted: object) -> Callable[[fx.Node], bool]:
    return lambda node: argument(node, index, name) == wanted


def _scaled(node: fx.Node) -> bool:
    """Whether a sum multiplies its second term."""
    return bool(argument(node, 2, "alpha", 1) != 1)


def _fractional(node: fx.Node) -> bool:
    """Whether a resize is to a size that is no multiple of the old one."""
    value = node.args[0]
    if not isinstance(value, fx.Node):
        return False
    before, after = static_shape(value.meta["val"])[2:], static_shape(node.meta["val"])[2:]
    return any(old is None or new is None or new % old != 0 for old, new in zip(before, after, strict=True))


_POOL: Final[Mapping[str, Callable[[fx.Node], bool]]] = {
    "dilated": _not_all(4, "dilation", 1),
    "ceil_mode": _is(5, "ceil_mode", True),
}
_OF_OPERATOR: Final[Mapping[str, Mapping[str, Callable[[fx.Node], bool]]]] = {
    "add": {"alpha": _scaled},
    "sub": {"alpha": _scaled},
    "max_pool1d": _POOL,
    "max_pool2d": _POOL,
    "max_pool3d": _POOL,
    "avg_pool2d": {
        "ceil_mode": _is(4, "ceil_mode", True),
        "divisor_override": lambda node: argument(node, 6, "divisor_override") is not None,
    },
    "conv_transpose2d": {"dilated": _not_all(7, "dilation", 1), "grouped": _not_all(6, "groups", 1)},
    "upsample_nearest2d": {"no multiple": _fractional},
    "upsample_bilinear2d": {"no multiple": _fractional, "align_corners": _is(2, "align_corners", True)},
    "pad": {mode: _is(2, "mode", mode) for mode in ("reflect", "replicate", "circular")},
    "gelu": {"tanh": _is(1, "approximate", "tanh")},
    "pow": {"of a tensor": lambda node: isinstance(argument(node, 1, "exponent"), fx.Node)},
    "max": {"along an axis": lambda node: node.target is aten.max.dim},
    "min": {"along an axis": lambda node: node.target is aten.min.dim},
}
