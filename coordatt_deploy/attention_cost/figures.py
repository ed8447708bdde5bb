"""From what was measured of each file to the rows of the result: each held against the plain network's cheapest file.

Where the plain network's two files differ by noise alone, the one that happened to be measured as the faster is taken:
what attention costs is then rather said too high than too low.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.attention_cost.plan import OFFICIAL, Subject, Way
from coordatt_deploy.attention_cost.result import CostFile, CostRow
from coordatt_deploy.attention_cost.written import WrittenFile, WrittenNetwork
from coordatt_deploy.profile.compare import Comparison, compare_latencies
from coordatt_deploy.profile.latency import Latency
from coordatt_deploy.profile.result import ArtifactLatency, LatencyRecord, latency_record

Key = tuple[Subject, Way]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, by file.

    Attributes:
        latencies: Of the files that took turns.
        runtimes: What ran each of them.
        instructions: Of one inference, where they were counted.
    """

    latencies: Mapping[Key, Latency] = field(default_factory=dict)
    runtimes: Mapping[Key, str] = field(default_factory=dict)
    instructions: Mapping[Key, int] = field(default_factory=dict)


def row(network: WrittenNetwork, networks: Sequence[WrittenNetwork], found: Figures) -> CostRow:
    """Return the row of *network*, held against the plain one of the same backbone among *networks*."""
    subject = network.subject
    (plain,) = (item for item in networks if item.subject == Subject(subject.backbone))
    return CostRow(
        backbone=subject.backbone,
        attention=subject.attention,
        activation=subject.activation,
        untouched=subject.untouched,
        input_shape=network.shape,
        parameters=network.parameters,
        macs=network.macs,
        files=tuple(_file(subject, file, plain, found) for file in network.files),
    )


def _file(subject: Subject, file: WrittenFile, plain: WrittenNetwork, found: Figures) -> CostFile:
    way = file.way
    if file.artifact is None:
        return CostFile(way.export, way.format, way.precision, way.target_cpu, file.refused)
    key, default = (subject, way), (subject, Way(OFFICIAL, way.format, way.precision))
    rivals = [(plain.subject, item.way) for item in plain.files if _comparable(item.way, way)]
    return CostFile(
        export=way.export,
        format=way.format,
        precision=way.precision,
        target_cpu=way.target_cpu,
        bytes=file.artifact.bytes,
        operators=file.operators,
        partitions=file.partitions,
        latency=_record(file.artifact, key, found),
        latency_over_plain=_over(
            key, _least(rivals, {item: of.median_ms for item, of in found.latencies.items()}), found
        ),
        latency_over_default=_over(key, default, found),
        instructions=found.instructions.get(key),
        instructions_over_plain=_ratio(key, _least(rivals, found.instructions), found),
        instructions_over_default=_ratio(key, default, found),
    )


def _comparable(plain: Way, way: Way) -> bool:
    """Whether a file of the plain network is for the same runtime and CPU; the official converters know no CPU."""
    if (plain.format, plain.precision) != (way.format, way.precision):
        return False
    return way.target_cpu is None or plain.target_cpu in (None, way.target_cpu)


def _least(keys: Sequence[Key], figures: Mapping[Key, float]) -> Key | None:
    return min((key for key in keys if key in figures), key=lambda key: figures[key], default=None)


def _over(key: Key, other: Key | None, found: Figures) -> Comparison | None:
    if other is None or key == other or other not in found.latencies or key not in found.latencies:
        return None
    return compare_latencies(found.latencies[other], found.latencies[key])


def _ratio(key: Key, other: Key | None, found: Figures) -> float | None:
    if other is None or key == other or other not in found.instructions or key not in found.instructions:
        return None
    return found.instructions[key] / found.instructions[other]


def _record(artifact: Artifact, key: Key, found: Figures) -> LatencyRecord | None:
    if key not in found.latencies:
        return None
    return latency_record(ArtifactLatency.of(artifact, found.runtimes[key], Origin.MEASURED, found.latencies[key]))
