"""Read what is computed from a feature map as terms of operators, whatever layout operators stand between them.

The nodes after a feature map are read in execution order. A node whose operands are read becomes a term of theirs, or
the reason why it is no part of an attention block; nothing is read beyond it. ``families`` knows which terms are which
block.
"""

import heapq
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, integers, is_number, pair, same_size, sizes
from coordatt_deploy.graph.graph import op_name, weight
from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.blocks import Reading, Role, Term
from coordatt_deploy.graph.lowering.strip_axes import (
    AVERAGES,
    CONVOLUTIONS,
    GATES,
    LAYOUT,
    POOLS,
    REDUCTIONS,
    UNARY,
    moved,
    not_pointwise,
    windowed_axes,
)

POOLED: Final = ({"W"}, {"H"}, {"H", "W"}, {"C"})
"""The axes that a pool of a block may reduce."""
CONVOLVED: Final = (Role.MIX, Role.ALONG, Role.ACROSS, Role.PLACES)
_SPREADS: Final = {"expand", "expand_as", "upsample_nearest2d", "upsample_bilinear2d"}
_SAME: Final = {"clone", "contiguous", "alias", "detach", "dropout"}


class TermReader:
    """Reads what is computed from one feature map; ``readings`` and ``reasons`` are the result."""

    def __init__(
        self,
        module: fx.GraphModule,
        position: Mapping[fx.Node, int],
        activations: Mapping[str, HardActivation],
        feature: fx.Node,
    ) -> None:
        """Read what follows *feature*, (N, C, H, W).

        Args:
            module: The graph.
            position: Of each node in execution order.
            activations: The graph's hard activations, by output node.
            feature: The node of the feature map.
        """
        self.module, self.activations, self.feature = module, activations, feature
        self.nodes = {node.name: node for node in position}
        self.inside = {name for item in activations.values() for name in item.inner}
        self.readings: dict[fx.Node, Reading] = {feature: Reading(Term(Role.FEATURE, feature.name, "NCHW"), "NCHW")}
        self.reasons: dict[fx.Node, str] = {}
        pending = [(position[user], user) for user in feature.users]
        heapq.heapify(pending)
        seen = {user for _, user in pending}
        while pending:
            node = heapq.heappop(pending)[1]
            if node.name not in self.inside:
                result = self._read(node)
                if isinstance(result, str):
                    self.reasons[node] = result
                if not isinstance(result, Reading):
                    continue
                self.readings[node] = result
            for user in node.users:
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(pending, (position[user], user))

    def _read(self, node: fx.Node) -> Reading | str | None:
        """What *node* holds; why it does not belong to a block; None where that goes without saying."""
        operator, activation = op_name(node), self.activations.get(node.name)
        if activation is not None:
            before = self.readings.get(self.nodes[activation.source])
            role = Role.GATE if activation.op_name == "hardsigmoid" else Role.ACTIVATION
            return None if before is None or before.term.role is Role.FEATURE else self._made(role, node, before)
        if operator in {"add", "mul", "div"}:
            return self._pair(node, operator)
        if operator == "cat":
            return self._joined(node)
        if operator in {"matmul", "bmm"}:
            return self._context(node)
        first = node.args[0] if node.args else None
        before = self.readings.get(first) if isinstance(first, fx.Node) else None
        if before is None or operator == "sym_size":
            return None
        assert isinstance(first, fx.Node)  # noqa: S101 - it has been read
        result = self._after(node, operator, before, first)
        return None if isinstance(result, str) and before.term.role is Role.FEATURE else result

    def _after(self, node: fx.Node, operator: str, before: Reading, first: fx.Node) -> Reading | str | None:
        """What an operator of one tensor makes of *before*, the reading of *first*."""
        unknown = f"{node.name} is no part of such a block"
        if operator in _SAME or (operator == "getitem" and node.args[1] == 0):
            return before
        if operator in LAYOUT:
            axes = moved(node, before.axes) or _merged(node, before.axes, self.feature)
            return f"{node.name} mixes the axes of what was pooled" if axes is None else replace(before, axes=axes)
        if operator == "select":
            axis = integer(node, 1, "dim") % len(before.axes)
            alone = before.axes[axis] == "1" and same_size(sizes(first)[axis], 1)
            return replace(before, axes=before.axes[:axis] + before.axes[axis + 1 :]) if alone else unknown
        if operator in REDUCTIONS | POOLS:
            return self._pooled(node, operator, before) or unknown
        if operator in CONVOLUTIONS:
            return self._convolved(node, before, first)
        if operator in _SPREADS:
            kept = zip(before.axes, sizes(first), sizes(node), strict=len(sizes(first)) == len(sizes(node)))
            spreads = all(letter == "1" or same_size(old, new) for letter, old, new in kept)
            return before if spreads and before.term.role is not Role.FEATURE else unknown
        if before.term.role is Role.FEATURE:
            return None
        if operator == "softmax":
            at = before.axes[integer(node, 1, "dim") % len(before.axes)]
            alone = at == "S" and set(before.axes) <= {"N", "S", "1"} and before.term.role is Role.MASK
            return self._made(Role.WEIGHTS, node, before) if alone else unknown
        if operator in {"batch_norm", "group_norm", "layer_norm"}:
            return self._normalised(node, operator, before) or unknown
        if operator in GATES:
            return self._made(Role.GATE, node, before)
        if operator in UNARY and len(node.all_input_nodes) == 1:
            return self._made(Role.ACTIVATION, node, before)
        return unknown

    def _made(self, role: Role, node: fx.Node, *before: Reading, axes: str | None = None) -> Reading:
        lies = before[0].axes if axes is None else axes
        return Reading(Term(role, node.name, lies, tuple(item.term for item in before)), lies)

    def _pooled(self, node: fx.Node, operator: str, before: Reading) -> Reading | None:
        """A pool of the whole feature map over axes that a block pools over."""
        value = self.nodes[node.all_input_nodes[0].name].meta["val"]
        if (
            before.term.role is not Role.FEATURE
            or not isinstance(value, torch.Tensor)
            or value.ndim != len(before.axes)
        ):
            return None
        if operator in POOLS:
            over = windowed_axes(node, value) if value.ndim == 4 else None
        else:
            dims = argument(node, 1, "dim")
            fits = dims is not None and not isinstance(dims, fx.Node) and node.kwargs.get("dtype") is None
            over = tuple(axis % value.ndim for axis in integers(dims)) if fits else None
        letters = {before.axes[axis] for axis in over or ()}
        if letters not in POOLED and letters != {"S"}:
            return None
        keeps = operator in POOLS or argument(node, 2, "keepdim", False)
        axes = "".join("1" if letter in letters else letter for letter in before.axes if keeps or letter not in letters)
        return self._made(Role.MEAN if operator in AVERAGES else Role.GREATEST, node, before, axes=axes)

    def _convolved(self, node: fx.Node, before: Reading, first: fx.Node) -> Reading | str | None:
        """A convolution or linear layer of what was pooled; of the feature map only the one that weights places."""
        axes, plain = before.axes, not_pointwise(self.module, node, before.axes)
        kernel = weight(self.module, argument(node, 1, "weight"))
        if before.term.role is Role.FEATURE:
            masks = plain is None and axes == "NCHW" and kernel is not None and kernel.shape[0] == 1
            return self._made(Role.MASK, node, before, axes="N1HW") if masks else None
        if plain is None:
            return self._made(Role.MIX, node, before)
        copied = any(letter == "1" and not same_size(size, 1) for letter, size in zip(axes, sizes(first), strict=True))
        if kernel is None or copied or op_name(node) == "linear":
            return plain
        if not _keeps_size(self.module, node, kernel):
            return plain if axes[1] == "C" else f"{node.name} does not give one result for each position"
        wide = {letter for letter, size in zip(axes[2:], kernel.shape[2:], strict=True) if size > 1}
        if axes[1] == "C" and len(wide) == 1 and wide <= {"H", "W"}:
            return self._made(Role.ALONG, node, before)
        if axes[1] == "1" and "C" in axes[2:] and set(axes) == {"N", "1", "C"}:
            return self._made(Role.ACROSS, node, before)
        if axes[1] in "12" and len(axes) == 4 and "1" not in axes[2:] and kernel.shape[0] == 1:
            return self._made(Role.PLACES, node, before, axes=f"{axes[0]}1{axes[2:]}")
        return plain

    def _normalised(self, node: fx.Node, operator: str, before: Reading) -> Reading | None:
        if operator == "batch_norm":  # it folds into the convolution before it
            return before if before.term.role in CONVOLVED else None
        if operator == "layer_norm":
            over = before.axes[len(before.axes) - len(integers(argument(node, 1, "normalized_shape"))) :]
            return self._made(Role.NORM, node, before) if "C" in over and set(over) <= {"C", "1"} else None
        return self._made(Role.NORM, node, before) if before.axes[1] == "C" else None

    def _pair(self, node: fx.Node, operator: str) -> Reading | str | None:
        """A sum or product of two tensors, or a product with a number."""
        operands = node.args[:2]
        known = [self.readings.get(item) for item in operands if isinstance(item, fx.Node)]
        first = next((item for item in known if item is not None), None)
        if first is None:
            return None
        if len(known) == 1:
            scales = is_number(operands[1]) or (operator == "mul" and is_number(operands[0]))
            plain = first.term.role is Role.FEATURE or operator == "add" or not scales
            return None if plain else self._made(Role.SCALE, node, first)
        second = known[1] if known[0] is first else known[0]
        if second is None or operator == "div" or node.kwargs.get("alpha", 1) != 1:
            plain = first.term.role is Role.FEATURE
            return None if plain else f"{node.name} takes something that is not computed from the feature map alone"
        axes = _broadcast(known[0].axes, known[1].axes) if known[0] is not None and known[1] is not None else None
        if axes is None:
            return f"{node.name} brings together positions that are not the same"
        role = Role.SUM if operator == "add" else Role.PRODUCT
        return self._made(role, node, *(item for item in known if item is not None), axes=axes)

    def _joined(self, node: fx.Node) -> Reading | str | None:
        """Means and greatest values of one pool, one after the other along an axis that has none of the map's."""
        listed = node.args[0] if isinstance(node.args[0], (list, tuple)) else ()
        parts = [self.readings.get(item) for item in listed if isinstance(item, fx.Node)]
        known = [item for item in parts if item is not None]
        dim = integer(node, 1, "dim", 0)
        alike = len(known) == len(listed) and len({item.axes for item in known}) == 1
        if (
            not alike
            or known[0].axes[dim] != "1"
            or any(item.term.role not in {Role.MEAN, Role.GREATEST} for item in known)
        ):
            return f"{node.name} joins a pool with something else" if any(
                item.term.role is not Role.FEATURE for item in known) else None  # fmt: skip
        axes = list(known[0].axes)
        axes[dim] = "2"
        return self._made(Role.JOIN, node, *known, axes="".join(axes))

    def _context(self, node: fx.Node) -> Reading | None:
        """The feature map summed with one weight for each place, as a product of matrices."""
        left, right = (self.readings.get(item) if isinstance(item, fx.Node) else None for item in node.args[:2])
        if left is None or right is None or {left.term.role, right.term.role} != {Role.FEATURE, Role.WEIGHTS}:
            return None
        if left.axes[-1] != "S" or right.axes[-2] != "S" or len(left.axes) != len(right.axes):
            return None
        before = _broadcast(left.axes[:-2], right.axes[:-2])
        return None if before is None else self._made(
            Role.CONTEXT, node, left, right, axes=before + left.axes[-2] + right.axes[-1])  # fmt: skip


