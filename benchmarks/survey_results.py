"""What the survey finds, as the types of its document."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from coordatt_deploy.formats import Format, Precision


class Verdict(enum.StrEnum):
    """What became of a file, or of a network."""

    PASSED = "passed"
    UNPROVEN = "unproven"
    REFUSED = "refused"
    FAILED = "failed"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class ArtifactResult:
    """What became of one network in one format and precision.

    Attributes:
        verdict: Of outputs and of all layers together.
        detail: Why it is not passed.
        lowest_sqnr_db: Over all layers and outputs, on the golden images; None where nothing was judged.
        layers: Of the captured graph.
        mapped: Share of them whose value is in the file.
        judged: Share of them on which there is a verdict.
        direct_sqnr_db: Of the outputs on a random image, run by the runtime without this project's runner and held
            against torch; None for a format whose runtime is not here.
    """

    format: Format
    precision: Precision
    verdict: Verdict
    detail: str = ""
    lowest_sqnr_db: float | None = None
    layers: int = 0
    mapped: float = 0.0
    judged: float = 0.0
    direct_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True)
class FaultCount:
    """Faults planted into one file: how many found a place, and how many were named."""

    path: str
    planted: int
    named: int
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """What became of one network.

    Attributes:
        network: Its key.
        side: Of the square images, in pixels.
        parameters: How many; None where it could not be built.
        artifacts: One for each format and precision.
        problem: How its process ended, where it ended badly.
        faults: That were planted into its files; empty where none were.
        sources: The commit of the project's sources, with a plus where files differed from it.
        versions: Of everything that had a hand in it.
        seconds: That it took.
    """

    VERSION: ClassVar[int] = 1

    network: str
    side: int
    parameters: int | None = None
    artifacts: tuple[ArtifactResult, ...] = ()
    problem: str | None = None
    faults: tuple[FaultCount, ...] = ()
    sources: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of its files."""
        if self.problem is not None or not self.artifacts:
            return Verdict.CRASHED
        order = list(Verdict)
        return max((item.verdict for item in self.artifacts), key=order.index)


@dataclass(frozen=True, slots=True)
class Survey:
    """The document of the survey.

    Attributes:
        results: In the order of the list of networks.
        left_out: Libraries that could not be imported, each with the reason.
    """

    VERSION: ClassVar[int] = 1

    results: tuple[NetworkResult, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
