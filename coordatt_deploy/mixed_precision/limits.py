"""Limits of size and latency, as the command line takes them: ``1MB``, ``5 ms``, or ``0.9x`` of the float file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.units import ABSOLUTE, BYTES, FACTOR, TIMES


@dataclass(frozen=True, slots=True)
class LimitKind:
    """What is limited.

    Attributes:
        option: That it is given by.
        units: What a number is multiplied by, by its unit.
        example: For messages.
    """

    option: str
    units: Mapping[str, float]
    example: str


SIZE: Final = LimitKind("--max-size", BYTES, "1MB, 700kB, 512KiB, or 0.3x of the float file")
LATENCY: Final = LimitKind("--max-latency", TIMES, "5ms, 900us, or 0.9x of the float file")


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that is allowed.

    Attributes:
        value: Bytes or milliseconds; of a relative limit, the share of the float file's.
        text: As it was written.
        relative: Whether it is a multiple of the float file of the same format and CPU.
    """

    value: float
    text: str
    relative: bool = False

    def of(self, float_value: float | None) -> float | None:
        """Return it in bytes or milliseconds, given those of the float file; None where they are needed and unknown."""
        if not self.relative:
            return self.value
        return None if float_value is None else self.value * float_value


def parse_limit(kind: LimitKind, text: str) -> Limit:
    """Read a limit.

    Raises:
        UsageError: It is none, has no unit or an unknown one, or allows nothing.
    """
    written = text.strip()
    wrong = f"{kind.option} is {text!r}"
    if found := FACTOR.fullmatch(written):
        limit = Limit(float(found[1]), written, relative=True)
    elif found := ABSOLUTE.fullmatch(written):
        unit = found[2]
        if unit not in kind.units:
            if not unit:
                raise UsageError(f"{wrong}: the unit is missing; write {kind.example}")
            alike = [known for known in kind.units if known.lower() == unit.lower()]
            hint = f"did you mean {' or '.join(alike)}?" if alike else nearest(unit, [*kind.units, "x"])
            raise UsageError(f"{wrong}: unknown unit {unit!r}; {hint} Write {kind.example}")
        limit = Limit(float(found[1]) * kind.units[unit], written)
    else:
        raise UsageError(f"{wrong}; write {kind.example}")
    if limit.value <= 0:
        raise UsageError(f"{wrong}, which no file keeps; write {kind.example}")
    return limit
