"""Tables on the terminal: no word broken, no figure cropped, at any width."""

import io

import pytest
from rich.console import Console

from coordatt_deploy.report.terminal.tables import Column, broken, show_below, show_table

COLUMNS = (
    Column("artifact"), Column("verdict"), Column("SQNR", right=True), Column("worst error", right=True, rank=1),
    Column("reason", prose=True), Column("layer", name=True, rank=2), Column("runtime", rank=3),
)  # fmt: skip
ROWS = (
    ("onnx static_wi8_ai8 arm64", "passed", "36.8 of 20 dB", "0.0812", "two sums of products saturate here",
     "features.12.conv.6.attention.gate:hardsigmoid_1", "onnxruntime 1.32.0"),
    ("tflite fp32", "FAILED", "9.5 dB", "2e-06 of 1.3e-05", "first beyond tolerance at features.3",
     "stem.0", "onnxruntime 1.32.0"),
)  # fmt: skip


def printed(width, columns=COLUMNS, rows=ROWS, title="A title"):
    console = Console(file=io.StringIO(), width=width)
    show_table(console, title, columns, rows)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 130, 160, 220])
def test_no_word_is_broken_and_no_figure_cropped(width):
    """
    What is not left out stands there whole; nothing is wider than the terminal.
    """
    text = printed(width)

    assert max(map(len, text.splitlines())) <= width
    for cell in ("passed", "FAILED", "saturate", "products", "tolerance", "tflite", "fp32", "9.5 dB"):
        assert cell in text
    assert "36.8 of 20 dB" in " ".join(text.split())


def test_the_least_important_columns_go_first():
    """
    Those of the highest rank; one that says the same of all is told below, the others are named.
    """
    wide, narrow = printed(200), printed(100)

    assert "runtime" in wide.splitlines()[1]
    assert "runtime of all: onnxruntime 1.32.0" in narrow
    assert "columns show layer as well" in " ".join(narrow.split())
    assert "as well" not in wide


def test_columns_of_one_rank_go_together():
    """
    Half of a pair would be compared with what is not its own.
    """
    pair = (Column("name"), Column("aaaa", right=True, rank=1), Column("bbbb", right=True, rank=1))

    text = printed(12, pair, [("net", "1.00", "2.00"), ("other", "3.00", "4.00")])

    assert "1.00" not in text
    assert "2.00" not in text


def test_where_nothing_fits_rows_become_paragraphs():
    """
    A terminal narrower than the columns that must be shown.
    """
    text = printed(18)

    assert "verdict: passed" in text
    assert max(map(len, text.splitlines())) <= 18


def test_a_column_without_a_word_is_not_shown():
    """
    It would be a head alone.
    """
    text = printed(80, (Column("package"), Column("to install")), [("torch", ""), ("onnx", "")])

    assert "to install" not in text


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (40, ["see features.12.conv.6:gate_1 there"]),
        (20, ["see", "features.12.conv.6:", "gate_1 there"]),
        (6, ["see", "featur", "es.12.", "conv.", "6:", "gate_1", "there"]),
    ],
)
def test_names_are_broken_between_their_parts(width, expected):
    """
    Anywhere only where a part alone is too wide.
    """
    assert expected == broken("see features.12.conv.6:gate_1 there", width)


def test_what_belongs_to_a_line_is_indented():
    """
    Every line of it.
    """
    console = Console(file=io.StringIO(), width=20)

    show_below(console, "onnx fp32: the third layer differs")

    lines = console.file.getvalue().splitlines()
    assert len(lines) > 1
    assert all(line.startswith("  ") and len(line) <= 20 for line in lines)
