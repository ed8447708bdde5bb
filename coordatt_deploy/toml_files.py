"""TOML files that people write: read, with the line of what is wrong in them."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coordatt_deploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A file as it was read.

    Attributes:
        path: Of the file.
        text: Of the file.
        document: Its tables and values.
    """

    path: Path
    text: str
    document: dict[str, object]

    def line(self, section: str, keys: Sequence[str] = ()) -> int:
        """Return the number of the line that a key stands on, as far as it can be told without a parser's help; else 0.

        Args:
            section: The table that it is in; empty for none.
            keys: What leads to it there; empty for the line of the table itself.
        """
        inside = not section
        for number, line in enumerate(self.text.splitlines(), 1):
            bare = line.strip()
            if bare.startswith("["):
                inside = bare.strip("[] ").split(".")[0].strip("\"' ") == section
                if inside and not keys:
                    return number
            elif inside and keys and keys[-1] in bare.partition("=")[0]:
                return number
        return 0

    def where(self, section: str, keys: Sequence[str] = ()) -> str:
        """Return ``deploy.toml, line 3``, for messages."""
        line = self.line(section, keys)
        return f"{self.path}, line {line}" if line else str(self.path)


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        UsageError: It cannot be read, or is not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        return TomlFile(path, text, tomllib.loads(text.replace("\r\n", "\n")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {str(error) or 'nested too deeply'}") from None
