"""Budgets: what the files of a bundle may cost and must keep, as a file of the user's says it.

    undecided = "fail"                # what a budget that cannot be decided here counts as: "fail" or "pass"
    baseline = "last.bundle"          # beside this file; what "x baseline" is relative to

    [size]
    all = "2 MB"                      # every file
    onnx.fp32 = "1.02 x baseline"     # files of a format and precision or recipe, and of a CPU: onnx.fp32.arm64
    "tflite/net_int8.tflite" = "0.3 x tflite.fp32"

A section is one kind of figure. Of several lines that name a file the narrowest holds: its path, then format with
precision or recipe and CPU, then the format, then ``all``.
"""

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.toml_files import TomlFile, read_toml
from coordatt_deploy.units import ABSOLUTE, BYTES, RELATIVE, TIMES

BASELINE: Final = "baseline"
ALL: Final = "all"


class BudgetKind(enum.StrEnum):
    """What a budget is about: a section of the file."""

    SIZE = "size"
    LATENCY = "latency"
    INSTRUCTIONS = "instructions"
    PARITY = "parity"
    ACCURACY = "accuracy"
    OPERATORS = "operators"
    PARTITIONS = "partitions"
    MEMORY = "memory"
    COLD_START = "cold_start"


class Undecided(enum.StrEnum):
    """What a budget that cannot be decided counts as."""

    FAIL = "fail"
    PASS = "pass"  # noqa: S105 - no password


COUNTS: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Scale:
    """How the limits of a kind are written.

    Attributes:
        units: What a number is multiplied by, by its unit; a number without one has the unit "" if that is there.
        example: A limit, for messages.
        relative: Whether a limit may be a multiple of another file's figure.
    """

    units: Mapping[str, float]
    example: str
    relative: bool = True


SCALES: Final[Mapping[BudgetKind, Scale]] = {
    BudgetKind.SIZE: Scale(BYTES, '"2 MB"'),
    BudgetKind.LATENCY: Scale(TIMES, '"12 ms"'),
    BudgetKind.INSTRUCTIONS: Scale(COUNTS, '"250 M"'),
    BudgetKind.PARITY: Scale({"dB": 1.0}, '"passed", or the least SQNR: "35 dB"', relative=False),
    BudgetKind.ACCURACY: Scale(
        {"%": 0.01, "points": 1.0, "": 1.0}, 'the least score, "97 %", or the greatest drop, "0.3 points"'
    ),
    BudgetKind.OPERATORS: Scale({"": 1.0}, "120, or for one operator: FORMAT.OPERATOR = 0"),
    BudgetKind.PARTITIONS: Scale({"": 1.0}, "1"),
    BudgetKind.MEMORY: Scale(BYTES, '"64 MB"'),
    BudgetKind.COLD_START: Scale(TIMES, '"300 ms"'),
}

PASSED: Final = "passed"
POINTS: Final = "points"


@dataclass(frozen=True, slots=True)
class Limit:
    """How much is allowed, or the least that is asked for.

    Attributes:
        value: In the kind's own unit (bytes, milliseconds, a count, dB, a share, points), or the factor of *of*.
        text: As the file has it.
        unit: As it was written.
        of: What a relative limit is a multiple of: ``baseline`` or a selector; None for an absolute one.
    """

    value: float
    text: str
    unit: str = ""
    of: str | None = None

    @property
    def is_drop(self) -> bool:
        """Whether it is what the accuracy may lose."""
        return self.unit == POINTS


@dataclass(frozen=True, slots=True)
class Budget:
    """One line of the file.

    Attributes:
        kind: Its section.
        selector: Which files it is about.
        limit: What they are held to.
        operator: Of ``operators``, the one that is counted; None for all.
        line: Of the file, from 1; 0 where it was not found.
    """

    kind: BudgetKind
    selector: str
    limit: Limit
    operator: str | None = None
    line: int = 0

    @property
    def name(self) -> str:
        """``latency.onnx.fp32``: where it stands."""
        return ".".join(filter(None, (self.kind, self.selector, self.operator)))


@dataclass(frozen=True, slots=True)
class Budgets:
    """A file of budgets.

    Attributes:
        path: Of the file.
        budgets: In its order.
        undecided: What those that cannot be decided count as.
        baseline: The bundle that relative ones are relative to; None where none is named.
    """

    path: Path
    budgets: tuple[Budget, ...]
    undecided: Undecided = Undecided.FAIL
    baseline: Path | None = None


def selectors(artifact: Artifact) -> tuple[str, ...]:
    """Return all that names a file, the narrowest first: its path, ``onnx.fp32.arm64``, ``onnx.fp32``, ``onnx``."""
    parts = [artifact.format.value, artifact.recipe or artifact.precision.value]
    narrow = [".".join([*parts, artifact.target_cpu])] if artifact.target_cpu else []
    return (artifact.path, *narrow, ".".join(parts), artifact.format.value, ALL)


