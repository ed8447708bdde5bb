"""The modules of a format, found by name: ``exporters/<format>/<role>.py`` and ``runtimes/<format>/<role>.py``."""

import enum
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.formats import FORMATS, TORCH_EXTRA, Format


class Role(enum.StrEnum):
    """What a module of a format does; the value is its path below the package, with the format's name to fill in."""

    LOWERING = "exporters.{}.lowering"
    EXPORT = "exporters.{}.export"
    QUANTIZE = "exporters.{}.quantize"
    OFFICIAL = "exporters.{}.official"
    RUNNER = "runtimes.{}.runner"
    SUBMODELS = "runtimes.{}.submodels"
    READER = "runtimes.{}.reader"
    OPERATOR_CLOCK = "runtimes.{}.operator_clock"


_DOING = {
    Role.LOWERING: "lowering for {}",
    Role.EXPORT: "exporting to {}",
    Role.QUANTIZE: "quantizing {}",
    Role.OFFICIAL: "exporting to {} as its own converter does",
    Role.RUNNER: "opening {} artifacts",
    Role.SUBMODELS: "cutting {} artifacts apart",
    Role.READER: "reading {} files",
    Role.OPERATOR_CLOCK: "timing the operators of {} artifacts",
}


def load(file_format: Format, role: Role) -> ModuleType:
    """Import and return the module of *file_format* for *role*; each role is a typed protocol beside its accessor.

    Raises:
        MissingDependencyError: A package that it needs is not installed; the text holds the line that installs it.
    """
    extra = FORMATS[file_format].runtime_extra if role is Role.RUNNER else file_format
    with needing(_DOING[role].format(file_format), extra):
        return import_module(f"coordatt_deploy.{role.format(file_format)}")


@contextmanager
def needing(doing: str, extra: str) -> Iterator[None]:
    """Name the extra to install where a package is missing from what is done inside.

    Args:
        doing: What cannot be done without, e.g. ``reading onnx files``.
        extra: The pip extra that brings it.

    Raises:
        MissingDependencyError: A package is not installed; the text holds the line that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coordatt_deploy"):
            raise
        raise not_installed(doing, error.name, extra) from error


def not_installed(doing: str, package: str | None, extra: str) -> MissingDependencyError:
    """Return the error of a package that is not installed, with the line that installs it."""
    return MissingDependencyError(
        f"{doing} needs {package}, which is not installed; run: pip install 'coordatt-deploy[{extra}]'"
    )


def installed_formats() -> tuple[Format, ...]:
    """Return the formats that can be written here; all of them where none can, so that what is missing gets named."""
    found = tuple(kind for kind in Format if find_spec(FORMATS[kind].converter) is not None)
    return found or tuple(Format)


def need(package: str, extra: str) -> None:
    """Refuse to go on without *package*.

    Raises:
        MissingDependencyError: It is not installed; the text holds the line that installs it.
    """
    if find_spec(package) is None:
        raise not_installed("this", package, extra)


def need_converters(formats: Iterable[Format]) -> None:
    """Refuse to go on where one of these formats cannot be written here.

    Raises:
        MissingDependencyError: See ``need``.
    """
    need("torch", TORCH_EXTRA)
    for file_format in dict.fromkeys(formats):
        need(FORMATS[file_format].converter, file_format)
