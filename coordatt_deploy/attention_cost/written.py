"""What a process that writes the files of a network gives back."""

from dataclasses import dataclass

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.attention_cost.plan import Subject, Way


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
