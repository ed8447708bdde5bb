"""Runtimes: a folder a format. ``runner`` opens files and runs them, ``submodels`` cuts them apart, ``reader`` reads.

Running and judging are two phases: a runner turns feeds into named arrays and knows nothing of tolerances.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import Format


class Runner(Protocol):
    """An artifact opened in one runtime. Use as a context manager."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``infer`` eats: names, shapes, dtypes and layouts of the artifact itself."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``infer`` gives."""

    @property
    def runtime(self) -> str:
        """Name and version of the runtime, e.g. ``onnxruntime 1.31.1``."""

    @property
    def origin(self) -> Origin:
        """Whether results are measured, emulated or evaluated."""

    def infer(self, feeds: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run once; the arrays are the caller's to keep.

        Args:
            feeds: One array per input, in the artifact's own dtype and layout.

        Returns:
            The outputs by name in the artifact's own dtype; beside them, dequantized to float, the inner tensors that
            the runner was opened with.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Runtime(Protocol):
    """What ``runtimes/<format>/runner.py`` offers (PEP 544: a module can satisfy a protocol)."""

    def open_artifact(
        self,
        path: Path,
        artifact: Artifact,
        *,
        threads: int = 1,
        tensors: tuple[str, ...] = (),
        exact_sums: bool = False,
    ) -> Runner:
        """Open the file at *path*.

        Args:
            path: The artifact on disk.
            artifact: Its description in the manifest; the stable names and layouts come from here.
            threads: Worker threads of the runtime.
            tensors: Names of inner tensors (as in the layer map) that ``infer`` shall give as well. Asking for them may
                keep the runtime from fusing operators, hence the final file is always run without, too.
            exact_sums: Compute sums of integers exactly, where this CPU's kernels saturate and those of the CPU that
                the file is made for do not (``host_effects``); not for latencies.

        Raises:
            MissingDependencyError: The runtime is not installed.
            BundleError: The file cannot be opened as this format.
        """


def runtime(file_format: Format) -> Runtime:
    """Return the module that opens artifacts of *file_format*.

    Raises:
        MissingDependencyError: A package it needs is not installed.
    """
    return cast("Runtime", load(file_format, Role.RUNNER))
