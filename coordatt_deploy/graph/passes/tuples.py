"""Operators that give several results, of which one is used: written as the operator that gives that one alone."""

import operator
from typing import Final

from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, integers, sizes, source
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.passes.windows import name_pool

VARIANCES: Final = (aten.var_mean.dim, aten.var_mean.correction)
DEVIATIONS: Final = (aten.std_mean.dim, aten.std_mean.correction)
BY_CORRECTION: Final = frozenset({aten.var_mean.correction, aten.std_mean.correction})


def _elements(node: fx.Node) -> dict[int, list[fx.Node]]:
    """The calls that pick each element of a tuple and are read by something."""
    found: dict[int, list[fx.Node]] = {}
    for user in node.users:
        if user.target is operator.getitem and user.users:
            index = user.args[1]
            assert isinstance(index, int)  # noqa: S101 - tuples are picked from by number
            found.setdefault(index, []).append(user)
    return found


def _replace_elements(editor: Editor, picked: list[fx.Node], new: fx.Node) -> None:
    for node in picked:
        editor.replace(node, new)


def one_extreme(editor: Editor, node: fx.Node) -> None:
    """The value alone of a maximum or minimum over one axis."""
    elements = _elements(node)
    if set(elements) == {0}:
        reduce = aten.amax.default if node.target is aten.max.dim else aten.amin.default
        value = editor.call(node, reduce, source(node), [integer(node, 1, "dim")], argument(node, 2, "keepdim", False))
        _replace_elements(editor, elements[0], value)


def both_extremes(editor: Editor, node: fx.Node) -> None:
    """The minimum and the maximum as two operators."""
    axis, keep = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    axes = [] if axis is None else [axis]
    for index, picked in _elements(node).items():
        reduce = (aten.amin.default, aten.amax.default)[index]
        _replace_elements(editor, picked, editor.call(node, reduce, source(node), axes, keep))


def max_pool_with_indices(editor: Editor, node: fx.Node) -> None:
    """A max pool whose positions nobody asks for."""
    elements = _elements(node)
    if set(elements) == {0}:
        pooled = editor.call(node, aten.max_pool2d.default, *node.args)
        _replace_elements(editor, elements[0], pooled)
        name_pool(editor, pooled)


def adaptive_max_pool(editor: Editor, node: fx.Node) -> None:
    """An adaptive maximum whose windows are all alike, and whose positions nobody asks for."""
    elements, value = _elements(node), source(node)
    wanted = integers(argument(node, 1, "output_size"))
    have = sizes(value)[-len(wanted) :]
    if set(elements) != {0}:
        return
    if all(size == 1 for size in wanted):
        pooled = editor.call(node, aten.amax.default, value, list(range(-len(wanted), 0)), True)
    elif len(wanted) == 2 and all(isinstance(size, int) and size % want == 0
                                  for size, want in zip(have, wanted, strict=True)):  # fmt: skip
        window = [int(size) // want for size, want in zip(have, wanted, strict=True)]
        pooled = editor.call(node, aten.max_pool2d.default, value, window, window)
    else:
        return
    _replace_elements(editor, elements[0], pooled)


def unbind(editor: Editor, node: fx.Node) -> None:
    """Each slice that is read, by itself."""
    axis = integer(node, 1, "dim", 0)
    for index, picked in _elements(node).items():
        _replace_elements(editor, picked, editor.call(node, aten.select.int, source(node), axis, index))


def spread_and_mean(editor: Editor, node: fx.Node) -> None:
    """Variance (or deviation) and mean as two operators; what nobody reads is left out."""
    spread = aten.var.correction if node.target in VARIANCES else aten.std.correction
    axes, value = argument(node, 1, "dim"), source(node)
    if node.target in BY_CORRECTION:
        correction, keep = node.kwargs.get("correction"), node.kwargs.get("keepdim", False)
    else:
        correction, keep = int(bool(argument(node, 2, "unbiased", True))), argument(node, 3, "keepdim", False)
    for index, picked in _elements(node).items():
        if index == 0:
            made = editor.call(node, spread, value, axes, correction=correction, keepdim=keep)
        else:
            made = editor.call(node, aten.mean.dim, value, axes or list(range(len(sizes(value)))), keep)
        _replace_elements(editor, picked, made)


def order_statistic(editor: Editor, node: fx.Node) -> None:
    """The k-th smallest value along an axis: the last of the k greatest of -x, negated."""
    elements, value = _elements(node), source(node)
    at = 1 if node.target is aten.median.dim else 2
    axis = integer(node, at, "dim", -1)
    size, keep = sizes(value)[axis], argument(node, at + 1, "keepdim", False)
    if set(elements) != {0} or not isinstance(size, int):
        return
    count = (size - 1) // 2 + 1 if at == 1 else integer(node, 1, "k")
    mirrored = editor.call(node, aten.neg.default, value)
    greatest = editor.call(node, operator.getitem, editor.call(node, aten.topk.default, mirrored, count, axis), 0)
    if keep:
        last = editor.call(node, aten.slice.Tensor, greatest, axis, count - 1, count)
    else:
        last = editor.call(node, aten.select.int, greatest, axis, count - 1)
    _replace_elements(editor, elements[0], editor.call(node, aten.neg.default, last))
