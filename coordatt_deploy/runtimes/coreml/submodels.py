"""Cut a Core ML package apart, in the ML Program evaluator: it takes any inner tensor as an input."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import BundleError, InferenceError, UsageError
from coordatt_deploy.runtimes.coreml.evaluator.package import load
from coordatt_deploy.runtimes.coreml.evaluator.program import Program
from coordatt_deploy.runtimes.coreml.runner import program_feeds


def open_pieces(
    path: Path,
    artifact: Artifact,
    tensors: tuple[str, ...],
    *,
    exact_sums: bool = False,  # noqa: ARG001 - it computes the same wherever it runs
) -> "CoreMLSubmodels":
    """Cut the package at *path* apart at *tensors*; see ``SubmodelExtractor.open_pieces``."""
    program = load(path)
    missing = [name for name in tensors if name not in program.names]
    if missing:
        raise BundleError(f"{path.name} has no tensor {', '.join(missing[:3])}; the layer map belongs to another file")
    return CoreMLSubmodels(program, artifact, tensors)


def write_pieces(
    path: Path,  # noqa: ARG001 - of the protocol
    artifact: Artifact,
    tensors: tuple[str, ...],  # noqa: ARG001
    shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG001
    target: Path,  # noqa: ARG001
) -> Artifact:
    """Core ML exists on Apple's systems only, so no other machine takes its pieces."""
    raise UsageError(f"{artifact.path}: the pieces of a Core ML package are evaluated here, and nowhere else")


class CoreMLSubmodels:
    """The pieces of a program; made by ``open_pieces``."""

    def __init__(self, program: Program, artifact: Artifact, tensors: tuple[str, ...]) -> None:
        self._program, self._artifact, self._tensors = program, artifact, tensors
        ports = {port.name: port for step in program.steps for port in step.outputs}
        self._dtypes = {name: ports[name].dtype for name in tensors if name in ports}

    def infer(self, feeds: Mapping[str, NumberArray], given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run every piece; see ``Submodels.infer``."""
        values = program_feeds(self._program.inputs, self._artifact.inputs, feeds) | {
            name: np.asarray(given[name]).astype(self._dtypes[name]) for name in self._tensors if name in self._dtypes
        }
        made: dict[str, NumberArray] = {}
        for name in self._tensors:
            fed = {key: value for key, value in values.items() if key != name}
            try:
                result = self._program.evaluate(fed, (name,))[name]
            except InferenceError:
                continue
            made[name] = np.asarray(self._program.dequantized(name, result), dtype=np.float64)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
