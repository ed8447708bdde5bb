"""Cut a TFLite artifact apart, for LiteRT: the pieces run with the delegate that the whole file runs with."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.argument_checks import checked, first_line
from coordatt_deploy.runtimes.submodels import GIVEN
from coordatt_deploy.runtimes.tflite.file_check import check_file
from coordatt_deploy.runtimes.tflite.flatbuffer import IDENTIFIER
from coordatt_deploy.runtimes.tflite.runner import TensorDetail, check, dequantized


def open_pieces(
    path: Path,
    artifact: Artifact,
    tensors: tuple[str, ...],
    *,
    exact_sums: bool = False,  # noqa: ARG001 - its kernels add in 32 bits everywhere
) -> "LitertSubmodels":
    """Cut the file at *path* apart at *tensors*; see ``SubmodelExtractor.open_pieces``."""
    try:
        content = path.read_bytes()
        check_file(content, path.name)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        signature = {item.name.decode(): item.tensorIndex for item in model.signatureDefs[0].inputs}
        given, made = cut(model, tensors)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        pieces = bytes(builder.Output())
        check(pieces, path.name)
        interpreter = Interpreter(model_content=pieces, num_threads=1)
        interpreter.allocate_tensors()
    except BundleError:
        raise
    except Exception as error:  # the generated schema raises whatever a damaged file makes it do
        raise BundleError(f"{path.name} cannot be cut apart: {first_line(error)}; build the bundle again") from error
    return LitertSubmodels(interpreter, artifact, signature, given, made)


def write_pieces(
    path: Path, artifact: Artifact, tensors: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], target: Path
) -> Artifact:
    """Write the file at *path* cut apart; see ``SubmodelExtractor.write_pieces``."""
    content = path.read_bytes()
    check_file(content, path.name)
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (signature,) = model.signatureDefs
    given, made = cut(model, tensors)
    graph = model.subgraphs[0]
    own = {entry.name.decode() for entry in signature.outputs}
    inputs = {f"{name}{GIVEN}": index for name, index in given.items()}
    outputs = {name: index for name, index in made.items() if name not in own}
    for entries, named in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for name, index in named.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            entries.append(entry)
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    target.write_bytes(bytes(builder.Output()))

    def described(named: Mapping[str, int]) -> tuple[TensorSpec, ...]:
        return tuple(
            _described(name, graph.tensors[index], shapes[name.removesuffix(GIVEN)]) for name, index in named.items()
        )

    return replace(artifact, inputs=artifact.inputs + described(inputs), outputs=artifact.outputs + described(outputs))


def _described(name: str, tensor: schema.TensorT, shape: tuple[int, ...]) -> TensorSpec:
    grid = tensor.quantization
    on_grid = tensor.type == schema.TensorType.INT8 and grid is not None and grid.scale is not None
    return TensorSpec(
        name,
        shape,
        "int8" if on_grid else "float32",
        "",
        float(grid.scale[0]) if on_grid else None,
        int(grid.zeroPoint[0]) if on_grid else None,
    )


def cut(model: schema.ModelT, tensors: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Edit *model*: every reader of one of *tensors* reads an input, and all of them are outputs.

    Returns:
        Index of the standing-in input, and of the tensor itself, by the tensor's name.

    Raises:
        BundleError: The model has no such tensor.
    """
    graph = model.subgraphs[0]
    by_name = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
    missing = [name for name in tensors if name not in by_name]
    if missing:
        raise BundleError(f"the file has no tensor {', '.join(missing[:3])}; the layer map belongs to another file")
    made = {name: by_name[name] for name in tensors}
    given: dict[str, int] = {}
    stand_in: dict[int, int] = {}
    for name, index in made.items():
        if any(index in operator.inputs for operator in graph.operators):
            twin = copy.copy(graph.tensors[index])
            twin.name, twin.buffer = f"{name}{GIVEN}".encode(), 0
            graph.tensors.append(twin)
            given[name] = stand_in[index] = len(graph.tensors) - 1
    for operator in graph.operators:
        operator.inputs = np.array([stand_in.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
    graph.inputs = np.array([*graph.inputs, *given.values()], dtype=np.int32)
    graph.outputs = np.array(list(dict.fromkeys([*map(int, graph.outputs), *made.values()])), dtype=np.int32)
    model.signatureDefs = None
    return given, made


class LitertSubmodels:
    """The pieces in one interpreter; made by ``open_pieces``."""

    def __init__(
        self,
        interpreter: Interpreter,
        artifact: Artifact,
        signature: dict[str, int],
        given: dict[str, int],
        made: dict[str, int],
    ) -> None:
        self._interpreter = interpreter
        self._artifact = artifact
        self._signature, self._given, self._made = signature, given, made
        self._details = {int(item["index"]): item for item in interpreter.get_tensor_details()}

    def infer(self, feeds: Mapping[str, NumberArray], given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run every piece; see ``Submodels.infer``."""
        for name, array in checked(feeds, self._artifact.inputs).items():
            self._interpreter.set_tensor(self._signature[name], array)
        for name, index in self._given.items():
            detail = self._details[index]
            value = np.asarray(given[name]).reshape(detail["shape"])
            self._interpreter.set_tensor(index, quantized(value, detail))
        self._interpreter.invoke()
        return {
            name: dequantized(self._interpreter.get_tensor(index), self._details[index])
            for name, index in self._made.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interpreter = None


def quantized(value: NumberArray, detail: TensorDetail) -> NumberArray:
    """Return *value* in the tensor's own type: ``clip(round(value / scale) + zero_point)`` where it is an integer."""
    dtype = np.dtype(detail["dtype"])
    scale, zero_point = detail["quantization"]
    if np.issubdtype(dtype, np.floating) or not scale:
        return np.ascontiguousarray(value, dtype=dtype)
    limits = np.iinfo(dtype.name)
    steps = np.round(np.asarray(value, np.float64) / scale) + zero_point
    return np.clip(steps, limits.min, limits.max).astype(dtype)
