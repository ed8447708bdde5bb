"""What a box is made of: Debian's packages, and wheels in the versions that are installed here."""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from coordatt_deploy.formats import FORMATS, Format

# Debian 12: its dynamically linked QEMU 7.2 loads plugins, later releases' static one does not.
RELEASE: Final = "bookworm"
GUEST_PYTHON: Final = "3.11"
HOST_PACKAGES: Final = (
    "qemu-user", "libcapstone4", "liburing2", "libnuma1", "zlib1g", "libglib2.0-0", "libpcre2-8-0", "libgnutls30",
    "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libgmp10", "libffi8",
)  # fmt: skip
GUEST_PACKAGES: Final = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1", "zlib1g",
    "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3", "libuuid1",
)  # fmt: skip
# What the travelling half needs, and below it the distributions that open each format, the preferred one first.
NEEDED: Final = ("numpy", "msgspec")
RUNTIMES: Final[Mapping[Format, tuple[str, ...]]] = {
    file_format: FORMATS[file_format].runtimes for file_format in Format if not FORMATS[file_format].runs_only_on
}

# What pip's markers are evaluated for.
GUEST_MARKERS: Final = {
    "python_version": GUEST_PYTHON,
    "python_full_version": f"{GUEST_PYTHON}.2",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_machine": "aarch64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
}


def installed_runtimes() -> dict[str, str]:
    """Return the versions of the runtimes installed here, and of what our code needs: what the guest gets, too."""
    wanted = [(name,) for name in NEEDED] + list(RUNTIMES.values())
    found = (_first_installed(names) for names in wanted)
    return dict(filter(None, found))


def _first_installed(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return name and version of the first of *names* that is installed: a predecessor is used where it is alone."""
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def opened_formats(packages: Iterable[str]) -> list[Format]:
    """Return the formats that one of *packages* opens."""
    known = frozenset(packages)
    return [file_format for file_format, names in RUNTIMES.items() if not known.isdisjoint(names)]


def known_runtimes() -> Iterator[str]:
    """Yield the names of all that ``installed_runtimes`` may hold, installed or not."""
    yield from NEEDED
    for names in RUNTIMES.values():
        yield from names


def closure() -> dict[str, str]:
    """Return what the installed runtimes need in the guest, with the versions installed here: it gets the same."""
    found: dict[str, str] = {}
    waiting = [(name, "") for name in installed_runtimes()]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({**GUEST_MARKERS, "extra": extra}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, wanted) for wanted in ("", *requirement.extras)]
    return found
