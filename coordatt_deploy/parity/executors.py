"""Where artifacts are run for parity: on this machine, or on another one that opens files as a runtime does."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.runtimes.submodels import GIVEN, Submodels, submodel_extractor
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.tensors import dequantized, encode

Arrays = Mapping[str, NumberArray]


class Executor(Protocol):
    """A machine that artifacts are opened on."""

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> Runner:
        """Open the file; see ``runtimes.Runtime.open_artifact``."""

    def open_pieces(self, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> Submodels:
        """Cut the file apart and open that; see ``runtimes.submodels.SubmodelExtractor.open_pieces``."""


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """This machine.

    Attributes:
        threads: Of the runtimes.
        exact_sums: Paths in the bundle of the artifacts whose sums of integers are to be exact; see
            ``runtimes.Runtime.open_artifact``.
    """

    threads: int = 1
    exact_sums: frozenset[str] = frozenset()

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> Runner:
        """Open the file in its runtime."""
        return runtime(artifact.format).open_artifact(
            path, artifact, threads=self.threads, tensors=tensors, exact_sums=artifact.path in self.exact_sums
        )

    def open_pieces(self, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> Submodels:
        """Cut the file apart in its runtime."""
        return submodel_extractor(artifact.format).open_pieces(
            path, artifact, tensors, exact_sums=artifact.path in self.exact_sums
        )


LOCAL: Final = LocalExecutor()


@dataclass(frozen=True, slots=True)
class RemoteExecutor:
    """A machine that opens files and has nothing to edit them with: they are cut apart here.

    Attributes:
        open_file: Opens an artifact there, with inner tensors.
    """

    open_file: Callable[[Path, Artifact, tuple[str, ...]], Runner]

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> Runner:
        """Open the file there."""
        return self.open_file(path, artifact, tensors)

    def open_pieces(self, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> Submodels:
        """Cut the file apart here and open that there."""
        return _SentSubmodels(self, path, artifact, tensors)


class _SentSubmodels:
    """Pieces as a file of their own, run on another machine. Written when the first values tell their shapes."""

    def __init__(self, place: RemoteExecutor, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> None:
        self._place, self._path, self._artifact, self._tensors = place, path, artifact, tensors
        self._open = ExitStack()
        self._runner: Runner | None = None

    def infer(self, feeds: Arrays, given: Arrays) -> dict[str, NumberArray]:
        """Run every piece; see ``Submodels.infer``."""
        runner = self._runner or self._start(given)
        own = [spec for spec in runner.inputs if spec.name in feeds]
        cut = [spec for spec in runner.inputs if spec.name not in feeds]
        arrays = {spec.name: feeds[spec.name] for spec in own}
        arrays |= {spec.name: encode(given[spec.name.removesuffix(GIVEN)], spec) for spec in cut}
        made = runner.infer(arrays)
        return {spec.name: dequantized(made[spec.name], spec) for spec in runner.outputs if spec.name in self._tensors}

    def _start(self, given: Arrays) -> Runner:
        folder = self._open.enter_context(Scratch())
        shapes = {name: value.shape for name, value in given.items()}
        artifact = submodel_extractor(self._artifact.format).write_pieces(
            self._path, self._artifact, self._tensors, shapes, folder / self._path.name
        )
        runner = self._place.open_artifact(folder / self._path.name, artifact)
        self._runner = self._open.enter_context(runner)
        return self._runner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
