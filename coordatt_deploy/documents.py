"""Documents: results and configuration as JSON, out and back in as the types that wrote them. The only codec.

A document is a frozen dataclass of plain values, other such classes, tuples and mappings. Its JSON is an object of its
fields. What follows holds for all:

* A figure that is not finite goes out as null with ``"not_finite": {"sqnr_db": "inf"}`` beside it, and comes back.
* Documents of ours ignore keys that they do not know, so that older versions read newer ones. What people write refuses
  them and suggests the nearest name (``unknown_keys=False``).
* A key that stands twice is refused, and every error says where in the document it is.
* A field keeps an older JSON key by ``field(metadata={"key": "set_aside"})``; one that has a default in the program and
  must stand in every document all the same says so by ``field(default=…, metadata=REQUIRED)``.
"""

import dataclasses
import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, ClassVar, Final, Protocol, TypeVar, Union, get_args, get_origin

import msgspec

from coordatt_deploy.errors import UsageError, nearest

SCHEMA_VERSION: Final = 1
NOT_FINITE: Final = "not_finite"
REQUIRED: Final[Mapping[str, bool]] = types.MappingProxyType({"required": True})

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]

E = TypeVar("E", bound=enum.StrEnum)
T = TypeVar("T")


class DocumentError(ValueError):
    """What is wrong with a document, and where in it."""


class Document(Protocol):
    """A dataclass that is a document of its own, in a file or on stdout."""

    VERSION: ClassVar[int]


D = TypeVar("D", bound=Document)


def member(kind: type[E], value: str, what: str) -> E:
    """Return the member of *kind* named *value*.

    Raises:
        UsageError: There is none; the text holds the nearest names.
    """
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"unknown {what} {value!r}; {nearest(value, [item.value for item in kind])}") from None


# Out -----------------------------------------------------------------------------------------------------------------


def to_json(value: object) -> JsonValue:
    """Return *value* as strict JSON data: dataclasses as objects, tuples as lists, enums and paths as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return object_of(value)
    if isinstance(value, enum.Enum):
        return to_json(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a document cannot hold a {type(value).__name__}")


def object_of(value: object) -> JsonObject:
    """Return a dataclass as a JSON object, with a note of what in it is not finite."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not a dataclass")
    document: JsonObject = {}
    marks: dict[str, JsonValue] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        document[_key(field)] = to_json(item)
        marks.update(_not_finite(_key(field), item))
    return document | ({NOT_FINITE: marks} if marks else {})


def dump(document: Document, *, indent: int | None = 1) -> str:
    """Return *document* as a JSON text, ``schema_version`` first."""
    return write({"schema_version": document.VERSION} | object_of(document), indent=indent)


def write(document: Mapping[str, JsonValue], *, indent: int | None = 1) -> str:
    """Return JSON data as a text that ends with a line break."""
    if _half_pair(dict(document)) is not None:
        document = {_shown(key): _writable(value) for key, value in document.items()}
    return json.dumps(document, indent=indent, allow_nan=False) + "\n"


