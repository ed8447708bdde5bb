"""The modules of a format, found by name: ``exporters/<format>/<role>.py`` and ``runtimes/<format>/<role>.py``."""

import enum
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.formats import FORMATS, Format


class Role(enum.StrEnum):
    """What a module of a format does; the value is its path below the package, with the format's name to fill in."""

    EXPORT = "exporters.{}.export"
    QUANTIZE = "exporters.{}.quantize"
    RUNNER = "runtimes.{}.runner"
    SUBMODELS = "runtimes.{}.submodels"
    READER = "runtimes.{}.reader"


_DOING = {
    Role.EXPORT: "exporting to {}",
    Role.QUANTIZE: "quantizing {}",
    Role.RUNNER: "opening {} artifacts",
    Role.SUBMODELS: "cutting {} artifacts apart",
    Role.READER: "reading {} files",
}


def load(file_format: Format, role: Role) -> ModuleType:
    """Import and return the module of *file_format* for *role*; each role is a typed protocol beside its accessor.

    Raises:
        MissingDependencyError: A package that it needs is not installed; the text holds the line that installs it.
    """
    try:
        return import_module(f"coordatt_deploy.{role.format(file_format)}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coordatt_deploy"):
            raise
        extra = FORMATS[file_format].runtime_extra if role is Role.RUNNER else file_format
        raise missing(_DOING[role].format(file_format), error.name, extra) from error


def missing(doing: str, package: str | None, extra: str) -> MissingDependencyError:
    """Return the error of a package that is not installed, with the line that installs it."""
    return MissingDependencyError(
        f"{doing} needs {package}, which is not installed; run: pip install 'coordatt-deploy[{extra}]'"
    )


def need(package: str, extra: str) -> None:
    """Refuse to go on without *package*.

    Raises:
        MissingDependencyError: It is not installed; the text holds the line that installs it.
    """
    if find_spec(package) is None:
        raise missing("this", package, extra)


def need_converters(formats: Iterable[Format]) -> None:
    """Refuse to go on where one of these formats cannot be written here.

    Raises:
        MissingDependencyError: See ``need``.
    """
    need("torch", Format.ONNX)
    for file_format in dict.fromkeys(formats):
        need(FORMATS[file_format].converter, file_format)
