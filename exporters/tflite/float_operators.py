"""Operators of a TFLite file that stay in float where the others become integers, whatever the recipe says.

    x / d, log(x)              a grid that rounds d or x to zero ends the runtime or spoils the rest (``delicate_sums``)
    softmax(m) as weights      integers have a step of 1/256, always: of more than 512 places none gets a weight at all.
    of places, and their sum   With a map of 28x28 global context fell from 36 dB to 4 dB
    what stands by a RSQRT,    XNNPACK has these operators for floats alone, so each of a normalisation's would end a
    of few values              partition; in float they cost next to nothing
    a value beyond float16,    no grid holds what a mask of minus infinity makes (``delicate_sums``)
    and scores under a mask

XNNPACK takes all of them in float. The third rule is for values as few as those of a normalisation of pooled ones: a
whole map in float would cost more than a partition.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ai_edge_litert import schema_py_generated as schema

from coordatt_deploy.quantization.delicate_sums import leads_to, too_wide, touching
from coordatt_deploy.quantization.ranges import Range

_CODES: Final = schema.BuiltinOperator
FEW: Final = 4096  # values: 16 kB in float
# What leads from a sum to a divisor or a logarithm, element by element.
STEPS: Final = frozenset({"ADD", "SUB", "MUL", "SQRT", "SQUARE", "ABS", "MAXIMUM", "POW", "DIV", "RESHAPE"})
STARTS: Final = frozenset({"MEAN", "SUM", "AVERAGE_POOL_2D"})  # where such steps begin
# What leads from a mask to the softmax behind it.
MASKING: Final = STEPS | {"SELECT_V2", "SELECT", "TRANSPOSE", "EXPAND_DIMS", "SQUEEZE"}
BEFORE: Final = frozenset({"ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MEAN", "RESHAPE"})  # of a variance
BEHIND: Final = frozenset({"MUL", "SUB", "BROADCAST_TO", "RESHAPE"})  # of a reciprocal deviation
MOVING: Final = frozenset({"RESHAPE", "TRANSPOSE"})


@dataclass(frozen=True, slots=True)
class _Operator:
    """One operator: its name, the tensors that it reads (constants aside) and gives, and the number of its values."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    most: int
    columns: int


def float_operators(model: schema.ModelT, ranges: Mapping[str, Range] | None) -> set[str]:
    """Return the names of what they give, so that the quantizer finds them.

    Args:
        model: In float.
        ranges: Of each tensor on the calibration data; None where activations stay in float.
    """
    operators = _operators(model)
    found = _delicate(operators) | _normalisations(operators) | _sums_of_places(operators)
    return found if ranges is None else found | _too_wide(operators, ranges)


def _operators(model: schema.ModelT) -> list[_Operator]:
    graph = model.subgraphs[0]  # others are bodies of composite operators
    names = {value: key for key, value in vars(_CODES).items() if not key.startswith("_")}
    codes = [names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "") for code in model.operatorCodes]
    made = {int(index) for operation in graph.operators for index in operation.outputs}
    made |= {int(index) for index in graph.inputs}
    found = []
    for operation in graph.operators:
        inputs = [int(index) for index in operation.inputs if int(index) in made]
        outputs = [int(index) for index in operation.outputs]
        shape = graph.tensors[outputs[0]].shape
        found.append(
            _Operator(
                codes[operation.opcodeIndex],
                tuple(graph.tensors[index].name.decode() for index in inputs),
                tuple(graph.tensors[index].name.decode() for index in outputs),
                max(_size(graph.tensors[index]) for index in (*inputs, *outputs)),
                int(min(shape[-2:])) if shape is not None and len(shape) > 1 else 0,
            )
        )
    return found


def _size(tensor: schema.TensorT) -> int:
    size = 1
    for length in () if tensor.shape is None else tensor.shape:
        size *= int(length)
    return size


def _delicate(operators: Iterable[_Operator]) -> set[str]:
    """Divisions by what the network computes, and what leads to divisors and to logarithms."""
    quotients: set[str] = set()
    starts: list[str] = []
    for item in operators:
        if item.name == "DIV" and len(item.inputs) == 2:
            quotients |= set(item.outputs)
            starts.append(item.inputs[1])
        elif item.name == "LOG":
            starts.append(item.inputs[0])
    begun: dict[str, list[str]] = {output: [] for item in operators if item.name in STARTS for output in item.outputs}
    return quotients | leads_to(starts, {**_made_of(operators, STEPS), **begun})


def _made_of(operators: Iterable[_Operator], names: frozenset[str], most: int | None = None) -> Mapping[str, list[str]]:
    return {
        output: [*item.inputs]
        for item in operators
        if item.name in names and (most is None or item.most <= most)
        for output in item.outputs
    }


def _too_wide(operators: Sequence[_Operator], ranges: Mapping[str, Range]) -> set[str]:
    """What no grid can hold, as a mask of minus infinity makes it, and what is made of it."""
    # A mask that is added to a product of two computed matrices is the bias of the operator that multiplies them.
    biased = (item for item in operators if item.name == "FULLY_CONNECTED" and len(item.inputs) == 2)
    wide = too_wide(
        {name: (bounds.low, bounds.high) for name, bounds in ranges.items()},
        [item.inputs[0] for item in operators if item.name in {"SOFTMAX", "LOG_SOFTMAX"}],
        {**_made_of(operators, MASKING), **{item.outputs[0]: [] for item in biased}},
    )
    return touching(wide, ((item.inputs, item.outputs) for item in operators))


def _normalisations(operators: list[_Operator]) -> set[str]:
    """Reciprocal roots of few values, what leads to them, and what is made of them element by element."""
    roots = [item for item in operators if item.name == "RSQRT" and item.most <= FEW]
    found = {output for item in roots for output in item.outputs}
    for item in operators:  # in execution order
        if item.name in BEHIND and item.most <= FEW and found & set(item.inputs):
            found |= set(item.outputs)
    return found | leads_to((item.inputs[0] for item in roots), _made_of(operators, BEFORE, FEW))


def _sums_of_places(operators: list[_Operator]) -> set[str]:
    """A softmax that weighs the places of a map, and the product of matrices that sums the map with it."""
    found: set[str] = set()
    for start in (item for item in operators if item.name == "SOFTMAX"):
        weights = set(start.outputs)
        for item in operators:
            if item.name in MOVING and weights & set(item.inputs):
                weights |= set(item.outputs)
            elif item.name == "BATCH_MATMUL" and weights & set(item.inputs) and item.columns == 1:
                found |= weights | set(item.outputs)
    return found
