"""What the page says of latencies that were imported."""

from collections.abc import Mapping

from coordatt_deploy.profile.reports import ProfileReports
from coordatt_deploy.report import imported_texts
from coordatt_deploy.report.page.figures import Row, Table, file_name
from coordatt_deploy.run_records import is_current


def imported_table(
    elsewhere: Mapping[str, ProfileReports], hashes: Mapping[str, str], labels: Mapping[str, str]
) -> Table | None:
    """Return what other tools measured of the bytes that the files have now; None without any.

    Args:
        elsewhere: What other machines measured, by machine.
        hashes: sha256 of each file, by path.
        labels: What tells each file from the others, by path.
    """
    rows = [
        Row(
            (labels.get(run.artifact, file_name(run.artifact)), place, *imported_texts.names(run.result)),
            imported_texts.figures(run.result),
        )
        for place, found in elsewhere.items()
        for run in found.imported
        if run.artifact in hashes and is_current(run, hashes)
    ]
    first, *others = imported_texts.NAMES
    return Table("Imported latency", (first, "machine", *others), imported_texts.FIGURES, tuple(rows)) if rows else None
