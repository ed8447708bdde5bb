"""Pieces: an artifact cut apart at the tensors of its layer map, each piece fed with the reference's values.

A layer that is wrong is told from one that only inherits by what it does with right inputs. All pieces of an artifact
run at once: every reader of a mapped tensor reads a new input in its place, and every mapped tensor is an output. The
same kernels run as in the whole file, except that a runtime cannot fuse across a cut.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

from numpy.typing import NDArray

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.specs import Artifact, Format

GIVEN: Final = "::given"  # suffix of the inputs that stand in for inner tensors


class Pieces(Protocol):
    """An artifact cut apart. Use as a context manager."""

    def infer(self, feeds: Mapping[str, NDArray[Any]], given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
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


class Cutter(Protocol):
    """What each module of the table offers."""

    def open_pieces(self, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> Pieces:
        """Cut the file at *path* apart at *tensors*.

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


CUTTERS: Final = {
    Format.ONNX: "coordatt_deploy.runtimes.onnx_pieces",
    Format.TFLITE: "coordatt_deploy.runtimes.litert_pieces",
    Format.COREML: "coordatt_deploy.runtimes.coreml_pieces",
}


def cutter(kind: Format) -> Cutter:
    """Return the module that cuts artifacts of format *kind* apart."""
    try:
        return cast("Cutter", import_module(CUTTERS[kind]))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coordatt_deploy"):
            raise
        raise MissingDependencyError(
            f"cutting {kind} artifacts apart needs {error.name}, which is not installed;"
            f" run: pip install 'coordatt-deploy[{kind}]'"
        ) from error
