"""Time per operator in ExecuTorch, whose wheel is built without its event tracer: layers as files of their own.

A delegate would be one event of the tracer anyhow. Each piece holds a layer's operators, in the delegate that they are
in, and gets the values that it gets in the whole file. The pieces run in execution order.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.runtimes.argument_checks import check_threads, checked
from coordatt_deploy.runtimes.executorch.pieces import piece
from coordatt_deploy.runtimes.executorch.program_file import METHOD, opened, packed
from coordatt_deploy.runtimes.executorch.runner import Program, read, start
from coordatt_deploy.runtimes.executorch.tensors import Operator, cut, operators, sources, tap, value_name
from coordatt_deploy.runtimes.file_graph import Node
from coordatt_deploy.runtimes.operator_times import Method, Piece, TimedPart, owners


@dataclass(frozen=True, slots=True)
class _Piece:
    """The operators of one layer, in a program that was fed once and keeps what it got."""

    timed: Piece
    program: Program


def open_clock(
    path: Path, artifact: Artifact, tensors: frozenset[str], feeds: Mapping[str, NumberArray], threads: int
) -> "ExecutorchOperatorClock":
    """See ``OperatorTimer.open_clock``."""
    check_threads(threads)
    content, file = read(path)
    listed = list(operators(file))
    groups: dict[str | None, list[int]] = {}
    nodes = [Node(item.name, item.inputs, item.outputs) for item in listed]
    for index, owner in enumerate(owners(nodes, {name: name for name in tensors})):
        groups.setdefault(owner, []).append(index)
    borders = _borders(
        listed, groups.values(), {value_name(index) for index in file.method.outputs}, set(sources(file))
    )
    arrays = checked(feeds, artifact.inputs)
    tapped = opened(content, path.name)
    places = tap(tapped, borders)
    whole = start(packed(tapped), path.name)
    results = whole.run([arrays[spec.name] for spec in artifact.inputs])
    whole.drop()
    given, made = cut(file, borders)
    inputs, outputs = file.method.inputs, file.method.outputs
    values = {inputs[place]: arrays[spec.name] for place, spec in enumerate(artifact.inputs)}
    values |= {inputs[place]: results[places[name]] for name, place in given.items()}
    pieces = []
    for owner, group in groups.items():
        own = {name for index in group for name in listed[index].outputs}
        part, needed = piece(file, group, [outputs[made[name]] for name in borders if name in own])
        program = start(part, path.name, threads)
        program.run([values[index] for index in needed])
        first = listed[group[0]]
        name = first.outputs[0] if first.outputs else first.name
        pieces.append(_Piece(Piece(name, tuple(listed[index].name for index in group), owner, threads == 1), program))
    return ExecutorchOperatorClock(pieces)


def _borders(
    listed: Sequence[Operator], groups: Iterable[Sequence[int]], results: set[str], known: Collection[str]
) -> list[str]:
    """What one group makes and another reads, and what the file gives."""
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    maker = {name: index for index, operator in enumerate(listed) for name in operator.outputs}
    crossing = {
        name
        for index, operator in enumerate(listed)
        for name in operator.inputs
        if name in maker and group_of[maker[name]] != group_of[index]
    }
    return [name for name in maker if name in known and name in crossing | results]


class ExecutorchOperatorClock:
    """The pieces, each a program; made by ``open_clock``."""

    method = Method.SUBMODELS

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = list(pieces)

    def run(self) -> None:
        """See ``OperatorClock.run``."""
        for item in self._pieces:
            module = item.program.load()
            item.timed.time(partial(module.plan_execute, METHOD, clone_outputs=False))

    def parts(self) -> tuple[TimedPart, ...]:
        """See ``OperatorClock.parts``."""
        return tuple(item.timed.part() for item in self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for item in self._pieces:
            item.program.drop()
        self._pieces.clear()
