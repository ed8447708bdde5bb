"""Run a TFLite artifact in LiteRT (ai-edge-litert), or in tflite-runtime where that is what is installed.

Inner tensors are what TFLite's built-in kernels compute: XNNPACK keeps its own to itself. A runner opened without inner
tensors runs the file as an app does, through XNNPACK.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors only; read when the library loads

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    PACKAGE = "ai-edge-litert"
except ModuleNotFoundError as missing:
    try:
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError:
        raise missing from None  # the newer one is the one to install
    PACKAGE = "tflite-runtime"

from coordatt_deploy.array_types import Number, NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.errors import BundleError, InferenceError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import first_run
from coordatt_deploy.runtimes.argument_checks import check_described, check_threads, checked, first_line
from coordatt_deploy.runtimes.tflite.file_check import check_file

DELEGATE: Final = "DELEGATE"  # the interpreter's name for the node that stands for a partition
SIGNATURE: Final = "serving_default"


class QuantizationParameters(TypedDict):
    """The grid of a tensor, or of each of its channels, as the interpreter tells of it."""

    scales: NDArray[np.float32]
    zero_points: NDArray[np.int32]
    quantized_dimension: int


class TensorDetail(TypedDict):
    """What the interpreter tells of a tensor, as far as it is used here."""

    name: str
    index: int
    shape: NDArray[np.int32]
    shape_signature: NDArray[np.int32]
    dtype: type[Number]
    quantization: tuple[float, int]
    quantization_parameters: QuantizationParameters


def open_artifact(
    path: Path,
    artifact: Artifact,
    *,
    threads: int = 1,
    tensors: tuple[str, ...] = (),
    exact_sums: bool = False,  # noqa: ARG001 - its kernels add in 32 bits everywhere
) -> "LitertRunner":
    """Open the TFLite file at *path*; see ``Runtime.open_artifact``.

    Raises:
        UsageError: Fewer than one thread.
        BundleError: The file is damaged, is not what *artifact* describes, or lacks one of *tensors*.
    """
    check_threads(threads)
    interpreter = _open(path, threads, keep_all=bool(tensors))
    try:
        signature = interpreter.get_signature_runner(SIGNATURE)
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
    except (ValueError, KeyError) as error:
        raise BundleError(f"{path.name} has no signature {SIGNATURE}: {first_line(error)}; build it again") from error
    check_described("input", artifact.inputs, {name: _described(detail) for name, detail in inputs.items()})
    check_described("output", artifact.outputs, {name: _described(detail) for name, detail in outputs.items()})
    return LitertRunner(interpreter, artifact, inputs, outputs, _inner(interpreter, path, tensors))


class LitertRunner:
    """An open interpreter; made by ``open_artifact``."""

    runtime = f"{PACKAGE} {version(PACKAGE)}"
    origin = Origin.MEASURED

    def __init__(
        self,
        interpreter: Interpreter,
        artifact: Artifact,
        inputs: Mapping[str, TensorDetail],
        outputs: Mapping[str, TensorDetail],
        inner: Mapping[str, TensorDetail],
    ) -> None:
        self._interpreter = interpreter
        self._feeds = {name: int(detail["index"]) for name, detail in inputs.items()}
        self._results = {spec.name: int(outputs[spec.name]["index"]) for spec in artifact.outputs}
        self._inner = inner
        self.inputs: tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: tuple[TensorSpec, ...] = artifact.outputs

    def infer(self, feeds: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run once; see ``Runner.infer``.

        Raises:
            UsageError: The feeds do not fit the inputs.
            InferenceError: An operator refuses what it gets.
        """
        if self._interpreter is None:
            raise ValueError("the runner is closed")
        for name, array in checked(feeds, self.inputs).items():
            self._interpreter.set_tensor(self._feeds[name], array)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise InferenceError(f"LiteRT cannot run it: {first_line(error)}") from error
        # get_tensor copies; the interpreter's own buffers are overwritten by the next run.
        results = {name: self._interpreter.get_tensor(index) for name, index in self._results.items()}
        for name, detail in self._inner.items():
            results.setdefault(name, dequantized(self._interpreter.get_tensor(int(detail["index"])), detail))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interpreter = None


