"""Time the artifacts of a bundle: open them in their runtimes and hand them to the clock."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from coordatt_deploy import host
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.cold_start import cold_start
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.latency import ColdStart, Measurement, ProfileSettings
from coordatt_deploy.profile import measure_openings
from coordatt_deploy.profile_document import ArtifactLatency, Profile, Skipped
from coordatt_deploy.quiet import captured
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.specs import Artifact, Origin, to_json
from coordatt_deploy.tensors import encode

Progress = Callable[[float], None]

# The evaluator's time says how long evaluating takes, not how fast a phone is: a glance is enough.
GLANCE = {"warmups": 1, "samples": 20, "openings": 1, "min_seconds": 0.0}


def measure_bundle(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    settings: ProfileSettings,
    log: Path,
    on_progress: Progress = lambda _: None,
) -> Profile:
    """Measure *artifacts*, those of real runtimes in interleaved rounds, evaluated ones after them.

    Args:
        bundle: Holds them; the first golden input is what they are timed on.
        artifacts: Which.
        settings: How long, with which numbers of threads.
        log: Where the chatter of the runtimes goes.
        on_progress: Told the share that is done, from 0 to 1.

    Raises:
        MissingDependencyError: None of the artifacts can be run here.
    """
    described = replace(host.describe(), before=host.state())
    origins: dict[str, tuple[str, Origin]] = {}
    cold: dict[str, ColdStart] = {}
    missing: list[Skipped] = []
    size = bundle.manifest.model.preprocessing.size
    with captured(log):
        for artifact in artifacts:
            try:
                with runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact) as runner:
                    origins[artifact.path] = runner.runtime, runner.origin
                cold[artifact.path] = cold_start(bundle.root, artifact, threads=settings.threads[0], size=size)
            except MissingDependencyError as error:
                missing.append(Skipped(artifact.path, str(error)))
    if not origins:
        raise MissingDependencyError(missing[0].reason if missing else "there is nothing to measure")
    results: list[ArtifactLatency] = []
    yardsticks = {}
    interrupted = False
    real = [item for item in artifacts if origins.get(item.path, ("", None))[1] is Origin.MEASURED]
    evaluated = [item for item in artifacts if origins.get(item.path, ("", None))[1] is Origin.EVALUATED]
    plans = [(real, settings, threads) for threads in settings.threads if real]
    plans += [(evaluated, replace(settings, threads=(1,), **GLANCE), 1)] if evaluated else []  # type: ignore[arg-type]
    for number, (group, plan, threads) in enumerate(plans):
        share = partial(_share, on_progress, number, len(plans))
        with captured(log):
            measured: Measurement = measure_openings(
                partial(_calls, bundle, group, threads), plan, threads=threads, on_progress=share
            )
        for artifact in group:
            if artifact.path in measured.latencies:
                name, origin = origins[artifact.path]
                latency = measured.latencies[artifact.path]
                results.append(ArtifactLatency.of(artifact, name, origin, latency, cold.get(artifact.path)))
        if measured.yardstick is not None and group is real:
            yardsticks[threads] = measured.yardstick
        interrupted |= measured.interrupted
        if interrupted:
            break
    described = replace(described, after=host.state())
    return Profile(
        host=described,
        results=tuple(results),
        yardsticks=yardsticks,
        settings=to_json(settings),
        skipped=tuple(missing),
        interrupted=interrupted,
    )


def _share(report: Progress, number: int, total: int, share: float) -> None:
    report((number + share) / total)


@contextmanager
def _calls(bundle: Bundle, artifacts: Sequence[Artifact], threads: int) -> Iterator[Mapping[str, Callable[[], object]]]:
    inputs = bundle.golden("inputs")
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        for artifact in artifacts:
            opened: Runner = runtime(artifact.format).open_artifact(
                bundle.path(artifact.path), artifact, threads=threads
            )
            runner = stack.enter_context(opened)
            feeds = {spec.name: encode(inputs[spec.name][0], spec) for spec in runner.inputs}
            calls[artifact.path] = partial(runner.infer, feeds)
        yield calls
