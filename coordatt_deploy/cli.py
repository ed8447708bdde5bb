"""The command line: a table of commands, and errors turned into exit codes.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input,
3 something is not installed, 70 a fault of this package, 130 interrupted (SIGINT), 143 asked to end (SIGTERM). Whatever
goes wrong is one line; of a fault the traceback is in a log file, and on the screen as well with
``COORDATT_DEPLOY_TRACEBACK=1``.

What is imported when, so that help and a mistyped option are answered at once:

    coordatt-deploy --help        this module and Click; the table holds each command's line
    COMMAND --help, bad options   the command's own module, whose top imports Click, the options and light types only
    COMMAND, bad values           then what makes the plan, which checks the values
    COMMAND                       then what does the work: NumPy, rich, runtimes; torch behind what needs it

The last two are imported in one block at the top of the function that uses them.

A new command is a file in ``commands/`` and a row here.
"""

import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Final

import click

from coordatt_deploy import __version__, interruption
from coordatt_deploy.errors import DeployError
from coordatt_deploy.interruption import Terminated
from coordatt_deploy.plain_text import plain
from coordatt_deploy.progress import VERBOSITY, Verbosity
from coordatt_deploy.streams import print_anywhere

SIGNALLED: Final = 128  # and the number of the signal, as shells say it: 130 and 143
TRACEBACK: Final = "COORDATT_DEPLOY_TRACEBACK"

COMMANDS: Final = {
    "attention-cost": (
        "coordatt_deploy.commands.attention_cost:attention_cost",
        "Measure what each attention block costs on a backbone.",
    ),
    "build": ("coordatt_deploy.commands.build:build", "Go the whole way: export, prove, measure."),
    "bundle": ("coordatt_deploy.commands.bundle:bundle", "Pack a bundle into one file, and unpack it."),
    "check": ("coordatt_deploy.commands.check:check", "Hold a bundle's files to budgets."),
    "deploy": (
        "coordatt_deploy.commands.deploy:deploy",
        "Bring a bundle to boards: copy, prove it there, switch; or roll back.",
    ),
    "diff": (
        "coordatt_deploy.commands.diff:diff",
        "Say what became of one bundle in another, and fail on a regression.",
    ),
    "doctor": ("coordatt_deploy.commands.doctor:doctor", "Say what this machine has and what is missing."),
    "evaluate": (
        "coordatt_deploy.commands.evaluate:evaluate",
        "Measure the artifacts' accuracy on labelled images.",
    ),
    "export": ("coordatt_deploy.commands.export:export", "Write the artifacts into a bundle."),
    "inspect": (
        "coordatt_deploy.commands.inspect:inspect",
        "Say what a model or file is made of, and what will trouble it on a phone.",
    ),
    "models": (
        "coordatt_deploy.commands.models:models",
        "List backbones, detectors and segmentation nets, with parameters and multiply-accumulates.",
    ),
    "parity": ("coordatt_deploy.commands.parity:parity", "Prove that the artifacts compute the same function."),
    "profile": ("coordatt_deploy.commands.profile:profile", "Measure the artifacts' CPU latency on this machine."),
    "quantize": (
        "coordatt_deploy.commands.quantize:quantize",
        "Write int8 and other small artifacts into BUNDLE, beside the float ones.",
    ),
    "report": ("coordatt_deploy.commands.report:report", "Write everything known of a bundle into one HTML file."),
    "schema": ("coordatt_deploy.commands.schema:print_schema", "Print the JSON Schema of a document."),
    "verify": (
        "coordatt_deploy.commands.verify:verify",
        "Say whether a bundle's files are as they were written, by their hashes alone.",
    ),
}
"""Where each command is, as "module:function", and the first line of its help."""


