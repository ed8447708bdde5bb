"""What artifacts are run on for parity, and what torch makes of it in float64, float32 and float16 storage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision
from coordatt_deploy.parity.tolerances import Tolerance

Values = Mapping[str, Sequence[NumberArray]]


@dataclass(frozen=True, slots=True)
class ParityCases:
    """What artifacts are run on, and what they should give. One array per case, by tensor.

    Attributes:
        images: Which of the cases are real images; the others are tensors that no photograph gives.
    """

    names: tuple[str, ...]
    inputs: Values
    outputs: Values
    rounding: Mapping[Precision, Values]
    images: tuple[bool, ...]

    def chosen(self, cases: Sequence[int]) -> "ParityCases":
        """Return the cases at these places."""
        rounding = {kind: _at(values, cases) for kind, values in self.rounding.items()}
        names = tuple(self.names[index] for index in cases)
        images = tuple(self.images[index] for index in cases)
        return ParityCases(names, _at(self.inputs, cases), _at(self.outputs, cases), rounding, images)

    def few(self, most: int) -> "ParityCases":
        """Return a choice of the cases, and as many images for artifacts that are judged on those alone."""
        images = [index for index, image in enumerate(self.images) if image]
        return self.chosen(sorted({*choose_cases(self.names, most=most), *images[:most]}))

    def fit_for(self, tolerance: Tolerance) -> "ParityCases":
        """Return the cases that an artifact with *tolerance* can be judged on."""
        real = [index for index, image in enumerate(self.images) if image]
        return self.chosen(real) if tolerance.calibrated and real else self

    def feeds(self, cases: Sequence[int]) -> list[Mapping[str, NumberArray]]:
        """Return the inputs of the cases at these places, one mapping each."""
        return [{name: values[index] for name, values in self.inputs.items()} for index in cases]


def _at(values: Values, cases: Sequence[int]) -> dict[str, list[NumberArray]]:
    return {name: [arrays[index] for index in cases] for name, arrays in values.items()}


def choose_cases(names: Sequence[str], images: Sequence[bool] = (), most: int = 6) -> list[int]:
    """Choose golden cases for the layers: a few images, and tensors that no image gives.

    Two of the made-up tensors are always among them, and every further size and batch of a dynamic network; a dead
    channel behind every image wakes up for noise.

    Args:
        names: Of the cases.
        images: Which of them are real images; an integer grid is judged on those alone.
        most: How many to choose.
    """
    wanted = [index for index, name in enumerate(names) if name.startswith(("noise", "checkerboard", "batch_of_"))]
    others = [index for index in range(len(names)) if index not in wanted]
    if any(images):
        wanted, others = [], [index for index, real in enumerate(images) if real]
    stride = max(1, len(others) // max(1, most - len(wanted)))
    return sorted([*wanted, *others[::stride][: max(1, most - len(wanted))]])
