"""The files of one network in one format, as jobs for processes of their own. Needs no torch before a job runs."""

from dataclasses import dataclass
from pathlib import Path

from coordatt_deploy.attention_cost.plan import CostPlan, Subject
from coordatt_deploy.attention_cost.written import WrittenNetwork
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
