"""The files of one network in one format, as jobs for processes of their own. Needs no torch before a job runs."""

from dataclasses import dataclass
from pathlib import Path

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.attention_cost.plan import CostPlan, Subject, Way
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import captured


@dataclass(frozen=True, slots=True)
class CostJob:
    """What one process does.

    Attributes:
        plan: Of the whole comparison.
        subject: The network.
        format: Of the files.
        folder: Where they go; it exists.
        log: For what converters say.
    """

    plan: CostPlan
    subject: Subject
    format: Format
    folder: Path
    log: Path


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file, or why there is none.

    Attributes:
        way: How it was written.
        artifact: Its description; its path is relative to the job's folder. None where it was refused.
        operators: How many the runtime sees.
        partitions: Stretches that an accelerator runs as one piece each; None where the format has none that tells.
        refused: Why it could not be written; None where it was.
    """

    way: Way
    artifact: Artifact | None = None
    operators: int | None = None
    partitions: int | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class WrittenNetwork:
    """What one process made.

    Attributes:
        subject: The network.
        parameters: That training adjusts.
        macs: Multiply-accumulates of one inference, pools and gates included.
        shape: Of its image, (N, C, H, W).
        files: One for each way.
    """

    subject: Subject
    parameters: int
    macs: int
    shape: tuple[int, ...]
    files: tuple[WrittenFile, ...]


def write(job: CostJob) -> WrittenNetwork:
    """Write the files of one network in one format; run in a process of its own.

    Raises:
        UsageError: See ``networks.network``.
    """
    with captured(job.log):
        # here, and not above: what torch and converters print as they load belongs in the log
        import torch

        from coordatt_deploy.attention_cost.conversions import written
        from coordatt_deploy.attention_cost.networks import network
        from coordatt_deploy.graph.macs import count
        from coordatt_deploy.loading.loaded_model import capture_source

        torch.set_num_threads(1)
        source = network(job.plan, job.subject)
        graph = capture_source(source)
        made = WrittenNetwork(
            subject=job.subject,
            parameters=sum(item.numel() for item in source.module.parameters()),
            macs=count(graph).macs,
            shape=tuple(source.example[0].shape),
            files=tuple(written(source, graph, way, job.folder) for way in job.plan.ways() if way.format is job.format),
        )
    job.log.unlink(missing_ok=True)
    return made
