"""An ExecuTorch file, taken apart and put together again.

    header and program   a FlatBuffer: values, and chains of instructions that call kernels or delegates
    segments             bytes that the program refers to: constants, weights by name, what a delegate computes

What XNNPACK computes is a FlatBuffer as well, with operators and values of its own. Nothing here runs anything.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record, Schema, SchemaError, read, schema, write

METHOD: Final = "forward"
METADATA_METHOD: Final = "coordatt_deploy_metadata"
XNNPACK: Final = "XnnpackBackend"
NONE: Final = 0xFFFFFFFF  # an id that stands for no value
NAMED: Final = 0xFFFFFFFFFFFFFFFF  # the offset of data that has a name
EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2  # flags of XNNPACK's values
INLINE, SEGMENT = 0, 1  # where data lies

_HEADER: Final = struct.Struct("<4sIQQQ")  # mark, length, bytes of the program, where segments begin, bytes of them
_HEADER_MARK: Final = b"eh00"
_ALIGNMENT: Final = 128  # of segments, as executorch writes them
_GRAPH_HEADER: Final = struct.Struct("<4x4sHIIIQ")  # mark, length, place and size of the graph and of its constants
_GRAPH_MARK: Final = b"XH00"
_GRAPH_ALIGNMENT: Final = 16


def _schema(*names: str) -> Schema:
    found = find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'executorch'", name="executorch")
    return schema(Path(next(iter(found.submodule_search_locations))).joinpath(*names))


def _program_schema() -> Schema:
    return _schema("schema", "program.fbs")


def _graph_schema() -> Schema:
    return _schema("backends", "xnnpack", "serialization", "schema.fbs")


@dataclass(slots=True)
class ProgramFile:
    """A file that can be edited.

    Attributes:
        name: For messages.
        program: The table ``Program``, without its list of segments.
        segments: What it refers to.
        graphs: By the number of a delegate of the method, what XNNPACK computes; none for other delegates.
    """

    name: str
    program: Record
    segments: list[bytes]
    graphs: dict[int, Record]

    @property
    def method(self) -> Record:
        """The method that computes the network."""
        found: Record = next(plan for plan in self.program.execution_plan if plan.name == METHOD)
        return found

    def data(self, graph: Record, index: int) -> bytes:
        """Return constant data of a graph.

        Raises:
            BundleError: The file does not have it.
        """
        entry = graph.constant_data[index]
        for named in self.program.named_data:
            if named.key == entry.named_key:
                return bytes(self.segments[named.segment_index][: entry.size])
        raise BundleError(f"{self.name} is damaged: it lacks the data {entry.named_key[:12]!r}; build the bundle again")

    def add_data(self, graph: Record, key: str, data: bytes) -> int:
        """Give a graph constant data; the number that its values refer to it by."""
        if all(named.key != key for named in self.program.named_data):
            added = Record(table="NamedData", key=key, segment_index=len(self.segments))
            self.program.named_data = [*self.program.named_data, added]
            self.segments.append(data)
        graph.constant_data.append(Record(table="ConstantDataOffset", offset=NAMED, size=len(data), named_key=key))
        return len(graph.constant_data) - 1


def opened(content: bytes, name: str) -> ProgramFile:
    """Take a file apart.

    Raises:
        BundleError: It is damaged.
    """
    try:
        file = _opened(content, name)
        _check(file)
    except (SchemaError, struct.error, LookupError, TypeError, AttributeError, StopIteration) as error:
        what = error if isinstance(error, SchemaError) else f"{type(error).__name__} {error}".strip()
        raise BundleError(f"{name} cannot be read as ExecuTorch: {what}; build the bundle again") from None
    return file


def _opened(content: bytes, name: str) -> ProgramFile:
    size, segments = len(content), b""
    if content[8:12] == _HEADER_MARK:
        _, _, size, base, _ = _HEADER.unpack_from(content, 8)
        segments = content[base:]
    program = read(content[:size], _program_schema())
    found = []
    for segment in program.segments:
        if segment.offset + segment.size > len(segments):
            raise SchemaError(f"a segment of {segment.size} bytes lies outside its {len(content)} bytes")
        found.append(segments[segment.offset : segment.offset + segment.size])
    file = ProgramFile(name, program, found, {})
    for number, delegate in enumerate(file.method.delegates):
        if delegate.id == XNNPACK:
            file.graphs[number] = _graph(_delegate_data(file, delegate))
    return file


def _delegate_data(file: ProgramFile, delegate: Record) -> bytes:
    place = delegate.processed
    if place.location == SEGMENT:
        return bytes(file.segments[place.index])
    return bytes(file.program.backend_delegate_data[place.index].data)


def _graph(data: bytes) -> Record:
    mark, _, place, size, _, constants = _GRAPH_HEADER.unpack_from(data)
    if mark != _GRAPH_MARK or constants:
        raise SchemaError("a delegate is of another version of ExecuTorch")
    return read(data[place : place + size], _graph_schema())


def _check(file: ProgramFile) -> None:
    """Look at everything that is referred to by number; what is not there raises LookupError."""
    method = file.method
    for index in (*method.inputs, *method.outputs):
        _value(method, index)
    for call, record in calls(method):
        for index in call.args:
            _value(method, index)
        if record == "DelegateCall":
            graph = file.graphs.get(call.delegate_index)
            method.delegates[call.delegate_index]
            if graph is not None and len(call.args) < graph.num_externs:
                raise SchemaError("a delegate gets fewer values than it takes")
    for graph in file.graphs.values():
        known = {tensor(value).id_out for value in graph.xvalues}
        for node in graph.xnodes:
            lost = [item for item in (*inputs(node), *outputs(node)) if item not in known]
            if lost:
                raise SchemaError(f"{node.xnode_union_type} refers to the value {lost[0]}, which is not there")


def _value(method: Record, index: int) -> Record:
    if index < 0:
        raise SchemaError(f"it refers to the value {index}")
    found: Record = method.values[index]
    return found


def calls(method: Record) -> Iterator[tuple[Record, str]]:
    """Yield each call of kernels and delegates in order, with its kind.

    Raises:
        SchemaError: There is a jump among them.
    """
    for chain in method.chains:
        for instruction in chain.instructions:
            kind = instruction.instr_args_type
            if kind in ("KernelCall", "DelegateCall"):
                yield instruction.instr_args, kind
            elif kind != "FreeCall":
                raise SchemaError(f"it has the instruction {kind}, which this version does not follow")


def tensor(value: Record) -> Record:
    """Return the shape, type and id of a value of XNNPACK's."""
    found: Record = value.xvalue_union.tensor_value if is_on_grid(value) else value.xvalue_union
    return found


