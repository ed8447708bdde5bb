"""A metric of the user's own: ``--metric FILE.py:FUNCTION``.

    def mean_error(outputs, label):             # or (outputs, label, image)
        return float(abs(outputs["keypoints"] - label).mean())

    mean_error.higher_is_better = False         # must be said
    mean_error.per_image = True                 # the default: called for each image; the score is the mean

``outputs`` maps the names of the model's outputs to float32 arrays, as the network gives them for a batch of one image
(N = 1, NCHW), dequantized. ``label`` is what the dataset says of the image: the index of its class, its mask as the
model sees it, (H, W), an array, or a value from ``labels.json``. ``image`` has the image's ``name`` and its ``height``
and ``width`` before preprocessing. With ``per_image = False`` the function is called once for all images: each argument
is then a list with one entry per image, in the same order. It returns a number.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.data.dataset import LabelValue
from coordatt_deploy.errors import MetricError, UsageError, nearest
from coordatt_deploy.logs import write_traceback
from coordatt_deploy.user_code import first_line, import_file, place

Outputs = Mapping[str, NDArray[np.float32]]
Label = NumberArray | LabelValue

EXAMPLE: Final = "def error(outputs, label): …"


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """What a metric may ask of an image: its name in the dataset, and its size in pixels before preprocessing."""

    name: str
    height: int
    width: int


class Function(Protocol):
    """What the user names; what comes back is looked at."""

    __name__: str

    def __call__(self, *arguments: object) -> object:
        """Score one image, or all."""


@dataclass(frozen=True, slots=True)
class UserMetric:
    """A function that scores outputs.

    Attributes:
        named: As the user wrote it, ``FILE.py:FUNCTION``.
        name: Of the function.
        higher_is_better: What it says.
        per_image: Whether it is called for each image.
        takes_image: Whether it wants to know of the image.
        function: Itself.
    """

    named: str
    name: str
    higher_is_better: bool
    per_image: bool
    takes_image: bool
    function: Function

    def of_one(self, outputs: Outputs, label: Label, image: EvaluatedImage, subject: str) -> float:
        """Return the score of one image.

        Raises:
            MetricError: The function raises, or gives what is no number.
        """
        return self._called((outputs, label, image), f"for {image.name} of {subject}")

    def of_all(
        self, outputs: Sequence[Outputs], labels: Sequence[Label], images: Sequence[EvaluatedImage], subject: str
    ) -> float:
        """Return the score of all images; see ``of_one``."""
        return self._called((list(outputs), list(labels), list(images)), f"for {len(labels)} images of {subject}")

    def _called(self, arguments: tuple[object, object, object], what: str) -> float:
        try:
            found = self.function(*arguments[: 2 + self.takes_image])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
            at, log = place(error), write_traceback(error, "metric")
            where = f" at {at}" if at else ""
            raise MetricError(
                f"{self.named} raises {first_line(error)}{where}, {what}; the traceback is in {log}"
            ) from None
        value = _number(found)
        if value is None:
            raise MetricError(f"{self.named} gives {_shown(found)} {what}; expected a number")
        if not math.isfinite(value):
            raise MetricError(
                f"{self.named} gives {value} {what}; expected a finite number, also where there is nothing to score"
            )
        return value


def load_metric(named: str) -> UserMetric:
    """Import the function that ``FILE.py:FUNCTION`` names.

    Raises:
        UsageError: There is no such file or function, it takes other arguments, or does not say which way is better.
        MetricError: The file raises when it is imported.
    """
    file, _, attribute = named.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--metric {named}: there is no file {path}; name FILE.py:FUNCTION")
    try:
        code = import_file(path)
    except UsageError as error:
        raise MetricError(str(error)) from None
    found: object = vars(code).get(attribute)
    known = [
        key for key, value in vars(code).items() if inspect.isfunction(value) and value.__module__ == code.__name__
    ]
    if not callable(found):
        hint = nearest(attribute, known) if known else f"there is no function in it: {EXAMPLE}"
        raise UsageError(f"--metric {named}: there is no function {attribute!r} in {path.name}; {hint}")
    function = cast(Function, found)
    return UserMetric(
        named=named,
        name=attribute,
        higher_is_better=_said(function, "higher_is_better", None, named),
        per_image=_said(function, "per_image", True, named),
        takes_image=_takes_image(function, named),
        function=function,
    )


def _said(function: Function, attribute: str, default: bool | None, named: str) -> bool:
    value: object = getattr(function, attribute, default)
    if isinstance(value, bool):
        return value
    name = named.rpartition(":")[2]
    found = "does not say" if value is None else f"has {attribute} = {value!r}, and does not say with True or False"
    what = "whether a higher value is better" if attribute == "higher_is_better" else "whether it scores each image"
    raise UsageError(f"--metric {named}: {name} {found} {what}; write below it: {name}.{attribute} = True, or False")


def _takes_image(function: Function, named: str) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return False
    kinds = inspect.Parameter
    positional = [item for item in parameters if item.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    needed = [item for item in positional if item.default is kinds.empty]
    wanted = [item.name for item in parameters if item.kind is kinds.KEYWORD_ONLY and item.default is kinds.empty]
    open_ended = any(item.kind is kinds.VAR_POSITIONAL for item in parameters)
    if wanted or len(needed) > 3 or (len(positional) < 2 and not open_ended):
        given = ", ".join(item.name for item in parameters) or "nothing"
        raise UsageError(
            f"--metric {named} takes {given}; it is called with (outputs, label), or (outputs, label, image)"
        )
    return len(needed) == 3


def _number(value: object) -> float | None:
    """The number that a metric gave, also as an array or tensor of one element without axes; None for anything else."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = cast(NDArray[np.float64], value).item()
    return float(value) if isinstance(value, int | float | np.integer | np.floating | np.bool_) else None


def _shown(value: object) -> str:
    shape = getattr(value, "shape", None)
    kind = f"a {type(value).__name__}" if value is not None else "None"
    return f"{kind} of shape {tuple(shape)}" if isinstance(shape, tuple) else kind
