"""Read a file of any format as one kind of graph: operators, tensors, weights. Nothing in it is executed.

Formats name operators differently and lay weights out differently; ``inspection.file_macs`` knows both, so parameters,
multiply-accumulates and attention blocks are read off any of them by the same rules as off a captured graph
(``graph.macs``). Each reader needs its own format's package and no other.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import UsageError
from coordatt_deploy.format_modules import Role, load, missing
from coordatt_deploy.formats import Format, format_of, suffixes

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


class Reader(Protocol):
    """What ``runtimes/<format>/reader.py`` offers: a file is read, not run."""

    def graph(self, path: Path) -> FileGraph:
        """Return operators, tensors and weights.

        Raises:
            BundleError: It is damaged.
            ModuleNotFoundError: The package that reads the format is not installed.
        """

    def operators(self, path: Path) -> "OperatorCount":
        """Return how many of each operator the runtime sees.

        Raises:
            BundleError: It is damaged.
            ModuleNotFoundError: The package that reads the format is not installed.
        """

    def metadata(self, path: Path) -> Mapping[str, Any]:
        """Return what the exporter wrote into the file of the model, by key.

        Raises:
            BundleError: It is damaged.
            ModuleNotFoundError: The package that reads the format is not installed.
        """


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


def reader(file_format: Format) -> Reader:
    """Return the module that reads files of *file_format*."""
    return cast("Reader", load(file_format, Role.READER))


def read_artifact(path: Path) -> FileGraph:
    """Read the artifact at *path*.

    Raises:
        UsageError: It is missing, or of no known format.
        BundleError: It is damaged.
        MissingDependencyError: The package that reads the format is not installed.
    """
    kind = format_of(path)
    if kind is None:
        raise UsageError(f"{path.name} is no artifact; expected a file that ends in {suffixes()}")
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    try:
        return reader(kind).graph(path)
    except ModuleNotFoundError as error:
        raise missing(f"reading {kind} files", error.name, kind) from error


def count_operators(path: Path, kind: Format) -> OperatorCount:
    """Return the operators of the artifact at *path*.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    try:
        return reader(kind).operators(path)
    except ModuleNotFoundError as error:
        raise missing(f"counting operators of {kind} files", error.name, kind) from error


def most_frequent_first(names: Iterable[str]) -> dict[str, int]:
    """Count names."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def spec_of(name: str, tensors: Mapping[str, Tensor], layout: str = "NCHW") -> TensorSpec:
    """Describe a tensor as an input or output; axes are named where there are four or fewer than three."""
    tensor = tensors[name]
    shape = tensor.shape or ()
    return TensorSpec(name, shape, tensor.dtype, layout[: len(shape)] if len(shape) == 4 else "NC"[: len(shape)])
