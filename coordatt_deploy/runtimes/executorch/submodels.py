"""Cut an ExecuTorch artifact apart: the saved file, with further inputs and outputs inside of its delegates."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.runtimes.argument_checks import checked
from coordatt_deploy.runtimes.executorch.program_file import opened, packed
from coordatt_deploy.runtimes.executorch.runner import Program, on_floats, read, start
from coordatt_deploy.runtimes.executorch.tensors import TensorSource, cut, sources
from coordatt_deploy.runtimes.submodels import GIVEN


def open_pieces(
    path: Path,
    artifact: Artifact,
    tensors: tuple[str, ...],
    *,
    exact_sums: bool = False,  # noqa: ARG001 - its kernels add in 32 bits everywhere
) -> "ExecutorchSubmodels":
    """Cut the file at *path* apart at *tensors*; see ``SubmodelExtractor.open_pieces``."""
    _, file = read(path)
    known = sources(file)
    given, made = cut(file, tensors)
    program = start(packed(file), path.name)
    return ExecutorchSubmodels(program, artifact, known, given, made)


def write_pieces(
    path: Path,
    artifact: Artifact,
    tensors: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG001 - the file has them
    target: Path,
) -> Artifact:
    """Write the file at *path* cut apart; see ``SubmodelExtractor.write_pieces``."""
    file = opened(path.read_bytes(), path.name)
    known = sources(file)
    inputs, outputs = len(file.method.inputs), len(file.method.outputs)
    given, made = cut(file, tensors)
    target.write_bytes(packed(file))

    def described(places: Mapping[str, int], first: int, suffix: str) -> tuple[TensorSpec, ...]:
        new = sorted((place, name) for name, place in places.items() if place >= first)
        return tuple(_spec(f"{name}{suffix}", known[name]) for _, name in new)

    return replace(
        artifact,
        inputs=artifact.inputs + described(given, inputs, GIVEN),
        outputs=artifact.outputs + described(made, outputs, ""),
    )


def _spec(name: str, source: TensorSource) -> TensorSpec:
    grid = (source.grid.scale, source.grid.zero_point) if source.grid is not None and source.dtype == "int8" else ()
    return TensorSpec(name, source.shape, source.dtype, "", *grid)


class ExecutorchSubmodels:
    """The pieces in one program; made by ``open_pieces``."""

    def __init__(
        self,
        program: Program,
        artifact: Artifact,
        known: Mapping[str, TensorSource],
        given: Mapping[str, int],
        made: Mapping[str, int],
    ) -> None:
        self._program, self._artifact, self._known = program, artifact, known
        self._given, self._made = given, made

    def infer(self, feeds: Mapping[str, NumberArray], given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run every piece; see ``Submodels.infer``."""
        arrays = list(checked(feeds, self._artifact.inputs).values())
        order = sorted(self._given, key=self._given.__getitem__)
        made = self._program.run([*arrays, *(self._held(name, given[name]) for name in order)])
        found = {}
        for name, place in self._made.items():
            grid = self._known[name].grid
            found[name] = made[place] if grid is None else on_floats(made[place], grid)
        return found

    def _held(self, name: str, value: NumberArray) -> NumberArray:
        """A value as the file holds it."""
        source = self._known[name]
        shaped = np.asarray(value).reshape(source.shape)
        if source.grid is not None and source.dtype == "int8":
            return source.grid.integers(shaped)
        return np.ascontiguousarray(shaped, dtype=source.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.drop()
