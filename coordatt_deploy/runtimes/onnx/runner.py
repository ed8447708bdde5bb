"""Run an ONNX artifact in ONNX Runtime, on the CPU."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

# Read once, when the library loads; without it, it writes a device id into the user's cache folder and sends events.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.errors import BundleError, InferenceError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import first_run
from coordatt_deploy.runtimes.argument_checks import check_described, check_threads, checked, first_line, shapes_of

ort.disable_telemetry_events()

PROVIDERS: Final = ("CPUExecutionProvider",)
EXACT_SUMS: Final = ("session.disable_quant_qdq", "1")  # float kernels between the grids; see ``saturation``
LOG_ERRORS: Final = 3  # ONNX Runtime's severity
LOG_FATAL: Final = 4
OPEN_SIZE: Final = 64  # stands for sizes that a file leaves open, where any will do

GRIDS: Final = ("tensor(int8)", "tensor(uint8)")  # steps of a scale that stands elsewhere, not values

DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def open_artifact(
    path: Path, artifact: Artifact, *, threads: int = 1, tensors: tuple[str, ...] = (), exact_sums: bool = False
) -> "OnnxRuntimeRunner":
    """Open the ONNX file at *path*; see ``Runtime.open_artifact``.

    Raises:
        UsageError: Fewer than one thread.
        BundleError: The file is damaged, is not what *artifact* describes, or lacks one of *tensors*.
    """
    check_threads(threads)
    names = [spec.name for spec in artifact.outputs]
    inner = tuple(name for name in dict.fromkeys(tensors) if name not in names)
    session = start_session(path, session_options(threads, exact_sums=exact_sums), inner)
    check_described("input", artifact.inputs, _described(session.get_inputs()))
    check_described("output", artifact.outputs, _described(session.get_outputs(), without=inner))
    for value in session.get_outputs():
        if value.name in inner and value.type in GRIDS:
            raise BundleError(
                f"{path.name}: tensor {value.name} is {value.type}; the layer map must name the output of its"
                " DequantizeLinear instead"
            )
    return OnnxRuntimeRunner(session, artifact, (*names, *inner))


def start_session(path: Path, options: ort.SessionOptions, inner: Sequence[str] = ()) -> ort.InferenceSession:
    """Return a session of the file at *path*, which was run once in another process before.

    Args:
        path: Of the file.
        options: Of the session.
        inner: Inner values that are outputs as well.

    Raises:
        BundleError: It cannot be opened, or a process died of it; see ``first_run``.
    """
    try:
        content = path.read_bytes()
        first_run.survives(Format.ONNX, content, path.name)
        return ort.InferenceSession(with_outputs(content, inner), options, providers=list(PROVIDERS))
    except BundleError:
        raise
    except Exception as error:  # its exceptions share no base but Exception
        raise BundleError(
            f"ONNX Runtime cannot open {path.name}: {first_line(error)}; build the bundle again"
        ) from error


def run_once(content: bytes) -> None:
    """See ``first_run.NativeRunner``."""
    session = ort.InferenceSession(content, session_options(1), providers=list(PROVIDERS))
    feeds = {
        value.name: np.ones([size if isinstance(size, int) else OPEN_SIZE for size in value.shape], DTYPES[value.type])
        for value in session.get_inputs()
    }
    session.run(None, feeds)


def session_options(threads: int, *, exact_sums: bool = False) -> ort.SessionOptions:
    """Return how files are opened here: on the CPU, one operator after the other, and every time alike."""
    options = ort.SessionOptions()
    if exact_sums:
        options.add_session_config_entry(*EXACT_SUMS)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = LOG_ERRORS
    return options


class OnnxRuntimeRunner:
    """An open session; made by ``open_artifact``."""

    runtime = f"onnxruntime {ort.__version__}"
    origin = Origin.MEASURED

    def __init__(self, session: ort.InferenceSession, artifact: Artifact, names: tuple[str, ...]) -> None:
        self._session: ort.InferenceSession | None = session
        self._names = names
        self.inputs: tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: tuple[TensorSpec, ...] = artifact.outputs

    def infer(self, feeds: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run once; see ``Runner.infer``.

        Raises:
            UsageError: The feeds do not fit the inputs.
            InferenceError: An operator refuses what it gets.
        """
        if self._session is None:
            raise ValueError("the runner is closed")
        given = checked(feeds, self.inputs)
        try:
            arrays = self._session.run(list(self._names), given)
        except Exception as error:  # its exceptions share no base but Exception
            raise InferenceError(f"ONNX Runtime cannot run it on {shapes_of(given)}: {first_line(error)}") from error
        return dict(zip(self._names, map(np.asarray, arrays), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """Return the serialised ONNX *model* with inner values *names* as outputs beside its own.

    Protocol buffers merge a message that appears twice, and concatenate its repeated fields. So a second ``graph``
    (field 7 of ModelProto) with nothing but ``output`` (field 12 of GraphProto) entries, appended to the file, is all
    it takes; ONNX Runtime infers their types. Boards need no onnx package for it.
    """
    if not names:
        return model
    return model + _field(7, b"".join(_field(12, _field(1, name.encode())) for name in names))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload  # 2: length-delimited


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _described(
    values: Sequence[ort.NodeArg], without: Sequence[str] = ()
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    return {
        value.name: (
            tuple(size if isinstance(size, int) else None for size in value.shape),
            DTYPES.get(value.type, value.type),
        )
        for value in values
        if value.name not in without
    }
