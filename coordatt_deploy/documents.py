"""Documents: results and configuration as JSON, out and back in."""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from coordatt_deploy.errors import UsageError, nearest

SCHEMA_VERSION: Final = 1


E = TypeVar("E", bound=enum.StrEnum)


def member(kind: type[E], value: str, what: str) -> E:
    """Return the member of *kind* named *value*.

    Raises:
        UsageError: There is none; the text holds the nearest names.
    """
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"unknown {what} {value!r}; {nearest(value, [item.value for item in kind])}") from None


def to_json(value: Any) -> Any:
    """Return *value* as strict JSON data: dataclasses as objects, tuples as lists, non-finite floats as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(text: str) -> Any:
    """Parse a JSON text that may come from anybody.

    Raises:
        ValueError: It is no JSON, or is nested deeper than any document of ours.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