def is_on_grid(value: Record) -> bool:
    """Whether a value of XNNPACK's is one of integers."""
    return str(value.xvalue_union_type) == "XNNQuantizedTensorValue"


def inputs(node: Record) -> list[int]:
    """Return the ids of what an operator of XNNPACK's reads, weights included."""
    return [getattr(node.xnode_union, name) for name in input_fields(node)]


def input_fields(node: Record) -> list[str]:
    """Return the names of the fields of what an operator reads."""
    ids = [name for name in vars(node.xnode_union) if name.endswith("_id") and not name.startswith("output")]
    return [name for name in sorted(ids, key=_position) if getattr(node.xnode_union, name) != NONE]


def _position(name: str) -> int:
    """The data first, then weights and biases; concatenation has its fifth input behind all others."""
    return ("filter_id", "bias_id").index(name) + 10 if name in ("filter_id", "bias_id") else 0


def outputs(node: Record) -> list[int]:
    """Return the ids of what an operator of XNNPACK's makes."""
    names = [name for name in vars(node.xnode_union) if name.startswith("output") and name.endswith("_id")]
    return [getattr(node.xnode_union, name) for name in names]


def packed(file: ProgramFile) -> bytes:
    """Return the bytes of a file: the same one gives the same bytes, and what nothing refers to is left out."""
    used: list[bytes] = []

    def keep(data: bytes) -> int:
        used.append(data)
        return len(used) - 1

    program = Record(**vars(file.program))
    if program.constant_segment is not None and program.constant_segment.offsets:
        constants = program.constant_segment
        index = keep(file.segments[constants.segment_index])
        program.constant_segment = Record(**vars(constants) | {"segment_index": index})
    program.mutable_data_segments = tuple(
        Record(**vars(item) | {"segment_index": keep(file.segments[item.segment_index])})
        for item in file.program.mutable_data_segments
    )
    plans = []
    for plan in file.program.execution_plan:
        delegates = []
        for number, delegate in enumerate(plan.delegates):
            graph = file.graphs.get(number) if plan is file.method else None
            data = _delegate_data(file, delegate) if graph is None else _packed_graph(graph)
            place = Record(table="BackendDelegateDataReference", location=SEGMENT, index=keep(data))
            delegates.append(Record(**vars(delegate) | {"processed": place}))
        plans.append(Record(**vars(plan) | {"delegates": delegates}))
    program.execution_plan, program.backend_delegate_data = plans, ()
    wanted = {entry.named_key for graph in file.graphs.values() for entry in graph.constant_data}
    program.named_data = [
        Record(table="NamedData", key=item.key, segment_index=keep(file.segments[item.segment_index]))
        for item in file.program.named_data
        if item.key in wanted
    ]
    return _with_segments(program, used)


def _packed_graph(graph: Record) -> bytes:
    content = write(graph, _graph_schema())
    place = _GRAPH_HEADER.size + -_GRAPH_HEADER.size % _GRAPH_ALIGNMENT
    end = place + len(content) + -len(content) % _GRAPH_ALIGNMENT
    header = _GRAPH_HEADER.pack(_GRAPH_MARK, _GRAPH_HEADER.size, place, len(content), end, 0)
    return header.ljust(place, b"\0") + content.ljust(end - place, b"\0")


def _with_segments(program: Record, segments: list[bytes]) -> bytes:
    data, table = bytearray(), []
    for segment in segments:
        data += bytes(-len(data) % _ALIGNMENT)
        table.append(Record(table="DataSegment", offset=len(data), size=len(segment)))
        data += segment
    program.segments = table
    flat = write(program, _program_schema())
    room = _HEADER.size + -_HEADER.size % _GRAPH_ALIGNMENT  # what is behind stays aligned
    size = len(flat) + room
    base = size + -size % _ALIGNMENT
    header = _HEADER.pack(_HEADER_MARK, _HEADER.size, size, base if data else 0, len(data))
    (root,) = struct.unpack_from("<I", flat)
    head = struct.pack("<I", root + room) + flat[4:8] + header.ljust(room, b"\0") + flat[8:]
    return head.ljust(base, b"\0") + bytes(data)
