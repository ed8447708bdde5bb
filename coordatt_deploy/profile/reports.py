"""``reports/profile.json``: latencies of many calls, as runs that accumulate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from coordatt_deploy.bundle import REPORTS
from coordatt_deploy.documents import check_version, from_json, parse_object
from coordatt_deploy.errors import UsageError
from coordatt_deploy.host import Host
from coordatt_deploy.profile.imported_result import ImportedLatency
from coordatt_deploy.profile.operator_result import OperatorProfile
from coordatt_deploy.profile.result import (
    LatencyRecord,
    Profile,
    ProfileResult,
    RatioRecord,
    SettingsRecord,
    YardstickRecord,
)
from coordatt_deploy.profile.statistics import FEWEST_SAMPLES
from coordatt_deploy.profile.sustained_result import SustainedLatency
from coordatt_deploy.run_records import GOLDEN, HERE, Covered, NotRun, RunInputs, RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRun(RunRecord):
    """One artifact, timed with one number of threads."""

    settings: SettingsRecord
    result: LatencyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRun(RunRecord):
    """Where the time of one artifact goes, with one number of threads."""

    result: OperatorProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedRun(RunRecord):
    """One artifact that ran without a pause, with one number of threads."""

    settings: SettingsRecord
    result: SustainedLatency


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun(RunRecord):
    """One artifact that somebody timed elsewhere with the runtime's own benchmark program."""

    result: ImportedLatency


T = TypeVar("T", OperatorRun, SustainedRun)


@dataclass(frozen=True, slots=True)
class ProfileSession:
    """What the runs of one call share, which took turns.

    Attributes:
        time: As in the runs; None in reports of older versions.
        host: The machine, with its states before and after.
        ratios: Of each pair that took turns.
        yardsticks: One for each number of threads.
        skipped: What could not be measured.
        interrupted: Whether Ctrl-C ended it early.
        inputs: Shape of each input that was fed; empty in reports of older versions.
    """

    time: str | None
    host: Host
    ratios: tuple[RatioRecord, ...]
    yardsticks: tuple[YardstickRecord, ...]
    skipped: tuple[NotRun, ...]
    interrupted: bool
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileReports:
    """The document ``reports/profile.json``: the runs of many calls.

    Attributes:
        runs: A later run takes the place of an earlier one of the same artifact with as many threads, on this machine.
        sessions: Of the runs that are kept.
        operators: Where the time of files goes (``profile --ops``); a later one takes the place of an earlier one
            likewise.
        sustained: Latency over time (``profile --sustained``), likewise.
        imported: What other tools measured (``profile --import``); belongs to no session of ours. A later one of the
            same file, tool and number of threads takes the place of an earlier one.
    """

    VERSION: ClassVar[int] = 2

    runs: tuple[LatencyRun, ...] = ()
    sessions: tuple[ProfileSession, ...] = ()
    operators: tuple[OperatorRun, ...] = ()
    sustained: tuple[SustainedRun, ...] = ()
    imported: tuple[ImportedRun, ...] = ()

    @property
    def every(self) -> tuple[RunRecord, ...]:
        """All runs, whatever was measured."""
        return (*self.runs, *self.operators, *self.sustained, *self.imported)

    def with_imported(self, runs: tuple[ImportedRun, ...]) -> "ProfileReports":
        """Return the reports with what other tools measured; each takes the place of what answered the same."""
        asked = {(run.artifact, run.result.tool, run.result.threads) for run in runs}
        kept = (run for run in self.imported if (run.artifact, run.result.tool, run.result.threads) not in asked)
        return replace(self, imported=(*kept, *runs))

    def with_session(
        self,
        runs: tuple[LatencyRun, ...],
        session: ProfileSession,
        operators: tuple[OperatorRun, ...] = (),
        sustained: tuple[SustainedRun, ...] = (),
    ) -> "ProfileReports":
        """Return the reports with the runs of one more call.

        A run of a handful of samples does not take the place of one with enough, and none that of another machine's.
        """
        hosts = {item.time: item.host for item in self.sessions}
        new = {_asked(run): run for run in runs}

        def replaced(run: LatencyRun) -> bool:
            again, host = new.get(_asked(run)), hosts.get(run.time)
            if again is None or (host is not None and not host.same_machine(session.host)):
                return False
            return again.sha256 != run.sha256 or _samples(again) >= min(_samples(run), FEWEST_SAMPLES)

        kept = [run for run in self.runs if not replaced(run)]
        poorer = {_asked(run) for run in kept if _on(session, hosts.get(run.time))}
        everything = (*kept, *(run for run in runs if _asked(run) not in poorer))
        now: dict[str, str | None] = {run.artifact: run.sha256 for run in (*runs, *sustained)}

        def standing(old: Iterable[T], again: Iterable[T]) -> tuple[T, ...]:
            """Those that are of the bytes of today, and are not made again on the same machine."""
            made = {(run.artifact, run.result.threads) for run in again}
            return tuple(
                run
                for run in old
                if now.get(run.artifact, run.sha256) == run.sha256
                and not ((run.artifact, run.result.threads) in made and _on(session, hosts.get(run.time)))
            )

        tables = (*standing(self.operators, operators), *operators)
        lasting = (*standing(self.sustained, sustained), *sustained)
        times = {run.time for run in (*everything, *tables, *lasting)}
        earlier = tuple(item for item in self.sessions if item.time in times)
        sessions = (*earlier, session) if session.time in times else earlier
        return ProfileReports(everything, sessions, tables, lasting, self.imported)

    def joined(self, later: "ProfileReports") -> "ProfileReports":
        """Return these reports with later ones."""
        reports = self
        for session in later.sessions:
            runs = tuple(run for run in later.runs if run.time == session.time)
            operators = tuple(run for run in later.operators if run.time == session.time)
            sustained = tuple(run for run in later.sustained if run.time == session.time)
            reports = reports.with_session(runs, session, operators, sustained)
        return reports

    def told_by(self, machine: str | None, command: str) -> "ProfileReports":
        """Return the same runs with the machine and the command line that they are of."""
        return replace(
            self,
            runs=tuple(replace(run, machine=machine, command=command) for run in self.runs),
            operators=tuple(replace(run, machine=machine, command=command) for run in self.operators),
            sustained=tuple(replace(run, machine=machine, command=command) for run in self.sustained),
        )

    def moved(self, place: str) -> "ProfileReports":
        """Return the same runs as those of *place*, without their commands."""
        return replace(
            self,
            runs=tuple(replace(run, place=place, command="") for run in self.runs),
            operators=tuple(replace(run, place=place, command="") for run in self.operators),
            sustained=tuple(replace(run, place=place, command="") for run in self.sustained),
        )

    def result(self) -> ProfileResult | None:
        """Return the last latency of each artifact on the machine of the last call that took any; None without any."""
        if not self.runs:
            return None
        timed = {run.time for run in self.runs}
        last = next(session for session in reversed(self.sessions) if session.time in timed)
        shared = [session for session in self.sessions if session.host.same_machine(last.host)]
        times = {session.time for session in shared}
        runs = [run for run in self.runs if run.time in times]
        settings = next(run.settings for run in reversed(runs) if run.time == last.time)
        paths = {run.artifact for run in runs}
        measured = {(run.time, run.artifact) for run in runs}
        return ProfileResult(
            host=last.host,
            settings=settings,
            results=tuple(run.result for run in runs),
            ratios=tuple(
                ratio
                for session in shared
                for ratio in session.ratios
                if {(session.time, ratio.a), (session.time, ratio.b)} <= measured
            ),
            yardsticks=last.yardsticks,
            skipped=tuple(item for item in last.skipped if item.path not in paths),
            interrupted=last.interrupted,
            inputs=last.inputs,
            operators=tuple(run.result for run in self.operators if run.time in times),
        )