def _broadcast(first: str, second: str) -> str | None:
    """How a sum or product of two tensors lies; None where other positions would meet than the same."""
    length = max(len(first), len(second))
    pairs = [*zip(first.rjust(length, "1"), second.rjust(length, "1"), strict=True)]
    if any(a != b and "1" not in (a, b) for a, b in pairs):
        return None
    return "".join(b if a == "1" else a for a, b in pairs)


def _keeps_size(module: fx.GraphModule, node: fx.Node, kernel: torch.Tensor) -> bool:
    """Whether a convolution has one result for each position, and weights that are there before the model runs."""
    bias, padding = argument(node, 2, "bias"), argument(node, 4, "padding", 0)
    if bias is not None and weight(module, bias) is None:
        return False
    if any(item != (1, 1) for item in (pair(argument(node, 3, "stride", 1)), pair(argument(node, 5, "dilation", 1)))):
        return False
    if isinstance(padding, str) or any(size % 2 == 0 for size in kernel.shape[2:]):
        return padding == "same"
    halves = [size // 2 for size in kernel.shape[2:]]
    return [*pair(padding)][: len(halves)] == halves


def _merged(node: fx.Node, axes: str, feature: fx.Node) -> str | None:
    """Read a reshape that makes one axis of height and width, or two of one."""
    _, _, height, width = sizes(feature)
    known = dict(zip(axes, sizes(node.all_input_nodes[0]), strict=True)) | {
        "H": height,
        "W": width,
        "S": height * width,
    }
    for old, new in (("HW", "S"), ("S", "HW")):
        pending = [*axes.replace(old, new).replace("1", "")] if old in axes else []
        letters = ""
        for size in sizes(node):
            if pending and same_size(size, known[pending[0]]):
                letters += pending.pop(0)
            else:
                letters += "1" if same_size(size, 1) else "?"
        if old in axes and not pending and "?" not in letters:
            return letters
    return None
