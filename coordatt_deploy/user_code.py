"""Failures inside the user's own code: one line for the screen, everything else in a log file."""

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_OWN = Path(__file__).resolve().parent
_LIBRARIES = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the error's type and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:limit]}" if lines else type(error).__name__


def place(error: BaseException) -> str | None:
    """Return the innermost line of the user's code that the error passed through, as ``file:line (the line)``.

    Python's own library, torch and this package are not the user's code; None where nothing else is in the traceback.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return _innermost((frame.f_code.co_filename, line) for frame, line in frames)


def source_line(stack_trace: str) -> str | None:
    """Return the innermost line of the user's code in a stack that torch recorded as text."""
    found = re.findall(r'^\s*File "(.+)", line (\d+)', stack_trace or "", flags=re.MULTILINE)
    return _innermost((file, int(line)) for file, line in found)


def _innermost(frames: Iterable[tuple[str, int]]) -> str | None:
    """The last frame in a file of the user's; failing that, in an installed package other than torch."""
    files, packages = [], []
    for file, line in frames:
        path = Path(file).resolve()
        if file.startswith("<") or not path.is_file() or _OWN in path.parents:
            continue
        if "site-packages" in path.parts:
            if path.parts[path.parts.index("site-packages") + 1] != "torch":
                packages.append((file, line))
        elif not any(folder in path.parents for folder in _LIBRARIES):
            files.append((file, line))
    if not files and not packages:
        return None
    file, line = (files or packages)[-1]
    code = linecache.getline(file, line).strip()
    return f"{_short(file)}:{line}" + (f" ({code})" if code else "")


def _short(file: str) -> str:
    """The path as the user would type it: relative where it lies below the current folder."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
