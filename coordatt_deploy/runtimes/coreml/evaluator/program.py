"""An ML Program as plain data, and how it is evaluated, operator by operator, with NumPy.

fp32 programs compute in float32. fp16 programs *store* fp16: each operator computes in float32 (so sums accumulate in
float32), and its result is rounded to fp16, where what is too large becomes infinite. Between operators such values
stay in float32 arrays, rounded (``float16``); only what is asked for becomes float16.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.float16 import pack_float16, round_to_float16, widened
from coordatt_deploy.runtimes.coreml.evaluator.operators import MOVES, OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

PLANS_KEPT: Final = 1024  # one for each layer of a network that is cut apart


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the program.

    Attributes:
        name: As in the package.
        dtype: NumPy's name.
        shape: None for a flexible axis.
        ranges: Smallest and largest size of each axis (None: no upper limit); empty where the shape is fixed.
        choices: The only shapes that are allowed, where the package enumerates them.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranges: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()

    def refuses(self, shape: Sequence[int]) -> str | None:
        """Why an array of *shape* is not accepted; None if it is."""
        if shape == self.shape and not self.choices and not self.ranges:  # asked for every result of every operator
            return None
        wanted = " × ".join("?" if size is None else str(size) for size in self.shape)
        given = " × ".join(map(str, shape)) or "a scalar"
        if len(shape) != len(self.shape) or any(
            want not in (None, have) for want, have in zip(self.shape, shape, strict=True)
        ):
            return f"{self.name} is {given}, the package takes {wanted}"
        if self.choices and tuple(shape) not in self.choices:
            return f"{self.name} is {given}, the package takes one of {', '.join(map(str, self.choices))}"
        for axis, (size, (low, high)) in enumerate(zip(shape, self.ranges or [(1, None)] * len(shape), strict=True)):
            if size < low or (high is not None and size > high):
                return f"{self.name} is {given}, axis {axis} of the package takes {low} to {high or 'any size'}"
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of the program.

    Attributes:
        operator: Its type, a key of ``OPERATORS``.
        arguments: Name of the value that each argument takes, or several for a list.
        outputs: Name, dtype and shape of each result.
    """

    operator: str
    arguments: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[Port, ...]

    def reads(self) -> set[str]:
        """Names of the values that this step takes."""
        names: set[str] = set()
        for source in self.arguments.values():
            names.update((source,) if isinstance(source, str) else source)
        return names

    def run(self, values: Mapping[str, object]) -> dict[str, NumberArray]:
        """Compute the results, rounded to the declared types; what is declared float16 comes as float32."""
        arguments = {
            name: widened(values[source]) if isinstance(source, str) else [widened(values[item]) for item in source]
            for name, source in self.arguments.items()
        }
        leading = [arguments.pop(name) for name in ("x", "y") if name in arguments]
        try:
            given = OPERATORS[self.operator](*leading, **arguments)
        except UnsupportedFormError as error:
            raise UnsupportedFormError(
                f"operator {self.operator} at {self.outputs[0].name}: {error}; it can be run on macOS only"
            ) from None
        results = given if isinstance(given, tuple) else (given,)
        return {port.name: _stored(result, port, self) for port, result in zip(self.outputs, results, strict=True)}


def _results(step: Step, values: Mapping[str, object]) -> dict[str, NumberArray]:
    try:
        return step.run(values)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = f"operator {step.operator} at {step.outputs[0].name}"
        raise InferenceError(f"the ML Program cannot be run: {what}: {error}") from error


def _stored(result: object, port: Port, step: Step) -> NumberArray:
    array = np.asarray(result)
    if port.dtype != "float16" or array.dtype != np.float32:
        array = np.asarray(widened(array.astype(port.dtype, copy=False)))
    elif step.operator not in MOVES:  # those hand on what is rounded already
        array = round_to_float16(array)
    if port.refuses(array.shape):
        raise RuntimeError(f"{step.operator} gave {array.shape} for {port.name}, the program declares {port.shape}")
    return array


