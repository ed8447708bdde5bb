"""Tables that fit any terminal: no word is broken, no figure is cropped.

Where the whole table does not fit, columns of lesser rank are left out and named below it; prose is wrapped between
words; long names are broken behind ``.``, ``/``, ``_`` and their like; and where even that is too wide, each row
becomes a paragraph of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordatt_deploy.plain_text import plain

GAP: Final = 2  # between two columns
PROSE: Final = 28  # letters that a column of prose has at least, where it has so many
NAME: Final = 20  # the same of a column of names
INDENT: Final = 2  # of what belongs to the line above
STRONG: Final = re.compile(r"[^./:,|]*[./:,|]+|[^./:,|]+")  # between the parts of a name
WEAK: Final = re.compile(r"[^_\-]*[_\-]+|[^_\-]+")  # inside one

Cell = str | Text


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        head: Its name; an underscore-free text that may stand in several lines.
        right: Whether it holds figures.
        rank: The columns of the highest rank are left out first, all together; those of rank 0 never.
        prose: Whether its cells are sentences, which may be wrapped between words.
        name: Whether its cells are names, which may be broken behind dots and the like if need be.
    """

    head: str
    right: bool = False
    rank: int = 0
    prose: bool = False
    name: bool = False


def show_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    sections: Sequence[int] = (),
) -> None:
    """Print a table, and below it what a narrow terminal leaves out.

    Args:
        console: Where; its width counts.
        title: Above it; empty for none.
        columns: As many as each row has cells.
        rows: Texts as they stand; neither markup nor control characters in them are obeyed.
        sections: Indices of rows that a line is drawn below.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    layout = fitted(columns, cells, console.width)
    if title:
        console.print(Text(plain(title), style="bold"))
    if layout is None:
        _show_paragraphs(console, columns, cells)
        return
    console.print(_drawn(columns, cells, layout, sections))
    _show_left_out(console, columns, cells, layout)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns are shown, by index, and how wide each is."""

    shown: tuple[int, ...]
    widths: tuple[int, ...]


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> Layout | None:
    """Return the columns that fit into *width*; None where those that must be shown do not."""
    shown = [index for index in range(len(columns)) if any(row[index].plain for row in rows) or not rows]
    while True:
        wanted = [_widest(columns[index], index, rows) for index in shown]
        room = width - GAP * (len(shown) - 1)
        if sum(wanted) <= room:
            heads = [
                max(given, cell_len(plain(columns[index].head))) for index, given in zip(shown, wanted, strict=True)
            ]
            return Layout(tuple(shown), tuple(_shared(wanted, heads, room, whole=True)))
        droppable = [index for index in shown if columns[index].rank]
        for least in (_wrapped_least, _broken_least):
            narrowest = [least(columns[index], index, rows) for index in shown]
            # names are broken only where nothing is left to leave out
            if sum(narrowest) <= room and (least is _wrapped_least or not droppable):
                return Layout(tuple(shown), tuple(_shared(narrowest, wanted, room)))
        if not droppable:
            return None
        lowest = max(columns[index].rank for index in droppable)
        shown = [index for index in shown if columns[index].rank != lowest]


def _text(cell: Cell) -> Text:
    return Text(plain(cell)) if isinstance(cell, str) else cell


def _lines(index: int, rows: Sequence[Sequence[Text]]) -> list[str]:
    return [part for row in rows for part in row[index].plain.split("\n")]


def _head_least(column: Column) -> int:
    return max(map(cell_len, plain(column.head).split()), default=1)


def _widest(column: Column, index: int, rows: Sequence[Sequence[Text]]) -> int:
    return max([_head_least(column), *map(cell_len, _lines(index, rows))])


def _wrapped_least(column: Column, index: int, rows: Sequence[Sequence[Text]]) -> int:
    """The least width with every word whole."""
    widest = _widest(column, index, rows)
    if not column.prose:
        return widest
    words = [cell_len(word) for text in _lines(index, rows) for word in text.split()]
    return max([_head_least(column), min(PROSE, widest), *words])


