"""What the user says of preprocessing, on the command line or in a ``preprocessing.json``.

    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1],
     "colour": "RGB", "resize": "bilinear", "crop": "center", "crop_ratio": 0.875}

The keys are those of ``specs.Preprocessing``; a bundle's manifest holds the same object. Options win over the file.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import UsageError, nearest

_NUMBERS: Final = {"mean": 3, "std": 3, "input_range": 2, "size": 2}
_WORDS: Final = {"colour": str.upper, "resize": str.lower, "crop": str.lower}


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Read a ``preprocessing.json``; what it leaves out keeps the model's own value.

    Raises:
        UsageError: It is missing, no JSON object, has an unknown key (the nearest is named) or a value of another kind.
    """
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; expected a JSON file of preprocessing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name} is no JSON text: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(
            f"{path.name} holds a {type(document).__name__}; expected an object with keys such as mean, std"
        )
    return checked(document, path.name)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names in the order of the logits: a JSON list, an object from number to name, or a line each.

    Raises:
        UsageError: It is missing, no text, or a name is missing or occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; expected a file of class names") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name} is no text file: {error}") from None
    try:
        is_json = text.lstrip().startswith(("[", "{"))
        found: object = parse(text) if is_json else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise UsageError(f"{path.name} is no JSON text: {error}") from None
    if isinstance(found, dict):
        if set(found) != {str(index) for index in range(len(found))}:
            raise UsageError(f'{path.name}: the keys must be the classes\' numbers from "0" on')
        found = [found[str(index)] for index in range(len(found))]
    if not isinstance(found, list):
        raise UsageError(f"{path.name} holds neither a list nor an object of class names")
    while found and found[-1] == "":
        found = found[:-1]
    names = [item for item in found if isinstance(item, str) and item]
    if not names or len(names) != len(found):
        raise UsageError(f"{path.name}: expected a name for each class, found {found[:3]!r}…")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path.name}: {twice!r} occurs twice; each class needs a name of its own")
    return tuple(names)


def checked(values: Mapping[str, Any], where: str = "preprocessing") -> dict[str, Any]:
    """Return *values* in the types of ``specs.Preprocessing``.

    Raises:
        UsageError: An unknown key, or a value of another kind.
    """
    known = [field.name for field in dataclasses.fields(Preprocessing)]
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
        if key in _NUMBERS:
            result[key] = _numbers(key, value, where)
        elif key in _WORDS:
            if not isinstance(value, str):
                raise UsageError(f"{where}: {key} is {value!r}; expected a word")
            result[key] = _WORDS[key](value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{where}: {key} is {value!r}; expected a number")
        else:
            result[key] = float(value)
    return result


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of ``0.485,0.456,0.406``.

    Raises:
        UsageError: One of them is no finite number.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} is {text!r}; expected numbers with commas between them, as in 0.5,0.5,0.5")
    return numbers


def resolve_preprocessing(
    base: Preprocessing, size: tuple[int, int], values: Mapping[str, Any] | None = None
) -> Preprocessing:
    """Return *base* with the user's *values* and *size*, checked as a whole.

    Raises:
        UsageError: A value is impossible, or the values name a size other than *size*.
    """
    values = dict(values or {})
    named = values.pop("size", size)
    if tuple(named) != tuple(size):
        raise UsageError(
            f"preprocessing gives images of {named[0]}x{named[1]}, but the input is {size[0]}x{size[1]};"
            " leave size out, or give the same --input-size"
        )
    low, high = values.get("input_range", base.input_range)
    if not low < high:
        raise UsageError(f"preprocessing: input_range is {low:g} to {high:g}; the second number must be the larger one")
    return replace(base, size=size, **values)


def _numbers(key: str, value: Any, where: str) -> tuple[Any, ...]:
    count = _NUMBERS[key]
    single = [value] if isinstance(value, int | float) else value
    if not isinstance(single, list | tuple) or not all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in single
    ):
        raise UsageError(f"{where}: {key} is {value!r}; expected {count} numbers")
    if len(single) == 1 and key != "input_range":
        single = list(single) * count
    if len(single) != count:
        raise UsageError(f"{where}: {key} has {len(single)} numbers; expected {count}")
    if key == "size":
        if not all(item == int(item) and item > 0 for item in single):
            raise UsageError(f"{where}: size is {value!r}; expected height and width in whole pixels")
        return tuple(int(item) for item in single)
    return tuple(float(item) for item in single)
