"""CONTRIBUTING.md leads to files that are there, and the hooks of a commit run what `make lint` runs."""

import re
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
CHANGES = (
    "attention block", "backbone", "format", "recipe", "lint rule", "target", "parity metric", "tolerance",
    "profile column", "ML Program operator", "command", "look of the page", "checkpoint convention", "lowering form",
)  # fmt: skip

_PATH = re.compile(r"[\w.<>*{},-]+(?:/[\w.<>*{},-]*)+|[\w<>*-]+\.(?:py|md|toml|css|html|txt|ya?ml|lock)|\.ci/run")


def paths(text):
    """Every file, folder or pattern that is set as code in *text*, also in command lines; `make` brings the rest."""
    words = [word for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) for word in span.split()]
    return [word for word in words if _PATH.fullmatch(word) and not word.startswith(".venv/")]


def patterns(path):
    """The globs that a path stands for: ``<name>`` is any name, ``{a,b}`` is a or b."""
    pieces = re.split(r"\{([^}]*)\}", re.sub(r"<\w+>", "*", path).rstrip("/"))
    return ["".join(choice) for choice in product(*(piece.split(",") if at % 2 else [piece]
                                                    for at, piece in enumerate(pieces)))]  # fmt: skip


def missing(text):
    """The paths of *text* that nothing in the repository fits."""
    return [path for path in paths(text) if not all(any(ROOT.glob(pattern)) for pattern in patterns(path))]


def recipe(change):
    """The section of a change."""
    section = re.search(rf"^### {re.escape(change)}\n(.*?)(?=^###? |\Z)", GUIDE, re.M | re.S | re.I)
    assert section, f"no section {change!r}"
    return section[1]


def counted(text):
    """How many files the list of a recipe touches, and how many it adds."""
    items = re.findall(r"^\* `([^`]+)`( \(new\))?:", text, re.M)
    assert len(items) == len(re.findall(r"^\* ", text, re.M)), "an item does not begin with its file"
    added = sum(len(patterns(path)) for path, new in items if new)
    return sum(len(patterns(path)) for path, _ in items) - added, added


def test_every_file_that_the_guide_names_exists():
    """
    A file that was moved takes its mention along.
    """
    assert [] == missing(GUIDE)


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_files_that_a_decision_names_exist(page):
    """
    The code and pages of this repository; what a bundle holds has the same look and is left alone.
    """
    ours = [path for path in paths(page.read_text(encoding="utf-8")) if (ROOT / path.split("/")[0]).exists()]

    assert [] == missing("\n".join(f"`{path}`" for path in ours))


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *DECISIONS], ids=lambda page: page.name)
def test_links_lead_to_files_of_the_repository(page):
    """
    As for the README and the pages of docs/.
    """
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))

    assert [] == [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see `models/registri.py`", ["models/registri.py"]),
        ("see `exporters/<format>/exporting.py` (new)", ["exporters/<format>/exporting.py"]),
        ("see `exporters/<format>/{export,sell}.py`", ["exporters/<format>/{export,sell}.py"]),
        ("run `.venv/bin/ruff check tests/nowhere`", ["tests/nowhere"]),
        ("see `registry.py`", ["registry.py"]),
        ("see `models/<name>.py`, `tests/`, `cli` and `python -m`", []),
    ],
)
def test_a_file_that_is_not_there_is_found(text, expected):
    """
    In every way in which the guide writes paths; what only resembles one is left alone.
    """
    assert expected == missing(text)


@pytest.mark.parametrize("change", CHANGES)
def test_the_table_counts_the_files_of_each_recipe(change):
    """
    The number of files in the table is the number of files in the list.
    """
    row = re.search(rf"^\| \[{change}\]\(#[\w-]+\) \| (\d+) \| (\d+) \|$", GUIDE, re.M)
    assert row, f"no row {change!r}"

    assert counted(recipe(change)) == (int(row[1]), int(row[2]))


@pytest.mark.parametrize("change", CHANGES)
def test_each_recipe_says_what_to_test(change):
    """
    In a paragraph that names a file or folder of the tests.
    """
    assert re.search(r"^Tests: .*?`tests/", recipe(change), re.M | re.S)


def test_files_of_a_recipe_are_counted():
    """
    Alternatives in braces are a file each, and an item without a file is an error.
    """
    assert (1, 3) == counted("* `a.py`: a\n  row.\n* `b/<name>.py` (new): b.\n* `c/{d,e}.py` (new): c.\n")
    with pytest.raises(AssertionError, match="does not begin with its file"):
        counted("* a row in `a.py`\n")


def test_hooks_run_what_make_lint_runs():
    """
    The same commands in the same order, and none from the network.
    """
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")

    expected = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    assert expected == re.findall(r"^ +entry: (.+)$", hooks, re.M)
    assert ["local"] == re.findall(r"^ *-? *repo: (\S+)$", hooks, re.M)
