"""What a file of any format looks like to whoever plants a fault in it: operators with names, weights as arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTED = ("conv", "dense")


@dataclass
class Op:
    """An operator of a file.

    Attributes:
        kind: What it is called here; a word that all formats share where several have it.
        inputs: Names of what it reads; the tensor that it works on comes first.
        outputs: Names of what it makes.
        raw: The format's own object.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    raw: Any


@dataclass
class EditedFile:
    """A file that is being edited.

    Edits return False where this file has no place for them; then nothing was changed.

    Attributes:
        ops: In execution order.
        spatial: Axes of an activation along height and width, in that order.
    """

    path: Path
    ops: list[Op] = field(default_factory=list)
    spatial: tuple[int, int] = (2, 3)

    def of_kind(self, *kinds: str) -> list[Op]:
        """Return the operators of these kinds in execution order."""
        return [op for op in self.ops if op.kind in kinds]

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        """Return copies of an operator's weights and bias, dequantized."""
        raise NotImplementedError

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        """Give an operator weights of its own, and a bias unless it is None; on the grid that they had."""
        raise NotImplementedError

    def axes(self, op: Op, weights: Array) -> tuple[int, int]:
        """Return the axes of *weights* along outputs and inputs; both are the same where each channel has its own."""
        raise NotImplementedError

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of an inner tensor, where the file states it; 0 for a dynamic axis."""
        raise NotImplementedError

    def rename(self, op: Op, kind: str) -> bool:
        """Make another operator of it that takes the same input."""
        raise NotImplementedError

    def rewire(self, op: Op, position: int, name: str) -> None:
        """Let it read another tensor."""
        raise NotImplementedError

    def shift_padding(self, op: Op) -> bool:
        """Move a 3 x 3 window by one."""
        raise NotImplementedError

    def reduced_axis(self, op: Op) -> int | None:
        """Return the one axis that a mean goes over; None where there are several."""
        raise NotImplementedError

    def turn(self, op: Op, first: int, second: int) -> bool:
        """Exchange two axes of what it works on."""
        raise NotImplementedError

    def shorten(self, op: Op, axis: int, length: int) -> bool:
        """Let it see only the first *length* places along an axis."""
        raise NotImplementedError

    def fix_window(self, op: Op, axis: int, length: int) -> bool:
        """Make a pool of a mean over one axis, with a window of that *length*."""
        return False  # not every format has dynamic sizes

    def swap_outputs(self, op: Op) -> bool:
        """Exchange the two things that it makes."""
        if len(op.outputs) != 2 or self.shape(op.outputs[0]) != self.shape(op.outputs[1]):
            return False
        return self._swap_outputs(op)

    def _swap_outputs(self, op: Op) -> bool:  # not every format has such operators
        return False

    def grids(self, op: Op) -> Sequence["Grid"]:
        """Return the integer grids that an operator's weights, bias and result are on; none in a float file."""
        return ()

    def save(self) -> None:
        """Write it back."""
        raise NotImplementedError

    def made_by(self) -> dict[str, Op]:
        """Return the operator that makes each tensor."""
        return {name: op for op in self.ops for name in op.outputs}

    def behind(self, names: Sequence[str]) -> Iterator[Op]:
        """Give the operators that read one of *names*."""
        return (op for op in self.ops if set(names) & set(op.inputs))


@dataclass
class Grid:
    """The grid of one tensor, to be read and changed in place.

    Attributes:
        what: ``weights``, ``bias`` or ``result``.
        scale: One step, or one per channel.
        zero_point: As many; none where the file leaves it out, as it is 0.
    """

    what: str
    scale: Array
    zero_point: Array
    put: Any
