"""Convolutions and pools with their windows in plain numbers: padding in words, ``ceil_mode``, adaptive sizes."""

import operator
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import fx
from torch.fx.node import Target

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import argument, integers, pair, same_size, sizes, source
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.user_code import source_line

_CONVOLUTIONS: Final[Mapping[object, Target]] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def worded_padding(editor: Editor, node: fx.Node) -> None:
    """Padding 'same' puts the odd element at the end; 'valid' is none."""
    kernel = node.args[1]
    assert isinstance(kernel, fx.Node)  # noqa: S101 - the schema takes a tensor
    spans = [int(size) - 1 for size in sizes(kernel)[2:]]
    ones = [1] * len(spans)
    stride, dilation = (argument(node, at, name, ones) for at, name in ((3, "stride"), (5, "dilation")))
    totals = [span * step for span, step in zip(spans, integers(dilation), strict=True)]
    if argument(node, 4, "padding", "valid") != "same":
        totals = [0] * len(spans)
    value = source(node)
    if any(total % 2 for total in totals):
        widths = [width for total in reversed(totals) for width in (0, total % 2)]
        value = editor.call(node, aten.constant_pad_nd.default, value, widths, 0.0)
    node.args = (value, kernel, argument(node, 2, "bias"), stride, [total // 2 for total in totals], dilation,
                 argument(node, 6, "groups", 1))  # fmt: skip
    node.kwargs = {}
    node.target = _CONVOLUTIONS[node.target]


def name_pool(editor: Editor, node: fx.Node) -> None:
    """Name the stride, which is the window where it is left out: coremltools asks for it."""
    if not argument(node, 2, "stride"):
        window = list(pair(argument(node, 1, "kernel_size")))
        node.args = (source(node), window, window, *node.args[3:])
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("kernel_size", "stride")}
    _ceil(editor, node)


def _ceil(editor: Editor, node: fx.Node) -> None:
    """Leave ``ceil_mode`` out along the axes where no window is added by it.

    torch drops a last window that would begin in the padding; converters and ONNX's shape inference keep it. Where one
    axis has a window more and the other has not, each axis is pooled by itself, which is the same. Along an axis of
    dynamic size a window may be added, unless it is one of a single element: every one of those that begins inside ends
    there.
    """
    at = 5 if node.target is aten.max_pool2d.default else 4
    value, result = source(node), sizes(node)
    window = pair(argument(node, 1, "kernel_size"))
    stride = pair(argument(node, 2, "stride"))
    padding = pair(argument(node, 3, "padding", 0))
    dilation = pair(argument(node, 4, "dilation", 1)) if at == 5 else (1, 1)
    have = sizes(value)
    numbers = [*window, *stride, *padding, *dilation]
    if argument(node, at, "ceil_mode", False) is not True or not all(isinstance(item, int) for item in numbers):
        return
    added = []
    for index in range(2):
        step, first, pad, apart = (int(item[index]) for item in (stride, window, padding, dilation))  # type: ignore[arg-type]
        size, got = have[-2:][index], result[-2:][index]
        if isinstance(size, int) and isinstance(got, int):
            added.append(got != (size + 2 * pad - apart * (first - 1) - 1) // step + 1)
        else:
            added.append(first > 1 or pad > 0)
    if all(added) or (at == 4 and argument(node, 6, "divisor_override") is not None and any(added)):
        return
    rest = list(node.args[6:]) if at == 5 else list(node.args[5:])
    for index in (0, 1) if any(added) else ():
        sides = [
            [item[index] if index == place else neutral for place in (0, 1)]
            for item, neutral in ((window, 1), (stride, 1), (padding, 0), (dilation, 1))
        ]
        value = editor.call(node, node.target, value, *sides[: at - 1], added[index], *rest)
    if any(added):
        editor.replace(node, value)
        return
    arguments = [list(item) for item in (window, stride, padding, dilation)][: at - 1]
    node.args = (value, *arguments, False, *rest)


def adaptive_average(editor: Editor, node: fx.Node) -> None:
    """A dynamic size: converters would take the windows of the captured size for those of every size.

    coremltools asks for a known batch as well, but where one value is left: with a dynamic one, windows that are alike
    are those of a plain pool.
    """
    value = source(node)
    have, want = sizes(value), sizes(node)[-2:]
    if all(isinstance(size, int) for size in have[-2:]):
        if not all(isinstance(size, int) for size in have) and any(size != 1 for size in want):
            _plain_average(editor, node, have[-2:], want)
        return
    gone = [axis - 2 for axis in (0, 1) if same_size(want[axis], 1) and not same_size(have[axis - 2], 1)]
    result = editor.call(node, aten.mean.dim, value, gone, True) if gone else value
    for axis in (-2, -1):
        if axis not in gone and not same_size(want[axis], have[axis]):
            result = _equal_parts(editor, node, result, axis, want[axis])
    editor.replace(node, result)


def _plain_average(
    editor: Editor, node: fx.Node, have: Sequence[int | torch.SymInt], want: Sequence[int | torch.SymInt]
) -> None:
    """The pool as one with a window, which every static size is a multiple of; left alone where windows differ."""
    pairs = [(int(size), int(count)) for size, count in zip(have, want, strict=True)]
    if all(size % count == 0 for size, count in pairs):
        window = [size // count for size, count in pairs]
        editor.replace(node, editor.call(node, aten.avg_pool2d.default, source(node), window, window))


def _equal_parts(editor: Editor, node: fx.Node, value: fx.Node, axis: int, count: int | torch.SymInt) -> fx.Node:
    """The mean of each of *count* parts of an axis whose size is a multiple of it at every input size."""
    size = sizes(value)[axis]
    divides = isinstance(size, int) and isinstance(count, int) and size % count == 0
    if isinstance(size, torch.SymInt) and isinstance(count, int):
        divides = bool((size.node.expr % count).simplify() == 0)
    if not divides:
        at = source_line(node.meta.get("stack_trace", ""))
        raise UsageError(
            f"adaptive_avg_pool2d{f' at {at}' if at else ''} pools a dynamic size to {count}, whose windows differ"
            f" from size to size; let the size be a multiple: --dynamic-size MIN:MAX:STEP with a STEP that leaves"
            f" multiples of {count} there, or leave --dynamic-size out"
        )
    place = len(sizes(value)) + axis
    length = editor.call(node, operator.floordiv, editor.call(node, aten.sym_size.int, value, place), count)
    shape = [editor.call(node, aten.sym_size.int, value, index) if isinstance(size, torch.SymInt) else size
             for index, size in enumerate(sizes(value))]  # fmt: skip
    parts = editor.call(node, aten.reshape.default, value, [*shape[:place], count, length, *shape[place + 1 :]])
    return editor.call(node, aten.mean.dim, parts, [place + 1])
