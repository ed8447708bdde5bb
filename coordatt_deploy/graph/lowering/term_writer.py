"""Write a block of terms anew, each term as one operator on (N, C, H, W), and account for where the old values are.

Whatever the user moved, copied and reshaped between the operators is left out: a pool keeps its axes, a gate is
broadcast by its product. What is done otherwise for a runtime is its ``TermStyle``.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx
from torch.fx.node import Argument, Target

from coordatt_deploy.graph.call_arguments import argument, input_node, is_number
from coordatt_deploy.graph.graph import aten, op_name, reshape_sizes, static_shape
from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Kind, Role, Term, Terms
from coordatt_deploy.graph.lowering.families import triplet_branches
from coordatt_deploy.graph.lowering.pointwise import (
    HardSwishForm,
    Pointwise,
    pointwise,
    read_pointwise,
    write_hard,
)
from coordatt_deploy.graph.lowering.pooled_values import (
    block_of,
    context_of,
    convolved_by_rows,
    convolved_in_blocks,
    greatest_of_channels,
    mean_of_channels,
    normalised,
    place_weights,
)
from coordatt_deploy.graph.rewriter import Placed, Rewriter

FOUR_AXES: Final = "four_axes"
"""The name of the form in reports."""


class Order(enum.StrEnum):
    """Which axes stand where when a convolution runs over channels and one of height and width.

    A value that is pooled has an axis of size 1, and moving that one alone copies nothing.
    """

    CHANNELS_FIRST = "channels first"
    CHANNELS_LAST = "channels last"


class Kernels(enum.StrEnum):
    """How a convolution of pooled values to one channel is written; see ``pooled_values``."""

    WHOLE = "whole"
    ROWS = "rows"
    """Not for integers: every row's sum would be rounded."""
    BLOCKS = "blocks"


_ORDERS: Final[Mapping[Order, Mapping[str, str]]] = {
    Order.CHANNELS_FIRST: {"HW": "N1HW", "CW": "N1CW", "CH": "N1CH", "C": "N11C"},
    Order.CHANNELS_LAST: {"HW": "N1HW", "CW": "N1WC", "CH": "N1HC", "C": "N11C"},
}


@dataclass(frozen=True, slots=True)
class TermStyle:
    """How blocks of terms are written for one runtime.

    Attributes:
        kinds: Those that it runs faster so; every other is exported as it stands.
        order: For convolutions over the channels.
        by_rows: Whether pools over the channels are written so that they run by the row; see ``pooled_values``.
        kernels: How convolutions of pooled values to one channel are written.
        sums_first: Whether two values that go through the same layer are summed before it. Not for integers: where an
            activation has killed one of the two, its step is next to nothing, and XNNPACK adds no steps so far apart.
        spelt_norms: Whether a group norm of one group is written as means, sums and products that broadcast.
    """

    kinds: frozenset[Kind] = frozenset()
    order: Order = Order.CHANNELS_FIRST
    by_rows: bool = False
    kernels: Kernels = Kernels.WHOLE
    sums_first: bool = True
    spelt_norms: bool = False


AS_THEY_STAND: Final = TermStyle()


