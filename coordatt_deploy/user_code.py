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
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeVar

from coordatt_deploy.errors import UsageError
from coordatt_deploy.logs import captured, log_folder, write_traceback

T = TypeVar("T")

_OWN = Path(__file__).resolve().parent
_SEARCHED: list[Path] = []  # folders of the user's code
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
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
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


class _SourceLoader(SourceFileLoader):
    """Reads code from its source, whatever Python compiled of it before.

    Python takes a compiled file for the source's as long as time and size are the same, which a copy that keeps the
    time, or an edit within the same second, can leave as they were: 0.5 and 0.7 are as long as each other.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def search_first(folder: Path) -> None:
    """Let imports look in *folder* before anywhere else, and read what lies there from its source."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if folder not in _SEARCHED:
        _SEARCHED.append(folder)
        if _finder not in sys.path_hooks:
            sys.path_hooks.insert(0, _finder)
        for known in [place for place in sys.path_importer_cache if _is_users(Path(place))]:
            del sys.path_importer_cache[known]


def _is_users(place: Path) -> bool:
    """Whether *place* is, or lies in, a folder of the user's code, and holds no installed package."""
    installed = "site-packages" in place.parts or place == _OWN or _OWN in place.parents
    return not installed and any(folder == place or folder in place.parents for folder in _SEARCHED)


def _finder(place: str) -> FileFinder:
    """Find the user's modules; other folders are left to Python's own finders."""
    if not _is_users(Path(place)) or not Path(place).is_dir():
        raise ImportError(place)
    return FileFinder(place, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, SOURCE_SUFFIXES))
