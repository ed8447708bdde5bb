"""Targets: other machines, or emulated ones, on which artifacts are run.

A target is written ``name`` or ``name:cpu``, e.g. ``qemu-arm64:cortex-a53``. Its module starts a machine, which opens
artifacts like a runtime does; what it computed carries its origin and names the CPU. A new target is a row of TARGETS
and a folder with a ``target`` module; what several of them need is here and in ``session_client``, which speaks to a
``session_server`` on the other machine through two pipes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.errors import DeployError, UsageError, nearest
from coordatt_deploy.formats import Format
from coordatt_deploy.progress import Progress
from coordatt_deploy.runtimes import Runner


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
        counting_problem: Why it cannot; None where it can or is not ready.
        runtimes: Versions of the packages inside, by name.
        bytes: Size on disk; 0 where it is not built.
        command: The line that builds it, or builds it again.
    """

    name: str
    state: str
    path: str
    reason: str | None
    counts: bool
    counting_problem: str | None = field(metadata={"key": "no_counts_because"})
    runtimes: Mapping[str, str]
    bytes: int
    command: str


@dataclass(frozen=True, slots=True)
class InstructionCount:
    """Instructions of one inference.

    Attributes:
        total: Median over the inferences counted.
        classes: The inference with that total, by class; they add up to it.
        per_inference: Totals in the order of counting; the warm-ups before them are left out.
        spread: (greatest - least) / median of them.
        runtime: What ran, with its version and CPU.
        origin: Whether the instructions ran on a CPU or on an emulated one.
    """

    total: int
    classes: Mapping[str, int]
    per_inference: tuple[int, ...]
    spread: float
    runtime: str
    origin: Origin = Origin.EMULATED


class Cpu(Protocol):
    """What a target tells of one of its CPUs."""

    @property
    def name(self) -> str:
        """As the user writes it."""

    @property
    def features(self) -> tuple[str, ...]:
        """Instruction sets, in the words of Linux's /proc/cpuinfo."""

    @property
    def note(self) -> str:
        """What the reader of a report should know about it."""


class Session(Protocol):
    """A machine that was started, and opens artifacts until it is left. Use as a context manager."""

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> Runner:
        """Open the file at *path* there; see ``runtimes.Runtime.open_artifact``. The session has to outlive the runner.

        Raises:
            BundleError: The runtime cannot open it.
            ConversionError: The runtime died of it.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Target(Protocol):
    """What each target's module offers (PEP 544: a module can satisfy a protocol)."""

    @property
    def CPUS(self) -> Mapping[str, Cpu]:  # noqa: N802 - a constant of the module
        """What can stand behind the colon of the target's name."""

    @property
    def DEFAULT_CPU(self) -> str:  # noqa: N802
        """The CPU that is meant where none is named."""

    def setup(self, cache_dir: Path | None = None, progress: Progress | None = None) -> TargetStatus:
        """Build what the target needs, or find that it is there.

        Raises:
            MissingDependencyError: A step failed; the text says which, why, and where the log is.
        """

    def status(self, cache_dir: Path | None = None) -> TargetStatus:
        """Return whether the target can be used; never raises for a target that can't."""

    def unsupported_reason(self, artifact: Artifact) -> str | None:
        """Why *artifact* cannot run on the target; None if it can."""

    def start(self, cpu: str, *, cache_dir: Path | None = None) -> Session:
        """Start a machine to open several artifacts on.

        Raises:
            UsageError: The target has no such CPU.
            MissingDependencyError: The target is not set up, damaged, or of other versions.
        """

    def count_instructions(
        self,
        path: Path,
        artifact: Artifact,
        feeds: Mapping[str, NumberArray],
        *,
        cpu: str,
        inferences: int = 3,
        warmups: int = 1,
        cache_dir: Path | None = None,
    ) -> InstructionCount:
        """Return the instructions per inference.

        Raises:
            UsageError: The target has no such CPU or cannot run the artifact.
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
    chosen = [(artifact, module.unsupported_reason(artifact)) for artifact in artifacts if artifact.format in formats]
    able = [artifact for artifact, reason in chosen if reason is None]
    unable = [(artifact, reason) for artifact, reason in chosen if reason is not None]
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
