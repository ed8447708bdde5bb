"""Write each operator of a captured graph in the one form that every pass, converter and judge knows.

    values, _ = max(x, dim)                ->  amax(x, dim)            as do min, aminmax, max pools with indices
    unbind(x)[i]                           ->  select(x, i)
    adaptive_max_pool2d(x, 1)[0]           ->  amax(x, (-2, -1)), or a max pool whose window divides the map
    median(x, dim)[0], kthvalue            ->  the last of the k smallest values
    var_mean, std_mean                     ->  var and mean, std and mean
    convolution with padding 'same'        ->  the same convolution with numbers
    instance norm by running statistics    ->  batch norm, which folds
    pool with ceil_mode that drops a row   ->  the pool without ceil_mode
    sum(x, dim) / size                     ->  mean(x, dim)
    mean of permuted axes                  ->  the permuted mean
    y * sigmoid(y), y * tanh(softplus(y))  ->  silu(y), mish(y)
    y[-n:]                                 ->  y[size - n:]
    x.reshape_as(y)                        ->  reshape(x, sizes of y), where they are known
    adaptive average pools, dynamic size   ->  means over the axes that vanish; equal parts where the size allows them
    adaptive average pools, dynamic batch  ->  a pool with a window, where all windows are alike

All of it is exact. An operator that gives several results keeps them only where more than one is used.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, integers, same_size, sizes, source
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.passes.tuples import (
    DEVIATIONS,
    VARIANCES,
    adaptive_max_pool,
    both_extremes,
    max_pool_with_indices,
    one_extreme,
    order_statistic,
    spread_and_mean,
    unbind,
)
from coordatt_deploy.graph.passes.windows import adaptive_average, name_pool, worded_padding

SMOOTH: Final = frozenset({aten.sigmoid.default, aten.tanh.default})
PERMUTATIONS: Final = frozenset({aten.permute.default, aten.transpose.int})


def simplify(module: fx.GraphModule) -> None:
    """Write the graph's operators in their simplest form, in place; every value has its shape (``meta["val"]``)."""
    editor = Editor(module)
    for node in list(module.graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            rule(editor, node)
    module.graph.eliminate_dead_code()


def _reshape(_: Editor, node: fx.Node) -> None:
    node.target = aten.reshape.default


def _reshape_as(_: Editor, node: fx.Node) -> None:
    """Read no tensor for its size alone, which would keep others from being fused."""
    wanted = node.args[1]
    known = list(sizes(wanted)) if isinstance(wanted, fx.Node) else [None]
    if all(isinstance(size, int) for size in known):
        node.target, node.args = aten.reshape.default, (source(node), known)


def _instance_norm(editor: Editor, node: fx.Node) -> None:
    """An instance norm that uses its running statistics is a batch norm."""
    value, gamma, beta, mean, variance, uses_input, momentum, epsilon, cudnn = node.args
    if uses_input is False:
        norm = editor.call(node, aten.batch_norm.default, value, gamma, beta, mean, variance, False, momentum, epsilon,
                           cudnn)  # fmt: skip
        editor.replace(node, norm)


def _quotient(editor: Editor, node: fx.Node) -> None:
    """A sum divided by the number of its terms is a mean."""
    total, count = node.args[:2]
    if not isinstance(total, fx.Node) or total.target is not aten.sum.dim_IntList or len(total.users) != 1:
        return
    axes, value = argument(total, 1, "dim"), source(total)
    if not axes or node.kwargs or total.kwargs.get("dtype") is not None:
        return
    terms = [sizes(value)[axis] for axis in integers(axes)]
    known = all(isinstance(size, int) for size in terms)
    if (known and count == math.prod(int(size) for size in terms)) or (len(terms) == 1 and same_size(count, terms[0])):
        keep = argument(total, 2, "keepdim", False)
        editor.replace(node, editor.call(node, aten.mean.dim, value, list(integers(axes)), keep))


def _mean(editor: Editor, node: fx.Node) -> None:
    """Permute what is left after a mean over axes that were permuted for it."""
    moved, axes = source(node), argument(node, 1, "dim")
    if moved.target not in PERMUTATIONS or len(moved.users) != 1 or not axes or node.kwargs.get("dtype") is not None:
        return
    if argument(node, 2, "keepdim", False) is not True:
        return
    value = source(moved)
    order = list(range(len(sizes(value))))
    if moved.target is aten.permute.default:
        order = [axis % len(order) for axis in integers(argument(moved, 1, "dims"))]
    else:
        first, second = integer(moved, 1, "dim0"), integer(moved, 2, "dim1")
        order[first], order[second] = order[second], order[first]
    pooled = editor.call(node, aten.mean.dim, value, sorted(order[axis] for axis in integers(axes)), True)
    editor.replace(node, editor.call(node, aten.permute.default, pooled, order))


def _gated_by_itself(editor: Editor, node: fx.Node) -> None:
    """Both y * sigmoid(y) and y * tanh(softplus(y)), in either order."""
    for value, gate in (node.args[:2], node.args[1::-1]):
        if not isinstance(gate, fx.Node) or gate.target not in SMOOTH or len(gate.users) != 1:
            continue
        inner = gate.args[0]
        if gate.target is aten.sigmoid.default and inner is value:
            editor.replace(node, editor.call(node, aten.silu.default, value))
            return
        of_mish = gate.target is aten.tanh.default and isinstance(inner, fx.Node) and len(inner.users) == 1
        # a softplus with other bounds has arguments
        if of_mish and inner.target is aten.softplus.default and inner.args == (value,):  # type: ignore[union-attr]
            editor.replace(node, editor.call(node, aten.mish.default, value))
            return


def _slice(_: Editor, node: fx.Node) -> None:
    """Count from the front."""
    axis, start = integer(node, 1, "dim", 0), argument(node, 2, "start")
    size, end = sizes(source(node))[axis], argument(node, 3, "end")
    if not isinstance(size, int) or not all(item is None or isinstance(item, int) for item in (start, end)):
        return
    ends = [item for item in (start, end) if isinstance(item, int)]
    if any(item < 0 for item in ends):
        first, last = (
            min(max(item + size if item < 0 else item, 0), size) if isinstance(item, int) else default
            for item, default in ((start, 0), (end, size))
        )
        node.args = (source(node), axis, first, last, argument(node, 4, "step", 1))
        node.kwargs = {}


Rule = Callable[[Editor, fx.Node], None]

RULES: Final[Mapping[object, Rule]] = {
    aten._unsafe_view.default: _reshape,
    aten.reshape_as.default: _reshape_as,
    aten.view_as.default: _reshape_as,
    aten.max.dim: one_extreme,
    aten.min.dim: one_extreme,
    aten.aminmax.default: both_extremes,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.adaptive_max_pool1d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.unbind.int: unbind,
    **dict.fromkeys((*VARIANCES, *DEVIATIONS), spread_and_mean),
    aten.median.dim: order_statistic,
    aten.kthvalue.default: order_statistic,
    aten.conv1d.padding: worded_padding,
    aten.conv2d.padding: worded_padding,
    aten.conv3d.padding: worded_padding,
    aten.instance_norm.default: _instance_norm,
    aten.max_pool2d.default: name_pool,
    aten.avg_pool2d.default: name_pool,
    aten.adaptive_avg_pool2d.default: adaptive_average,
    aten.div.Tensor: _quotient,
    aten.mean.dim: _mean,
    aten.mul.Tensor: _gated_by_itself,
    aten.slice.Tensor: _slice,
}
