"""Accuracy on the terminal."""

from rich.text import Text

from coordatt_deploy.evaluation.result import Accuracy, Evaluation
from coordatt_deploy.report.terminal.console import label, line, new_console, new_table

COLUMNS = (
    "subject", "runtime", "top-1", "top-5", "difference", "95 % interval", "lost/gained", "agreement", "SQNR", "drop",
)  # fmt: skip
WORDS = ("subject", "runtime", "drop")
WIDE = 120  # columns of the terminal from which on all of them fit
NAMED = 5  # unreadable images that the table lists


def show(evaluation: Evaluation) -> None:
    """One line per subject, and under them what to know of the images."""
    console = new_console()
    narrow = console.width < WIDE
    left_out = ("runtime", "top-5", "agreement", "lost/gained") if narrow else ()
    columns = [column for column in COLUMNS if column not in left_out]
    if not any(item.correct_top5 is not None for item in evaluation.subjects) and not narrow:
        columns.remove("top-5")
    if evaluation.max_drop is None:
        columns.remove("drop")
    dataset = evaluation.dataset
    title = f"Accuracy on {evaluation.images:,} images of {dataset.source}, {evaluation.classes} classes"
    if evaluation.target is not None:
        title += f", on {evaluation.target}"
    table = new_table(title, *columns, right=[column for column in columns if column not in WORDS])
    for item in evaluation.subjects:
        cells = _cells(item, evaluation.images)
        table.add_row(*(cells.get(column, "–") for column in columns))
    console.print(table)
    for text, style in _remarks(evaluation):
        console.print(line(text, style=style))
    if narrow:
        console.print(line(f"{', '.join(left_out)}: on a terminal of {WIDE} columns, or with --json", style="dim"))


def _cells(item: Accuracy, images: int) -> dict[str, str | Text]:
    """The cells of a subject, by column; what there is no figure for is left out."""
    name = label(item.artifact) if item.artifact else line(item.name)
    cells: dict[str, str | Text] = {"subject": name, "runtime": item.runtime or "–", "drop": _verdict(item)}
    if item.correct is not None:
        cells["top-1"] = f"{item.correct / images:.2%}"
    if item.correct_top5 is not None:
        cells["top-5"] = f"{item.correct_top5 / images:.2%}"
    pair = item.difference
    if pair is not None:
        low, high = pair.interval_points
        cells["difference"] = f"{pair.points:+.2f}"
        cells["95 % interval"] = f"{low:+.2f} … {high:+.2f}"
        cells["lost/gained"] = f"{pair.lost}/{pair.gained}"
        cells["agreement"] = f"{item.agreement:.2%}"
        cells["SQNR"] = "–" if item.sqnr_db is None else f"{item.sqnr_db:.1f} dB"
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
    remarks += [(f"{item.name}: NaN or infinity in the logits of {item.nonfinite} images", "red")
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
    baseline = evaluation.subjects[0].name
    points = f"difference: percentage points of top-1 to {baseline}; lost: images that only {baseline} gets right"
    remarks.append((f"{points}; interval: Tango's, for paired proportions", "dim"))
    return remarks


def _beyond(evaluation: Evaluation) -> list[str]:
    texts = []
    for item in evaluation.subjects:
        if item.passed is False and item.difference is not None:
            pair = item.difference
            texts.append(f"{item.name}: {-pair.points:.2f} points lost, {evaluation.max_drop:g} allowed")
    return texts
