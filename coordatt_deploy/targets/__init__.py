"""Targets: other machines, or emulated ones, on which artifacts are run.

A target is written ``name`` or ``name:cpu``, e.g. ``qemu-arm64:cortex-a53``. Its module opens artifacts like a runtime
does; what it computed carries the origin ``emulated`` and names the CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import DeployError, UsageError, nearest
from coordatt_deploy.formats import Format
from coordatt_deploy.progress import Progress

if TYPE_CHECKING:
    from coordatt_deploy.targets.qemu_arm64.counts import InstructionCount
    from coordatt_deploy.targets.session_client import EmulatedRunner


@dataclass(frozen=True, slots=True)
class TargetName:
    """A target and its CPU, both known; ``str`` gives the form that ``parse`` reads."""

    name: str
    cpu: str

    def __str__(self) -> str:
        return f"{self.name}:{self.cpu}"


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """Whether a target can be used here.

    Attributes:
        name: E.g. ``qemu-arm64``.
        state: ``ready``, ``missing`` (not built), ``damaged`` or ``outdated`` (of other versions).
        path: Where it is, or would be.
        reason: What is wrong with it; None when it is ready.
        counts: Whether it can count instructions.
        no_counts_because: Why it cannot; None where it can or is not ready.
        runtimes: Versions of the packages inside, by name.
        bytes: Size on disk; 0 where it is not built.
        command: The line that builds it, or builds it again.
    """

    name: str
    state: str
    path: str
    reason: str | None
    counts: bool
    no_counts_because: str | None
    runtimes: Mapping[str, str]
    bytes: int
    command: str


class Target(Protocol):
    """What each target's module offers (PEP 544: a module can satisfy a protocol)."""

    CPUS: Mapping[str, Any]
    DEFAULT_CPU: str

    def setup(self, cache_dir: Path | None = None, progress: Progress = ...) -> TargetStatus:
        """Build what the target needs, or find that it is there.

        Raises:
            MissingDependencyError: A step failed; the text says which, why, and where the log is.
        """

    def status(self, cache_dir: Path | None = None) -> TargetStatus:
        """Return whether the target can be used; never raises for a target that can't."""

    def why_not(self, artifact: Artifact) -> str | None:
        """Why *artifact* cannot run on the target; None if it can."""

    def open_artifact(
        self, path: Path, artifact: Artifact, *, cpu: str, tensors: tuple[str, ...] = (), cache_dir: Path | None = None
    ) -> "EmulatedRunner":
        """Open the file at *path*, as a runtime does (``coordatt_deploy.runtimes.Runtime``).

        Raises:
            UsageError: The target has no such CPU or cannot run the format.
            MissingDependencyError: The target is not set up, damaged, or of other versions.
            ConversionError: The runtime inside refused the file, or died.
        """

    def count_instructions(
        self,
        path: Path,
        artifact: Artifact,
        feeds: Mapping[str, NDArray[Any]],
        *,
        cpu: str,
        inferences: int = 3,
        warmups: int = 1,
        cache_dir: Path | None = None,
    ) -> "InstructionCount":
        """Return the guest's instructions per inference.

        Raises:
            MissingDependencyError: Also where the target cannot count; the text says why.
        """


TARGETS: Final = {
    "qemu-arm64": "coordatt_deploy.targets.qemu_arm64.target",
}


def target(name: str) -> Target:
    """Return the module of the target called *name* (without a CPU).

    Raises:
        UsageError: There is none of this name.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}; {nearest(name, TARGETS)}")
    return cast("Target", import_module(TARGETS[name]))


def parse(text: str) -> TargetName:
    """Read ``name`` or ``name:cpu``.

    Raises:
        UsageError: No such target, or it has no such CPU; the text holds the nearest names.
    """
    name, colon, cpu = text.partition(":")
    module = target(name)
    if not colon:
        return TargetName(name, module.DEFAULT_CPU)
    if cpu not in module.CPUS:
        raise UsageError(f"target {name} has no cpu {cpu!r}; {nearest(cpu, module.CPUS)}")
    return TargetName(name, cpu)


def runnable(
    artifacts: Sequence[Artifact], module: Target, formats: Sequence[Format], bundle: str
) -> tuple[list[Artifact], list[tuple[Artifact, str]]]:
    """Split the artifacts of these formats into those that can run on the target, and the others with the reason.

    Raises:
        UsageError: None can.
    """
    chosen = [artifact for artifact in artifacts if artifact.format in formats]
    able = [artifact for artifact in chosen if module.why_not(artifact) is None]
    unable = [(artifact, module.why_not(artifact) or "") for artifact in chosen if artifact not in able]
    if not able:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in unable)) or "it has none in these formats"
        raise UsageError(f"nothing of {bundle} can run on the target: {reasons}")
    return able, unable


def setup(text: str, progress: Progress) -> TargetStatus:
    """Build what the target needs, which is written as for ``parse``.

    Raises:
        UsageError: No such target.
        MissingDependencyError: A step failed; which, why, and where the log is.
    """
    return target(parse(text).name).setup(progress=progress)


def statuses() -> tuple[TargetStatus, ...]:
    """Return what is known of every target here; a target that cannot even be looked at is left out."""
    found = []
    for name in TARGETS:
        try:
            found.append(target(name).status())
        except DeployError:
            continue
    return tuple(found)
