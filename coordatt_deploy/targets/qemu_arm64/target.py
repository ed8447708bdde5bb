"""ARM64 without ARM hardware: the runtimes' real ARM64 kernels under QEMU's user-mode emulation.

Results are what the kernels compute, since QEMU's arithmetic is IEEE; they are labelled ``emulated``. Time says
nothing here, so what is counted are the guest's instructions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.formats import Format
from coordatt_deploy.progress import Progress
from coordatt_deploy.targets import TargetStatus
from coordatt_deploy.targets.qemu_arm64 import build
from coordatt_deploy.targets.qemu_arm64.counts import InstructionCount, summarise
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU, Cpu
from coordatt_deploy.targets.qemu_arm64.sysroot import NAME, examine, open_sysroot
from coordatt_deploy.targets.session_client import EmulatedRunner, Guest

__all__ = ["CPUS", "DEFAULT_CPU", "count_instructions", "guest", "open_artifact", "setup", "status", "why_not"]


def setup(cache_dir: Path | None = None, progress: Progress | None = None) -> TargetStatus:
    """Build the box, or find that it is there and whole; see ``targets.Target``."""
    return build.setup(cache_dir, progress)


def status(cache_dir: Path | None = None) -> TargetStatus:
    """Return whether the box can be used."""
    return examine(cache_dir)


def why_not(artifact: Artifact) -> str | None:
    """Why *artifact* cannot run here; None if it can."""
    if artifact.format is Format.COREML:
        return f"Core ML exists on Apple's systems only; the emulated machine {NAME} runs Linux"
    return None


def guest(cpu: str = DEFAULT_CPU, *, counting: bool = False, cache_dir: Path | None = None) -> Guest:
    """Start one guest to open several artifacts in; use as a context manager.

    Raises:
        UsageError: There is no such CPU.
        MissingDependencyError: The box is not built, damaged, or of other versions; or it cannot count.
    """
    return Guest(open_sysroot(cache_dir), _cpu(cpu), counting=counting)


def open_artifact(
    path: Path, artifact: Artifact, *, cpu: str = DEFAULT_CPU, tensors: tuple[str, ...] = (),
    cache_dir: Path | None = None,
) -> EmulatedRunner:  # fmt: skip
    """Open the file at *path* in a guest of its own, which ends with the runner; see ``targets.Target``."""
    _check_format(artifact)
    owned = guest(cpu, cache_dir=cache_dir)
    try:
        return owned.open_artifact(path, artifact, tensors).owning_guest()
    except BaseException:
        owned.close()
        raise


def count_instructions(
    path: Path, artifact: Artifact, feeds: Mapping[str, NDArray[Any]], *, cpu: str = DEFAULT_CPU, inferences: int = 3,
    warmups: int = 1, cache_dir: Path | None = None,
) -> InstructionCount:  # fmt: skip
    """Return the guest's instructions per inference; see ``targets.Target``.

    Args:
        path: The artifact on disk.
        artifact: Its description.
        feeds: One array per input, in the artifact's own dtype and layout.
        cpu: Name of the CPU.
        inferences: How many to count; an odd number has a median that really ran.
        warmups: Uncounted ones before them: the first one prepares memory and is 0.01 to 0.3 % longer.
        cache_dir: Folder for boxes; None for the user's cache.
    """
    _check_format(artifact)
    if inferences < 1 or warmups < 0:
        raise UsageError(f"got {inferences} inferences and {warmups} warm-ups, expected at least 1 and 0")
    with guest(cpu, counting=True, cache_dir=cache_dir) as machine:
        runner = machine.open_artifact(path, artifact)
        for _ in range(warmups):
            runner.infer(feeds)
        for number in range(inferences):
            runner.infer(feeds, mark=number)
        return summarise(machine.counted(), runner.runtime)


def _check_format(artifact: Artifact) -> None:
    reason = why_not(artifact)
    if reason is not None:
        raise UsageError(f"{artifact.path} cannot run on target {NAME}: {reason}")


def _cpu(name: str) -> Cpu:
    if name not in CPUS:
        raise UsageError(f"target {NAME} has no cpu {name!r}; {nearest(name, CPUS)}")
    return CPUS[name]
