"""Profile a bundle: every artifact first in a process of its own, then all of them in turns."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import DeployError, MissingDependencyError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.cold_start import cold_start
from coordatt_deploy.profile.latency import ColdStart, Latency, ProfileSettings
from coordatt_deploy.profile.operator_result import LayerError, OperatorProfile
from coordatt_deploy.profile.operators import TURNS, Attention, LayerFacts, time_operators
from coordatt_deploy.profile.reports import (
    ProfileReports,
    operator_runs_of,
    read_reports,
    runs_of,
    session_of,
    sustained_runs_of,
)
from coordatt_deploy.profile.result import ArtifactLatency, Profile, ProfileResult, SettingsRecord, profile_result
from coordatt_deploy.profile.rounds import pinned
from coordatt_deploy.profile.turns import Feeds, OpenFile, feeds_of, take_turns
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile
from coordatt_deploy.run_records import NotRun, begin_session
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.runtimes.host_effects import host_effect

# An evaluator's time says nothing about the artifact: three samples show what it costs to wait for it, and are judged
# unusable as a latency.
EVALUATOR_SAMPLES: Final = 3

LayerErrors = Mapping[str, Mapping[str, LayerError]]  # by path of the artifact, then by layer id


def profile_bundle(
    bundle: Bundle,
    settings: ProfileSettings,
    stages: Stages | None = None,
    *,
    formats: Sequence[Format] = tuple(Format),
    machine: host.Host | None = None,
) -> Profile:
    """Measure the artifacts of *bundle* on this machine, with its first golden input.

    Ctrl-C keeps what was measured, if anything was.

    Args:
        bundle: Opened.
        settings: How long and with how many threads.
        stages: Shows the progress.
        formats: Only artifacts of these.
        machine: What this is run on; looked up by default.

    Raises:
        UsageError: The bundle has no such artifact.
        MissingDependencyError: No runtime for any of them is installed. If one is, the others are skipped, with reason.
    """
    stages = stages or Stages()
    here, before = machine or host.describe(), host.state()
    inputs = {name: values[0] for name, values in bundle.golden("inputs").items()}
    openable, skipped = openable_files(bundle, formats)
    kinds = {artifact.path: kind_of(bundle, artifact) for artifact in openable}
    effects = {item.path: host_effect(bundle.path(item.path), item, here) for item in openable}
    warnings = {path: None if found is None else found.warning(str(bundle.root)) for path, found in effects.items()}
    measured = [artifact for artifact in openable if kinds[artifact.path][1] is not Origin.EVALUATED]
    cold = _cold_starts(bundle, measured, settings, inputs, stages)
    results: list[ArtifactLatency] = []
    yardsticks: dict[int, Latency] = {}
    interrupted = False
    try:
        for threads in settings.threads if measured else ():
            entries = {artifact.path: _entry(bundle, artifact, inputs) for artifact in measured}
            measurement = take_turns(entries, settings, stages, threads=threads)
            for artifact in measured:
                if latency := measurement.latencies.get(artifact.path):
                    own = cold.get(artifact.path) if threads == settings.threads[0] else None
                    kind, warning = kinds[artifact.path], warnings[artifact.path]
                    results.append(ArtifactLatency.of(artifact, *kind, latency, own, warning))
            if measurement.yardstick:
                yardsticks[threads] = measurement.yardstick
            if measurement.interrupted:
                raise KeyboardInterrupt
        rest = [artifact for artifact in openable if artifact not in measured]
        results.extend(_evaluated(bundle, artifact, inputs, kinds[artifact.path], stages) for artifact in rest)
    except KeyboardInterrupt:
        if not results:
            raise
        interrupted = True
    here = dataclasses.replace(here, before=before, after=host.state())
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    return Profile(here, tuple(results), yardsticks, settings_record(settings), tuple(skipped), interrupted, shapes)


def openable_files(bundle: Bundle, formats: Sequence[Format]) -> tuple[list[Artifact], list[NotRun]]:
    """Return the artifacts of *formats* that a runtime opens here, and why the others are left out.

    Raises:
        UsageError: The bundle has no such artifact.
        MissingDependencyError: No runtime for any of them is installed.
    """
    chosen = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    if not chosen:
        raise UsageError(f"{bundle.root} has no artifact in {', '.join(formats)}; export some first")
    openable, skipped, missing = [], [], None
    for artifact in chosen:
        try:
            runtime(artifact.format)
        except MissingDependencyError as error:
            missing = error
            skipped.append(NotRun(artifact.path, str(error)))
        else:
            openable.append(artifact)
    if missing and not openable:
        raise missing
    return openable, skipped


def open_file(bundle: Bundle, artifact: Artifact, threads: int) -> Runner:
    """Open an artifact with a number of worker threads."""
    return runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact, threads=threads)


def kind_of(bundle: Bundle, artifact: Artifact) -> tuple[str, Origin]:
    """Return name and version of what runs an artifact here, and whether that is its real runtime."""
    with open_file(bundle, artifact, 1) as runner:
        return runner.runtime, runner.origin


def _cold_starts(
    bundle: Bundle, artifacts: Sequence[Artifact], settings: ProfileSettings, inputs: Feeds, stages: Stages
) -> dict[str, ColdStart]:
    height, width = next(iter(inputs.values())).shape[-2:]
    found = {}
    with stages.stage("cold start", len(artifacts)) as step, pinned(settings.cpu_affinity):
        for artifact in artifacts:
            found[artifact.path] = cold_start(
                bundle.root, artifact, threads=settings.threads[0], size=(int(height), int(width))
            )
            step()
    return found


def _entry(bundle: Bundle, artifact: Artifact, inputs: Feeds) -> OpenFile:
    return OpenFile(bundle.path(artifact.path), artifact, inputs)


def _evaluated(
    bundle: Bundle, artifact: Artifact, inputs: Feeds, kind: tuple[str, Origin], stages: Stages
) -> ArtifactLatency:
    times = []
    with (
        stages.stage(f"evaluator's time, {artifact.path}", EVALUATOR_SAMPLES + 1) as step,
        open_file(bundle, artifact, 1) as runner,
    ):
        feeds = feeds_of(runner, inputs)
        for _ in range(EVALUATOR_SAMPLES + 1):
            start = time.perf_counter_ns()
            runner.infer(feeds)
            times.append(time.perf_counter_ns() - start)
            step()
    latency = Latency(tuple(times[1:]), warmups_ns=(times[0],), per_round=1)
    return ArtifactLatency.of(artifact, *kind, latency)


def measure_latency(
    bundle: Bundle,
    stages: Stages,
    settings: ProfileSettings | None = None,
    *,
    formats: Sequence[Format] = tuple(Format),
    output: Path | None = None,
    command: str = "",
    errors: LayerErrors | None = None,
) -> ProfileResult:
    """Time every artifact and keep the figures in ``reports/profile.json``, or in *output*.

    Args:
        bundle: Opened.
        stages: Shows the progress.
        settings: How long and with how many threads.
        formats: Only artifacts of these.
        output: A file for the figures in place of the bundle's.
        command: As the user typed it, for the report.
        errors: Find out where the time of each file goes as well, and put these errors of layers beside; None for
            latencies alone.

    Raises:
        UsageError: The bundle has no such artifact, or the figures could not be kept.
        MissingDependencyError: None of them can be run here.
    """
    set_environment()
    kept = ReportFile(bundle, "profile.json", output)
    kept.check()
    settings = settings or ProfileSettings()
    with logged("profile"):
        profile = profile_bundle(bundle, settings, stages, formats=formats)
        result = profile_result(profile)
        if errors is not None and not result.interrupted:
            result = _with_operators(result, bundle, settings, stages, errors)
    with kept.replacing():
        keep(kept, bundle, result, command)
    return result


def _with_operators(
    result: ProfileResult, bundle: Bundle, settings: ProfileSettings, stages: Stages, errors: LayerErrors
) -> ProfileResult:
    """Add where the time of each file goes; Ctrl-C keeps what is known by then."""
    wanted = {(item.path, item.threads) for item in result.results if item.origin is not Origin.EVALUATED}
    inputs = {name: values[0] for name, values in bundle.golden("inputs").items()}
    found: list[OperatorProfile] = []
    skipped: dict[str, NotRun] = {}
    interrupted = False
    try:
        for artifact in bundle.manifest.artifacts:
            for threads in settings.threads:
                if (artifact.path, threads) not in wanted or artifact.path in skipped:
                    continue
                try:
                    found.append(_operators(bundle, artifact, inputs, threads, settings, stages, errors))
                except DeployError as error:
                    skipped[artifact.path] = NotRun(artifact.path, str(error))
    except KeyboardInterrupt:
        interrupted = True
    return dataclasses.replace(
        result, operators=tuple(found), operators_skipped=tuple(skipped.values()), interrupted=interrupted
    )


def _operators(
    bundle: Bundle,
    artifact: Artifact,
    inputs: Feeds,
    threads: int,
    settings: ProfileSettings,
    stages: Stages,
    errors: LayerErrors,
) -> OperatorProfile:
    report = bundle.manifest.lowering.get(artifact.path)
    blocks = None if report is None else tuple(Attention(block.name, block.kind) for block in report.blocks)
    facts = LayerFacts(bundle.layers(artifact), blocks, errors.get(artifact.path))
    with (
        pinned(settings.cpu_affinity),
        stages.stage(f"operators of {artifact.path}, {counted(threads, 'thread')}", TURNS) as step,
        open_file(bundle, artifact, threads) as runner,
    ):
        feeds = feeds_of(runner, inputs)
        return time_operators(bundle.path(artifact.path), artifact, runner, feeds, facts, threads, step=step)


def keep(file: ReportFile, bundle: Bundle, result: ProfileResult, command: str) -> None:
    """Add the runs of this call to the report."""
    earlier = file.earlier(read_reports, ProfileReports())
    session = begin_session(None, command)
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    made = ProfileReports(
        runs_of(result, hashes, session.tool_versions, session.time),
        (session_of(result, session.time),),
        operator_runs_of(result, hashes, session.tool_versions, session.time),
        sustained_runs_of(result, hashes, session.tool_versions, session.time),
    )
    kept = earlier.joined(made.told_by(session.machine, session.command))
    file.write(dump(kept, indent=None))


def settings_record(settings: ProfileSettings) -> SettingsRecord:
    """Return *settings* as documents hold them."""
    return SettingsRecord(
        settings.threads,
        settings.warmups,
        settings.samples,
        settings.openings,
        settings.min_seconds,
        settings.cpu_affinity,
        settings.seed,
    )