class TermWriter:
    """Writes one block into the graph of a rewriter, before the block's old output."""

    def __init__(
        self,
        rewriter: Rewriter,
        block: AttentionBlock,
        hard: Mapping[str, HardActivation],
        spelling: HardSwishForm,
        style: TermStyle,
    ) -> None:
        """Prepare to write *block*.

        Args:
            rewriter: Edits the copy of the graph.
            block: What was recognised in the graph.
            hard: The graph's hard activations, by output node.
            spelling: How hard-swish is written inside the block.
            style: Of the runtime.
        """
        assert isinstance(block.anatomy, Terms)  # noqa: S101 - blocks of branches have forms of their own
        self.rewriter, self.block, self.hard, self.spelling, self.style = rewriter, block, hard, spelling, style
        self.anatomy = block.anatomy
        self._held: dict[str, Placed] = {}
        # The converter computes the gate of what was convolved in blocks before it reads them as neighbours again.
        self._in_blocks: set[str] = set()

    def unsupported_reason(self) -> str | None:
        """Why the block cannot be written anew; None if it can."""
        weighs = any(term.role is Role.WEIGHTS for term in self.anatomy.output.every())
        feature = self.rewriter.nodes[self.block.feature]
        if weighs and reshape_sizes(feature.meta["val"]) is None:
            return "a context is a product of matrices, whose sizes cannot follow a dynamic height and width"
        return None

    def write(self) -> None:
        """Write the block and hand on where every value is."""
        output = self._value(self.anatomy.output)
        rewriter, block = self.rewriter, self.block
        for name in block.inner:
            reading = self.anatomy.readings.get(name)
            placed = None if reading is None or self._copies(name, reading.axes) else self._held.get(reading.term.node)
            if reading is not None and reading.term.node in self._in_blocks:
                placed = None
            if reading is None or placed is None or ("S" in reading.axes) != ("S" in placed.axes):
                inside = next((item.output for item in self.hard.values() if name in item.inner), None)
                rewriter.fuse(name, inside or self._judged_at(name))
            else:
                rewriter.put(name, reading.axes, [placed])
        rewriter.put(block.output, "NCHW", [Placed(output, "NCHW")])
        rewriter.replace(rewriter.nodes[block.output], output)

    def _copies(self, name: str, axes: str) -> bool:
        """Whether a node holds copies of a smaller value, which is judged where it is small."""
        shape = self.rewriter.nodes[name].meta["val"].shape
        return any(letter == "1" and size != 1 for letter, size in zip(axes, shape, strict=True))

    def _judged_at(self, name: str) -> str:
        """The nearest later node of the block whose value is still there."""
        later = self.block.inner[self.block.inner.index(name) + 1 :]
        held = (item for item in later if item in self.anatomy.readings
                and self.anatomy.readings[item].term.node not in self._in_blocks
                and self.anatomy.readings[item].term.node in self._held
                and name in _makers(self.rewriter, item))  # fmt: skip
        return next(held, self.block.output)

    def _call(self, target: Target, *args: Argument) -> fx.Node:
        return self.rewriter.call(target, *args)

    def _value(self, term: Term) -> fx.Node:
        """Write *term* as (N, C, H, W), with axes of size 1 where it has none of these; once where it is used twice."""
        if term.role is Role.FEATURE:
            return self.rewriter.nodes[term.node]
        if term.node not in self._held:
            branches = triplet_branches(term)
            if branches is not None:
                return self._triplet(term, branches)
            self._held[term.node] = self._written(term)
        placed = self._held[term.node]
        return placed.node if placed.factor == 1.0 else self._call(aten.mul.Tensor, placed.node, 1 / placed.factor)

    def _written(self, term: Term) -> Placed:
        old = self.rewriter.nodes[term.node]
        axes = "".join(letter if letter in term.axes else "1" for letter in "NCHW")
        if term.role in {Role.MEAN, Role.GREATEST}:
            over = [axis for axis in (1, 2, 3) if axes[axis] == "1"]
            return Placed(self._pooled(term.role, self._value(term.terms[0]), over), axes)
        if term.role in {Role.MASK, Role.WEIGHTS, Role.CONTEXT}:
            return self._context(term)
        if term.role is Role.NORM:
            return Placed(
                normalised(self.rewriter, old, self._value(term.terms[0]), spelt_out=self.style.spelt_norms), axes
            )
        if term.role is Role.MIX:
            layer, value = self._layer(term), self._unscaled(term.terms[0])
            return Placed(pointwise(self.rewriter, layer.fed(value.factor), value.node, axes), axes)
        if term.role in {Role.ALONG, Role.ACROSS, Role.PLACES}:
            return self._convolved(term, old, axes)
        if term.role in {Role.ACTIVATION, Role.GATE}:
            return self._activated(term, old, axes)
        if term.role is Role.SCALE:
            return Placed(self._call(aten.mul.Tensor, self._value(term.terms[0]), _number(old)), axes)
        if term.role is Role.SUM and self.style.sums_first and self._share_a_layer(term):
            return self._summed_first(term, axes)
        operator = aten.add.Tensor if term.role is Role.SUM else aten.mul.Tensor
        return Placed(self._call(operator, *(self._value(item) for item in term.terms)), axes)

    def _pooled(self, role: Role, value: fx.Node, over: list[int]) -> fx.Node:
        if self.style.by_rows and over == [1]:
            pool = mean_of_channels if role is Role.MEAN else greatest_of_channels
            return pool(self.rewriter, value)
        return self._call(aten.mean.dim if role is Role.MEAN else aten.amax.default, value, over, True)

    def _share_a_layer(self, term: Term) -> bool:
        """Whether a sum is one of the same layer applied to two values."""
        if any(item.role is not Role.MIX for item in term.terms):
            return False
        first, second = (self._layer(item) for item in term.terms)
        return torch.equal(first.kernel, second.kernel) and torch.equal(first.bias, second.bias)

    def _summed_first(self, term: Term, axes: str) -> Placed:
        """W a + b + W c + b = W (a + c) + 2 b: one layer instead of two."""
        layer, values = self._layer(term.terms[0]), [self._unscaled(item.terms[0]) for item in term.terms]
        total = self._call(aten.add.Tensor, values[0].node, values[1].node)
        twice = replace(layer, bias=2 * layer.bias, variant=f"{layer.variant}_summed")
        return Placed(pointwise(self.rewriter, twice.fed(values[0].factor), total, axes), axes)

    def _layer(self, term: Term) -> Pointwise:
        return read_pointwise(self.rewriter, self.rewriter.nodes[term.node])

    def _context(self, term: Term) -> Placed:
        """A value for each place, weights for the places, or the feature map summed with them."""
        feature = self.rewriter.nodes[self.block.feature]
        if term.role is Role.MASK:
            return Placed(pointwise(self.rewriter, self._layer(term), self._value(term.terms[0]), "NCHW"), "N1HW")
        if term.role is Role.WEIGHTS:
            return Placed(place_weights(self.rewriter, self._value(term.terms[0])), "N1S")
        weights = next(item for item in term.terms if item.role is Role.WEIGHTS)
        return Placed(context_of(self.rewriter, feature, self._value(weights)), "NC11")

    def _unscaled(self, term: Term) -> Placed:
        """The value of a term for a layer that takes its factor into the weights."""
        self._value(term) if term.node not in self._held else None
        return self._held[term.node]

    def _activated(self, term: Term, old: fx.Node, axes: str) -> Placed:
        value = self._value(term.terms[0])
        if term.node not in self.hard:
            return Placed(self._call(old.target, value, *old.args[1:]), axes)
        result, factor = write_hard(self.rewriter, self.hard[term.node].op_name, value, self.spelling)
        return Placed(result, axes, factor)

    def _convolved(self, term: Term, old: fx.Node, axes: str) -> Placed:
        """A convolution along a strip, over the channels, or over two axes of pooled values."""
        kernel = self.rewriter.weight(argument(old, 1, "weight"))
        assert kernel is not None  # noqa: S101 - recognition has checked it
        if term.role is Role.ALONG:
            wide = axes[2:].replace("1", "")
            return Placed(self._convolution(old, kernel.reshape(*kernel.shape[:2], *_sides(kernel, wide == "H")),
                                            self._value(term.terms[0]), ""), axes)  # fmt: skip
        inner = term.terms[0]
        pools = inner.terms if inner.role is Role.JOIN else (inner,)
        letters = "".join(letter for letter in "CHW" if letter in pools[0].axes)
        lies = _ORDERS[self.style.order][letters]
        values = [self._moved(self._value(pool), "".join(item if item in pool.axes else "1" for item in "NCHW"), lies)
                  for pool in pools]  # fmt: skip
        joined = values[0] if len(values) == 1 else self._call(aten.cat.default, values, 1)
        self._held.setdefault(inner.node, Placed(joined, lies.replace("1", "2", 1)))
        if term.role is Role.ACROSS:
            kernel = kernel.reshape(1, 1, 1, -1)
        elif [letter for letter in term.axes if letter in letters] != [letter for letter in lies if letter in letters]:
            kernel = kernel.transpose(2, 3)
        square = term.role is Role.PLACES and kernel.shape[2] == kernel.shape[3] > 1
        bias, name = input_node(old, 2, "bias"), self._layer_name(old)
        if square and self.style.kernels is Kernels.ROWS and None not in static_shape(joined.meta["val"]):
            result = convolved_by_rows(self.rewriter, joined, kernel, bias, name)
        elif square and self.style.kernels is Kernels.BLOCKS and block_of(joined, kernel) is not None:
            result = convolved_in_blocks(self.rewriter, joined, kernel, bias, name)
            self._in_blocks.add(term.node)
        else:
            result = self._convolution(old, kernel, joined, "_turned")
        self._held[term.node] = Placed(result, lies)
        return Placed(self._moved(result, lies, axes), axes)

    def _convolution(self, old: fx.Node, kernel: torch.Tensor, value: fx.Node, variant: str) -> fx.Node:
        """Apply *kernel* with the bias of the old convolution; the size stays."""
        bias, weight = argument(old, 2, "bias"), self.rewriter.constant(f"{self._layer_name(old)}{variant}", kernel)
        padding = [size // 2 for size in kernel.shape[2:]]
        groups = argument(old, 6, "groups", 1)
        return self._call(aten.conv2d.default, value, weight, bias, [1, 1], padding, [1, 1], groups)

    def _layer_name(self, old: fx.Node) -> str:
        """The dotted name of a convolution's weight."""
        read = input_node(old, 1, "weight")
        assert read is not None  # noqa: S101 - recognition has checked it
        return str(read.target)

    def _moved(self, value: fx.Node, axes: str, wanted: str) -> fx.Node:
        """Transpose *value*, which lies as *axes*, so that it lies as *wanted*; the axes of size 1 fill the gaps."""
        if axes == wanted:
            return value
        shape = static_shape(value.meta["val"])
        if self.style.by_rows and None not in shape:
            # ONNX Runtime would move a transposition in front of the pool, and with it the whole map.
            known = dict(zip(axes, shape, strict=True)) | {"1": 1}
            return self._call(aten.reshape.default, value, [known[letter] for letter in wanted])
        free = [axis for axis, letter in enumerate(axes) if letter == "1"]
        order = [axes.index(letter) if letter != "1" else free.pop(0) for letter in wanted]
        return self._call(aten.permute.default, value, order)

    def _triplet(self, term: Term, branches: tuple[Term, ...]) -> fx.Node:
        """The gates are summed first: one product with the feature map instead of one for each branch."""
        factor = _number(self.rewriter.nodes[term.node]) if term.role is Role.SCALE else 1.0
        gates = [self._value(gate) for gate in branches]
        if factor != 1.0:
            gates = [self._call(aten.mul.Tensor, gate, factor) for gate in gates]
            for branch, gate in zip(branches, gates, strict=True):
                self._held[branch.node] = replace(self._held[branch.node], node=gate, factor=factor)
        total = gates[0]
        for gate in gates[1:]:
            total = self._call(aten.add.Tensor, total, gate)
        return self._call(aten.mul.Tensor, self.rewriter.nodes[self.block.feature], total)


def _number(node: fx.Node) -> float:
    """The number that a product with a number multiplies by."""
    number = next(float(item) for item in node.args[:2] if is_number(item))
    return 1 / number if op_name(node) == "div" else number


def _sides(kernel: torch.Tensor, upright: bool) -> tuple[int, int]:
    """Height and width of a kernel along a strip."""
    length = max(kernel.shape[2:])
    return (length, 1) if upright else (1, length)


def _makers(rewriter: Rewriter, name: str) -> set[str]:
    """Every node that the value of an old node is made from."""
    pending, seen = [rewriter.nodes[name]], set[str]()
    while pending:
        for item in pending.pop().all_input_nodes:
            if item.name not in seen:
                seen.add(item.name)
                pending.append(item)
    return seen
