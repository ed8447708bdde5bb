"""How the page prints figures, names and tables: templates are given texts, never numbers."""

import math
from dataclasses import dataclass
from pathlib import PurePosixPath

from markupsafe import Markup

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.parity.result import ArtifactVerdict


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        names: What it is about; the first one is a file or a layer.
        cells: Its figures.
        bad: Whether it is marked as failed.
        note: The last cell, in words; None where the table has no such column.
    """

    names: tuple[str, ...]
    cells: tuple[str, ...]
    bad: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that scrolls sideways where the page is narrow.

    Attributes:
        label: Its name for screen readers.
        names: Heads of the columns of names.
        figures: Heads of the columns of figures.
        rows: From top to bottom.
        last: Head of the column of notes; None without one.
    """

    label: str
    names: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its name above it and its caption below it."""

    label: str
    plot: Markup
    caption: str


def file_name(path: str) -> str:
    """``mobilenetv2_ca_035_digits_fp32.onnx`` of an artifact's path."""
    return PurePosixPath(path).name


def artifact_label(artifact: Artifact | ArtifactVerdict) -> str:
    """Return ``onnx fp32 arm64``: what tells a file from the others of its bundle."""
    parts = (artifact.format.value, artifact.recipe or artifact.precision.value, artifact.target_cpu)
    return " ".join(part for part in parts if part)


def sentence(text: str) -> str:
    """Return *text* with a capital letter; the rest of it stays as it is."""
    return text[:1].upper() + text[1:]


def finite(value: float | None) -> float | None:
    """Return *value*, or None where it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def megabytes(count: int) -> str:
    """``1.97 MB``."""
    if count < 100:
        return f"{count} B"
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def number(value: float | None, form: str = ".3g") -> str:
    """Format a figure; a dash where there is none, or none that is finite."""
    return "–" if finite(value) is None else format(value, form)


def decibel(value: float | None, *, exact: bool) -> str:
    """``125.6 dB``; *exact* values have an infinite ratio, which is said in a word."""
    return ("equal" if exact else "–") if finite(value) is None else f"{value:.1f} dB"


def level(value: float | None) -> str:
    """Return a figure of the layer table in dB."""
    if value is None:
        return "–"
    return "equal" if value == math.inf else ("NaN" if math.isnan(value) else f"{value:.1f}")