def _broken_least(column: Column, index: int, rows: Sequence[Sequence[Text]]) -> int:
    """The least width with names broken between their parts."""
    if not (column.name or column.prose):
        return _widest(column, index, rows)
    parts = [cell_len(part) for text in _lines(index, rows) for word in text.split() for part in STRONG.findall(word)]
    least = NAME if column.name else PROSE
    return max([_head_least(column), min(least, _widest(column, index, rows)), *parts])


def _shared(least: Sequence[int], wanted: Sequence[int], room: int, *, whole: bool = False) -> list[int]:
    """Give what is left to the columns that want more, the one that wants least first; *whole*, or nothing of it."""
    widths, left = list(least), room - sum(least)
    for position in sorted(range(len(widths)), key=lambda at: wanted[at] - least[at]):
        more = min(left, wanted[position] - widths[position])
        more = 0 if whole and more < wanted[position] - widths[position] else more
        widths[position] += more
        left -= more
    return widths


def broken(text: str, width: int) -> list[str]:
    """Return the lines of a text: broken between words, else behind dots and the like, else anywhere."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for piece in _pieces(word, width):
            if cell_len(lines[-1]) + cell_len(piece) > width and lines[-1]:
                lines.append("")
            lines[-1] += piece
    return lines


def _pieces(word: str, width: int) -> Iterator[str]:
    """Yield the parts that a word may be broken into; none is wider than *width*."""
    if cell_len(word) <= width:
        yield word
        return
    for part in STRONG.findall(word):
        for piece in [part] if cell_len(part) <= width else WEAK.findall(part):
            yield from chop_cells(piece, width)


def _drawn(columns: Sequence[Column], rows: Sequence[Sequence[Text]], layout: Layout, sections: Sequence[int]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1),
        header_style="bold",
    )  # fmt: skip
    for index, width in zip(layout.shown, layout.widths, strict=True):
        column = columns[index]
        head = "\n".join(broken(plain(column.head), width))
        table.add_column(
            Text(head), justify="right" if column.right else "left", width=width, no_wrap=True, vertical="top"
        )
    for number, row in enumerate(rows):
        cells = (_wrapped(row[index], width) for index, width in zip(layout.shown, layout.widths, strict=True))
        table.add_row(*cells, end_section=number in sections)
    return table


def _wrapped(cell: Text, width: int) -> Text:
    if all(cell_len(part) <= width for part in cell.plain.split("\n")):
        return cell
    lines = [found for part in cell.plain.split("\n") for found in broken(part, width)]
    return Text("\n".join(lines), style=cell.style)


def _show_left_out(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]], layout: Layout) -> None:
    """Name the columns that are left out; one that says the same of every row is told in full."""
    alike, others = [], []
    for index, column in enumerate(columns):
        said = {row[index].plain for row in rows}
        if index in layout.shown or said == {""}:
            continue
        if len(said) == 1:
            alike.append(f"{column.head} of all: {said.pop()}" if len(rows) > 1 else f"{column.head}: {said.pop()}")
        else:
            others.append(column.head)
    needed = sum(_widest(column, index, rows) for index, column in enumerate(columns)) + GAP * (len(columns) - 1)
    if others:
        alike.append(f"{needed} columns show {listed(others)} as well")
    if alike:
        console.print(Text(plain("; ".join(alike)), style="dim"))


def listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _show_paragraphs(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]]) -> None:
    """Print each row as its first cell, and below it the others with their heads, one a line."""
    for row in rows:
        console.print(Text("\n".join(broken(row[0].plain, console.width)), style="bold"))
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell.plain:
                show_below(console, f"{plain(column.head)}: {cell.plain}".replace("\n", ", "), style=str(cell.style))


def show_below(console: Console, text: str, style: str = "", depth: int = 1) -> None:
    """Print a text that belongs to the line above: indented, in lines of whole words."""
    indent = " " * INDENT * depth
    lines = broken(plain(text), max(console.width - len(indent), 1))
    console.print(Text("\n".join(f"{indent}{part}" for part in lines), style=style, no_wrap=True))
