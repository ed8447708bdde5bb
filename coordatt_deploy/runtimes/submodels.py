"""Submodels: an artifact cut apart at the tensors of its layer map, each piece fed with the reference's values.

A layer that is wrong is told from one that only inherits by what it does with right inputs. All pieces of an artifact
run at once: every reader of a mapped tensor reads a new input in its place, and every mapped tensor is an output. The
same kernels run as in the whole file, except that a runtime cannot fuse across a cut.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import Format

GIVEN: Final = "::given"  # suffix of the inputs that stand in for inner tensors


class Submodels(Protocol):
    """An artifact cut apart. Use as a context manager."""

    def infer(self, feeds: Mapping[str, NumberArray], given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run every piece.

        Args:
            feeds: The artifact's own inputs, in its dtype and layout.
            given: For each mapped tensor, the float value that its readers get, in the tensor's own layout.

        Returns:
            For each mapped tensor what its piece makes of the given values, dequantized; none where the runtime refuses
            to run the piece on them.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SubmodelExtractor(Protocol):
    """What ``runtimes/<format>/submodels.py`` offers."""

    def open_pieces(
        self, path: Path, artifact: Artifact, tensors: tuple[str, ...], *, exact_sums: bool = False
    ) -> Submodels:
        """Cut the file at *path* apart at *tensors*; *exact_sums* as in ``Runtime.open_artifact``.

        Raises:
            MissingDependencyError: What is needed to edit the format is not installed.
            BundleError: The file cannot be opened.
        """

    def write_pieces(
        self,
        path: Path,
        artifact: Artifact,
        tensors: tuple[str, ...],
        shapes: Mapping[str, tuple[int, ...]],
        target: Path,
    ) -> Artifact:
        """Write the file at *path*, cut apart at *tensors*, to *target*, for a runtime elsewhere.

        Args:
            path: The artifact on disk.
            artifact: Its description.
            tensors: Mapped tensors.
            shapes: Theirs.
            target: The file to write.

        Returns:
            What is in it: beside its own inputs one for each tensor that something reads, its name followed by
            ``GIVEN``; as outputs the tensors, beside its own.
        """


def submodel_extractor(file_format: Format) -> SubmodelExtractor:
    """Return the module that cuts artifacts of *file_format* apart.

    Raises:
        MissingDependencyError: A package it needs is not installed.
    """
    return cast("SubmodelExtractor", load(file_format, Role.SUBMODELS))
