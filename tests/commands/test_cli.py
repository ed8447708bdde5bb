"""The command line as a whole: what it lists, what it imports, how it exits."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.cli import COMMANDS, main

FRAMEWORKS = ("torch", "numpy", "onnx", "onnxruntime", "coremltools", "litert_torch", "rich", "PIL")


def _imported(*arguments):
    """The exit code of the command line in a process of its own, and what it imported."""
    script = (
        "import sys\n"
        "from coordatt_deploy.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, *sys.modules, file=sys.__stderr__)"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    code, *modules = result.stderr.splitlines()[-1].split()
    return int(code), set(modules)


def _with_subcommands():
    """The words of every command: ``parity``, ``bundle pack``."""
    for name in sorted(COMMANDS):
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            yield from (f"{name} {inner}" for inner in sorted(command.commands))
        else:
            yield name


@pytest.mark.parametrize("command", list(_with_subcommands()))
def test_every_help_has_an_example_and_a_json_option(command):
    """
    Help shows how to call the command, and every command has --json and --quiet.
    """
    result = CliRunner().invoke(main, [*command.split(), "--help"])

    assert 0 == result.exit_code
    assert "Example:" in result.output
    assert {"--json", "--quiet"} <= set(result.output.replace(",", " ").split())


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_table_says_what_the_command_says(command):
    """
    The line in the list is the first of the command's own help.
    """
    loaded = main.get_command(click.Context(main), command)

    assert command == loaded.name
    assert COMMANDS[command][1] == loaded.help.partition("\n")[0]


def test_an_unknown_command_is_answered_with_exit_2(run):
    """
    By its name; none is imported for it.
    """
    result = run("exprot")

    assert 2 == result.exit_code
    assert "No such command 'exprot'" in result.output


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("exprot",), ("--nonsense",)])
def test_the_group_itself_imports_no_command(arguments):
    """
    Nor anything that a command needs.
    """
    _, modules = _imported(*arguments)

    assert "coordatt_deploy.cli" in modules
    own = {"coordatt_deploy", "coordatt_deploy.cli", "coordatt_deploy.errors", "coordatt_deploy.plain_text",
           "coordatt_deploy.interruption", "coordatt_deploy.progress", "coordatt_deploy.streams"}  # fmt: skip
    assert own == {name for name in modules if name.startswith("coordatt_deploy")}


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help_imports_no_framework(command):
    """
    Neither torch nor NumPy nor rich is loaded to print help; of the commands only the one that is asked for.
    """
    code, modules = _imported(*filter(None, [command]), "--help")

    assert 0 == code
    assert set() == set(FRAMEWORKS) & modules
    others = {place.partition(":")[0] for name, (place, _) in COMMANDS.items() if name != command}
    assert set() == others & modules


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--nonsense"),
        ("export", "--format", "onx"),
        ("export", "--input-size", "96.5"),
        ("export", "--seed", "x"),
        ("quantize", "net", "--ranges", "mean"),
        ("quantize", "net", "--max-drop", "x"),
        ("parity",),
        ("parity", "net", "--outputs-only", "--layers"),
        ("profile", "net", "--threads", "a"),
        ("evaluate", "net"),
        ("report", "net", "--output"),
        ("inspect", "net", "--model-args", "3"),
        ("models", "--jsno"),
        ("doctor", "--setup"),
    ],
    ids=" ".join,
)
def test_an_option_error_is_exit_2_and_imports_no_framework(arguments):
    """
    Wrong types, wrong names and missing values are answered before anything heavy is loaded.
    """
    code, modules = _imported(*arguments)

    assert 2 == code
    assert set() == set(FRAMEWORKS) & modules


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "--model", "mobilenetv2_ca_10"),
        ("export", "--colour", "RBG"),
        ("build", "--input-size", "8"),
        ("inspect", "mobilenetv2_ca_10"),
        ("quantize", "net"),
        ("parity", "net"),
        ("evaluate", "net", "--dataset", "digits"),
        ("report", "net"),
        ("quantize", "net", "--recipe", "int8"),
        ("quantize", "net", "--max-drop", "200"),
        ("quantize", "net", "--sensitivity", "--limit", "3"),
        ("profile", "net", "--threads", "0"),
        ("evaluate", "net", "--dataset", "digits", "--labels-by", "nam"),
        ("doctor", "--setup", "qemu"),
    ],
    ids=" ".join,
)
def test_a_wrong_name_or_value_does_not_wait_for_torch(arguments):
    """
    Nor for a converter.
    """
    code, modules = _imported(*arguments)

    assert 2 == code
    assert set() == {"torch", "onnx", "coremltools", "litert_torch"} & modules


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--version",), 0),
        (("--help",), 0),
        (("models", "--json"), 0),
        (("exprot",), 2),
        (("export", "--format", "onx"), 2),
        (("parity", "nowhere"), 2),
    ],
)
def test_the_real_command_exits_as_promised(arguments, expected, tmp_path):
    """
    Through ``python -m coordatt_deploy``; a mistake writes nothing to stdout and no traceback.
    """
    result = subprocess.run(
        [sys.executable, "-m", "coordatt_deploy", *arguments], cwd=tmp_path, capture_output=True, text=True
    )

    assert expected == result.returncode, result.stderr
    assert (expected == 0) == bool(result.stdout)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "net"), 2, "Error: Permission denied (net); nothing was left half"),
        (OSError(28, "No space left on device"), 2, "Error: No space left on device; nothing was left half written"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was left half written"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, error, code, said):
    """
    And Ctrl-C has an exit code of its own.
    """

    def refuse(_):
        raise error

    monkeypatch.setattr("coordatt_deploy.commands.models.model_card", refuse)

    result = CliRunner().invoke(main, ["models"])

    assert code == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_bug_is_one_line_with_a_log_that_holds_the_traceback(monkeypatch, tmp_path):
    """
    It says whose fault it is, and its exit code is not that of a failed check or a bad input.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("coordatt_deploy.commands.models.model_card", lambda _: 1 / 0)

    result = CliRunner().invoke(main, ["models"])
    (log,) = (tmp_path / "coordatt-deploy/logs").iterdir()

    assert 70 == result.exit_code
    assert 1 == len(result.output.splitlines())
    assert "ZeroDivisionError: division by zero; this is a fault of coordatt-deploy" in result.output
    assert str(log) in result.output
    assert "Traceback" in log.read_text()


