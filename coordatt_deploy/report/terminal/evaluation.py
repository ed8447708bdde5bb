"""Accuracy on the terminal."""

from rich.text import Text

from coordatt_deploy.evaluation.result import MIOU, TOP1, Accuracy, Evaluation
from coordatt_deploy.report.terminal.console import label, line, new_console, new_table

SCORE = "score"  # the column that is called after the metric
COLUMNS = (
    "subject", "runtime", SCORE, "top-5", "difference", "95 % interval", "lost/gained", "agreement", "SQNR", "drop",
)  # fmt: skip
TITLES = {MIOU: "mIoU"}
WORDS = ("subject", "runtime", "drop")
WIDE = 120  # columns of the terminal from which on all of them fit
NAMED = 5  # unreadable images that the table lists


def show(evaluation: Evaluation) -> None:
    """One line per subject, and under them what to know of the images."""
    console = new_console()
    narrow = console.width < WIDE
    left_out = ("runtime", "top-5", "agreement", "lost/gained") if narrow else ()
    rows = [_cells(item, evaluation) for item in evaluation.subjects]
    columns = [column for column in COLUMNS if column not in left_out and any(column in cells for cells in rows)]
    if evaluation.max_drop is None:
        columns.remove("drop")
    dataset, metric = evaluation.dataset, evaluation.metric
    title = f"Accuracy on {evaluation.images:,} images of {dataset.source}"
    title += f", {evaluation.classes} classes" if evaluation.classes and metric.file is None else ""
    if evaluation.target is not None:
        title += f", on {evaluation.target}"
    heads = [TITLES.get(metric.name, metric.name) if column == SCORE else column for column in columns]
    table = new_table(title, *heads, right=[head for head in heads if head not in WORDS])
    for cells in rows:
        table.add_row(*(cells.get(column, "–") for column in columns))
    console.print(table)
    for text, style in _remarks(evaluation):
        console.print(line(text, style=style))
    if narrow:
        console.print(line(f"{', '.join(left_out)}: on a terminal of {WIDE} columns, or with --json", style="dim"))


def _cells(item: Accuracy, evaluation: Evaluation) -> dict[str, str | Text]:
    """The cells of a subject, by column; what there is no figure for is left out."""
    metric, found = evaluation.metric, item.record(evaluation.images, evaluation.metric)
    name = label(item.artifact) if item.artifact else line(item.name)
    cells: dict[str, str | Text] = {"subject": name, "runtime": item.runtime or "–", "drop": _verdict(item)}
    form = "+.2f" if metric.in_points else "+.4g"
    if found.score is not None:
        cells[SCORE] = f"{found.score:.2%}" if metric.in_points else f"{found.score:.5g}"
    if found.top5 is not None:
        cells["top-5"] = f"{found.top5:.2%}"
    if found.score_difference is not None:
        cells["difference"] = f"{found.score_difference:{form}}"
        interval = found.score_interval
        cells["95 % interval"] = "–" if interval is None else f"{interval[0]:{form}} … {interval[1]:{form}}"
    if found.lost is not None:
        cells["lost/gained"] = f"{found.lost}/{found.gained}"
    if found.agreement is not None:
        cells["agreement"] = f"{found.agreement:.2%}"
    if found.sqnr_db is not None:
        cells["SQNR"] = f"{found.sqnr_db:.1f} dB"
    return cells


def _verdict(item: Accuracy) -> Text:
    if item.passed is None:
        return line("not run" if item.missing else "–", style="yellow" if item.missing else "")
    return line("within", style="green") if item.passed else line("BEYOND", style="bold red")


def _remarks(evaluation: Evaluation) -> list[tuple[str, str]]:
    remarks = [(f"{item.name}: {item.problem}", "yellow" if item.missing else "red")
               for item in evaluation.subjects if item.problem]  # fmt: skip
    remarks += [
        (f"{path}: not run: {reason}", "yellow")
        for path, reason in ((item.path, item.reason) for item in evaluation.skipped)
    ]
    remarks += [(f"{item.name}: {item.warning}", "yellow") for item in evaluation.subjects if item.warning]
    remarks += [(f"{item.name}: NaN or infinity in the outputs for {item.nonfinite} images", "red")
                for item in evaluation.subjects if item.nonfinite]  # fmt: skip
    if evaluation.unreadable:
        count = len(evaluation.unreadable)
        remarks.append((f"{count} images could not be read and were left out of every figure:", "yellow"))
        remarks += [(f"  {name}: {reason}", "yellow") for name, reason in evaluation.unreadable[:NAMED]]
        if count > NAMED:
            remarks.append((f"  and {count - NAMED} more, named in reports/evaluate.json", "yellow"))
    remarks += [(note, "yellow") for note in evaluation.notes]
    if evaluation.max_drop is not None:
        remarks += [(text, "bold red") for text in _beyond(evaluation)]
    remarks.append((_legend(evaluation), "dim"))
    return remarks


def _legend(evaluation: Evaluation) -> str:
    """What the columns mean."""
    baseline, metric = evaluation.subjects[0].name, evaluation.metric
    if metric.name == TOP1:
        points = f"difference: percentage points of top-1 to {baseline}; lost: images that only {baseline} gets right"
        return f"{points}; interval: Tango's, for paired proportions"
    unit = f"percentage points of {TITLES.get(metric.name, metric.name)}" if metric.in_points else metric.name
    better = "" if metric.higher_is_better else ", less being better"
    lost = "; lost: images that are worse" if metric.per_image else ""
    return f"difference: {unit} to {baseline}{better}{lost}; interval: paired, of the jackknife over images"


def _beyond(evaluation: Evaluation) -> list[str]:
    texts = []
    for item in evaluation.subjects:
        change, _ = item.change(evaluation.metric)
        if item.passed is False and change is not None:
            lost = -change if evaluation.metric.higher_is_better else change
            amount = f"{lost:.2f} points lost" if evaluation.metric.in_points else f"worse by {lost:.4g}"
            texts.append(f"{item.name}: {amount}, {evaluation.max_drop:g} allowed")
    return texts
