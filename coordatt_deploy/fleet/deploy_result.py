"""What became of a deployment on each board."""

import enum
from dataclasses import dataclass
from typing import ClassVar


class DeployState(enum.StrEnum):
    """What was done on a board."""

    SWITCHED = "switched"
    """Its current version is the one that was deployed, proven there."""
    ALREADY = "already current"
    """It was the current one before, and was proven again."""
    BACK = "rolled back"
    """Its current version is the one before."""
    PLANNED = "would change"
    """Nothing was done: it was only asked what would be."""
    FAILED = "parity failed"
    """An artifact does not compute there what it should, or was not judged: the old version stays."""
    LEFT = "left as it was"
    """It could not be reached, or something else kept it from the change: the old version stays."""


@dataclass(frozen=True, slots=True)
class BoardDeployment:
    """What became of one board.

    Attributes:
        host: What reports call it.
        address: Where it is reached.
        state: What was done.
        before: The version that was current; None for none, or where that is not known.
        now: The version that is current now; likewise.
        reason: Why it was left as it was, or what else is to be known; None where there is nothing to say.
        proven: Whether parity was proven there; None where that was not asked for, or did not come to it.
        known: Whether it is known which version is current.
        sent_bytes: What travelled.
    """

    host: str
    address: str
    state: DeployState
    before: str | None = None
    now: str | None = None
    reason: str | None = None
    proven: bool | None = None
    known: bool = True
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeployResult:
    """What one call of ``deploy`` did.

    Attributes:
        bundle: The folder that was deployed; None for a rollback without one.
        version: The version's name, which ends in the first digits of the hash of its contents.
        artifacts: Paths of the artifacts in it.
        rollback: Whether boards went back to the version before.
        dry_run: Whether nothing was to be changed.
        boards: In the order in which they were named.
    """

    VERSION: ClassVar[int] = 1

    bundle: str | None
    version: str | None
    artifacts: tuple[str, ...]
    rollback: bool
    dry_run: bool
    boards: tuple[BoardDeployment, ...]

    def counted(self, state: DeployState) -> int:
        """Return how many boards are in *state*."""
        return sum(board.state is state for board in self.boards)

    @property
    def exit_code(self) -> int:
        """0 where every board did what was asked, 1 where parity failed on one, else 3."""
        if self.counted(DeployState.FAILED):
            return 1
        return 3 if self.counted(DeployState.LEFT) else 0
