"""Files that could not be written: what was in their way is kept, and the other files are written nevertheless."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, TypeVar

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import (
    ConversionError,
    DeployError,
    InternalError,
    UnsupportedOperatorsError,
    WorkerDiedError,
)
from coordatt_deploy.files import remove, sha256
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.manifest import Manifest, RefusedFile
from coordatt_deploy.plurals import counted
from coordatt_deploy.processes import Call, Pool

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

# What stands in the way of one file alone. A mistake of the user's, or a package that is missing, ends the command.
OF_ONE_FILE: Final = (ConversionError, InternalError, WorkerDiedError)


@dataclass(frozen=True, slots=True)
class AskedFile:
    """A file to be written: where, in what format and precision (or by what recipe), for what CPU family."""

    path: str
    format: Format
    precision: str
    target_cpu: TargetCpu | None

    def refused(self, error: DeployError) -> RefusedFile:
        """Say that it could not be written."""
        operators = error.refused if isinstance(error, UnsupportedOperatorsError) else ()
        return RefusedFile(self.path, self.format, self.precision, str(error), self.target_cpu, operators)


@dataclass(frozen=True, slots=True, eq=False)
class Making(Generic[R]):
    """A file that a process is writing."""

    file: AskedFile
    call: Call[R]


@dataclass(frozen=True, slots=True)
class Made(Generic[R_co]):
    """What became of files.

    Attributes:
        results: Of those that were written.
        refused: Those that could not be, in the order of their paths.
        errors: What stood in their way, each.
    """

    results: tuple[R_co, ...] = ()
    refused: tuple[RefusedFile, ...] = ()
    errors: tuple[DeployError, ...] = ()


class NothingWrittenError(ConversionError):
    """None of several files could be written.

    Attributes:
        refused: Each of them.
    """

    def __init__(self, refused: tuple[RefusedFile, ...]) -> None:
        self.refused = refused
        super().__init__(f"none of the {counted(len(refused), 'file')} could be written, so there is no bundle of them")


def gather(pool: Pool, making: Sequence[Making[R]], step: Callable[[], None], *, strict: bool) -> Made[R]:
    """Wait for the files, and call *step* as each is done with.

    Raises:
        DeployError: What stands in the way of the whole command; where *strict*, also of one file.
    """
    files = {item.call: item.file for item in making}
    results: list[R] = []
    refused: list[tuple[RefusedFile, DeployError]] = []
    for call in pool.completed([item.call for item in making]):
        try:
            results.append(call.result())
        except OF_ONE_FILE as error:
            if strict:
                raise
            refused.append((files[call].refused(error), error))
        step()
    refused.sort(key=lambda pair: pair[0].path)
    return Made(tuple(results), tuple(file for file, _ in refused), tuple(error for _, error in refused))


def as_written(artifact: Artifact, path: str, root: Path) -> bool:
    """Whether what is said of a file that was not made anew is said of the file at *path*, and of its bytes."""
    return artifact.path == path and (root / artifact.layers).is_file() and artifact.sha256 == sha256(root / path)


def check_any_written(*parts: Made[object]) -> None:
    """Refuse to go on without a single file.

    Raises:
        DeployError: Why the only file could not be written.
        NothingWrittenError: None of several could be.
    """
    refused = [file for part in parts for file in part.refused]
    if refused and not any(part.results for part in parts):
        if len(refused) == 1:
            raise next(error for part in parts for error in part.errors)
        raise NothingWrittenError(tuple(refused))


def with_refused(manifest: Manifest, refused: Sequence[RefusedFile], root: Path) -> Manifest:
    """Return the manifest with the refused files in it.

    A file of an earlier export that was to be replaced by one of them is removed from *root*; what an earlier export
    could not write and this one did is no longer listed.
    """
    paths = {item.path for item in refused}
    for artifact in manifest.artifacts:
        if artifact.path in paths:
            for path in (root / artifact.path, root / artifact.layers):
                remove(path)
    artifacts = tuple(item for item in manifest.artifacts if item.path not in paths)
    done = paths | {item.path for item in artifacts}
    earlier = tuple(item for item in manifest.refused if item.path not in done)
    return replace(
        manifest,
        artifacts=artifacts,
        lowering={path: item for path, item in manifest.lowering.items() if path not in paths},
        quantization={path: item for path, item in manifest.quantization.items() if path not in paths},
        refused=(*earlier, *refused),
    )
