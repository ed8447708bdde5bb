"""Where a machine is reached over SSH, as the user writes it: ``ssh://[user@]host[:port]``."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.errors import UsageError

SCHEME: Final = "ssh://"
FORM: Final = "ssh://[USER@]HOST[:PORT]"
MOST_LETTERS: Final = 255  # of a name in the DNS

# The first letter is none of those that ssh would take for an option of its own.
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\$?")


@dataclass(frozen=True, slots=True)
class SshAddress:
    """A machine that ssh can reach; ``str`` gives the form that ``parse_address`` reads.

    Attributes:
        host: A name of the DNS or of the user's ssh configuration, or an address; an IPv6 one without brackets.
        user: None for whom ssh takes by itself.
        port: None likewise.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{user}{host}{'' if self.port is None else f':{self.port}'}"

    @property
    def place(self) -> str:
        """A name for the machine in reports: ``pi4.local``, or with a port ``127.0.0.1-2222``."""
        name = re.sub(r"[^a-z0-9._-]+", "-", self.host.lower()).strip("-._")
        return name if self.port is None else f"{name}-{self.port}"


def parse_address(text: str) -> SshAddress:
    """Read ``ssh://[user@]host[:port]``.

    Raises:
        UsageError: It has another form, or a part of it could be taken for something else.
    """
    if not text.startswith(SCHEME):
        raise UsageError(f"{text!r} is no address of a machine; write {FORM}")
    rest = text.removeprefix(SCHEME)
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        raise UsageError(
            f"{_without_password(text)!r} holds a password, and none is ever used: let the machine know your key"
            f" (ssh-copy-id), and write {FORM}"
        )
    if at and _USER.fullmatch(user) is None:
        raise UsageError(f"{text!r}: {user!r} is no name of a user; write {FORM}")
    host, port = _host_and_port(text, place)
    return SshAddress(host, user if at else None, port)


def _host_and_port(text: str, place: str) -> tuple[str, int | None]:
    if place.startswith("["):
        host, closing, port = place[1:].partition("]")
        if not closing or not _is_ipv6(host) or (port and not port.startswith(":")):
            raise UsageError(f"{text!r}: {place!r} is no IPv6 address in brackets; write such as ssh://[fe80::1]:22")
        return host, _port(text, port[1:]) if port else None
    host, colon, port = place.partition(":")
    if ":" in port and _is_ipv6(place):
        raise UsageError(f"{text!r}: put an IPv6 address into brackets: ssh://[{place}]")
    if _HOST.fullmatch(host) is None or len(host) > MOST_LETTERS:
        raise UsageError(f"{text!r}: {host!r} is no name of a machine; write {FORM}")
    return host, _port(text, port) if colon else None


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise UsageError(f"{text!r}: {port!r} is no port; write a number from 1 to 65535")
    return int(port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", text) is not None


def _without_password(text: str) -> str:
    return re.sub(r":[^@/]*@", ":…@", text.removeprefix(SCHEME))
