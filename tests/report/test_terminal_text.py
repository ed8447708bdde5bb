"""Words of others on the terminal: neither markup nor control characters in them are obeyed."""

import io
import unicodedata

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from coordatt_deploy.cli import main
from coordatt_deploy.commands.output import print_notes
from coordatt_deploy.errors import UsageError
from coordatt_deploy.plain_text import plain
from coordatt_deploy.report.terminal import console
from coordatt_deploy.report.terminal.tables import Column, show_table

HOSTILE = "[red]a[/red]\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eb\nError: all is well"
SHOWN = r"[red]a[/red]\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eb\nError: all is well"


@pytest.mark.parametrize(
    "code", [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800]
)
def test_what_a_terminal_obeys_becomes_visible(code):
    """
    Control characters, line separators, what turns the direction of writing, and what no encoding can print.
    """
    text = plain(f"a{chr(code)}b")

    assert text.isascii()
    assert text.isprintable()
    assert f"a{chr(code)}b" == text.encode("ascii").decode("unicode_escape")


def test_every_control_character_is_known():
    """
    By Unicode's own list.
    """
    controls = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")]

    assert [] == [letter for letter in controls if plain(letter) == letter]


@pytest.mark.parametrize("text", ["", "naïve – 3 × 4 → ∞ °C", "数字 ملف 👩‍👩‍👧", r"C:\net\new", "[red] 100 % {x}"])
def test_ordinary_texts_stay(text):
    """
    The negative: letters of any script, backslashes, brackets.
    """
    assert text == plain(text)


def printed(value):
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=200, color_system=None).print(value)
    return stream.getvalue()


def test_a_line_is_printed_as_it_stands():
    """
    One line, brackets and all.
    """
    assert f"{SHOWN}\n" == printed(console.line(HOSTILE))


def test_a_table_is_printed_as_it_stands():
    """
    Title, head and cells, also those given as bare strings.
    """
    stream = io.StringIO()
    drawn = Console(file=stream, force_terminal=True, width=200, color_system=None)

    show_table(drawn, HOSTILE, [Column(f"head {HOSTILE}")], [[HOSTILE], [console.line(HOSTILE)]])
    text = stream.getvalue()

    assert 4 == text.count(SHOWN)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(text)


def test_a_label_of_progress_is_printed_as_it_stands(monkeypatch):
    """
    Names of files are in it.
    """
    stream, shown = io.StringIO(), []
    monkeypatch.setattr(console.os, "fdopen", lambda *_: stream)
    stream.isatty = lambda: True
    monkeypatch.setattr(Progress, "stop", lambda bars: shown.append(printed(bars.make_tasks_table(bars.tasks))))

    with console.bars() as stages, stages.stage(f"parity {HOSTILE}"):
        pass

    assert f"parity {SHOWN}" in shown[0]


@pytest.mark.parametrize("error", [UsageError(HOSTILE), OSError(2, "No such file", HOSTILE)])
def test_an_error_is_one_line(monkeypatch, error):
    """
    No second ``Error:`` can be forged in it.
    """

    def refuse(_):
        raise error

    monkeypatch.setattr("coordatt_deploy.commands.models.model_card", refuse)

    result = CliRunner().invoke(main, ["models"])

    assert 2 == result.exit_code
    assert 1 == result.output.count("\n")
    assert SHOWN in result.output


def test_a_note_is_one_line(capsys):
    """
    What was renamed in a checkpoint is named in one.
    """
    print_notes([HOSTILE])

    assert f"note: {SHOWN}\n" == capsys.readouterr().err


def test_keys_of_a_checkpoint_forge_no_error(tmp_path, monkeypatch):
    """
    A line feed in a name stays in the line.
    """
    monkeypatch.chdir(tmp_path)
    save_file({f"{HOSTILE}{index}": torch.zeros(2) for index in range(3)}, "net.safetensors")

    result = CliRunner().invoke(main, ["export", "--model", "mobilenetv2_ca_035", "--checkpoint", "net.safetensors"])

    assert 2 == result.exit_code
    assert ["Error: "] == [line[:7] for line in result.output.splitlines() if "Error" in line[:8]]
    assert r"\nError: all is well" in result.output
    assert "\x1b" not in result.output
