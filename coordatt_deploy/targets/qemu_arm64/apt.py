"""Debian packages without root: the system's own package sources, read under a configuration of our own.

apt can serve another architecture, and another release of Debian, from any folder. Everything that it writes goes
there; the system's own state, lists and hooks are left alone. Downloads are verified against the archive's signatures.
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from debian.deb822 import Deb822

from coordatt_deploy.errors import MissingDependencyError

ETC_APT: Final = Path("/etc/apt")

# Suites of Debian's own archive. Others in the component "main" belong to third parties.
DEBIAN_SUITES: Final = (
    "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldoldstable", "oldstable", "stable", "testing",
    "unstable",
)  # fmt: skip
# What apt's own settings say about reaching the archive; the rest (hooks, pinning, clean-up) is not taken over.
TRANSPORT_SETTINGS: Final = re.compile(r"Acquire::(?:https?|Retries|Check-|Force|Allow(?:Insecure|Weak|Downgrade))")


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of apt's sources for binary packages.

    Attributes:
        options: Such as ``Signed-By``, by their deb822 names; which architectures and indexes are left out.
    """

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


# Which indexes to fetch is ours to say.
OWN_FIELDS: Final = (
    "types", "uris", "suites", "components", "enabled", "architectures", "arch", "languages", "lang", "targets",
    "target",
)  # fmt: skip


def parse_list(text: str) -> tuple[Source, ...]:
    """Read the one-line form: ``deb [signed-by=…] uri suite component …``; see sources.list(5)."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?([^#]*)", line)
        if match is None:
            continue
        options, rest = match.group(1) or "", match.group(2).split()
        if len(rest) < 2:
            continue
        pairs = (option.partition("=")[::2] for option in options.split() if "=" in option)
        kept = tuple((name.rstrip("+-"), value) for name, value in pairs if name.rstrip("+-").lower() not in OWN_FIELDS)
        sources.append(Source((rest[0],), (rest[1],), tuple(rest[2:]), kept))
    return tuple(sources)


def parse_deb822(text: str) -> tuple[Source, ...]:
    """Read the stanza form of ``*.sources`` files; values may go on in indented lines."""
    sources = []
    for stanza in Deb822.iter_paragraphs(text):
        enabled = stanza.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable")
        if "deb" not in stanza.get("types", "").split() or not enabled:
            continue
        # A value keeps its line breaks, which an embedded key needs.
        kept = tuple((str(name), value) for name, value in stanza.items() if name.lower() not in OWN_FIELDS)
        uris, suites, components = (tuple(stanza.get(key, "").split()) for key in ("uris", "suites", "components"))
        sources.append(Source(uris, suites, components, kept))
    return tuple(sources)


def read_sources(etc: Path = ETC_APT) -> tuple[Source, ...]:
    """Return the system's sources: ``sources.list`` and everything that apt would read beside it."""
    sources: list[Source] = []
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            sources += (parse_deb822 if file.suffix == ".sources" else parse_list)(text)
    return tuple(sources)


def debian_sources(sources: Iterable[Source], release: str) -> tuple[Source, ...]:
    """Return those of *sources* that are Debian's archive, turned to *release*; updates and security stay theirs.

    A mirror holds all releases, so a system of another Debian release serves as well.
    """
    found: dict[Source, None] = {}
    for source in sources:
        turned = (_turn(suite, release) for suite in source.suites)
        suites = tuple(dict.fromkeys(suite for suite in turned if suite is not None))
        uris = tuple(uri for uri in source.uris if not uri.startswith("cdrom:"))
        keyring = {name.lower(): value for name, value in source.options}.get("signed-by", "")
        foreign = keyring.startswith("/") and "debian-archive" not in keyring
        if suites and uris and "main" in source.components and not foreign:
            found[replace(source, uris=uris, suites=suites, components=("main",))] = None
    return tuple(found)


def _turn(suite: str, release: str) -> str | None:
    """Return the suite of *release* that corresponds to *suite*; None where it is none of these."""
    base, mark, kind = re.fullmatch(r"([^/-]*)([/-]?)(.*)", suite, flags=re.DOTALL).groups()  # type: ignore[union-attr]
    if base not in DEBIAN_SUITES or kind not in ("", "updates", "security"):
        return None
    if mark == "/":  # as security updates were called up to Debian 10
        return f"{release}-security" if kind == "updates" else None
    return f"{release}{mark}{kind}"


