"""Accuracies for machines that gather test results, and for the page of a CI run."""

from coordatt_deploy.evaluation.result import Accuracy, Evaluation
from coordatt_deploy.report.junit_cases import Case, suites_xml
from coordatt_deploy.report.markdown import cell

MARKS = {True: "✅ within", False: "❌ beyond", None: "–"}


def evaluation_junit(evaluation: Evaluation) -> str:
    """Return an evaluation as JUnit XML: a suite for each subject, whose one case is called after the metric.

    It fails where the drop is beyond the limit or the artifact does not work; without a limit, figures pass. What could
    not be run here is skipped.
    """
    name = evaluation.metric.name
    suites = {
        item.name: [Case(name, _told(item, evaluation), _failed(item), item.missing)] for item in evaluation.subjects
    }
    suites |= {item.path: [Case(name, f"not run: {item.reason}", skipped=True)] for item in evaluation.skipped}
    return suites_xml("coordatt-deploy evaluate", suites)


def evaluation_markdown(evaluation: Evaluation, model: str) -> str:
    """Return an evaluation of *model* as Markdown for the summary of a CI run."""
    metric, limit = evaluation.metric, evaluation.max_drop
    where = f" on {cell(evaluation.target)}" if evaluation.target else ""
    verdict = "" if limit is None else f": {_verdict(evaluation)}"
    lines = [
        f"### Accuracy of {cell(model)}{where}{verdict}",
        "",
        f"{evaluation.images:,} images of {cell(evaluation.dataset.source)}"
        + (f"; {len(evaluation.unreadable)} could not be read" if evaluation.unreadable else ""),
        "",
        f"| file | {cell(metric.name)} | difference | 95 % interval | verdict |",
        "|---|--:|--:|--:|---|",
    ]
    for item in evaluation.subjects:
        score, change, interval = _figures(item, evaluation)
        mark = "➖ not run" if item.missing else "❌ failed" if item.problem else MARKS[item.passed]
        lines.append(f"| {cell(item.name)} | {score} | {change} | {interval} | {mark} |")
    lines += [f"| {cell(item.path)} | – | – | – | ➖ not run |" for item in evaluation.skipped]
    told = [(item.name, text) for item in evaluation.subjects for text in (item.problem, item.warning) if text]
    told += [(item.path, item.reason) for item in evaluation.skipped]
    for name, text in told:
        lines += ["", f"- {cell(name)}: {cell(text)}"]
    for note in evaluation.notes:
        lines += ["", f"- {cell(note)}"]
    return "\n".join(lines) + "\n"


def _verdict(evaluation: Evaluation) -> str:
    if evaluation.exit_code == 1:
        return "not all files are within the limit"
    if any(item.missing for item in evaluation.subjects) or evaluation.skipped:
        return "what could be run here is within the limit"
    return "all files are within the limit"


def _failed(item: Accuracy) -> bool:
    return item.passed is False or (item.problem is not None and not item.missing)


def _told(item: Accuracy, evaluation: Evaluation) -> str:
    if item.problem:
        return item.problem
    score, change, interval = _figures(item, evaluation)
    told = [f"{evaluation.metric.name} {score}"]
    if item is not evaluation.subjects[0]:
        told.append(f"difference {change}, 95 % interval {interval}")
    if evaluation.max_drop is not None and item.passed is not None:
        told.append(f"a drop of {evaluation.max_drop:g} is allowed")
    return "; ".join([*told, *([item.warning] if item.warning else [])])


def _figures(item: Accuracy, evaluation: Evaluation) -> tuple[str, str, str]:
    """Score, difference to the baseline and its interval; a dash for what there is not."""
    metric = evaluation.metric
    found = item.record(evaluation.images, metric)
    form = "+.2f" if metric.in_points else "+.4g"
    score = "–" if found.score is None else f"{found.score:.2%}" if metric.in_points else f"{found.score:.5g}"
    change = "–" if found.score_difference is None else f"{found.score_difference:{form}}"
    interval = found.score_interval
    return score, change, "–" if interval is None else f"{interval[0]:{form}} … {interval[1]:{form}}"
