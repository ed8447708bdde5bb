"""Code that is not this package's: imported, called, and its failures told.

Importing code runs it, which is what the user asked for by naming it. What it prints goes to a log file, and so does
the traceback if it raises; the screen gets one line that names the user's own line.
"""

import importlib
import importlib.util
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from coordatt_deploy.errors import UsageError
from coordatt_deploy.logs import captured, log_folder, write_traceback

T = TypeVar("T")

_OWN = Path(__file__).resolve().parent
_LIBRARIES = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the error's type and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:limit]}" if lines else type(error).__name__


def place(error: BaseException) -> str | None:
    """Return the innermost line of the user's code that the error passed through, as ``file:line (the line)``.

    Python's own library, torch and this package are not the user's code; None where nothing else is in the traceback.
    Of a line that Python cannot read, that line.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        code = (error.text or "").strip()
        return f"{_short(error.filename)}:{error.lineno}" + (f" ({code})" if code else "")
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


def quietly(call: Callable[[], T], what: str) -> T:
    """Run the user's code with its output in a log file, and say in one line what it raises."""
    log = log_folder() / f"intake-{os.getpid()}.log"
    try:
        with captured(log):
            result = call()
    except (Exception, SystemExit) as error:  # a script may well call sys.exit when it is imported
        at, where = place(error), write_traceback(error, "intake")
        raise UsageError(
            f"{what} {first_line(error)}{f' at {at}' if at else ''}; the traceback is in {where}"
        ) from error
    log.unlink(missing_ok=True)
    return result


def import_file(path: Path) -> ModuleType:
    """Import a file under its own name, or as part of the package that it lies in, so that its own imports work.

    Raises:
        UsageError: It is no Python file, or raises when it is imported.
    """
    root, parts = path.resolve().parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    search_first(root)
    name = ".".join(parts)
    loaded = sys.modules.get(name)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
        return loaded
    if len(parts) > 1 and loaded is None:
        return quietly(lambda: importlib.import_module(name), f"importing {path} raises")
    if loaded is not None:  # the name belongs to another module: torch.py, models.py
        name = f"{name}_{abs(hash(str(path.resolve()))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file; its name must end in .py")
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code
    loader = spec.loader
    try:
        quietly(lambda: loader.exec_module(code), f"importing {path} raises")
    except UsageError:
        del sys.modules[name]
        raise
    return code


def search_first(folder: Path) -> None:
    """Let imports look in *folder* before anywhere else."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
