"""Accuracy on the terminal."""

from dataclasses import replace
from typing import Final

from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.evaluation.result import MIOU, TOP1, Accuracy, Evaluation
from coordatt_deploy.plurals import counted, of_total, verb
from coordatt_deploy.report.terminal.console import bundle_command, label, line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_below, show_table

SCORE: Final = "score"  # the column that is called after the metric
COLUMNS: Final = (
    Column("subject"), Column(SCORE, right=True), Column("difference", right=True),
    Column("95 % interval", right=True), Column("drop"), Column("SQNR", right=True, rank=1),
    Column("agreement", right=True, rank=2), Column("lost/gained", right=True, rank=2),
    Column("top-5", right=True, rank=3), Column("runtime", rank=4),
)  # fmt: skip
TITLES: Final = {MIOU: "mIoU"}
NAMED: Final = 5  # unreadable images that the table lists


def show(evaluation: Evaluation) -> None:
    """What was lost most, or what was lost too much; then one line per subject, and what to know of the images."""
    console = new_console()
    for text, style in _verdicts(evaluation):
        say(console, text, style=style)
    for text in _beyond(evaluation) if evaluation.max_drop is not None else ():
        show_below(console, text, style="red")
    console.print()
    rows = [_cells(item, evaluation) for item in evaluation.subjects]
    dataset, metric = evaluation.dataset, evaluation.metric
    shown = [
        column for column in COLUMNS
        if any(column.head in cells for cells in rows) and (column.head != "drop" or evaluation.max_drop is not None)
    ]  # fmt: skip
    title = f"Accuracy on {counted(evaluation.images, 'image')} of {dataset.source}"
    title += f", {evaluation.classes} classes" if evaluation.classes and metric.file is None else ""
    if evaluation.target is not None:
        title += f", on {evaluation.target}"
    named = [
        replace(column, head=TITLES.get(metric.name, metric.name)) if column.head == SCORE else column
        for column in shown
    ]
    show_table(console, title, named, [[cells.get(column.head, "–") for column in shown] for cells in rows])
    for text, style in _remarks(evaluation):
        say(console, text, style=style)


def _verdicts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The verdict by --max-drop, and which artifact differs most from the baseline."""
    metric, told = evaluation.metric, []
    scored = [item for item in evaluation.subjects if item.artifact is not None]
    judged = [item for item in scored if item.passed is not None]
    limit = evaluation.max_drop
    if limit is not None and judged:
        unit = " points" if metric.in_points else f" of {metric.name}"
        beyond = sum(item.passed is False for item in judged)
        if beyond:
            text = f"BEYOND: {of_total(beyond, len(judged), 'file')} {verb(beyond, 'loses')} more than {limit:g}{unit}."
            told.append((text, "bold red"))
        else:
            who = f"none of {counted(len(judged), 'file')} loses" if len(judged) > 1 else "the file does not lose"
            told.append((f"WITHIN: {who} more than {limit:g}{unit}.", "bold green"))
    unjudged = [item for item in scored if limit is not None and item.passed is None]
    if unjudged:
        count = len(unjudged)
        told.append((f"{of_total(count, len(scored), 'file')} {verb(count, 'was')} not judged.", "bold yellow"))
    found = [(change, item) for item in scored if (change := item.change(metric)[0]) is not None]
    if found:
        worst = (min if metric.higher_is_better else max)(found, key=lambda pair: pair[0])
        change, item = worst
        lost = -change if metric.higher_is_better else change
        name = evaluation.subjects[0].name
        if lost <= 0:
            told.append((f"no file is worse than {name} on these images", "bold"))
        else:
            amount = f"{lost:.2f} points" if metric.in_points else f"{lost:.4g} of {metric.name}"
            told.append((f"most lost against {name}: {amount}, by {_name(item)}", "bold"))
    return told


def _name(item: Accuracy) -> str:
    return label(item.artifact).plain if item.artifact else item.name


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
    remarks = [(f"{_name(item)}: {item.problem}", "yellow" if item.missing else "red")
               for item in evaluation.subjects if item.problem]  # fmt: skip
    remarks += [
        (f"{path}: not run: {reason}", "yellow")
        for path, reason in ((item.path, item.reason) for item in evaluation.skipped)
    ]
    for item in evaluation.subjects:
        if item.warning:
            remarks.append((f"{_name(item)}: {item.warning}{_as_run_here(item, evaluation)}", "yellow"))
    remarks += [(f"{_name(item)}: NaN or infinity in the outputs for {counted(item.nonfinite, 'image')}", "red")
                for item in evaluation.subjects if item.nonfinite]  # fmt: skip
    if evaluation.unreadable:
        count = len(evaluation.unreadable)
        text = f"{counted(count, 'image')} could not be read and {verb(count, 'was')} left out of every figure:"
        remarks.append((text, "yellow"))
        remarks += [(f"  {name}: {reason}", "yellow") for name, reason in evaluation.unreadable[:NAMED]]
        if count > NAMED:
            remarks.append((f"  and {count - NAMED} more, named in reports/evaluate.json", "yellow"))
    remarks += [(note, "yellow") for note in evaluation.notes]
    remarks.append((_legend(evaluation), "dim"))
    return remarks


def _as_run_here(item: Accuracy, evaluation: Evaluation) -> str:
    """What this CPU makes of a file that is judged by what another one computes."""
    score, metric = item.score_as_run_here, evaluation.metric
    if score is None:
        return ""
    name = TITLES.get(metric.name, metric.name)
    return f"; as it runs here: {name} {score:.2%}" if metric.in_points else f"; as it runs here: {name} {score:.5g}"


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
            texts.append(f"{_name(item)}: {amount}, {evaluation.max_drop:g} allowed")
    return texts


def after_evaluate(bundle: Bundle, evaluation: Evaluation, dataset: str) -> tuple[tuple[str, str], ...]:
    """What to type after the accuracy: the search for layers to keep in float where too much was lost, and the page."""
    page = bundle_command("report", bundle.root), "one page of all results"
    lossy = [item for item in evaluation.subjects if item.passed is False and item.artifact and item.artifact.recipe]
    if not lossy or evaluation.max_drop is None or evaluation.metric.file is not None:
        return (page,)
    options = ("--max-drop", f"{evaluation.max_drop:g}", "--dataset", dataset)
    return ((bundle_command("quantize", bundle.root, *options), "keep in float what int8 costs too much"), page)