class CommandLine(click.Group):
    """Loads the command that is asked for; prints whatever goes wrong as one line and exits with its code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let streams print what comes, help included; then read the options."""
        print_anywhere()
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), function)
        for each in command.commands.values() if isinstance(command, click.Group) else (command,):
            if not any(parameter.name == "verbose" for parameter in each.params):
                each.params += verbosity_options()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands with their lines from the table: no command is imported for it."""
        width = formatter.width - 6 - max(map(len, COMMANDS))  # 6: Click's own indent and gap
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.get_short_help_str(width)) for name, row in sorted(self.commands.items())])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            with interruption.handled():  # inside, so that no signal finds a handler and nobody to tell of it
                try:
                    result: object = super().invoke(ctx)
                finally:
                    with interruption.undisturbed():  # a signal that arrives meanwhile is raised at its end
                        _remove_stale()
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the place for all of them
            # A library may have made another error of the signal that arrived in the midst of it.
            number = interruption.received()
            text, code = _told(error) if number is None else _ended(number)
            click.secho(text, fg=None if os.environ.get("NO_COLOR") else "red", err=True)
            if os.environ.get(TRACEBACK):
                click.echo("".join(traceback.format_exception(error)), err=True)
        else:
            return result
        raise click.exceptions.Exit(code)


def verbosity_options() -> list[click.Parameter]:
    """``--verbose`` and ``--quiet`` of every command: how much is said on stderr while it works."""

    def set_level(_: click.Context, parameter: click.Parameter, value: bool) -> None:
        if parameter.name == "verbose":
            VERBOSITY.set(Verbosity.VERBOSE if value else Verbosity.USUAL)
        elif value:
            if VERBOSITY.get() is Verbosity.VERBOSE:
                raise click.UsageError("--quiet and --verbose contradict each other; give one")
            VERBOSITY.set(Verbosity.QUIET)

    texts = {
        "verbose": "Say how long each step took, every reason, and what was allowed.",
        "quiet": "Say nothing but results and errors.",
    }
    return [
        click.Option(
            (f"-{name[0]}", f"--{name}"), is_flag=True, expose_value=False, callback=set_level, help=text,
            is_eager=name == "verbose",
        )
        for name, text in texts.items()
    ]  # fmt: skip


def _remove_stale() -> None:
    """Remove what earlier commands left when they were killed, unless this one has begun nothing."""
    if f"{__package__}.logs" in sys.modules:
        # by now it is there
        from coordatt_deploy.logs import remove_running_logs, remove_stale_logs
        from coordatt_deploy.scratch import remove_stale_scratch

        remove_stale_scratch()
        remove_running_logs(os.getpid())  # a signal may arrive on the way into a block that writes one
        remove_stale_logs()


def _ended(number: int) -> tuple[str, int]:
    """Return what is said of a signal, and the exit code."""
    said = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
    return f"\n{said}; nothing was left half written", SIGNALLED + number


def _told(error: BaseException) -> tuple[str, int]:
    """Return what is said of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return _ended(signal.SIGINT)
    if isinstance(error, Terminated):
        return _ended(error.number)
    if isinstance(error, DeployError):
        return f"Error: {plain(str(error))}", error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        # half of the commands do without it, on boards; imported here because the other half needs it
        from coordatt_deploy.format_modules import not_installed
        from coordatt_deploy.formats import TORCH_EXTRA

        missing = not_installed("this command", error.name, TORCH_EXTRA)
        return f"Error: {missing}", missing.exit_code
    if isinstance(error, OSError):
        said = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        return f"Error: {plain(said)}; nothing was left half written", 2
    # A bug: what writes its log is not needed before.
    from coordatt_deploy.processes import internal_error

    fault = internal_error(error if isinstance(error, Exception) else RuntimeError(repr(error)), "this command")
    return f"Error: {plain(str(fault))}", fault.exit_code


@click.group(
    cls=CommandLine,
    # Names and lines only: Click lists them, and finds the nearest to a mistyped one.
    commands={name: click.Command(name, help=line) for name, (_, line) in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="coordatt-deploy")
def main() -> None:
    """Ship vision backbones with coordinate attention: ONNX, TFLite and Core ML, proven equal and measured."""


if __name__ == "__main__":
    main()
