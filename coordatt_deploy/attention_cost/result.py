"""What ``attention-cost`` finds: of each network and file what it costs, and what that is against the plain network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.attention_cost.plan import OURS
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.host import Host
from coordatt_deploy.models.attention_options import Activation
from coordatt_deploy.profile.compare import Comparison
from coordatt_deploy.profile.result import LatencyRecord, SettingsRecord


@dataclass(frozen=True, slots=True)
class CostFile:
    """One file of a network.

    What it is held against is the cheaper of the plain network's files of the same format and precision, whoever wrote
    it, in a form for the same CPU; and the official converter's file of the same network.

    Attributes:
        export: ``default`` (the official converter) or ``ours``.
        format: Of the file.
        precision: That it computes in.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        refused: Why it could not be written; then the next ones are null. None where it was.
        bytes: On disk.
        operators: How many the runtime sees.
        partitions: Stretches that an accelerator runs as one piece each; None where the format has none that tells.
        latency: Of this file; None where it was not measured.
        latency_over_plain: Its latency against the plain network's, measured in turns in one run.
        latency_over_default: The same against the official converter's file.
        instructions: Of one inference on the target; None where they were not counted.
        instructions_over_plain: A ratio; it repeats, so it has no interval.
        instructions_over_default: The same against the official converter's file.
    """

    export: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    refused: str | None = None
    bytes: int | None = None
    operators: int | None = None
    partitions: int | None = None
    latency: LatencyRecord | None = None
    latency_over_plain: Comparison | None = None
    latency_over_default: Comparison | None = None
    instructions: int | None = None
    instructions_over_plain: float | None = None
    instructions_over_default: float | None = None


@dataclass(frozen=True, slots=True)
class CostRow:
    """One network.

    Attributes:
        backbone: As the user named it.
        attention: The kind of its blocks; None without any, and for a network of the user's own as it came.
        activation: That the blocks were given; None as published.
        untouched: Whether it is the user's own network as it came.
        input_shape: Of its image, (N, C, H, W).
        parameters: That training adjusts.
        macs: Multiply-accumulates of one inference, pools and gates included.
        files: In the order of formats and precisions.
    """

    backbone: str
    attention: str | None
    activation: Activation | None
    untouched: bool
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    files: tuple[CostFile, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the others are held against it."""
        return self.attention is None and not self.untouched


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """What one call of ``attention-cost`` found.

    Attributes:
        host: The machine that latency was measured on, with its states before and after.
        settings: How latency was measured; None where it was not.
        target: Whose instructions were counted, with its CPU; None where they were not.
        rows: Each backbone's plain network first.
        interrupted: Whether Ctrl-C ended the measurement early.
    """

    VERSION: ClassVar[int] = 1

    host: Host
    settings: SettingsRecord | None
    target: str | None
    rows: tuple[CostRow, ...]
    interrupted: bool = False

    def of_backbones(self) -> Iterator[tuple[CostRow, ...]]:
        """Yield the rows of each backbone."""
        for name in dict.fromkeys(row.backbone for row in self.rows):
            yield tuple(row for row in self.rows if row.backbone == name)

    @property
    def refused(self) -> tuple[tuple[CostRow, CostFile], ...]:
        """The files that could not be written."""
        return tuple((row, file) for row in self.rows for file in row.files if file.refused is not None)

    @property
    def exit_code(self) -> int:
        """1 where this package could not write a file; what the official converters refuse is a finding."""
        return int(any(file.export == OURS for _, file in self.refused))