# Steps in execution order, each with the values that nobody reads after it.
Plan = list[tuple[Step, list[str]]]


@dataclass(frozen=True)
class Program:
    """A parsed ML Program, ready to be evaluated any number of times.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        steps: The operators in execution order; those that only work on constants are already done.
        constants: Every constant by name, weights decompressed.
        quantized: For tensors on an integer grid: scale, zero point and axis by name.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, object]
    quantized: Mapping[str, tuple[NumberArray, NumberArray, int | None]]
    _plan: Callable[[frozenset[str], tuple[str, ...]], Plan] = field(init=False, repr=False, compare=False)
    _float16_names: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = (port for step in self.steps for port in step.outputs)
        object.__setattr__(self, "_float16_names", frozenset(port.name for port in made if port.dtype == "float16"))
        object.__setattr__(self, "_plan", lru_cache(PLANS_KEPT)(self._make_plan))

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors that can be asked for or fed."""
        inner = (port.name for step in self.steps for port in step.outputs)
        return frozenset([*inner, *self.constants, *(port.name for port in self.inputs)])

    def evaluate(self, feeds: Mapping[str, NumberArray], wanted: Sequence[str]) -> dict[str, NumberArray]:
        """Compute the values *wanted* from *feeds*, and nothing that they do not need.

        Args:
            feeds: Arrays by name. An inner tensor may be fed as well; what lies before it is then not computed, which
                cuts a piece out of the program.
            wanted: Names of outputs or inner tensors.

        Returns:
            New arrays in the program's own types.

        Raises:
            KeyError: A name is not in the program, or a value that is needed was not fed.
            UnsupportedFormError: An operator in a form that the evaluator does not have.
            InferenceError: An operator refuses what it gets, or makes another shape of it than the program declares.
        """
        values = {**self.constants, **feeds}
        # infinities and NaN are results here, to be seen by whoever judges them
        with np.errstate(all="ignore"):
            for step, dead in self._plan(frozenset(feeds), tuple(wanted)):
                for name, value in _results(step, values).items():
                    values.setdefault(name, value)  # one result of a split may have been fed, another not
                for name in dead:
                    del values[name]
        return {name: self._given(name, values[name]) for name in wanted}

    def _given(self, name: str, value: object) -> NumberArray:
        """A new array, in the type that the program declares."""
        array = np.array(value)
        return pack_float16(array) if name in self._float16_names and array.dtype == np.float32 else array

    def dequantized(self, name: str, value: NumberArray) -> NumberArray:
        """Return the floats that *value*, evaluated for tensor *name*, stands for."""
        if name not in self.quantized:
            return value
        scale, zero_point, axis = self.quantized[name]
        return np.asarray(OPERATORS["dequantize"](value, scale=scale, zero_point=zero_point, axis=axis))

    def _make_plan(self, fed: frozenset[str], wanted: tuple[str, ...]) -> Plan:
        """The steps that are needed, each with the values that nobody reads after it."""
        available = fed | self.constants.keys()
        needed = set(wanted) - available
        chosen: list[Step] = []
        for step in reversed(self.steps):
            if any(port.name in needed for port in step.outputs):
                needed -= {port.name for port in step.outputs}
                needed |= step.reads() - available
                chosen.append(step)
        if needed:
            known = self.names
            raise KeyError(
                "; ".join(
                    f"{name} was not fed" if name in known else f"{name} is not in the program"
                    for name in sorted(needed)
                )
            )
        kept = {*wanted, *self.constants, *fed}
        plan: Plan = []
        for step in chosen:  # from the last to the first: the first reader seen is the last to run
            made = {port.name for port in step.outputs}
            dead = [name for name in sorted(step.reads() | made) if name not in kept]
            kept.update(dead)
            plan.append((step, dead))
        return plan[::-1]
