"""What the page says of latency over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.reports import ProfileReports, SustainedRun
from coordatt_deploy.profile.sustained_result import SustainedLatency
from coordatt_deploy.report import sustained_texts as texts
from coordatt_deploy.report.page.figures import Figure, Row, Table, file_name, sentence
from coordatt_deploy.report.page.sustained_plot import sustained_plot
from coordatt_deploy.run_records import HERE, is_current


@dataclass(frozen=True, slots=True)
class SustainedView:
    """Latency over time: a table with the verdicts, a plot of each file, and what has to be known of them."""

    table: Table
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]


def sustained_runs(
    here: ProfileReports, elsewhere: Mapping[str, ProfileReports], hashes: Mapping[str, str]
) -> tuple[SustainedRun, ...]:
    """Return the runs of the bytes that the files have now, this machine's first.

    Args:
        here: What was measured on this machine.
        elsewhere: On others, by machine.
        hashes: sha256 of each file, by path.
    """
    every = (*here.sustained, *(run for found in elsewhere.values() for run in found.sustained))
    return tuple(run for run in every if run.artifact in hashes and is_current(run, hashes))


def sustained_view(runs: Sequence[SustainedRun], start: int, labels: Mapping[str, str]) -> SustainedView | None:
    """Return how latencies went on under load; None without any.

    Args:
        runs: In the order of the rows.
        start: Number of the first plot on the page.
        labels: What tells each file from the others, by path.
    """
    if not runs:
        return None
    rows, figures = [], []
    for number, run in enumerate(runs, start):
        item = run.result
        place = "" if run.place == HERE else f", on {run.place}"
        label = f"{labels.get(item.path, file_name(item.path))}, {counted(item.threads, 'thread')}{place}"
        cells = (
            texts.milliseconds(item.first_ms), texts.milliseconds(item.steady_ms), texts.change(item),
            texts.interval(item), texts.since(item) or "–", texts.frequency(item) or "–",
            texts.temperature(item) or "–", texts.cores(item) or "–", f"{item.calls:,}",
        )  # fmt: skip
        rows.append(Row((label, item.verdict.course), cells))
        figures.append(_figure(number, label, item))
    heads = ("first ms", "steady ms", "change", "95 % interval", "from", "MHz", "°C", "cores", "calls")
    table = Table("Sustained latency", ("file, threads", "verdict"), heads, tuple(rows))
    remarks = tuple(f"{sentence(text)}." for text in dict.fromkeys(texts.remarks([run.result for run in runs])))
    return SustainedView(table, tuple(figures), remarks)


def _figure(number: int, label: str, item: SustainedLatency) -> Figure:
    if not item.windows:
        raise ValueError(f"{item.path} has no window of time")
    text = f"{sentence(texts.verdict(item))}. Between {texts.span(item)}, {item.calls:,} calls on {item.runtime}."
    return Figure(label, sustained_plot(number, f"Latency of {label} over time", text, item), text)