def sources_text(sources: Iterable[Source], architectures: Sequence[str]) -> str:
    """Return *sources* as a deb822 file for these architectures."""
    stanzas = []
    for source in sources:
        stanza = Deb822({
            "Types": "deb",
            "URIs": " ".join(source.uris),
            "Suites": " ".join(source.suites),
            "Components": " ".join(source.components),
            "Architectures": " ".join(architectures),
            **dict(source.options),
        })  # fmt: skip
        stanzas.append(stanza.dump())
    return "\n".join(stanzas)


def config_text(folder: Path, architectures: Sequence[str], settings: Iterable[str] = ()) -> str:
    """Return an apt configuration that keeps everything below *folder*.

    Args:
        folder: As ``prepare`` lays it out.
        architectures: The host's own first.
        settings: Lines of ``apt-config dump``; those about reaching the archive are taken over.
    """
    listed = " ".join(f'"{name}";' for name in architectures)
    return "".join(
        (
            *(f"{line}\n" for line in settings if TRANSPORT_SETTINGS.match(line)),
            f'APT::Architecture "{architectures[0]}";\n',
            f"APT::Architectures {{ {listed} }};\n",
            # Root's apt would switch to a user who cannot write here.
            'APT::Sandbox::User "root";\n',
            'Acquire::Languages "none";\n',
            f'Dir::State "{folder}";\n',
            f'Dir::State::lists "{folder}/lists";\n',
            f'Dir::State::status "{folder}/status";\n',
            f'Dir::Cache "{folder}";\n',
            f'Dir::Etc::sourceparts "{folder}/sources";\n',
            *(
                f'Dir::Etc::{name} "/dev/null";\n'
                for name in ("sourcelist", "main", "parts", "preferences", "preferencesparts")
            ),
        )
    )


def prepare(
    folder: Path,
    architectures: Sequence[str],
    release: str,
    settings: Iterable[str] = (),
    etc: Path = ETC_APT,
    extra: Path | None = None,
) -> Path:
    """Lay out a private apt in *folder* and return its configuration file, for the variable ``APT_CONFIG``.

    Args:
        folder: Where apt keeps everything.
        architectures: The host's own first.
        release: Of Debian, e.g. ``bookworm``.
        settings: Lines of ``apt-config dump``.
        etc: The system's configuration of apt.
        extra: A ``.sources`` file of the user's, for systems whose own sources are not Debian's.

    Raises:
        MissingDependencyError: No source is Debian's archive.
    """
    user = parse_deb822(extra.read_text(encoding="utf-8")) if extra is not None and extra.is_file() else ()
    sources = debian_sources((*user, *read_sources(etc)), release)
    if not sources:
        raise MissingDependencyError(
            f"no source of Debian packages found in {etc}/sources.list and {etc}/sources.list.d;"
            f" write one of Debian's mirrors into {extra or etc / 'sources.list.d'} in the deb822 form of"
            " sources.list(5); Debian's keyring is in the package debian-archive-keyring"
        )
    for name in ("lists/partial", "archives/partial", "sources"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources" / "debian.sources").write_text(sources_text(sources, architectures), encoding="utf-8")
    config = folder / "apt.conf"
    config.write_text(config_text(folder, architectures, settings), encoding="utf-8")
    return config


def command(name: str, package: str) -> str:
    """Return the path of the system's program *name*.

    Raises:
        MissingDependencyError: It is not installed; the text names the package that has it.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingDependencyError(f"the program {name} is not on the PATH; install Debian's package {package}")
    return path


def deb_version(file: Path) -> tuple[str, str, str]:
    """Return (package, version, architecture) from the name that ``apt-get download`` gives a file."""
    package, version, architecture = file.stem.split("_")
    return package, version.replace("%3a", ":"), architecture


def environment(config: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment under which apt reads *config*."""
    return {**base, "APT_CONFIG": str(config), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