def _asked(run: LatencyRun) -> tuple[str, int, str]:
    return run.artifact, run.result.threads, run.place


def _samples(run: LatencyRun) -> int:
    return len(run.result.samples_ns)


def _on(session: ProfileSession, host: Host | None) -> bool:
    """Whether *host* is the machine of the session."""
    return host is not None and host.same_machine(session.host)


def runs_of(
    result: ProfileResult, hashes: Mapping[str, str], tool_versions: dict[str, str], time: str | None
) -> tuple[LatencyRun, ...]:
    """Return the runs that make up a result.

    Args:
        result: Of one call.
        hashes: sha256 of each artifact, by path.
        tool_versions: Of everything that had a hand in it.
        time: When the call ended.
    """
    return tuple(
        LatencyRun(
            kind="latency",
            artifact=item.path,
            sha256=hashes.get(item.path),
            place=HERE,
            inputs=RunInputs(GOLDEN, 1),
            covered=Covered(),
            tool_versions=tool_versions,
            time=time,
            settings=result.settings,
            result=item,
        )
        for item in result.results
    )


def operator_runs_of(
    result: ProfileResult, hashes: Mapping[str, str], tool_versions: dict[str, str], time: str | None
) -> tuple[OperatorRun, ...]:
    """Return the runs of ``--ops``; see ``runs_of``."""
    return tuple(
        OperatorRun(
            kind="operators",
            artifact=item.path,
            sha256=hashes.get(item.path),
            place=HERE,
            inputs=RunInputs(GOLDEN, 1),
            covered=Covered(),
            tool_versions=tool_versions,
            time=time,
            result=item,
        )
        for item in result.operators
    )


def sustained_runs_of(
    result: ProfileResult, hashes: Mapping[str, str], tool_versions: dict[str, str], time: str | None
) -> tuple[SustainedRun, ...]:
    """Return the runs of ``--sustained``; see ``runs_of``."""
    return tuple(
        SustainedRun(
            kind="sustained",
            artifact=item.path,
            sha256=hashes.get(item.path),
            place=HERE,
            inputs=RunInputs(GOLDEN, 1),
            covered=Covered(),
            tool_versions=tool_versions,
            time=time,
            settings=result.settings,
            result=item,
        )
        for item in result.sustained
    )


def session_of(result: ProfileResult, time: str | None) -> ProfileSession:
    """Return what the runs of a result share."""
    return ProfileSession(
        time, result.host, result.ratios, result.yardsticks, result.skipped, result.interrupted, result.inputs
    )


def read_reports(text: str) -> ProfileReports:
    """Read ``reports/profile.json``, of this schema or of the first.

    Raises:
        DocumentError: It is damaged, or of another schema.
    """
    document = parse_object(text)
    check_version(document, 1, ProfileReports.VERSION)
    if document["schema_version"] == ProfileReports.VERSION:
        return from_json(ProfileReports, document)
    result = from_json(ProfileResult, document)
    return ProfileReports(runs_of(result, {}, {}, None), (session_of(result, None),))


def load_profile(path: Path) -> Profile:
    """Read a document that ``profile`` wrote.

    Raises:
        UsageError: The file is missing, not a profile, or of another schema.
    """
    bundle = path.parent.parent if path.parent.name == REPORTS else "BUNDLE"
    again = f"measure again with: coordatt-deploy profile {bundle}"
    try:
        result = read_reports(path.read_text(encoding="utf-8")).result()
        if result is not None:
            return result.profile()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a profile: {error}; {again}") from None
    raise UsageError(f"{path} holds no measurement; {again}")
