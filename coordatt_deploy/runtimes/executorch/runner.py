"""Run an ExecuTorch artifact in executorch's own runtime, with XNNPACK; torch loads with it.

XNNPACK keeps inner tensors to itself. A runner that is asked for some runs the saved file with these as further outputs
(``tensors``): the same operators and the same weights, of which none can be fused across a tensor that is asked for.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import torch
from executorch.extension.pybindings import _C as runtime  # noqa: N811 - its package loads all exporters as well

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.errors import BundleError, InferenceError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import logged
from coordatt_deploy.runtimes import first_run
from coordatt_deploy.runtimes.argument_checks import check_described, check_threads, checked, first_line
from coordatt_deploy.runtimes.executorch.program_file import ProgramFile, opened, packed
from coordatt_deploy.runtimes.executorch.tensors import DTYPES, Grid, sources, tap

PACKAGE: Final = "executorch"


@dataclass(slots=True)
class _Threads:
    """The one pool of threads that all programs of this process share.

    A program holds on to the pool that there was when it was loaded, so that it has to be loaded again after another
    pool has been made.
    """

    count: int = 0
    loaded: "weakref.WeakSet[Program]" = field(default_factory=weakref.WeakSet)

    def become(self, count: int) -> None:
        """Have *count* threads from now on."""
        if count != self.count:
            for program in list(self.loaded):
                program.drop()
            runtime._unsafe_reset_threadpool(count)
            self.count = count


_THREADS: Final = _Threads()


class Program:
    """A program in memory, loaded again when other programs had another number of threads."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._content, self._threads = content, threads
        self._module: runtime.ExecuTorchModule | None = None
        self.load()

    def load(self) -> runtime.ExecuTorchModule:
        """Return it as the runtime has it, loaded if it is not.

        Raises:
            RuntimeError: The runtime refuses it.
        """
        if self._module is None or self._threads != _THREADS.count:
            with logged(PACKAGE):  # it tells of the CPU's files that it has not found
                _THREADS.become(self._threads)
                self._module = runtime._load_for_executorch_from_buffer(self._content)
            _THREADS.loaded.add(self)
        return self._module

    def drop(self) -> None:
        """Let go of what was loaded."""
        self._module = None

    def run(self, arrays: list[NumberArray]) -> list[NumberArray]:
        """Run it once.

        Args:
            arrays: One for each input.

        Returns:
            One for each output, each the caller's to keep.

        Raises:
            RuntimeError: The runtime refuses it.
        """
        made = self.load().forward([_as_tensor(array) for array in arrays])
        return [np.asarray(tensor.contiguous().numpy()) for tensor in made]


def _as_tensor(array: NumberArray) -> torch.Tensor:
    """An array without a copy; the runtime looks at the strides of axes of size 1 as well."""
    plain = np.ascontiguousarray(array).ravel().reshape(array.shape)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def open_artifact(
    path: Path,
    artifact: Artifact,
    *,
    threads: int = 1,
    tensors: tuple[str, ...] = (),
    exact_sums: bool = False,  # noqa: ARG001 - its kernels add in 32 bits everywhere
) -> "ExecutorchRunner":
    """Open the ExecuTorch file at *path*; see ``Runtime.open_artifact``.

    Raises:
        UsageError: Fewer than one thread.
        BundleError: The file is damaged, is not what *artifact* describes, or lacks one of *tensors*.
    """
    check_threads(threads)
    content, file = read(path)
    check_interface(file, artifact)
    inner: dict[str, tuple[int, Grid | None]] = {}
    if tensors:
        known = sources(file)
        places = tap(file, tensors)
        inner = {name: (place, known[name].grid) for name, place in places.items()}
        content = packed(file)
    return ExecutorchRunner(start(content, path.name, threads), artifact, inner)


def read(path: Path) -> tuple[bytes, ProgramFile]:
    """Return the bytes of the file at *path*, and what is in it.

    Raises:
        BundleError: It is damaged, or a process died of it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    file = opened(content, path.name)
    first_run.survives(Format.EXECUTORCH, content, path.name)
    return content, file


def start(content: bytes, name: str, threads: int = 1) -> Program:
    """Return a program that the runtime has loaded.

    Raises:
        BundleError: The runtime refuses it, or a process died of it.
    """
    first_run.survives(Format.EXECUTORCH, content, name)
    try:
        return Program(content, threads)
    except RuntimeError as error:
        raise BundleError(f"ExecuTorch cannot open {name}: {first_line(error)}; build the bundle again") from error


def check_interface(file: ProgramFile, artifact: Artifact) -> None:
    """Hold the inputs and outputs of a file, which have no names, to those that the manifest describes.

    Raises:
        BundleError: They do not agree.
    """
    method = file.method
    for what, specs, indices in (
        ("input", artifact.inputs, method.inputs),
        ("output", artifact.outputs, method.outputs),
    ):
        names = [spec.name for spec in specs]
        names += [f"{what} {number}" for number in range(len(names), len(indices))]
        values = [method.values[index].val for index in indices]
        actual = {
            name: (tuple(value.sizes), DTYPES.get(value.scalar_type, "?"))
            for name, value in zip(names, values, strict=False)
        }
        check_described(what, specs, actual)


def run_once(content: bytes) -> None:
    """See ``first_run.NativeRunner``."""
    file = opened(content, "the file")
    values = [file.method.values[index].val for index in file.method.inputs]
    program = Program(content, 1)
    program.run([np.ones(value.sizes, DTYPES[value.scalar_type]) for value in values])


class ExecutorchRunner:
    """An open program; made by ``open_artifact``."""

    runtime = f"{PACKAGE} {version(PACKAGE)}"
    origin = Origin.MEASURED

    def __init__(self, program: Program, artifact: Artifact, inner: Mapping[str, tuple[int, Grid | None]]) -> None:
        self._program: Program | None = program
        self._inner = inner
        self.inputs: tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: tuple[TensorSpec, ...] = artifact.outputs

    def infer(self, feeds: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run once; see ``Runner.infer``.

        Raises:
            UsageError: The feeds do not fit the inputs.
            InferenceError: An operator refuses what it gets.
        """
        if self._program is None:
            raise ValueError("the runner is closed")
        arrays = checked(feeds, self.inputs)
        try:
            made = self._program.run([arrays[spec.name] for spec in self.inputs])
        except RuntimeError as error:
            raise InferenceError(f"ExecuTorch cannot run it: {first_line(error)}") from error
        results = {spec.name: made[index] for index, spec in enumerate(self.outputs)}
        for name, (place, grid) in self._inner.items():
            results.setdefault(name, made[place] if grid is None else on_floats(made[place], grid))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._program is not None:
            self._program.drop()
        self._program = None


def on_floats(values: NumberArray, grid: Grid) -> NumberArray:
    """Return what integers stand for; floats come back as they are."""
    return values if np.issubdtype(values.dtype, np.floating) else grid.floats(values)
