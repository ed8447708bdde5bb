"""What one command found at many places."""

from dataclasses import dataclass
from typing import ClassVar, Final

from coordatt_deploy.evaluation.reports import EvaluationReports
from coordatt_deploy.inspection.installation import Installation
from coordatt_deploy.inspection.result import BundleInspectionResult, InspectionResult
from coordatt_deploy.parity.reports import ParityReports
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.profile.reports import ProfileReports

FAILED: Final = 1
NOT_RUN: Final = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The document of a command; one of these is given.

    Attributes:
        parity: Of ``parity``.
        profile: Of ``profile``, on a machine.
        instructions: Of ``profile``, on an emulated machine.
        evaluation: Of ``evaluate``.
        inspection: Of ``inspect``, of a file or model.
        bundle_inspection: Of ``inspect``, of a bundle.
        installation: Of ``doctor``.
    """

    parity: ParityReports | None = None
    profile: ProfileReports | None = None
    instructions: InstructionReports | None = None
    evaluation: EvaluationReports | None = None
    inspection: InspectionResult | None = None
    bundle_inspection: BundleInspectionResult | None = None
    installation: Installation | None = None


@dataclass(frozen=True, slots=True)
class PlaceResult:
    """What came back from one place.

    Attributes:
        place: Its name.
        target: As it was written.
        cpu: What the user says that it has; None where nothing was said.
        exit_code: Of the command there, or of what this program makes of its document; None where it did not run to
            its end.
        problem: Why there is no result, or what is wrong with it; None where all is well.
        found: What it found; None where there is no result.
        sent_bytes: What had to travel there.
    """

    place: str
    target: str
    cpu: str | None
    exit_code: int | None
    problem: str | None
    found: Found | None = None
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What one command found at many places.

    Attributes:
        command: Its name.
        places: In the order in which they were named.
    """

    VERSION: ClassVar[int] = 1

    command: str
    places: tuple[PlaceResult, ...]

    @property
    def exit_code(self) -> int:
        """1 where a check failed at a place, else 3 where a place has no result, else 0."""
        if any(place.exit_code == FAILED and place.found is not None for place in self.places):
            return FAILED
        return NOT_RUN if any(place.problem is not None or place.exit_code for place in self.places) else 0
