"""The command line: a table of commands, and errors turned into exit codes.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input,
3 something is not installed, 130 interrupted.

What is imported when, so that help and a mistyped option are answered at once:

    coordatt-deploy --help        this module and Click; the table holds each command's line
    COMMAND --help, bad options   the command's own module, whose top imports Click, the options and light types only
    COMMAND, bad values           then what makes the plan, which checks the values
    COMMAND                       then what does the work: NumPy, rich, runtimes; torch behind what needs it

The last two are imported in one block at the top of the function that uses them.

A new command is a file in ``commands/`` and a row here.
"""

from importlib import import_module
from typing import Final

import click

from coordatt_deploy import __version__
from coordatt_deploy.errors import DeployError
from coordatt_deploy.plain_text import plain

INTERRUPTED: Final = 130  # as shells say it: no check failed

COMMANDS: Final = {
    "build": ("coordatt_deploy.commands.build:build", "Go the whole way: export, prove, measure."),
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
        "List the backbones, with parameters and multiply-accumulates.",
    ),
    "parity": ("coordatt_deploy.commands.parity:parity", "Prove that the artifacts compute the same function."),
    "profile": ("coordatt_deploy.commands.profile:profile", "Measure the artifacts' CPU latency on this machine."),
    "quantize": (
        "coordatt_deploy.commands.quantize:quantize",
        "Write int8 and other small artifacts into BUNDLE, beside the float ones.",
    ),
    "report": ("coordatt_deploy.commands.report:report", "Write everything known of a bundle into one HTML file."),
    "schema": ("coordatt_deploy.commands.schema:print_schema", "Print the JSON Schema of a document."),
}
"""Where each command is, as "module:function", and the first line of its help."""


class CommandLine(click.Group):
    """Loads the command that is asked for; prints the errors of the core as one line and exits with their code.

    A bug keeps its traceback.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands with their lines from the table: no command is imported for it."""
        width = formatter.width - 6 - max(map(len, COMMANDS))  # 6: Click's own indent and gap
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.get_short_help_str(width)) for name, row in sorted(self.commands.items())])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DeployError as error:
            click.secho(f"Error: {plain(str(error))}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho("\nInterrupted; nothing was left half written", fg="red", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            said = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
            click.secho(f"Error: {plain(said)}; nothing was left half written", fg="red", err=True)
            ctx.exit(2)


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
