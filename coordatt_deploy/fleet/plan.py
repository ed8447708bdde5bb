"""Which places there are, as a file of the user's says it.

at_once = 8                        # places that work at the same time

[hosts.pi4]                        # the name that reports call it by
address = "ssh://ann@pi4.local"    # or a target of this machine: "here", "qemu-arm64:cortex-a53"
cpu = "cortex-a72"                 # what reports say beside it
tool = "~/venv/bin/coordatt-deploy"   # where it is there, if neither on PATH nor put there by doctor --setup
folder = "/srv/nets"               # where deploy puts bundles there, if not into coordatt-deploy in the home folder
groups = ["pilot"]

[groups]                           # the same, the other way round
pilot = ["pi4", "pi5"]
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.run_records import HERE
from coordatt_deploy.targets import places
from coordatt_deploy.toml_files import TomlFile, read_toml

AT_ONCE: Final = 8
MOST_AT_ONCE: Final = 64
KEYS: Final = ("at_once", "hosts", "groups")
HOST_KEYS: Final = ("address", "cpu", "tool", "folder", "groups")

_CPU: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,59}")


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One place.

    Attributes:
        name: What reports call it.
        target: As ``--target`` takes it.
        cpu: What it has, in the user's words; None where nobody said it.
        tool: Path of ``coordatt-deploy`` there; None for where it is found by itself.
        groups: That it is in.
        folder: Where bundles are deployed to there; None for the usual place.
    """

    name: str
    target: str
    cpu: str | None = None
    tool: str | None = None
    groups: tuple[str, ...] = ()
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Places, and how many of them work at a time."""

    hosts: tuple[FleetHost, ...]
    at_once: int = AT_ONCE

    @property
    def emulated(self) -> tuple[str, ...]:
        """The machines among them that are emulated here."""
        return tuple(host.target for host in self.hosts if host.target != HERE and not places.is_elsewhere(host.target))

    def group(self, name: str | None) -> tuple[FleetHost, ...]:
        """Return the places of a group; all for None.

        Raises:
            UsageError: There is no such group; the text has the nearest.
        """
        if name is None:
            return self.hosts
        found = tuple(host for host in self.hosts if name in host.groups)
        if not found:
            known = {group for host in self.hosts for group in host.groups}
            raise UsageError(
                f"no place is in a group {name!r}; {nearest(name, known) if known else 'there is no group'}"
            )
        return found


def fleet_of(texts: Sequence[str]) -> Fleet:
    """Return the fleet that ``--target``, given several times, names.

    Raises:
        UsageError: One is no target, or two have one name.
    """
    found = [places.name_of(text) for text in texts]
    return _with_names(Fleet(tuple(FleetHost(place.name, place.text) for place in found)))


def joined(first: Fleet, second: Fleet) -> Fleet:
    """Return the places of both; as many of them work at once as the second says.

    Raises:
        UsageError: Two have one name.
    """
    return _with_names(Fleet((*first.hosts, *second.hosts), second.at_once))


def _with_names(fleet: Fleet) -> Fleet:
    hosts = fleet.hosts
    for host in hosts:
        same = [other.target for other in hosts if other.name == host.name]
        if len(same) > 1 and len(set(same)) == 1:
            raise UsageError(f"{same[0]} is named {len(same)} times; name each place once")
        if len(same) > 1:
            raise UsageError(
                f"{' and '.join(dict.fromkeys(same))} would both be called {host.name} in reports; give them names in a"
                " file: --targets fleet.toml"
            )
    return fleet


def read_fleet(path: Path) -> Fleet:
    """Read a file of places.

    Raises:
        UsageError: It cannot be read, is not TOML, holds no place, a key is unknown (the text holds the nearest), or a
            value is none of its kind; the text says in which line.
    """
    file = read_toml(path)
    for key in file.document:
        if key not in KEYS:
            raise UsageError(f"{file.where('', (key,))}: unknown key {key!r}; {nearest(key, KEYS)}")
    at_once = file.document.get("at_once", AT_ONCE)
    if isinstance(at_once, bool) or not isinstance(at_once, int) or not 1 <= at_once <= MOST_AT_ONCE:
        raise UsageError(
            f"{file.where('', ('at_once',))}: at_once is {at_once!r}; write a number from 1 to {MOST_AT_ONCE}"
        )
    hosts = {name: _host(file, name, values) for name, values in _table(file, "hosts").items()}
    if not hosts:
        raise UsageError(f'{path} names no place; write such as [hosts.pi4] and below it address = "ssh://pi4.local"')
    groups = _groups(file, hosts)
    return Fleet(tuple(_grouped(host, groups) for host in hosts.values()), at_once)


def _grouped(host: FleetHost, groups: Mapping[str, Sequence[str]]) -> FleetHost:
    further = (group for group, names in groups.items() if host.name in names)
    return replace(host, groups=tuple(dict.fromkeys((*host.groups, *further))))


def _host(file: TomlFile, name: str, values: object) -> FleetHost:
    where = f"{file.path}, [hosts.{name}]"
    if not places.is_name(name):
        raise UsageError(
            f"{where}: {name!r} is no name for a place; use small letters, digits, dots and dashes,"
            " and neither here nor the name of an emulated machine"
        )
    if not isinstance(values, dict):
        raise UsageError(f'{where}: {values!r} is no place; write address = "ssh://pi4.local" below [hosts.{name}]')
    for key in values:
        if key not in HOST_KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, HOST_KEYS)}")
    texts: dict[str, str | None] = {}
    for key in ("address", "cpu", "tool", "folder"):
        value = values.get(key)
        if value is not None and (not isinstance(value, str) or not value.isprintable() or not value):
            raise UsageError(f"{where}: {key} is {value!r}; write a text in quotes")
        texts[key] = value
    if texts["address"] is None:
        raise UsageError(f'{where} has no address; write such as address = "ssh://pi4.local"')
    if texts["cpu"] is not None and _CPU.fullmatch(texts["cpu"]) is None:
        raise UsageError(f"{where}: cpu is {texts['cpu']!r}; write a name such as cortex-a72")
    try:
        target = places.name_of(texts["address"]).text
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    groups = _names(values.get("groups", []), f"{where}: groups")
    return FleetHost(name, target, texts["cpu"], texts["tool"], groups, texts["folder"])


def _groups(file: TomlFile, hosts: Mapping[str, FleetHost]) -> dict[str, tuple[str, ...]]:
    found = {}
    for group, members in _table(file, "groups").items():
        names = _names(members, f"{file.path}, [groups]: {group}")
        for name in names:
            if name not in hosts:
                raise UsageError(
                    f"{file.path}, [groups]: {group} names {name!r}, which is no host; {nearest(name, hosts)}"
                )
        found[group] = names
    return found


def _table(file: TomlFile, key: str) -> dict[str, object]:
    value = file.document.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{file.where('', (key,))}: {key} is {value!r}; expected a table: [{key}]")
    return value


def _names(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UsageError(f'{what} is {value!r}; write a list of names: ["pilot"]')
    return tuple(value)
