"""Compare what attention costs: write the files, time those of one runtime in turns, count instructions, hold against.

Every ratio of latencies comes from files that took turns in one run (``profile.turns``), with the interval and the
verdict of ``profile.compare``; instructions repeat, so their ratios have none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy import host, targets
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.attention_cost.figures import Figures, Key, row
from coordatt_deploy.attention_cost.files import CostJob, write
from coordatt_deploy.attention_cost.plan import FAMILIES, CostPlan, Subject
from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.attention_cost.written import WrittenFile, WrittenNetwork
from coordatt_deploy.conversion.refusals import OF_ONE_FILE
from coordatt_deploy.errors import BundleError, DeployError, InferenceError
from coordatt_deploy.formats import Format, TargetCpu, slowest_first
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.processes import Task, job_log, workers
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.result import SettingsRecord
from coordatt_deploy.profile.turns import OpenFile, take_turns
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.tensors import encode

INFERENCES: Final = 1  # that are counted, after one that is not: two of them differ by less than 0.01 %


def measure_cost(plan: CostPlan, stages: Stages | None = None) -> AttentionCost:
    """Find out what attention costs; Ctrl-C during a measurement keeps what was measured, if anything was.

    Raises:
        UsageError: See ``CostPlan.check``; a network of the user's own that cannot be taken.
        MissingDependencyError: A converter, a runtime or the target is not there.
    """
    set_environment()
    plan.check()
    stages = stages or Stages()
    here, before = host.describe(), host.state()
    with Scratch() as folder, logged("attention-cost"):
        networks = _written(plan, folder, stages)
        found = Figures()
        interrupted = False
        if plan.latency is not None:
            networks, found, interrupted = _timed(networks, folder, plan.latency, here, stages)
        if plan.target is not None and not interrupted:
            found = replace(found, instructions=_counted(networks, folder, plan.target, stages))
    return AttentionCost(
        host=dataclasses.replace(here, before=before, after=host.state()),
        settings=None if plan.latency is None else SettingsRecord(**dataclasses.asdict(plan.latency)),
        target=None if plan.target is None else str(targets.parse(plan.target)),
        rows=tuple(row(network, networks, found) for network in networks),
        interrupted=interrupted,
    )


def _written(plan: CostPlan, folder: Path, stages: Stages) -> tuple[WrittenNetwork, ...]:
    """Write every file of every network, a process for each network and format."""
    formats = sorted(dict.fromkeys(way.format for way in plan.ways()), key=slowest_first)
    jobs = []
    for kind in formats:
        for number, subject in enumerate(plan.subjects):
            place = _place(folder, number, kind)
            place.mkdir(parents=True)
            jobs.append(CostJob(plan, subject, kind, place, job_log("attention-cost", place / f"{kind}_{number}")))
    done: dict[tuple[Subject, Format], WrittenNetwork] = {}
    refused: dict[tuple[Subject, Format], DeployError] = {}
    with workers(len(jobs)) as pool, stages.stage("convert", len(jobs)) as step:
        calls = {pool.submit(Task(f"writing {_named(job)}", write), job): job for job in jobs}
        for call in pool.completed(list(calls)):
            key = (calls[call].subject, calls[call].format)
            try:
                done[key] = call.result()
            except OF_ONE_FILE as error:
                refused[key] = error
            step()
    return tuple(_joined(plan, subject, done, refused) for subject in plan.subjects)


def _joined(
    plan: CostPlan,
    subject: Subject,
    done: Mapping[tuple[Subject, Format], WrittenNetwork],
    refused: Mapping[tuple[Subject, Format], DeployError],
) -> WrittenNetwork:
    """The files of all formats of one network; what ended a process is the reason of each file that it was to write.

    Raises:
        DeployError: Not one process of the network came to its end.
    """
    own = [network for (item, _), network in done.items() if item == subject]
    if not own:
        raise next(error for (item, _), error in refused.items() if item == subject)
    files = {file.way: file for network in own for file in network.files}
    missing = {way: refused[subject, way.format] for way in plan.ways() if way not in files}
    files |= {way: WrittenFile(way, refused=str(error)) for way, error in missing.items()}
    return replace(own[0], files=tuple(files[way] for way in plan.ways()))


def _named(job: CostJob) -> str:
    return f"{job.format} files of {job.subject.backbone} with {job.subject.attention or 'no attention'}"


def _place(folder: Path, number: int, kind: Format) -> Path:
    return folder / str(number) / kind


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that was written, and where it is."""

    key: Key
    path: Path
    artifact: Artifact
    feeds: Mapping[str, NumberArray]


