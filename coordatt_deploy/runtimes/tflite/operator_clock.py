"""Time per operator in LiteRT, whose interpreter tells none: each layer's operators as a file of their own.

A piece runs with the delegate that the whole file runs with, and gets the values that it gets there. The pieces run in
execution order, and each one's inputs are written just before, so that the caches hold about what they would: the
inputs, but not the weights.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.argument_checks import check_threads, checked, first_line
from coordatt_deploy.runtimes.file_graph import Node
from coordatt_deploy.runtimes.operator_times import Method, Piece, TimedPart, owners
from coordatt_deploy.runtimes.tflite.file_check import check_file
from coordatt_deploy.runtimes.tflite.flatbuffer import IDENTIFIER
from coordatt_deploy.runtimes.tflite.runner import allocated, check


@dataclass(frozen=True, slots=True)
class _Piece:
    """The operators of one layer, in an interpreter, and what they get, by index of the tensor there."""

    timed: Piece
    interpreter: Interpreter
    values: Mapping[int, NumberArray]


def open_clock(
    path: Path, artifact: Artifact, tensors: frozenset[str], feeds: Mapping[str, NumberArray], threads: int
) -> "LitertOperatorClock":
    """See ``OperatorTimer.open_clock``."""
    check_threads(threads)
    try:
        content = path.read_bytes()
        check_file(content, path.name)
        check(content, path.name)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        values = _values(content, model, checked(feeds, artifact.inputs))
        pieces = [
            _opened(model, group, owner, values, threads, path.name) for owner, group in _groups(model, tensors).items()
        ]
    except BundleError:
        raise
    except Exception as error:  # the generated schema raises whatever a damaged file makes it do
        raise BundleError(f"{path.name} cannot be cut apart: {first_line(error)}; build the bundle again") from error
    return LitertOperatorClock(pieces)


def _values(content: bytes, model: schema.ModelT, feeds: Mapping[str, NumberArray]) -> dict[int, NumberArray]:
    """What every tensor holds in the whole file."""
    whole = allocated(None, content, 1, keep_all=True)
    signature = {item.name.decode(): item.tensorIndex for item in model.signatureDefs[0].inputs}
    for name, array in feeds.items():
        whole.set_tensor(signature[name], array)
    whole.invoke()
    graph = model.subgraphs[0]
    read = {int(index) for operator in graph.operators for index in operator.inputs if index >= 0}
    made = {int(index) for operator in graph.operators for index in operator.outputs}
    return {index: whole.get_tensor(index) for index in read & (made | set(map(int, graph.inputs)))}


def _groups(model: schema.ModelT, tensors: frozenset[str]) -> dict[str | None, list[int]]:
    """The operators of each tensor of the layer map, in the order in which the first of each is run."""
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    nodes = [
        Node("", tuple(names[i] for i in operator.inputs if i >= 0), tuple(names[i] for i in operator.outputs))
        for operator in graph.operators
    ]
    groups: dict[str | None, list[int]] = {}
    for index, owner in enumerate(owners(nodes, {name: name for name in tensors})):
        groups.setdefault(owner, []).append(index)
    return groups


def _opened(
    model: schema.ModelT,
    group: Sequence[int],
    owner: str | None,
    values: Mapping[int, NumberArray],
    threads: int,
    name: str,
) -> _Piece:
    content, inputs = _piece(model, group)
    check(content, name)
    interpreter = allocated(None, content, threads, keep_all=False)
    graph = model.subgraphs[0]
    first = graph.tensors[graph.operators[group[0]].outputs[0]].name.decode()
    operators = tuple(_operator_name(model, graph.operators[index]) for index in group)
    needed = {place: values[index] for place, index in enumerate(inputs) if index in values}
    return _Piece(Piece(first, operators, owner, threads == 1), interpreter, needed)


def _operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names: dict[int, str] = {
        value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
    }
    return names.get(number, str(number))


def _piece(model: schema.ModelT, group: Sequence[int]) -> tuple[bytes, list[int]]:
    """Write some operators of *model* as a file of their own.

    Returns:
        The file, whose first tensors are its inputs, and their indices in *model*.
    """
    graph = model.subgraphs[0]
    chosen = [copy.copy(graph.operators[index]) for index in group]
    others = [operator for index, operator in enumerate(graph.operators) if index not in set(group)]
    made = {int(index) for operator in chosen for index in operator.outputs}
    read = {int(index) for operator in chosen for index in operator.inputs if index >= 0}
    wanted = {int(index) for operator in others for index in operator.inputs} | {int(index) for index in graph.outputs}
    computed = {int(index) for operator in graph.operators for index in operator.outputs} | set(map(int, graph.inputs))
    inputs = sorted((read & computed) - made)
    results = sorted(made & wanted) or sorted(made - read)
    order = [*inputs, *sorted((read | made) - set(inputs))]
    place = {index: position for position, index in enumerate(order)}
    piece, part = copy.copy(model), copy.copy(graph)
    empty = schema.BufferT()
    piece.buffers, part.tensors = [empty], []
    for index in order:
        tensor = copy.copy(graph.tensors[index])
        data = model.buffers[tensor.buffer]
        tensor.buffer = 0
        if index not in computed and data.data is not None and len(data.data):
            tensor.buffer = len(piece.buffers)
            piece.buffers.append(data)
        part.tensors.append(tensor)
    for operator in chosen:
        operator.inputs = np.array([place.get(int(index), -1) for index in operator.inputs], np.int32)
        operator.outputs = np.array([place[int(index)] for index in operator.outputs], np.int32)
    part.operators = chosen
    part.inputs = np.array([place[index] for index in inputs], np.int32)
    part.outputs = np.array([place[index] for index in results], np.int32)
    piece.subgraphs, piece.signatureDefs, piece.metadata, piece.metadataBuffer = [part], None, None, None
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(piece.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output()), inputs


class LitertOperatorClock:
    """The pieces, each in an interpreter; made by ``open_clock``."""

    method = Method.SUBMODELS

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = list(pieces)

    def run(self) -> None:
        """See ``OperatorClock.run``."""
        for piece in self._pieces:
            for place, value in piece.values.items():
                piece.interpreter.set_tensor(place, value)
            piece.timed.time(piece.interpreter.invoke)

    def parts(self) -> tuple[TimedPart, ...]:
        """See ``OperatorClock.parts``."""
        return tuple(piece.timed.part() for piece in self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces.clear()
