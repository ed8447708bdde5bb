"""Run the files of a bundle one after the other, each without a pause, and judge whether their latencies hold."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.profile.noise import evidence_between
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.profile.rounds import pinned
from coordatt_deploy.profile.run import keep, kind_of, open_file, openable_files, settings_record
from coordatt_deploy.profile.sustained import Seen, SustainedSettings, cool_down, heat_events, run_for
from coordatt_deploy.profile.sustained_result import SustainedLatency
from coordatt_deploy.profile.sustained_verdict import Part, clock, judge
from coordatt_deploy.profile.turns import Feeds, feeds_of, percents
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile
from coordatt_deploy.run_records import NotRun


def measure_sustained(
    bundle: Bundle,
    stages: Stages,
    sustained: SustainedSettings,
    settings: ProfileSettings | None = None,
    *,
    formats: Sequence[Format] = tuple(Format),
    output: Path | None = None,
    command: str = "",
) -> ProfileResult:
    """Run every artifact without a pause and keep what came of it in ``reports/profile.json``, or in *output*.

    Ctrl-C keeps the windows that were complete, if any were.

    Args:
        bundle: Opened.
        stages: Shows the progress.
        sustained: How long, and how long to wait before each.
        settings: Threads, warm-ups and cores.
        formats: Only artifacts of these.
        output: A file for the figures in place of the bundle's.
        command: As the user typed it, for the report.

    Raises:
        UsageError: The bundle has no such artifact, only an evaluator runs them here, or the figures could not be kept.
        MissingDependencyError: None of them can be run here.
    """
    set_environment()
    kept = ReportFile(bundle, "profile.json", output)
    kept.check()
    with logged("profile"):
        result = _measured(bundle, stages, sustained, settings or ProfileSettings(), formats)
    with kept.replacing():
        keep(kept, bundle, result, command)
    return result


@dataclass(slots=True)
class _Course:
    """What is run how, and what was found so far.

    Attributes:
        bundle: Opened.
        inputs: That every call is fed with.
        stages: Shows the progress.
        sustained: How long.
        settings: How.
        found: One for each file and number of threads.
        skipped: Files that were not run, by path.
        cool_c: Temperature before the first file, after the pause.
        begun: Whether a file ran already.
        interrupted: Whether Ctrl-C ended it early.
    """

    bundle: Bundle
    inputs: Feeds
    stages: Stages
    sustained: SustainedSettings
    settings: ProfileSettings
    found: list[SustainedLatency] = field(default_factory=list)
    skipped: dict[str, NotRun] = field(default_factory=dict)
    cool_c: float | None = None
    begun: bool = False
    interrupted: bool = False


def _measured(
    bundle: Bundle, stages: Stages, sustained: SustainedSettings, settings: ProfileSettings, formats: Sequence[Format]
) -> ProfileResult:
    here, before = host.describe(), host.state()
    inputs = {name: values[0] for name, values in bundle.golden("inputs").items()}
    openable, skipped = openable_files(bundle, formats)
    course = _Course(bundle, inputs, stages, sustained, settings, skipped={item.path: item for item in skipped})
    kinds = {artifact.path: kind_of(bundle, artifact) for artifact in openable}
    for path, (_, origin) in kinds.items():
        if origin is Origin.EVALUATED:
            course.skipped[path] = NotRun(path, "an evaluator runs it here, whose time says nothing about a phone")
    if not kinds.keys() - course.skipped.keys():
        raise UsageError(
            f"{bundle.root} has no file among these that its own runtime runs here; choose another --format"
        )
    try:
        for threads in settings.threads:
            for artifact in openable:
                if artifact.path not in course.skipped:
                    _add(course, artifact, kinds[artifact.path][0], threads)
                if course.interrupted:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not course.found:
            raise
        course.interrupted = True
    return ProfileResult(
        host=dataclasses.replace(here, before=before, after=host.state()),
        settings=dataclasses.replace(
            settings_record(settings), sustained_s=sustained.seconds, cool_down_s=sustained.cool_down_s
        ),
        results=(),
        ratios=(),
        skipped=tuple(course.skipped.values()),
        interrupted=course.interrupted,
        inputs={name: tuple(value.shape) for name, value in inputs.items()},
        sustained=tuple(course.found),
    )


def _add(course: _Course, artifact: Artifact, runtime: str, threads: int) -> None:
    """Run one file; one that fails on the way is skipped, as the others may have run for an hour."""
    sustained = course.sustained
    warm = course.begun and not sustained.cool_down_s
    cooled = _cool_down(course, artifact)
    course.begun = True
    name = f"{artifact.path}, {counted(threads, 'thread')}, without a pause for {clock(sustained.seconds)}"
    try:
        with (
            pinned(course.settings.cpu_affinity),
            course.stages.stage(name, 100) as step,
            open_file(course.bundle, artifact, threads) as runner,
        ):
            call = partial(runner.infer, feeds_of(runner, course.inputs))
            seen = run_for(
                call, sustained.seconds, threads=threads, warmups=course.settings.warmups, on_progress=percents(step)
            )
    except DeployError as error:
        course.skipped[artifact.path] = NotRun(artifact.path, str(error))
        return
    course.interrupted = seen.interrupted
    course.found.append(latency_of(artifact, runtime, seen, sustained.seconds, threads, warm=warm, cooled_s=cooled))


def _cool_down(course: _Course, artifact: Artifact) -> float:
    """Wait as long as was asked for; what the CPU is like after the first time is what it shall come back to."""
    longest = course.sustained.cool_down_s
    if not longest:
        return 0.0
    with course.stages.stage(f"cool-down before {artifact.path}, at most {clock(longest)}", 100) as step:
        waited = cool_down(longest, course.cool_c, temperature=host.temperature, on_progress=percents(step))
    if not course.begun:
        course.cool_c = host.temperature()
    return waited


def latency_of(
    artifact: Artifact, runtime: str, seen: Seen, asked_s: float, threads: int, *, warm: bool = False,
    cooled_s: float = 0.0,
) -> SustainedLatency:  # fmt: skip
    """Put what was seen of *artifact* beside the verdict on it.

    Args:
        artifact: That ran.
        runtime: Name and version of what ran it.
        seen: Its windows.
        asked_s: How long it was to run.
        threads: Worker threads of the runtime.
        warm: Whether another file ran right before.
        cooled_s: The pause before it.
    """
    windows, states = seen.windows, (seen.before.state, seen.after.state)
    events = heat_events(*states)
    judged = judge(windows, idle_cores=int(evidence_between(*states, threads).idle_cores or 0), heat_events=events)

    def level(part: Part | None) -> float | None:
        return None if part is None else median(item.median_ms for item in part.of(windows))

    return SustainedLatency(
        path=artifact.path,
        format=artifact.format,
        precision=artifact.precision,
        target_cpu=artifact.target_cpu,
        runtime=runtime,
        threads=threads,
        asked_s=asked_s,
        lasted_s=seen.lasted_s,
        calls=sum(item.calls for item in windows),
        first_ms=level(judged.first),
        steady_ms=level(judged.last),
        verdict=judged.verdict,
        windows=windows,
        warm=warm,
        cooled_s=cooled_s,
        heat_events=events,
        unreadable=seen.before.unreadable,
    )