def _files(networks: Sequence[WrittenNetwork], folder: Path, cpu: TargetCpu | None) -> list[_Opened]:
    """The files that were written, in a form for *cpu* where forms differ."""
    found = []
    for number, network in enumerate(networks):
        noise = np.random.default_rng(7).standard_normal(network.shape, np.float32)
        for file in network.files:
            if file.artifact is None or file.way.target_cpu not in (None, cpu):
                continue
            path = _place(folder, number, file.way.format) / file.artifact.path
            feeds = {spec.name: noise for spec in file.artifact.inputs}
            found.append(_Opened((network.subject, file.way), path, file.artifact, feeds))
    return found


def _timed(
    networks: tuple[WrittenNetwork, ...], folder: Path, settings: ProfileSettings, here: host.Host, stages: Stages
) -> tuple[tuple[WrittenNetwork, ...], Figures, bool]:
    """Time the files that a runtime here measures, those of one format and precision in turns.

    Returns:
        The networks, with the files that no runtime opens among those that are refused; latencies; whether Ctrl-C
        ended it.
    """
    (threads,) = settings.threads
    opened, runtimes, refused = [], dict[Key, str](), dict[Key, str]()
    for file in _files(networks, folder, FAMILIES.get(here.architecture)):
        try:
            with runtime(file.artifact.format).open_artifact(file.path, file.artifact, threads=threads) as runner:
                if runner.origin is Origin.MEASURED:
                    runner.infer({spec.name: encode(file.feeds[spec.name], spec) for spec in runner.inputs})
                    opened.append(file)
                    runtimes[file.key] = runner.runtime
        except (BundleError, InferenceError) as error:
            refused[file.key] = f"its runtime cannot run it: {error}"
    latencies: dict[Key, Latency] = {}
    interrupted = False
    try:
        for kind in dict.fromkeys((file.key[1].format, file.key[1].precision) for file in opened):
            group = {str(number): file for number, file in enumerate(opened)
                     if (file.key[1].format, file.key[1].precision) == kind}  # fmt: skip
            entries = {name: OpenFile(file.path, file.artifact, file.feeds) for name, file in group.items()}
            measured = take_turns(entries, settings, stages, threads=threads, what=" ".join(kind))
            latencies |= {group[name].key: latency for name, latency in measured.latencies.items()}
            if measured.interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not latencies:
            raise
        interrupted = True
    return _without(networks, refused), Figures(latencies, runtimes), interrupted


def _without(networks: tuple[WrittenNetwork, ...], refused: Mapping[Key, str]) -> tuple[WrittenNetwork, ...]:
    return tuple(
        replace(network, files=tuple(
            WrittenFile(file.way, refused=refused[network.subject, file.way])
            if (network.subject, file.way) in refused else file
            for file in network.files
        ))
        for network in networks
    )  # fmt: skip


def _counted(networks: Sequence[WrittenNetwork], folder: Path, target: str, stages: Stages) -> dict[Key, int]:
    """Count the instructions of the files that the target runs."""
    name = targets.parse(target)
    module = targets.target(name.name)
    files = [file for file in _files(networks, folder, TargetCpu.ARM64)
             if module.unsupported_reason(file.artifact) is None]  # fmt: skip
    found = {}
    with stages.stage(f"instructions on {name}", len(files)) as step:
        for file in files:
            feeds = {spec.name: encode(file.feeds[spec.name], spec) for spec in file.artifact.inputs}
            counted = module.count_instructions(file.path, file.artifact, feeds, cpu=name.cpu, inferences=INFERENCES)
            found[file.key] = counted.total
            step()
    return found
