"""What all forms of a block of branches share: its branches written anew, and account of where the old values are."""

from collections.abc import Mapping
from functools import reduce
from typing import Final

from torch import fx
from torch.fx.node import Argument, Target

from coordatt_deploy.graph.graph import aten, op_name
from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Branch, Branches
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm, Pointwise, pointwise, read_pointwise, write_hard
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.graph.rewriter import Placed, Rewriter

KEEPS_ZERO: Final = having(Trait.KEEPS_ZERO)


class Writer:
    """Writes one block into the graph of a rewriter, before the block's old output."""

    def __init__(
        self, rewriter: Rewriter, block: AttentionBlock, hard: Mapping[str, HardActivation], spelling: HardSwishForm
    ) -> None:
        """Prepare to write *block*.

        Args:
            rewriter: Edits the copy of the graph.
            block: What was recognised in the graph.
            hard: The graph's hard activations, by output node.
            spelling: How hard-swish is written inside the block.
        """
        assert isinstance(block.anatomy, Branches)  # noqa: S101 - blocks of terms have forms of their own
        self.rewriter, self.block, self.hard, self.spelling = rewriter, block, hard, spelling
        self.anatomy = block.anatomy
        self.feature, self.output = rewriter.nodes[block.feature], rewriter.nodes[block.output]
        self._held: dict[tuple[str, str], Placed] = {}
        self._fused: dict[str, str] = {}

    def call(self, target: Target, *args: Argument) -> fx.Node:
        """Add a call."""
        return self.rewriter.call(target, *args)

    def has(self, direction: str) -> bool:
        """Whether the block has a branch of that direction."""
        return any(branch.direction == direction for branch in self.anatomy.branches)

    def size(self) -> tuple[int, int]:
        """Return the static height and width of the feature map."""
        sizes = (self.block.height, self.block.width)
        assert None not in sizes  # noqa: S101 - forms that ask for it decline dynamic sizes
        return sizes  # type: ignore[return-value]

    def gate(self, direction: str, pooled: fx.Node, axes: str, *, block: int = 1) -> fx.Node:
        """Write squeeze, activation, excite and gate of one branch; see ``gates``."""
        return self.gates(pooled, axes, {direction: Placed(pooled, axes)}, block=block)

    def gates(self, pooled: fx.Node, axes: str, means: Mapping[str, Placed], *, block: int = 1) -> fx.Node:
        """Write squeeze, activation, excite and gate, and note what holds which old value.

        Args:
            pooled: What the squeeze is applied to; (N, C, ...) for convolutions, (..., C) for linear layers. For two
                branches, the channels of one behind those of the other.
            axes: How *pooled* lies; the result lies alike.
            means: The mean of each branch, in the order of *pooled*.
            block: Pad the squeezed channels with zeros to a multiple of this.

        Returns:
            The gates, the channels of one branch behind those of the other.
        """
        branches = [self._branch(direction) for direction in means]
        squeezes = [self._read(branch.squeeze).fed(means[branch.direction].factor) for branch in branches]
        excites = [self._read(branch.excite) for branch in branches]
        squeezed, channels, first = self.anatomy.squeezed, self.block.channels, branches[0]
        width = squeezed
        if first.activation is None or self.operator(first.activation) in KEEPS_ZERO:
            width = -(-squeezed // block) * block
        value = self._apply([item.padded(width, channels) for item in squeezes], pooled, axes)
        for branch, mean in zip(branches, means.values(), strict=True):
            self._held[branch.direction, branch.pool] = mean
        self._note(branches, "squeeze", Placed(value, axes), width, squeezed)
        factor = 1.0
        if first.activation is not None:
            value, factor = self._activate(first.activation, value)
            self._note(branches, "activation", Placed(value, axes, factor), width, squeezed)
        excites = [item.fed(factor).padded(channels, width) for item in excites]
        if self.operator(first.gate) == "sigmoid":
            value = self._apply(excites, value, axes)
            self._note(branches, "excite", Placed(value, axes), channels, channels)
            value = self.call(aten.sigmoid.default, value)
        else:  # hard-sigmoid: scale and shift go into the convolution, the bounds are the gate
            value = self._apply([item.scaled(1 / 6, 0.5) for item in excites], value, axes)
            value = self.call(aten.hardtanh.default, value, 0.0, 1.0)
            self._fused |= {branch.excite: branch.gate for branch in branches}
        self._note(branches, "gate", Placed(value, axes), channels, channels)
        return value

    def finish(self, output: fx.Node, axes: str = "NCHW") -> None:
        """Put *output*, which lies as *axes*, in the place of the block's, and hand on where every value is.

        The users of the old output are left to the form where *axes* is not NCHW.
        """
        rewriter, block = self.rewriter, self.block
        for name in block.inner:
            strip = self.anatomy.strips.get(name)
            last = strip.chain[-1] if strip is not None and strip.chain else None
            if strip is None or last in self._fused:
                rewriter.fuse(name, self._judged_at(last or name))
                continue
            held = [self._held[direction, last or pool]
                    for direction, pool in zip(strip.directions, strip.pools, strict=True)]  # fmt: skip
            rewriter.put(name, strip.axes, held, "P" if "P" in strip.axes else "N")
        rewriter.put(block.output, "NCHW", [Placed(output, axes)])
        if axes == "NCHW":
            rewriter.replace(self.output, output)

    def operator(self, name: str) -> str:
        """Return the operator of an old node; of a spelled-out activation, what it is."""
        return self.hard[name].op_name if name in self.hard else op_name(self.rewriter.nodes[name])

    def _branch(self, direction: str) -> Branch:
        return next(branch for branch in self.anatomy.branches if branch.direction == direction)

    def _note(self, branches: list[Branch], stage: str, placed: Placed, stride: int, kept: int) -> None:
        """Note where the old values of one stage are: *kept* channels of every *stride*, one branch after the other."""
        for index, branch in enumerate(branches):
            channels = None if len(branches) == 1 and kept == stride else (index * stride, index * stride + kept)
            self._held[branch.direction, getattr(branch, stage)] = Placed(
                placed.node, placed.axes, placed.factor, channels
            )

    def _judged_at(self, name: str) -> str:
        """The old node at which a value that has no tensor of its own any more is judged."""
        inside = next((item.output for item in self.hard.values() if name in item.inner), None)
        return self._fused.get(name, inside or self.block.output)

    def _read(self, name: str) -> Pointwise:
        return read_pointwise(self.rewriter, self.rewriter.nodes[name])

    def _apply(self, layers: list[Pointwise], value: fx.Node, axes: str) -> fx.Node:
        return pointwise(self.rewriter, reduce(Pointwise.beside, layers), value, axes, len(layers))

    def _activate(self, name: str, value: fx.Node) -> tuple[fx.Node, float]:
        """Apply the activation that the old node *name* ends; the result and its factor."""
        if name in self.hard:
            return write_hard(self.rewriter, self.hard[name].op_name, value, self.spelling)
        node = self.rewriter.nodes[name]
        return self.rewriter.call(node.target, value, *node.args[1:], **node.kwargs), 1.0
