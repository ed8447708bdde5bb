"""Some operators of an ExecuTorch file as a file of their own."""

from collections.abc import Iterable, Sequence
from copy import copy

from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record
from coordatt_deploy.runtimes.executorch.program_file import (
    EXTERNAL_INPUT,
    EXTERNAL_OUTPUT,
    ProgramFile,
    calls,
    inputs,
    is_on_grid,
    outputs,
    packed,
    tensor,
)
from coordatt_deploy.runtimes.executorch.tensors import listed, plan_apart

UNUSED = Record(table="EValue", val=Record(table="Null"), val_type="Null")


def piece(file: ProgramFile, chosen: Iterable[int], wanted: Sequence[int]) -> tuple[bytes, list[int]]:
    """Write the operators *chosen* of a file that is cut apart wherever others read what they make, or they others.

    Args:
        file: Left as it is.
        chosen: Their numbers, as ``operators`` counts them.
        wanted: The values of the program that they make for others.

    Returns:
        The file, and the values of the program that are its inputs.
    """
    numbers, count = set(chosen), 0
    method, graphs = copy(file.method), dict[int, Record]()
    kept, delegates = list[Record](), list[Record]()
    for call, kind in calls(file.method):
        graph = file.graphs.get(call.delegate_index) if kind == "DelegateCall" else None
        size = 1 if graph is None else len(graph.xnodes)
        own = sorted(numbers & set(range(count, count + size)))
        count += size
        if not own:
            continue
        new = copy(call)
        if kind == "DelegateCall":
            new.delegate_index = len(delegates)
            delegates.append(file.method.delegates[call.delegate_index])
        if graph is not None:
            nodes = [graph.xnodes[number - (count - size)] for number in own]
            graphs[new.delegate_index], new.args = _part(graph, nodes, call.args)
        kept.append(Record(table="Instruction", instr_args=new, instr_args_type=kind))
    chain = copy(file.method.chains[0])
    chain.instructions = kept
    method.chains, method.delegates = [chain], delegates
    used = {
        index for item in kept for argument in item.instr_args.args for index in (argument, *_inside(file, argument))
    }
    method.values = [_own(value) if index in used else UNUSED for index, value in enumerate(file.method.values)]
    method.inputs = [index for index in file.method.inputs if index in used]
    method.outputs = list(wanted)
    method.non_const_buffer_sizes = list(file.method.non_const_buffer_sizes)
    plan_apart(method)
    program = copy(file.program)
    program.execution_plan = [method]
    return packed(ProgramFile(file.name, program, file.segments, graphs)), method.inputs


def _inside(file: ProgramFile, argument: int) -> list[int]:
    return listed(file.method, argument)


def _own(value: Record) -> Record:
    """A value whose place in memory can be another one."""
    new = copy(value)
    new.val = copy(value.val)
    return new


def _part(graph: Record, nodes: Sequence[Record], arguments: Sequence[int]) -> tuple[Record, list[int]]:
    """Return some operators of what a delegate computes, and which values of the program they get."""
    used = {identity for node in nodes for identity in (*inputs(node), *outputs(node))}
    made = {identity for node in nodes for identity in outputs(node)}
    part, values, given, data = copy(graph), [], [], {0}
    for value in graph.xvalues:
        inner = tensor(value)
        if inner.id_out not in used:
            continue
        new, own = copy(value), copy(inner)
        if own.flags & (EXTERNAL_INPUT | EXTERNAL_OUTPUT):
            given.append(arguments[own.external_id])
            own.external_id = len(given) - 1
        new.xvalue_union = own
        if is_on_grid(value):
            new.xvalue_union = copy(value.xvalue_union)
            new.xvalue_union.tensor_value = own
            data.add(getattr(value.xvalue_union.quant_params, "scale_buffer_idx", 0) or 0)
        data.add(own.constant_buffer_idx)
        values.append(new)
    part.xnodes, part.xvalues, part.num_externs = list(nodes), values, len(given)
    part.input_ids = [item for item in graph.input_ids if item in used and item not in made]
    part.output_ids = [item for item in graph.output_ids if item in made]
    part.constant_data = [
        graph.constant_data[index if index in data else 0] for index in range(len(graph.constant_data))
    ]
    return part, given
