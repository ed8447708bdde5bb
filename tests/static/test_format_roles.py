"""Every format fills every role, and says what to install where it cannot."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from coordatt_deploy.exporters import Exporter, OfficialExporter, Quantizer
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.graph.lowering.target import Lowering
from coordatt_deploy.runtimes import Runtime
from coordatt_deploy.runtimes.operator_times import OperatorTimer
from coordatt_deploy.runtimes.reader import Reader
from coordatt_deploy.runtimes.submodels import SubmodelExtractor

ROOT = Path(__file__).parents[2]
PROTOCOLS = {
    Role.LOWERING: Lowering,
    Role.EXPORT: Exporter,
    Role.QUANTIZE: Quantizer,
    Role.OFFICIAL: OfficialExporter,
    Role.RUNNER: Runtime,
    Role.SUBMODELS: SubmodelExtractor,
    Role.READER: Reader,
    Role.OPERATOR_CLOCK: OperatorTimer,
}
ALL = [(file_format, role) for file_format in Format for role in Role]


def functions(protocol):
    return {name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}


def parameters(function, *, method=False):
    """Name, kind and default of each parameter, in order."""
    found = [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]
    return found[1:] if method else found


def test_every_role_has_a_protocol_that_asks_for_something():
    """
    A role without one would be filled by anything.
    """
    assert set(Role) == set(PROTOCOLS)
    assert [] == [role for role, protocol in PROTOCOLS.items() if not functions(protocol)]


@pytest.mark.parametrize(("file_format", "role"), ALL)
def test_a_format_fills_the_role(file_format, role):
    """
    Each function of the protocol is in the format's module, with the same parameters and defaults.
    """
    module = load(file_format, role)
    wanted = functions(PROTOCOLS[role])

    assert [] == [name for name in wanted if not inspect.isfunction(getattr(module, name, None))]
    for name, function in wanted.items():
        assert parameters(function, method=True) == parameters(getattr(module, name)), name


def typed(pairs):
    """A module that says of each pair of a protocol and a module that one satisfies the other."""
    lines = []
    for number, (protocol, module) in enumerate(pairs):
        lines.append(f"import {protocol.__module__}, {module}")
        lines.append(f"check_{number}: {protocol.__module__}.{protocol.__qualname__} = {module}")
    return "\n".join(lines) + "\n"


def mypy(source, installed, folder):
    (folder / "check.py").write_text(source)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "check.py"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    environment = {"MYPYPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def module_name(file_format, role):
    return f"coordatt_deploy.{role.format(file_format)}"


def test_types_of_every_role_hold(installed, tmp_path):
    """
    mypy takes each module for its protocol.
    """
    pairs = [(PROTOCOLS[role], module_name(file_format, role)) for file_format, role in ALL]

    result = mypy(typed(pairs), installed, tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr


def test_a_module_of_another_role_is_refused(installed, tmp_path):
    """
    The negative twin: what reads is no exporter.
    """
    result = mypy(typed([(Exporter, module_name(next(iter(Format)), Role.READER))]), installed, tmp_path)

    assert result.returncode == 1
    assert "Incompatible types in assignment" in result.stdout


WITHOUT = """
import sys
from pathlib import Path
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.runtimes.reader import count_operators

file_format = Format(sys.argv[1])
packages = {package.module for package in FORMATS[file_format].packages}
packages |= {name.replace("-", "_") for name in FORMATS[file_format].runtimes}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Absent())
for role in Role:
    hidden = {"torch"} if role is Role.LOWERING else packages
    try:
        load(file_format, role)
        if role is Role.READER:
            count_operators(Path("net"), file_format)
    except MissingDependencyError as error:
        print(role.name, error, sep="|")
"""


@pytest.mark.parametrize("file_format", Format)
def test_a_missing_package_is_named_with_the_line_that_installs_it(file_format):
    """
    In every role: the one extra that runs files, or the format's own.
    """
    result = subprocess.run([sys.executable, "-c", WITHOUT, file_format], cwd=ROOT, capture_output=True, text=True)
    said = dict(line.split("|") for line in result.stdout.splitlines())

    assert [role.name for role in Role] == list(said), result.stderr
    for role in Role:
        extra = FORMATS[file_format].runtime_extra if role is Role.RUNNER else file_format
        assert said[role.name].endswith(f"which is not installed; run: pip install 'coordatt-deploy[{extra}]'")


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch):
    """
    Nobody is sent to pip for a file that we forgot.
    """
    monkeypatch.setitem(sys.modules, module_name(next(iter(Format)), Role.READER), None)

    with pytest.raises(ModuleNotFoundError, match="coordatt_deploy"):
        load(next(iter(Format)), Role.READER)
