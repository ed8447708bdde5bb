"""``reports/parity.json``: verdicts of many calls, as runs that accumulate."""

from dataclasses import dataclass, field
from typing import ClassVar

from coordatt_deploy.documents import JsonObject, JsonValue, check_version, from_json, parse_object
from coordatt_deploy.parity.result import ArtifactVerdict, GraphVerdict, ParityResult
from coordatt_deploy.run_records import HERE, Covered, NotRun, RunInputs, RunRecord, latest


@dataclass(frozen=True, slots=True)
class ParitySettings:
    """What a parity run was asked for.

    Attributes:
        threads: Of the runtimes.
        own_tolerances: Whether the user chose other tolerances than the built-in ones.
    """

    threads: int = 1
    own_tolerances: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRun(RunRecord):
    """One artifact judged once."""

    settings: ParitySettings = field(default_factory=ParitySettings)
    result: ArtifactVerdict


@dataclass(frozen=True, slots=True)
class ParityReports:
    """The document ``reports/parity.json``: the runs of many calls.

    Attributes:
        runs: A later run takes the place of an earlier one that answered the same question.
        graphs: The torch graphs, of the last call that judged them.
        skipped: Of the last call.
        believed: Of the last call; see ``ParityResult``.
    """

    VERSION: ClassVar[int] = 2

    runs: tuple[ParityRun, ...] = ()
    graphs: tuple[GraphVerdict, ...] = ()
    skipped: tuple[NotRun, ...] = ()
    believed: tuple[str, ...] = ()

    def result(self, place: str = HERE) -> ParityResult | None:
        """Return what is known of each artifact at *place*, as if one call had found it; None where nothing is."""
        runs = latest(self.runs, place)
        if not runs:
            return None
        cases = dict.fromkeys(name for run in runs for name in run.inputs.names)
        passed = all(run.result.passed is True for run in runs) and all(
            graph.layers_passed is not False for graph in self.graphs
        )
        target = None if place == HERE else place
        return ParityResult(
            passed, target, tuple(cases), tuple(run.result for run in runs), self.graphs, self.skipped, self.believed
        )


def read_reports(text: str) -> ParityReports:
    """Read ``reports/parity.json``, of this schema or of the first.

    Raises:
        DocumentError: It is damaged, or of another schema.
    """
    document = parse_object(text)
    check_version(document, 1, ParityReports.VERSION)
    if document["schema_version"] == ParityReports.VERSION:
        return from_json(ParityReports, document)
    result = from_json(ParityResult, _with_flags(document))
    inputs = RunInputs("unknown", len(result.cases), result.cases)
    runs = tuple(
        ParityRun(
            kind="parity",
            artifact=item.path,
            sha256=item.sha256,
            place=result.target or HERE,
            inputs=inputs,
            covered=covered(item),
            tool_versions={},
            time=None,
            result=item,
        )
        for item in result.artifacts
    )
    return ParityReports(runs, result.graphs, result.skipped)


def _with_flags(document: JsonObject) -> JsonObject:
    """Mark the figures that the first schema wrote as null because they were not finite."""
    artifacts = document.get("artifacts")
    for item in artifacts if isinstance(artifacts, list) else ():
        outputs = item.get("outputs") if isinstance(item, dict) else None
        for output in outputs if isinstance(outputs, list) else ():
            if isinstance(output, dict):
                equal = output.get("max_abs_error") == 0
                text: dict[str, JsonValue] = {
                    key: "inf" if key == "sqnr_db" and equal else "nan"
                    for key in ("max_abs_error", "allowed", "sqnr_db", "cosine")
                    if key in output and output[key] is None
                }
                output["not_finite"] = text
    return document


def covered(verdict: ArtifactVerdict) -> Covered:
    """Return what a verdict looked at."""
    judged = sum(layer.passed is not None for layer in verdict.layers)
    return Covered(len(verdict.outputs), judged, len(verdict.layers))
