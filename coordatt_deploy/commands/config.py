"""``--config``: what the command line can say of a build, in a TOML file; and ``--save-config``, which writes it.

A key is called as its option, without the dashes before it; the tables only sort them. What the command line says wins
over the file, option by option. Paths in the file are relative to the file.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.manifest import ConfigRecord
from coordatt_deploy.toml_files import TomlFile, read_toml

TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "model": (
        "model", "model-args", "checkpoint", "checkpoint-key", "allow-unexpected", "reparameterize", "name", "author",
        "license", "description", "labels", "output",
    ),
    "inputs": (
        "input-size", "dynamic-size", "batch-size", "dynamic-batch", "input-layout", "input-shape", "golden",
    ),
    "preprocessing": (
        "preprocessing", "mean", "std", "input-range", "colour", "resize", "bake-preprocessing", "softmax",
    ),
    "files": ("format", "precision", "target-cpu", "min-runtime", "opset", "output-dir", "strict"),
    "calibration": ("calibration-data", "calibration-count", "seed", "ranges"),
    "check": ("budgets",),
}  # fmt: skip
"""Every key by its table, in the order in which they are written."""

SAID: Final = "coordatt_deploy.commands.config"
JOINED: Final = {"input-size": "x"}  # what stands between the numbers of a list; a comma as a rule
CODE: Final = re.compile(r"(?P<file>.+\.(?:py|pt2))(?P<factory>:.*)?")  # a model that is a file of the user's
COMMENT: Final = "# coordatt-deploy build --config {name}\n"


@dataclass(frozen=True, slots=True)
class Said:
    """What file and command line say together.

    Attributes:
        values: By option, as it would be typed; paths as they are seen from the working directory.
        config: The file; None without one.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    config: ConfigRecord | None = None


