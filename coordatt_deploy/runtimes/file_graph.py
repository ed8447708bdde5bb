"""Read a file of any format as one kind of graph: operators, tensors, weights. Nothing in it is executed.

Formats name operators differently and lay weights out differently; each format's vocabulary knows both, so parameters,
multiply-accumulates and attention blocks are read off any of them by the same rules as off a captured graph
(``graph.macs``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.formats import Format

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a file.

    Attributes:
        operator: As the format names it: ``Conv``, ``CONV_2D``, ``conv``.
        inputs: Names of the tensors it takes, weights included; empty strings for those left out.
        outputs: Names of the tensors it gives.
        window: Kernel size of a pool; None otherwise.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    window: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        shape: None for a dynamic axis; None as a whole where the file does not say.
        dtype: NumPy's name, or the format's own for what NumPy has not (``int4``).
        bytes: Of its data in the file; None for what is computed.
    """

    shape: Shape | None
    dtype: str
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FileGraph:
    """What a file holds.

    Attributes:
        format: Of the file.
        nodes: In execution order; constants are tensors, not nodes.
        tensors: By name.
        inputs: What the file takes.
        outputs: What it gives.
        flexible: Whether an input may have several sizes.
    """

    format: Format
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flexible: bool = False

    def operators(self) -> dict[str, int]:
        """How many of each operator, most frequent first."""
        return most_frequent_first(node.operator for node in self.nodes)

    def is_weight(self, name: str) -> bool:
        """Whether the tensor's data lie in the file."""
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.bytes is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, a dynamic axis taken as 1; empty where it is not known."""
        tensor = self.tensors.get(name)
        return () if tensor is None or tensor.shape is None else tuple(size or 1 for size in tensor.shape)


@dataclass(frozen=True, slots=True)
class OperatorCount:
    """What a file is made of.

    Attributes:
        names: How many of each operator, most frequent first.
        remark: What the runtime does with them; None where nothing is to be said.
    """

    names: Mapping[str, int]
    remark: str | None = None

    @property
    def total(self) -> int:
        """Of all operators together."""
        return sum(self.names.values())


def most_frequent_first(names: Iterable[str]) -> dict[str, int]:
    """Count names."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def spec_of(name: str, tensors: Mapping[str, Tensor], layout: str = "NCHW") -> TensorSpec:
    """Describe a tensor as an input or output; axes are named where there are four or fewer than three."""
    tensor = tensors[name]
    shape = tensor.shape or ()
    return TensorSpec(name, shape, tensor.dtype, layout[: len(shape)] if len(shape) == 4 else "NC"[: len(shape)])
