"""What the user says of preprocessing, on the command line or in a ``preprocessing.json``.

    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1],
     "colour": "RGB", "resize": "bilinear", "crop": "center", "crop_ratio": 0.875}

The keys are those of ``artifact_specs.Preprocessing``; a bundle's manifest holds the same object. Options win over the
file.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, TypeVar

from coordatt_deploy.artifact_specs import COLOURS, Preprocessing, colour_of
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import UsageError, nearest

T = TypeVar("T")

_NUMBERS: Final = {"mean": None, "std": None, "input_range": 2, "size": 2}  # None: one per channel, or one for all
_WORDS: Final = {"colour": str.upper, "resize": str.lower, "crop": str.lower}


@dataclass(frozen=True, slots=True)
class PreprocessingChanges:
    """What differs from the model's own ``artifact_specs.Preprocessing``; None keeps the model's value."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colour: str | None = None
    resize: str | None = None
    crop: str | None = None
    crop_ratio: float | None = None
    input_range: tuple[float, float] | None = None

    def __bool__(self) -> bool:
        return self != type(self)()

    def overridden_by(self, other: Self) -> Self:
        """Return these changes with those of *other* in their place, where it has some."""
        given = {
            item.name: value for item in dataclasses.fields(other) if (value := getattr(other, item.name)) is not None
        }
        return replace(self, **given)

    def applied_to(self, base: Preprocessing, size: tuple[int, int]) -> Preprocessing:
        """Return *base* with these changes and *size*, checked as a whole.

        One mean or std stands for all channels of *base*.

        Raises:
            UsageError: A value is impossible, there are more or fewer of it than channels, or the changes name a size
                other than *size*.
        """
        if self.size not in (None, size):
            raise UsageError(
                f"preprocessing gives images of {self.size[0]}x{self.size[1]}, but the input is {size[0]}x{size[1]};"
                " leave size out, or give the same --input-size"
            )
        low, high = self.input_range or base.input_range
        if not low < high:
            raise UsageError(
                f"preprocessing: input_range is {low:g} to {high:g}; the second number must be the larger one"
            )
        given = {
            item.name: value for item in dataclasses.fields(self) if (value := getattr(self, item.name)) is not None
        }
        channels = len(base.mean)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                if len(values) not in (1, channels):
                    raise UsageError(
                        f"preprocessing: {key} has {len(values)} numbers; the model takes {channels} channels"
                    )
                given[key] = values if len(values) == channels else values * channels
        wanted = COLOURS.get(self.colour or "")
        if wanted not in (None, channels):
            raise UsageError(f"preprocessing: colour is {self.colour}; the model takes {channels} channels")
        return replace(base, **given | {"size": size})

    def check_words(self) -> None:
        """Refuse an unknown order of channels, filter or crop; no model is needed to know.

        Raises:
            UsageError: The text holds the nearest word.
        """
        # A preprocessing is checked when it is made.
        colour = self.colour or "RGB"
        one = (1.0,) * (COLOURS.get(colour) or 1)
        Preprocessing((1, 1), one, one, colour, self.resize or "bilinear", self.crop or "none")


def own_preprocessing(known: Preprocessing | None, size: tuple[int, int], shape: Sequence[int]) -> Preprocessing:
    """Return what is known of the model's preprocessing, or what to assume for the channels that it takes.

    Args:
        known: The model's own; None where nothing is known. That of colour images does not fit other channels.
        size: (H, W) of the images.
        shape: Of the first input, (N, C, H, W); where it is no image, colours are assumed.
    """
    channels = shape[1] if len(shape) == 4 else 3
    if known is not None and len(known.mean) == channels:
        return known
    colour = colour_of(channels)
    if colour == "RGB":
        return Preprocessing(size)
    base = known or Preprocessing(size)
    return replace(base, size=size, mean=(0.0,) * channels, std=(1.0,) * channels, colour=colour)


def read_preprocessing(path: Path) -> PreprocessingChanges:
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
    return changes_from(document, path.name)


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


def changes_from(values: Mapping[str, object], where: str = "preprocessing") -> PreprocessingChanges:
    """Return the changes that *values* name, in the types of ``artifact_specs.Preprocessing``.

    Raises:
        UsageError: An unknown key, or a value of another kind.
    """
    known = [field.name for field in dataclasses.fields(Preprocessing)]
    numbers: dict[str, tuple[float, ...]] = {}
    words: dict[str, str] = {}
    ratio: float | None = None
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
        if key in _NUMBERS:
            numbers[key] = _numbers(key, value, where)
        elif key in _WORDS:
            if not isinstance(value, str):
                raise UsageError(f"{where}: {key} is {value!r}; expected a word")
            words[key] = _WORDS[key](value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{where}: {key} is {value!r}; expected a number")
        else:
            ratio = float(value)
    return PreprocessingChanges(
        size=_pair(_whole(numbers.get("size"))),
        mean=numbers.get("mean"),
        std=numbers.get("std"),
        colour=words.get("colour"),
        resize=words.get("resize"),
        crop=words.get("crop"),
        crop_ratio=ratio,
        input_range=_pair(numbers.get("input_range")),
    )


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


def _numbers(key: str, value: object, where: str) -> tuple[float, ...]:
    count = _NUMBERS[key]
    items = value if isinstance(value, list | tuple) else [value]
    numbers = [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(numbers) < len(items) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{where}: {key} is {value!r}; expected {count or 'as many numbers as channels'}")
    if len(numbers) == 1 and key == "size":
        numbers *= 2
    if count is not None and len(numbers) != count:
        raise UsageError(f"{where}: {key} has {len(numbers)} numbers; expected {count}")
    if key == "size" and not all(number == int(number) and number > 0 for number in numbers):
        raise UsageError(f"{where}: size is {value!r}; expected height and width in whole pixels")
    return tuple(numbers)


def _pair(numbers: tuple[T, ...] | None) -> tuple[T, T] | None:
    """Two numbers, whose count was checked before."""
    return None if numbers is None else (numbers[0], numbers[1])


def _whole(numbers: tuple[float, ...] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(map(int, numbers))
