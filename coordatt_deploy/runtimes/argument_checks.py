"""What every runner checks before a runtime sees it: runtimes answer wrong feeds in their own words, or not at all."""

from collections.abc import Mapping, Sequence

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import BundleError, UsageError, nearest


def checked(feeds: Mapping[str, NumberArray], inputs: Sequence[TensorSpec]) -> dict[str, NumberArray]:
    """Return *feeds* in the order of *inputs*, each array contiguous.

    Raises:
        UsageError: An input is missing or unknown, or an array has another dtype or shape than the artifact's.
    """
    names = [spec.name for spec in inputs]
    for name in feeds:
        if name not in names:
            raise UsageError(f"the artifact has no input {name!r}; {nearest(name, names)}")
    missing = [name for name in names if name not in feeds]
    if missing:
        raise UsageError(f"no array was given for input {', '.join(missing)}; the artifact takes {', '.join(names)}")
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"input {spec.name} is {array.dtype}, the artifact takes {spec.dtype}; bring it there with"
                " coordatt_deploy.tensors.encode"
            )
        if not _fits(array.shape, spec.shape):
            raise UsageError(
                f"input {spec.name} has shape {array.shape}, the artifact takes {_written(spec.shape)} ({spec.layout});"
                " bring it there with coordatt_deploy.tensors.encode"
            )
    return {name: np.ascontiguousarray(feeds[name]) for name in names}


def check_threads(threads: int) -> None:
    """Refuse fewer threads than one.

    Raises:
        UsageError: *threads* is zero or negative.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}; it must be a whole number of at least 1")


def check_described(
    what: str, described: Sequence[TensorSpec], actual: Mapping[str, tuple[tuple[int | None, ...], str]]
) -> None:
    """Compare the manifest's description of the inputs or outputs with the file.

    Args:
        what: ``input`` or ``output``.
        described: From the manifest.
        actual: Shape and dtype of the file's own, by name.

    Raises:
        BundleError: They do not agree.
    """
    if {spec.name for spec in described} != set(actual):
        raise BundleError(
            f"the manifest names the {what}s {', '.join(spec.name for spec in described)}, the file has"
            f" {', '.join(actual)}; the artifact was replaced, build the bundle again"
        )
    for spec in described:
        shape, dtype = actual[spec.name]
        if len(shape) != len(spec.shape) or not _agree(shape, spec.shape) or dtype != spec.dtype:
            raise BundleError(
                f"{what} {spec.name} is {spec.dtype} {_written(spec.shape)} in the manifest, but {dtype}"
                f" {_written(shape)} in the file; the artifact was replaced, build the bundle again"
            )


def shapes_of(feeds: Mapping[str, NumberArray]) -> str:
    """Return ``image 1 x 3 x 64 x 96``, for messages."""
    return ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in feeds.items())


def first_line(error: BaseException) -> str:
    """Return the first line of a runtime's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and _agree(shape, wanted)


def _agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def _written(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
