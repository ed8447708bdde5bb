"""Write each operator of a captured graph in the one form that every pass, converter and judge knows.

    values, _ = max(x, dim)                ->  amax(x, dim)            as do min, aminmax, max pools with indices
    unbind(x)[i]                           ->  select(x, i)
    adaptive_max_pool2d(x, 1)[0]           ->  amax(x, (-2, -1)), or a max pool whose window divides the map
    median(x, dim)[0], kthvalue            ->  the last of the k smallest values
    var_mean, std_mean                     ->  var and mean, std and mean
    convolution with padding 'same'        ->  the same convolution with numbers
    instance norm by running statistics    ->  batch norm, which folds
    pool with ceil_mode that drops a row   ->  the pool without ceil_mode
    adaptive average pools, dynamic size   ->  means over the axes that vanish; equal parts where the size allows them

All of it is exact. An operator that gives several results keeps them only where more than one is used.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import fx

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import argument, integer, integers, pair, same_size, sizes, source
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.passes.editor import Editor
from coordatt_deploy.user_code import source_line


VARIANCES: Final = (aten.var_mean.dim, aten.var_mean.correction)
DEVIATIONS: Final = (aten.std_mean.dim, aten.std_mean.correction)
BY_CORRECTION: Final = frozenset({aten.var_mean.correction, aten.std_mean.correction})


def simplify(module: fx.GraphModule) -> None:
    """Write the graph's operators in their simplest form, in place; every value has its shape (``meta["val"]``)."""
    editor = Editor(module)
    for node in list(module.graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            rule(editor, node)
    module.graph.eliminate_dead_code()


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


def _reshape(editor: Editor, node: fx.Node) -> None:
    node.target = aten.reshape.default


def _extremes(editor: Editor, node: fx.Node) -> None:
    """The value alone of a maximum or minimum over one axis."""
    elements = _elements(node)
    if set(elements) == {0}:
        reduce = aten.amax.default if node.target is aten.max.dim else aten.amin.default
        value = editor.call(node, reduce, source(node), [integer(node, 1, "dim")], argument(node, 2, "keepdim", False))
        _replace_elements(editor, elements[0], value)


def _both_extremes(editor: Editor, node: fx.Node) -> None:
    axis, keep = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    axes = [] if axis is None else [axis]
    for index, picked in _elements(node).items():
        reduce = (aten.amin.default, aten.amax.default)[index]
        _replace_elements(editor, picked, editor.call(node, reduce, source(node), axes, keep))


def _max_pool(editor: Editor, node: fx.Node) -> None:
    elements = _elements(node)
    if set(elements) == {0}:
        pooled = editor.call(node, aten.max_pool2d.default, *node.args)
        _replace_elements(editor, elements[0], pooled)
        _ceil(editor, pooled)


def _adaptive_max_pool(editor: Editor, node: fx.Node) -> None:
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


def _unbind(editor: Editor, node: fx.Node) -> None:
    axis = integer(node, 1, "dim", 0)
    for index, picked in _elements(node).items():
        _replace_elements(editor, picked, editor.call(node, aten.select.int, source(node), axis, index))


def _spread_and_mean(editor: Editor, node: fx.Node) -> None:
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


def _order_statistic(editor: Editor, node: fx.Node) -> None:
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


_CONVOLUTIONS: Final = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def _worded_padding(editor: Editor, node: fx.Node) -> None:
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


def _instance_norm(editor: Editor, node: fx.Node) -> None:
    """An instance norm that uses its running statistics is a batch norm."""
    value, gamma, beta, mean, variance, uses_input, momentum, epsilon, cudnn = node.args
    if uses_input is False:
        norm = editor.call(node, aten.batch_norm.default, value, gamma, beta, mean, variance, False, momentum, epsilon,
                           cudnn)  # fmt: skip
        editor.replace(node, norm)


def _ceil(editor: Editor, node: fx.Node) -> None:
    """Leave ``ceil_mode`` out along the axes where no window is added by it.

    torch drops a last window that would begin in the padding; converters and ONNX's shape inference keep it. Where one
    axis has a window more and the other has not, each axis is pooled by itself, which is the same.
    """
    at = 5 if node.target is aten.max_pool2d.default else 4
    value, result = source(node), sizes(node)
    window = pair(argument(node, 1, "kernel_size"))
    stride = pair(argument(node, 2, "stride") or list(window))
    padding = pair(argument(node, 3, "padding", 0))
    dilation = pair(argument(node, 4, "dilation", 1)) if at == 5 else (1, 1)
    have = sizes(value)
    numbers = [*window, *stride, *padding, *dilation, *have[-2:], *result[-2:]]
    if argument(node, at, "ceil_mode", False) is not True or not all(isinstance(item, int) for item in numbers):
        return
    added = []
    for index in range(2):
        size, step, first, pad, apart = (int(item[index]) for item in (have[-2:], stride, window, padding, dilation))  # type: ignore[arg-type, call-overload]
        added.append(result[-2:][index] != (size + 2 * pad - apart * (first - 1) - 1) // step + 1)
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


def _adaptive_average(editor: Editor, node: fx.Node) -> None:
    """A dynamic size: converters would take the windows of the captured size for those of every size."""
    value = source(node)
    have, want = sizes(value), sizes(node)[-2:]
    if all(isinstance(size, int) for size in have):
        return
    gone = [axis - 2 for axis in (0, 1) if same_size(want[axis], 1) and not same_size(have[axis - 2], 1)]
    result = editor.call(node, aten.mean.dim, value, gone, True) if gone else value
    for axis in (-2, -1):
        if axis not in gone and not same_size(want[axis], have[axis]):
            result = _equal_parts(editor, node, result, axis, want[axis])
    editor.replace(node, result)


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
    at = len(sizes(value)) + axis
    length = editor.call(node, operator.floordiv, editor.call(node, aten.sym_size.int, value, at), count)
    shape = [editor.call(node, aten.sym_size.int, value, index) if isinstance(size, torch.SymInt) else size
             for index, size in enumerate(sizes(value))]  # fmt: skip
    parts = editor.call(node, aten.reshape.default, value, [*shape[:at], count, length, *shape[at + 1 :]])
    return editor.call(node, aten.mean.dim, parts, [at + 1])


Rule = Callable[[Editor, fx.Node], None]

RULES: Final[Mapping[object, Rule]] = {
    aten._unsafe_view.default: _reshape,
    aten.max.dim: _extremes,
    aten.min.dim: _extremes,
    aten.aminmax.default: _both_extremes,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.adaptive_max_pool1d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.unbind.int: _unbind,
    **dict.fromkeys((*VARIANCES, *DEVIATIONS), _spread_and_mean),
    aten.median.dim: _order_statistic,
    aten.kthvalue.default: _order_statistic,
    aten.conv1d.padding: _worded_padding,
    aten.conv2d.padding: _worded_padding,
    aten.conv3d.padding: _worded_padding,
    aten.instance_norm.default: _instance_norm,
    aten.max_pool2d.default: _ceil,
    aten.avg_pool2d.default: _ceil,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
}
