"""``reports/parity.json``: verdicts of many calls, as runs that accumulate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.documents import JsonObject, JsonValue, check_version, from_json, parse_object
from coordatt_deploy.parity.result import ArtifactVerdict, GraphVerdict, ParityResult
from coordatt_deploy.run_records import (
    HERE,
    Covered,
    NotRun,
    RunInputs,
    RunRecord,
    accumulated,
    is_current,
    is_part_of,
    latest,
)


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
    """One artifact judged once.

    Attributes:
        settings: What was asked for.
        result: The verdict.
        believed: What of the bundle could not be verified then; None in reports of older versions.
    """

    settings: ParitySettings = field(default_factory=ParitySettings)
    result: ArtifactVerdict
    believed: tuple[str, ...] | None = None

    @property
    def answered(self) -> bool:
        """See ``RunRecord``."""
        return self.result.passed is not None

    @property
    def variant(self) -> str:
        """See ``RunRecord``."""
        return "by tolerances of your own" if self.settings.own_tolerances else ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one file of a bundle.

    Attributes:
        path: Of the file.
        run: Which says most of it on this machine, or on one that has the runtime that this one lacks; None where it
            was never judged on either.
        outdated: Whether that is of other bytes than the file has now.
        further: Other runs of the bytes that it has now: on other inputs, in other places, by other tolerances.
    """

    path: str
    run: ParityRun | None = None
    outdated: bool = False
    further: tuple[ParityRun, ...] = ()


@dataclass(frozen=True, slots=True)
class ParityReports:
    """The document ``reports/parity.json``: the runs of many calls.

    Attributes:
        runs: A later run takes the place of an earlier one that answered the same question.
        graphs: The torch graphs, of the last call that judged them.
        skipped: What could not be run in its place, of each file's last call.
        believed: Of the last call; see ``ParityResult``.
    """

    VERSION: ClassVar[int] = 2

    runs: tuple[ParityRun, ...] = ()
    graphs: tuple[GraphVerdict, ...] = ()
    skipped: tuple[NotRun, ...] = ()
    believed: tuple[str, ...] = ()

    def result(self, place: str = HERE, hashes: Mapping[str, str] | None = None) -> ParityResult | None:
        """Return what is known of each artifact at *place*, as if one call had found it; None where nothing is.

        Args:
            place: ``here``, or the target.
            hashes: sha256 of each file that the bundle has now, by path: others are left out. None for all.
        """
        runs = [run for run in latest(self.runs, place, hashes) if hashes is None or run.artifact in hashes]
        return self._together(runs, place)

    def known(self, hashes: Mapping[str, str]) -> ParityResult | None:
        """Return what is known of each file, as if one call had found it; None where nothing is.

        That is what was found on this machine, or, of a file that could only be evaluated here, what a machine found
        that has its runtime.

        Args:
            hashes: sha256 of each file that the bundle has now, by path.
        """
        return self._together([run for path, run in self._widest(hashes).items() if path in hashes], HERE)

    def _widest(self, hashes: Mapping[str, str]) -> dict[str, ParityRun]:
        """The run of each file that says most of it; see ``known``."""
        found = {run.artifact: run for run in latest(self.runs, HERE, hashes)}
        for place in dict.fromkeys(run.place for run in self.runs if run.place != HERE):
            for run in latest(self.runs, place, hashes):
                own = found.get(run.artifact)
                measured = run.answered and run.result.origin is Origin.MEASURED and is_current(run, hashes)
                if measured and (own is None or own.result.origin is not Origin.MEASURED):
                    found[run.artifact] = run
        return {run.artifact: run for run in self.runs if found.get(run.artifact) is run}

    def _together(self, runs: Sequence[ParityRun], place: str) -> ParityResult | None:
        if not runs:
            return None
        cases = dict.fromkeys(name for run in runs for name in run.inputs.names)
        passed = all(run.result.passed is True for run in runs) and all(
            graph.layers_passed is not False for graph in self.graphs
        )
        judged = {run.artifact for run in runs}
        believed = dict.fromkeys(
            text for run in runs for text in (self.believed if run.believed is None else run.believed)
        )
        return ParityResult(
            passed,
            None if place == HERE else place,
            tuple(cases),
            tuple(run.result for run in runs),
            self.graphs,
            tuple(item for item in self.skipped if item.path not in judged),
            tuple(believed),
        )

    def standings(self, hashes: Mapping[str, str]) -> tuple[Standing, ...]:
        """Return what is known of each file of the bundle, those that were never judged as well.

        Args:
            hashes: sha256 of each file that the bundle has now, by path.
        """
        widest = self._widest(hashes)
        found = []
        for path in hashes:
            run = widest.get(path)
            further = tuple(
                item
                for item in self.runs
                if item.artifact == path
                and item is not run
                and item.answered
                and is_current(item, hashes)
                and not (run is not None and is_part_of(item, run) and item.result.passed == run.result.passed)
            )
            found.append(Standing(path, run, run is not None and not is_current(run, hashes), further))
        return tuple(found)

    def with_runs(self, call: ParityResult, runs: tuple[ParityRun, ...]) -> "ParityReports":
        """Return the reports with those of one more call.

        Args:
            call: What it found.
            runs: The same as runs.
        """
        return self.joined(ParityReports(runs, call.graphs, call.skipped, call.believed))

    def joined(self, later: "ParityReports") -> "ParityReports":
        """Return these reports with later ones."""
        told = {item.path for item in later.skipped} | {run.artifact for run in later.runs}
        skipped = (*(item for item in self.skipped if item.path not in told), *later.skipped)
        return ParityReports(accumulated(self.runs, later.runs), later.graphs or self.graphs, skipped, later.believed)


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
