"""What this machine has: runtimes and converters, their versions, the CPU, and how to install what is missing."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import ClassVar, Final

from coordatt_deploy import targets
from coordatt_deploy.formats import FORMATS, TORCH_EXTRA, Format, FormatFacts, Package
from coordatt_deploy.host import ANDROID_PROOT, ANDROID_TERMUX, Host, describe
from coordatt_deploy.stage_cache.store import CacheStatus
from coordatt_deploy.targets import TargetStatus

# What serves every format stands first and last; between them each format's converters, then its runtime.
REFERENCE: Final = Package("torch", "torch", "capture, fold, reference", TORCH_EXTRA)
TRAINING: Final = Package("sklearn", "scikit-learn", "training the embedded default", "all")


def _converters_first(row: FormatFacts) -> list[Package]:
    return sorted(row.packages, key=lambda package: package.extra == row.runtime_extra)


PACKAGES: Final = (
    REFERENCE,
    *(package for file_format in Format for package in _converters_first(FORMATS[file_format])),
    TRAINING,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One package that a part of the work needs.

    Attributes:
        version: None where it is not installed.
        remedy: The line that installs it; None where it is.
    """

    name: str
    purpose: str
    version: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found."""

    host: Host
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Installation(Findings):
    """All that ``doctor`` tells.

    Attributes:
        targets: Emulated machines.
        cache: Of builds.
    """

    VERSION: ClassVar[int] = 1

    targets: tuple[TargetStatus, ...]
    cache: CacheStatus


ANDROID_NOTES: Final = {
    ANDROID_PROOT: "this is an Android phone: it slows down with the screen off; hold termux-wake-lock while measuring",
    ANDROID_TERMUX: "Termux's own Python takes no wheels of the runtimes; a Debian in it does (proot-distro)",
}


def _version(module: str, distribution: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(distribution) if find_spec(module) is not None else None
    except PackageNotFoundError:
        return "unknown"


def examine() -> Findings:
    """Look, without importing any framework."""
    parts = []
    for package in PACKAGES:
        name, found = package.distribution, _version(package.module, package.distribution)
        if found is None and package.stand_in is not None:
            other = _version(*package.stand_in)
            name, found = (package.stand_in[1], other) if other is not None else (name, None)
        remedy = None if found else f"pip install 'coordatt-deploy[{package.extra}]'"
        parts.append(Part(name, package.purpose, found, remedy))
    host = describe()
    rows = (FORMATS[file_format] for file_format in Format)
    foreign = (row for row in rows if row.native_systems and not host.os.lower().startswith(row.native_systems))
    notes = [f"{row.title} artifacts {row.elsewhere}" for row in foreign]
    if host.container in ANDROID_NOTES:
        notes.append(ANDROID_NOTES[host.container])
    return Findings(host, tuple(parts), tuple(notes))


def installation(cache: CacheStatus) -> Installation:
    """Look at everything that ``doctor`` tells of.

    Args:
        cache: What is known of the cache of builds.
    """
    found = examine()
    return Installation(found.host, found.parts, found.notes, targets.statuses(), cache)
