"""What many places say of a bundle's files, as a table that other programs read."""

import csv
import io
from collections.abc import Sequence
from typing import Final

from coordatt_deploy.fleet.comparison import PlaceFigures
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.plain_text import plain

HEADS: Final = (
    "place", "artifact", "format", "precision", "recipe", "target_cpu", "threads", "median_ms", "ci95_low_ms",
    "ci95_high_ms", "latency_verdict", "parity", "sqnr_db", "metric", "score", "dataset", "instructions", "outlier",
)  # fmt: skip
FORMULA: Final = "=+-@\t\r"  # what a spreadsheet would take for one


def places_csv(manifest: Manifest, rows: Sequence[PlaceFigures]) -> str:
    """Return a CSV text with a line for each file at each place (RFC 4180); cells that are not known are empty."""
    files = {item.path: item for item in manifest.artifacts}
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(HEADS)
    for row in rows:
        file = files[row.path]
        low, high = row.ci95_ms or (None, None)
        parity = None if row.passed is None else "passed" if row.passed else "failed"
        cells = (
            row.place, row.path, file.format.value, file.precision.value, file.recipe, file.target_cpu, row.threads,
            row.median_ms, low, high, row.verdict, parity, row.sqnr_db, row.metric, row.score, row.dataset,
            row.instructions, row.stands_out,
        )  # fmt: skip
        writer.writerow([_cell(cell) for cell in cells])
    return stream.getvalue()


def _cell(value: object) -> object:
    """A text that no spreadsheet computes."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(tuple(FORMULA)) else text
