"""Readers: what a file is, says of itself and holds. Nothing in it is executed.

Each reader needs its own format's package and no other, and each of its functions no more than it uses itself.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from coordatt_deploy.artifact_specs import About, AppInterface
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.format_modules import Role, load, needing
from coordatt_deploy.formats import Format, format_of, suffixes
from coordatt_deploy.host import Host
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.delegate import Delegate
from coordatt_deploy.runtimes.file_graph import FileGraph, OperatorCount
from coordatt_deploy.runtimes.vocabulary import Vocabulary


class Reader(Protocol):
    """What ``runtimes/<format>/reader.py`` offers: a file is read, not run.

    Where a function needs a package that is not installed, it raises ModuleNotFoundError; callers go through the
    functions of this module, which name the extra to install.
    """

    def graph(self, path: Path) -> FileGraph:
        """Return operators, tensors and weights.

        Raises:
            BundleError: It is damaged.
        """

    def operators(self, path: Path) -> OperatorCount:
        """Return how many of each operator the runtime sees.

        Raises:
            BundleError: It is damaged.
        """

    def metadata(self, path: Path) -> Mapping[str, object]:
        """Return what the exporter wrote into the file of the model, by key.

        Raises:
            BundleError: It is damaged.
        """

    def about(self, path: Path) -> About:
        """Return author, licence and description as the file has them.

        Raises:
            BundleError: It is damaged.
        """

    def vocabulary(self) -> Vocabulary:
        """Return what the format's operators mean."""

    def delegates(self, path: Path, graph: FileGraph) -> tuple[Delegate, ...]:
        """Return what each accelerator takes of the file at *path*, of which *graph* was read."""

    def app_interface(self, path: Path) -> AppInterface | None:
        """Return what an app gives to the file and gets of it; None where that is its tensors.

        Raises:
            BundleError: It is damaged.
        """

    def runtime_needs(self, path: Path) -> RuntimeNeeds:
        """Return what the file needs of the runtime that opens it.

        Raises:
            BundleError: It is damaged.
        """

    def host_effect(self, path: Path, machine: Host) -> str | None:
        """Return why the results of the file on *machine* may differ from a device's; None where they can't.

        Callers go through ``host_effects``, which knows what CPU the file is made for.
        """


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
    file_format = format_of(path)
    if file_format is None:
        raise UsageError(f"{path.name} is no artifact; expected a file that ends in {suffixes()}")
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    with needing(f"reading {file_format} files", file_format):
        graph = reader(file_format).graph(path)
    _check_order(graph, path.name)
    return graph


def _check_order(graph: FileGraph, name: str) -> None:
    """Refuse a graph that runs in a circle: whoever follows it upwards would never end.

    Raises:
        BundleError: An operator reads what no operator before it gives, but a later one.
    """
    waiting = Counter(output for node in graph.nodes for output in node.outputs)
    for node in graph.nodes:
        later = next((source for source in node.inputs if source and waiting[source] > 0), None)
        if later is not None:
            raise BundleError(f"{name} is damaged: {node.operator} reads {later!r}, which a later operator gives")
        waiting.subtract(node.outputs)


def count_operators(path: Path, file_format: Format) -> OperatorCount:
    """Return the operators of the artifact at *path*.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    with needing(f"counting operators of {file_format} files", file_format):
        return reader(file_format).operators(path)


def app_interface(path: Path, file_format: Format) -> AppInterface | None:
    """Return what an app gives to the artifact at *path* and gets of it; None where that is its tensors.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    with needing(f"reading {file_format} files", file_format):
        return reader(file_format).app_interface(path)


def runtime_needs(path: Path, file_format: Format) -> RuntimeNeeds:
    """Return what the artifact at *path* needs of the runtime that opens it.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    with needing(f"reading {file_format} files", file_format):
        return reader(file_format).runtime_needs(path)


def read_about(path: Path, file_format: Format) -> About:
    """Return author, licence and description as the file at *path* has them.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    with needing(f"reading {file_format} files", file_format):
        return reader(file_format).about(path)


def read_metadata(path: Path, file_format: Format) -> Mapping[str, object]:
    """Return what the exporter wrote into the artifact at *path*, by key.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    with needing(f"reading {file_format} files", file_format):
        return reader(file_format).metadata(path)


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:
    """Return what the accelerators of the file's format take of it."""
    return reader(graph.format).delegates(path, graph)
