"""The address of a cluster's scheduler, checked before anything is connected to."""

import re
from typing import Final

from coordatt_deploy.errors import UsageError

ADDRESS: Final = re.compile(
    r"(?P<protocol>tcp|tls)://(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.][A-Za-z0-9_.-]*):(?P<port>[0-9]{1,5})"
)
LAST_PORT: Final = 65535


def check_address(text: str) -> None:
    """Refuse what is no address of a scheduler.

    Raises:
        UsageError: It is none; the text says what one looks like.
    """
    found = ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= LAST_PORT:
        raise UsageError(
            f"--cluster is {text!r}; expected the address of a Dask scheduler, tcp://HOST:PORT or tls://HOST:PORT, as"
            " in tcp://scheduler:8786"
        )
