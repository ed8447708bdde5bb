"""What a file needs of the runtime that opens it, and the oldest runtime that files are to be written for."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from coordatt_deploy.errors import ConversionError, UsageError, nearest
from coordatt_deploy.formats import FORMATS, Format

VERSION: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}")


@dataclass(frozen=True, slots=True)
class RuntimeNeeds:
    """What a file needs of what opens it, as it follows from the file itself.

    Attributes:
        least: The smallest version by runtime or system: ``onnxruntime``, ``tflite``, ``ios``, ``macos``. Empty where
            no published table knows it.
        because: What in the file asks for these versions.
        versions: Of the file format: ``ir`` and ``opset``; ``schema``; ``specification``.
        operators: The version of each operator, in formats whose operators have one (TFLite).
    """

    least: Mapping[str, str]
    because: str
    versions: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """For how old a runtime files are to be written.

    Attributes:
        min_runtimes: By runtime or system the oldest version that is to open them; see ``FormatFacts.min_runtimes``.
        opset: That ONNX files are to have; None for the lowest that needs no conversion.
    """

    min_runtimes: Mapping[str, str] = field(default_factory=dict)
    opset: int | None = None

    def of(self, file_format: Format) -> str | None:
        """Return the oldest version that is to open files of *file_format*; None where nothing was said."""
        return next((self.min_runtimes[name] for name in FORMATS[file_format].min_runtimes
                     if name in self.min_runtimes), None)  # fmt: skip

    def beside(self, earlier: Self, formats: Collection[Format]) -> Self:
        """Return these limits with earlier ones of the formats that are not among *formats*, those written now."""
        others = [row for file_format, row in FORMATS.items() if file_format not in formats]
        kept = {name: earlier.min_runtimes[name] for row in others for name in row.min_runtimes
                if name in earlier.min_runtimes}  # fmt: skip
        opset = earlier.opset if any(row.has_opset for row in others) else self.opset
        return replace(self, min_runtimes=kept | dict(self.min_runtimes), opset=opset)

    def check(self, formats: tuple[Format, ...]) -> None:
        """Refuse limits that are of none of the *formats* to be written.

        Raises:
            UsageError: They are; the text names the format.
        """
        for file_format, row in FORMATS.items():
            named = [name for name in row.min_runtimes if name in self.min_runtimes]
            if named and file_format not in formats:
                raise UsageError(
                    f"--min-runtime {named[0]}={self.min_runtimes[named[0]]} is about {row.title} files, and none is"
                    f" asked for; add --format {file_format}, or leave it out"
                )
            if self.opset is not None and row.has_opset and file_format not in formats:
                raise UsageError(
                    f"--opset {self.opset} is about {row.title} files, and none is asked for; add"
                    f" --format {file_format}, or leave it out"
                )


NO_LIMITS: Final = RuntimeLimits()


def parse_min_runtime(text: str) -> tuple[str, str]:
    """Read ``onnxruntime=1.15``.

    Raises:
        UsageError: It is no such text; the text of the error names what is known.
    """
    known = [name for row in FORMATS.values() for name in row.min_runtimes]
    name, _, version = text.partition("=")
    if name not in known:
        raise UsageError(f"{text!r} names no runtime that files can be written for; {nearest(name, known)}")
    if not VERSION.fullmatch(version):
        raise UsageError(f"{text!r} has no version; write {name}=VERSION in numbers, such as {name}=1.15")
    return name, version


def in_order(version: str) -> tuple[int, ...]:
    """Key that sorts versions: ``1.9`` before ``1.15``, and ``1.15`` as ``1.15.0``."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def opens(needs: RuntimeNeeds, runtime: str, version: str) -> bool:
    """Whether *version* of *runtime* is known to open a file with these needs."""
    least = needs.least.get(runtime)
    return least is not None and in_order(least) <= in_order(version)


def check_needs(needs: RuntimeNeeds, file_format: Format, limits: RuntimeLimits, instead: str) -> None:
    """Refuse a file that the oldest runtime asked for cannot open.

    Args:
        needs: Of the file.
        file_format: Of the file.
        limits: What was asked for.
        instead: What would do beside a newer runtime, as the end of a sentence.

    Raises:
        ConversionError: It cannot; the text has what in the file is too new.
    """
    for runtime in FORMATS[file_format].min_runtimes:
        version = limits.min_runtimes.get(runtime)
        if version is None or opens(needs, runtime, version):
            continue
        least = needs.least.get(runtime)
        raised = f"give --min-runtime {runtime}={least}" if least else "leave --min-runtime out"
        needed = f"needs {runtime} {least}" if least else f"needs a version of {runtime} that no table knows"
        raise ConversionError(
            f"the file {needed} because of {needs.because}, and --min-runtime asks for {runtime} {version}; {raised}"
            f"{instead}"
        )