def _writable(value: JsonValue) -> JsonValue:
    """Put what Python shows in the place of bytes that are no UTF-8, of a command line or of a file's name."""
    if isinstance(value, str):
        return _shown(value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    return {_shown(key): _writable(item) for key, item in value.items()} if isinstance(value, dict) else value


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _not_finite(path: str, value: object) -> dict[str, JsonValue]:
    """Name the figures below *value* that JSON has no form for; those of dataclasses further down note their own."""
    if isinstance(value, float) and not math.isfinite(value):
        return {path: str(value)}
    if isinstance(value, Mapping):
        items = [(_escaped(str(key)), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {}
    return {place: text for key, item in items for place, text in _not_finite(f"{path}/{key}", item).items()}


def _escaped(key: str) -> str:
    """Write a key as one step of a path, as JSON Pointer does (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


# In ------------------------------------------------------------------------------------------------------------------


def parse(text: str) -> JsonValue:
    """Parse a JSON text that may come from anybody.

    Raises:
        DocumentError: It is not JSON, a key stands twice, or it is nested deeper than any document of ours.
    """
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_refuse)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except DocumentError:
        raise
    except ValueError as error:  # also of a number with thousands of digits
        raise DocumentError(str(error)) from None
    if "\\ud" in text.casefold() and (half := _half_pair(value)) is not None:
        raise DocumentError(f"{half!r} holds half of a surrogate pair, which is no character")
    return value


def _half_pair(value: JsonValue) -> str | None:
    """A text or key in *value* that no encoding can write; None where there is none."""
    waiting: list[JsonValue] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
            return item
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
    return None


def parse_object(text: str) -> JsonObject:
    """Parse a JSON text that holds an object.

    Raises:
        DocumentError: See ``parse``; or it holds something else.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise DocumentError(f"it holds {_described(value)}, expected an object")
    return value


def from_json(kind: type[T], data: object, *, unknown_keys: bool = True) -> T:
    """Return what ``to_json`` made *data* of.

    Args:
        kind: A dataclass, or a tuple or mapping of such.
        data: JSON data.
        unknown_keys: Whether keys that *kind* does not have are ignored.

    Raises:
        DocumentError: A value is missing or of another kind; the text says where.
    """
    try:
        return msgspec.convert(_prepared(kind, data, "$", unknown_keys), kind, str_keys=True)
    except msgspec.ValidationError as error:
        text = str(error)
        for name, key in {item for known in classes_of(kind) for item in renamed_fields(known).items()}:
            text = re.sub(rf"\.{name}\b", f".{key}", text)
        raise DocumentError(text) from None


def load(kind: type[D], text: str) -> D:
    """Return the document that ``dump`` wrote.

    Raises:
        DocumentError: See ``from_json``; or it has another ``schema_version``.
    """
    data = parse_object(text)
    check_version(data, kind.VERSION)
    return from_json(kind, data)


def check_version(data: Mapping[str, JsonValue], *known: int) -> None:
    """Refuse a document of another schema.

    Raises:
        DocumentError: Its ``schema_version`` is not among those *known*.
    """
    found = data.get("schema_version")
    if found not in known or isinstance(found, bool):
        versions = " or ".join(map(str, known))
        raise DocumentError(f"schema_version is {found!r}, expected {versions}")


def _without_twins(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {twin!r} stands twice in one object")
    return found


def _refuse(constant: str) -> typing.NoReturn:
    raise DocumentError(f"{constant} is not JSON")


def _prepared(kind: object, data: object, path: str, unknown_keys: bool) -> object:
    """Bring *data* to the field names of *kind*, and put the figures back that are not finite."""
    kind = _without_none(kind, data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _prepared_object(kind, data, path, unknown_keys)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(data, (list, tuple)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return [_prepared(arguments[0], item, f"{path}[{at}]", unknown_keys) for at, item in enumerate(data)]
        kinds = [*arguments, *[object] * len(data)]
        return [_prepared(kinds[at], item, f"{path}[{at}]", unknown_keys) for at, item in enumerate(data)]
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(data, Mapping):
        return {key: _prepared(arguments[1], item, f"{path}.{key}", unknown_keys) for key, item in data.items()}
    return data


def _prepared_object(kind: type, data: object, path: str, unknown_keys: bool) -> object:
    if not isinstance(data, Mapping):
        raise DocumentError(f"Expected an object, got {_described(data)} - at `{path}`")
    fields = _fields(kind)
    if not unknown_keys:
        for key in data:
            if key not in fields and key not in (NOT_FINITE, "schema_version"):
                raise DocumentError(f"unknown key {key!r}; {nearest(str(key), fields)} - at `{path}`")
    for key in _required(kind):
        if key not in data:
            raise DocumentError(f"Object missing required field `{key}` - at `{path}`")
    marks = data.get(NOT_FINITE)
    if isinstance(marks, Mapping):
        data = _with_marks(data, marks, path)
    return {
        name: _prepared(hint, data[key], f"{path}.{key}", unknown_keys)
        for key, (name, hint) in fields.items()
        if key in data
    }


def _with_marks(data: Mapping[str, object], marks: Mapping[str, object], path: str) -> Mapping[str, object]:
    """Put figures that are not finite back in their places."""
    restored: dict[str, object] = {key: _copied(value) for key, value in data.items()}
    for place, text in marks.items():
        if text not in ("inf", "-inf", "nan"):
            raise DocumentError(f"{text!r} is not inf, -inf or nan - at `{path}.{NOT_FINITE}`")
        *way, last = (step.replace("~1", "/").replace("~0", "~") for step in place.split("/"))
        holder: object = restored
        try:
            for step in way:
                holder = _at(holder, step)
            if _at(holder, last) is not None:
                raise DocumentError(f"{place!r} names a figure that is finite - at `{path}.{NOT_FINITE}`")
            if isinstance(holder, list):
                holder[int(last)] = float(str(text))
            elif isinstance(holder, dict):
                holder[last] = float(str(text))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, DocumentError):
                raise
            raise DocumentError(f"{place!r} names nothing - at `{path}.{NOT_FINITE}`") from None
    return restored


def _at(holder: object, step: str) -> object:
    if isinstance(holder, list):
        return holder[int(step)]
    if isinstance(holder, dict):
        return holder[step]
    raise KeyError(step)


def _copied(value: object) -> object:
    """Copy lists and mappings of plain values, as deep as ``_with_marks`` changes them."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _without_none(kind: object, data: object) -> object:
    """Of ``X | None`` return X."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [item for item in get_args(kind) if item is not type(None)]
        return kinds[0] if len(kinds) == 1 and data is not None else object
    return kind


@functools.cache
def _fields(kind: type) -> dict[str, tuple[str, object]]:
    """Return name and type of each field by its JSON key."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {_key(field): (field.name, hints[field.name]) for field in dataclasses.fields(kind)}


@functools.cache
def _required(kind: type) -> tuple[str, ...]:
    return tuple(_key(field) for field in dataclasses.fields(kind) if field.metadata.get("required"))


def _key(field: "dataclasses.Field[object]") -> str:
    return str(field.metadata.get("key", field.name))


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return "null" if value is None else f"{value!r}"


# What a document is made of ------------------------------------------------------------------------------------------


def classes_of(kind: object) -> set[type]:
    """Return all dataclasses that a document is made of."""
    found: set[type] = set()
    waiting = [kind]
    while waiting:
        item = waiting.pop()
        if isinstance(item, type) and dataclasses.is_dataclass(item):
            if item not in found:
                found.add(item)
                waiting += [hint for _, hint in _fields(item).values()]
        else:
            waiting += list(get_args(item))
    return found


def renamed_fields(kind: type) -> dict[str, str]:
    """Return the JSON key by the name of each field that is called otherwise in documents."""
    return {field.name: _key(field) for field in dataclasses.fields(kind) if _key(field) != field.name}