def dequantized(values: NumberArray, detail: TensorDetail) -> NumberArray:
    """Return ``(values - zero_point) * scale`` in float32, per tensor or per channel; floats come back as they are.

    Args:
        values: A tensor as the interpreter holds it.
        detail: What the interpreter tells of it.
    """
    parameters = detail["quantization_parameters"]
    scales, zero_points = np.asarray(parameters["scales"]), np.asarray(parameters["zero_points"])
    if scales.size == 0 or np.issubdtype(values.dtype, np.floating):
        return values
    if scales.size > 1:
        along = [-1 if axis == parameters["quantized_dimension"] else 1 for axis in range(values.ndim)]
        scales, zero_points = scales.reshape(along), zero_points.reshape(along)
    floats = (values.astype(np.float64) - zero_points) * scales
    return floats.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a file.

    Attributes:
        name: TFLite's, e.g. ``DEPTHWISE_CONV_2D``.
        tensor: Name of its first output.
        delegated: Whether XNNPACK runs it.
    """

    name: str
    tensor: str
    delegated: bool


@dataclass(frozen=True, slots=True)
class Delegation:
    """What XNNPACK takes of a file.

    Attributes:
        operators: All of the file, in execution order.
        partitions: Stretches that XNNPACK runs as one piece each; between two of them tensors leave XNNPACK and come
            back, so one partition is best and none means that built-in kernels run everything.
    """

    operators: tuple[Operator, ...]
    partitions: int


def operators(path: Path) -> Delegation:
    """List the operators of the TFLite file at *path* and who runs them.

    Raises:
        BundleError: The file cannot be opened.
    """
    interpreter = _open(path, threads=1, keep_all=False)
    nodes = interpreter._get_ops_details()
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    own = [node for node in nodes if node["op_name"] != DELEGATE]
    partitions = [node for node in nodes if node["op_name"] == DELEGATE]
    made_by = {int(tensor): position for position, node in enumerate(own) for tensor in node["outputs"]}
    delegated: set[int] = set()
    for partition in partitions:
        # A partition lists only its borders: what it runs is what lies between its outputs and its inputs.
        outside = {int(tensor) for tensor in partition["inputs"]}
        open_ends = [int(tensor) for tensor in partition["outputs"]]
        while open_ends:
            position = made_by.get(open_ends.pop())
            if position is not None and position not in delegated:
                delegated.add(position)
                open_ends += [int(tensor) for tensor in own[position]["inputs"] if int(tensor) not in outside]
    listed = (
        Operator(node["op_name"], names.get(int(node["outputs"][0]), ""), position in delegated)
        for position, node in enumerate(own)
    )
    return Delegation(tuple(listed), len(partitions))


def _open(path: Path, threads: int, *, keep_all: bool) -> Interpreter:
    try:
        check(path.read_bytes(), path.name)
        return allocated(str(path), None, threads, keep_all=keep_all)
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"LiteRT cannot open {path.name}: {first_line(error)}; build the bundle again") from error


def check(content: bytes, name: str) -> None:
    """Refuse a file that LiteRT would die of. Every file is held to this before an interpreter opens it here.

    Raises:
        BundleError: See ``file_check`` and ``first_run``.
    """
    check_file(content, name)
    first_run.survives(Format.TFLITE, content, name)


def run_once(content: bytes) -> None:
    """See ``first_run.NativeRunner``: with XNNPACK, and with the built-in kernels alone."""
    for keep_all in (False, True):
        interpreter = allocated(None, content, 1, keep_all=keep_all)
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.ones(detail["shape"], detail["dtype"]))
        interpreter.invoke()


def allocated(path: str | None, content: bytes | None, threads: int, *, keep_all: bool) -> Interpreter:
    """Return an interpreter of a file, or of its bytes, which were held to ``check`` before.

    Args:
        path: Of the file; None for its bytes.
        content: The bytes; None for a file.
        threads: Of the interpreter.
        keep_all: Whether inner tensors can be asked for, which XNNPACK keeps to itself: built-in kernels run then.
    """
    interpreter = Interpreter(
        model_path=path,
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if keep_all else OpResolverType.AUTO
        ),
        experimental_preserve_all_tensors=keep_all,
    )
    interpreter.allocate_tensors()
    return interpreter


def _inner(interpreter: Interpreter, path: Path, tensors: Sequence[str]) -> dict[str, TensorDetail]:
    if not tensors:
        return {}
    details = {detail["name"]: detail for detail in interpreter.get_tensor_details()}
    missing = [name for name in tensors if name not in details]
    if missing:
        raise BundleError(
            f"{path.name} has no tensor {', '.join(missing[:3])}; the layer map belongs to another file, build it again"
        )
    return {name: details[name] for name in tensors}


def _described(detail: TensorDetail) -> tuple[tuple[int | None, ...], str]:
    shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"])
    return shape, np.dtype(detail["dtype"]).name