def test_a_traceback_is_shown_to_whoever_asks_for_it(monkeypatch, tmp_path):
    """
    By an environment variable, below the line.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COORDATT_DEPLOY_TRACEBACK", "1")
    monkeypatch.setattr("coordatt_deploy.commands.models.model_card", lambda _: 1 / 0)

    result = CliRunner().invoke(main, ["models"])

    assert 70 == result.exit_code
    assert "Traceback (most recent call last)" in result.output


def test_memory_that_runs_out_is_no_fault_of_ours(monkeypatch, tmp_path):
    """
    The input may be too large for this machine.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def exhaust(_):
        raise MemoryError

    monkeypatch.setattr("coordatt_deploy.commands.models.model_card", exhaust)

    result = CliRunner().invoke(main, ["models"])

    assert 2 == result.exit_code
    assert "memory ran out" in result.output
    assert "this is a fault" not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("doctor",), 0),
        (("models",), 0),
        (("export",), 3),
        *(((command, "nothing-here"), 2) for command in ("parity", "profile", "report")),
        (("parity", "nothing-here", "--target", "qemu-arm64"), 2),
    ],
)
def test_a_board_needs_neither_torch_nor_a_converter(arguments, expected, tmp_path):
    """
    With none of them to import, each command does its work or says in one line what it needs.
    """
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'coremltools', 'litert_torch', 'safetensors', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from coordatt_deploy.cli import main\n"
        f"main({list(arguments)!r})"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)

    assert expected == result.returncode, result.stderr
    assert "Traceback" not in result.stderr
    assert expected == 0 or result.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "options",
    [(), ("--sensitivity",), ("--max-drop", "1"), ("--max-size", "1MB")],
    ids=lambda options: "".join(options[:1]),
)
def test_quantize_on_a_board_says_that_it_needs_torch(options, tmp_path):
    """
    A bundle is there, so what is missing is found in the midst of the work: still one line, and no fault of ours.
    """
    bundle = float_bundle(tmp_path / "net")
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from coordatt_deploy.cli import main\n"
        f"main(['quantize', {str(bundle)!r}, '--calibration-data', 'digits', *{list(options)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)

    assert 3 == result.returncode, result.stderr
    assert "needs torch, which is not installed; run: pip install" in result.stderr