class ConfiguredCommand(click.Command):
    """A command whose options may stand in the file that ``--config`` names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the file, as defaults of the options; then the options."""
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        helping = self.get_help_option(ctx)
        if not ctx.resilient_parsing and not (helping is not None and typed.get(str(helping.name))):
            options = options_of(self)
            values: dict[str, object] = {}
            record = None
            if typed.get("config") is not None:
                file = read_toml(Path(str(typed["config"])))
                values = _values(file, options, ctx)
                record = ConfigRecord(file.path.name, hashlib.sha256(file.text.encode()).hexdigest())
                ctx.default_map = {options[key].name or key: value for key, value in values.items()}
            values |= {key: typed[option.name] for key, option in options.items() if option.name in typed}
            ctx.meta[SAID] = Said(values, record)
        return super().parse_args(ctx, args)


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that a file may hold, by their keys."""
    known = {key for keys in TABLES.values() for key in keys}
    found = {}
    for option in command.params:
        key = max(option.opts, key=len).removeprefix("--")
        if isinstance(option, click.Option) and key in known:
            found[key] = option
    return found


def said() -> Said:
    """Return what file and command line said of the command that runs."""
    found = click.get_current_context().meta.get(SAID)
    return found if isinstance(found, Said) else Said()


def save(path: Path, values: Mapping[str, object]) -> ConfigRecord:
    """Write what was said to a file that ``--config`` takes; returns what the manifest says of it.

    Raises:
        UsageError: The file holds something else already, or cannot be written.
    """
    # the writers of files are not needed for --help
    import tomli_w

    from coordatt_deploy.report_file import write_text

    tables = {
        table: {key: _written(key, values[key], path.parent) for key in keys if key in values}
        for table, keys in TABLES.items()
    }
    document = {table: entries for table, entries in tables.items() if entries}
    text = COMMENT.format(name=path.name) + ("\n" if document else "") + tomli_w.dumps(document)
    try:
        there = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        write_text(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    else:
        if there != text:
            raise UsageError(f"{path} is there and says something else; name another file, or remove it")
    return ConfigRecord(path.name, hashlib.sha256(text.encode()).hexdigest())


# In ------------------------------------------------------------------------------------------------------------------


def _values(file: TomlFile, options: Mapping[str, click.Option], ctx: click.Context) -> dict[str, object]:
    """The values of the file, as they would be typed, by key.

    Raises:
        UsageError: A table or key is unknown (the text holds the nearest), or a value is none of the option's.
    """
    home = {key: table for table, keys in TABLES.items() for key in keys}
    found: dict[str, object] = {}
    for table, entries in file.document.items():
        if table not in TABLES:
            where = file.where("", (table,)) if not isinstance(entries, dict) else file.where(table)
            if table in home and not isinstance(entries, dict):
                raise UsageError(f"{where}: {table} stands in no table; write it below [{home[table]}]")
            raise UsageError(f"{where}: unknown table [{table}]; {nearest(table, list(TABLES))}")
        if not isinstance(entries, dict):
            if table in home:  # the table preprocessing has a key of its name
                raise UsageError(f"{file.where('', (table,))}: {table} stands in no table; write it below [{table}]")
            raise UsageError(f"{file.where('', (table,))}: {table} is {entries!r}; expected a table: [{table}]")
        for key, value in entries.items():
            where = file.where(table, (key,))
            if key not in TABLES[table]:
                other = home.get(key)
                hint = f"it belongs below [{other}]" if other else nearest(key, list(TABLES[table]))
                raise UsageError(f"{where}, [{table}]: unknown key {key!r}; {hint}")
            found[key] = _read(key, value, options[key], file.path.parent, f"{where}, [{table}] {key}")
            try:
                options[key].type_cast_value(ctx, found[key])
            except click.BadParameter as error:
                raise UsageError(f"{where}, [{table}] {key}: {error.message}") from None
    return found


def _read(key: str, value: object, option: click.Option, folder: Path, where: str) -> object:
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is {value!r}; write true or false")
        return value
    if key == "model-args" and isinstance(value, dict):
        return json.dumps(value)
    if option.multiple:
        items = value if isinstance(value, list) else [value]
        return tuple(_located(key, _text(item, where), option, folder) for item in items)
    if isinstance(value, list) and value and all(_is_number(item) for item in value):
        return JOINED.get(key, ",").join(str(item) for item in value)
    return _located(key, _text(value, where), option, folder)


def _text(value: object, where: str) -> str:
    if isinstance(value, str) or _is_number(value):
        return str(value)
    raise UsageError(f"{where} is {value!r}; write it as on the command line, as a text or a number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _located(key: str, text: str, option: click.Option, folder: Path) -> str:
    """A path of the file, as it is seen from the working directory; any other text as it is."""
    path, rest = _path_in(key, text, option)
    return text if path is None else f"{folder / path}{rest}"


def _path_in(key: str, text: str, option: click.Option | None = None) -> tuple[str | None, str]:
    """Return the path that a value is, or begins with, and what follows it; None for no path."""
    if key == "model":
        found = CODE.fullmatch(text)
        return (None, "") if found is None else (found["file"], found["factory"] or "")
    if key == "calibration-data":
        # the packaged data's module needs NumPy
        from coordatt_deploy.data.calibration import PACKAGED

        return (None, "") if text in PACKAGED else (text, "")
    if key in PATHS or (option is not None and isinstance(option.type, click.Path)):
        return text, ""
    return None, ""


PATHS: Final = frozenset({"checkpoint", "labels", "golden", "preprocessing", "output-dir", "budgets"})


# Out -----------------------------------------------------------------------------------------------------------------


def _written(key: str, value: object, folder: Path) -> object:
    """A value as the file is to have it."""
    if isinstance(value, list | tuple):
        return [_relative(key, str(item), folder) for item in value]
    if isinstance(value, bool):
        return value
    text = str(value)
    if key == "model-args":
        try:
            arguments = json.loads(text)
        except ValueError:
            return text
        return text if _holds_null(arguments) else arguments
    if key in ("input-size", "batch-size", "opset", "calibration-count", "seed") and text.isdecimal():
        return int(text)
    return _relative(key, text, folder)


def _holds_null(value: object) -> bool:
    """Whether there is a null in a JSON value, for which TOML has no form."""
    if isinstance(value, dict):
        return any(_holds_null(item) for item in value.values())
    return any(_holds_null(item) for item in value) if isinstance(value, list) else value is None


def _relative(key: str, text: str, folder: Path) -> str:
    """A path as it is seen from the file; one from the root on stays so, unless it is beside the file."""
    path, rest = _path_in(key, text)
    if path is None:
        return text
    place = Path(path)
    if place.is_absolute() and not place.is_relative_to(folder.absolute()):
        return text
    return f"{Path(os.path.relpath(place, folder)).as_posix()}{rest}"