def read_budgets(path: Path) -> Budgets:
    """Read a file of budgets.

    Raises:
        UsageError: It cannot be read, is not TOML, a section or a key is unknown (the text holds the nearest), or a
            value is no limit of its section.
    """
    file = read_toml(path)
    document = dict(file.document)
    undecided, baseline = document.pop("undecided", Undecided.FAIL.value), document.pop(BASELINE, None)
    if undecided not in {item.value for item in Undecided}:
        raise UsageError(f'{path}: undecided is {undecided!r}; write "fail" or "pass"')
    if baseline is not None and not isinstance(baseline, str):
        raise UsageError(f"{path}: baseline is {baseline!r}; name the folder of a bundle")
    known = [kind.value for kind in BudgetKind]
    found: list[Budget] = []
    for section, values in document.items():
        if section not in known:
            raise UsageError(
                f"{path}: unknown section [{section}]; {nearest(section, [*known, 'undecided', BASELINE])}"
            )
        if not isinstance(values, dict):
            raise UsageError(f"{path}: {section} is {values!r}; expected a section: [{section}]")
        kind = BudgetKind(section)
        found += [_budget(file, kind, keys, value) for keys, value in _leaves(values, ())]
    if not found:
        raise UsageError(f'{path} holds no budget; write for example [size] and below it all = "2 MB"')
    _check_twice(path, found)
    if baseline is None and (lost := next((item for item in found if item.limit.of == BASELINE), None)):
        raise UsageError(f'{path}: {lost.name} is relative to the baseline; name it: baseline = "FOLDER"')
    return Budgets(path, tuple(found), Undecided(undecided), None if baseline is None else path.parent / baseline)


def _leaves(values: Mapping[str, object], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key), value


def _budget(file: TomlFile, kind: BudgetKind, keys: tuple[str, ...], value: object) -> Budget:
    path = file.path
    selector, operator = ".".join(keys), None
    if kind is BudgetKind.OPERATORS and len(keys) > 1 and _problem(selector) is not None:
        selector, operator = ".".join(keys[:-1]), keys[-1]
    problem = _problem(selector)
    if problem is not None:
        raise UsageError(f"{path}, [{kind}]: {problem}")
    where = f"{path}, [{kind}] {'.'.join(keys)}"
    return Budget(kind, selector, _limit(kind, value, where), operator, file.line(kind, keys))


def _problem(selector: str) -> str | None:
    """Why *selector* names no files of any bundle; None where it may. A path is held to the bundle later."""
    if selector == ALL or "/" in selector:
        return None
    kind, *rest = selector.split(".")
    formats = [item.value for item in Format]
    if kind not in formats:
        return f"{selector!r} names no file; {nearest(kind, [*formats, ALL])}"
    row = FORMATS[Format(kind)]
    precisions = [*(item.value for item in Precision), *row.recipes]
    if rest and rest[0] not in precisions:
        return (
            f"{selector!r} names no file: {kind} has no precision or recipe {rest[0]!r}; {nearest(rest[0], precisions)}"
        )
    cpus = [item.value for item in TargetCpu]
    if len(rest) > 1 and (not row.per_cpu or rest[1] not in cpus):
        hint = nearest(rest[1], cpus) if row.per_cpu else f"{kind} files are the same for all CPUs"
        return f"{selector!r} names no file: {hint}"
    return f"{selector!r} names no file: too many parts" if len(rest) > 2 else None


def _limit(kind: BudgetKind, value: object, where: str) -> Limit:
    scale = SCALES[kind]
    wrong = UsageError(f"{where} is {value!r}; write {scale.example}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong
    written = str(value).strip()
    if kind is BudgetKind.PARITY and written == PASSED:
        return Limit(-math.inf, written)
    if found := ABSOLUTE.fullmatch(written):
        number, unit = float(found[1]), found[2]
        if unit not in scale.units:
            known = ", ".join(filter(None, scale.units)) or "none"
            raise UsageError(
                f"{where} is {value!r}: the unit is {unit or 'missing'}, known are {known}; write {scale.example}"
            )
        return Limit(number * scale.units[unit], written, unit)
    if (found := RELATIVE.fullmatch(written)) and scale.relative:
        other = found[2]
        problem = None if other == BASELINE else _problem(other)
        if problem is not None or other == ALL:
            raise UsageError(f"{where} is {value!r}: {problem or 'all is not one file'}")
        return Limit(float(found[1]), written, of=other)
    if RELATIVE.fullmatch(written):
        raise UsageError(f"{where} is {value!r}: a budget of {kind} is not relative; write {scale.example}")
    raise wrong


def _check_twice(path: Path, budgets: Sequence[Budget]) -> None:
    seen: set[str] = set()
    for item in budgets:
        if item.name in seen:
            raise UsageError(f"{path}: {item.name} stands there twice")
        seen.add(item.name)
