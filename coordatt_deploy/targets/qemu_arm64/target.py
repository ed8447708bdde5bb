"""ARM64 without ARM hardware: the runtimes' real ARM64 kernels under QEMU's user-mode emulation.

Results are what the kernels compute, since QEMU's arithmetic is IEEE; they are labelled ``emulated``. Time says
nothing here, so what is counted are the guest's instructions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.format_modules import not_installed
from coordatt_deploy.formats import FORMATS
from coordatt_deploy.progress import Progress
from coordatt_deploy.targets import InstructionCount, TargetStatus
from coordatt_deploy.targets.qemu_arm64 import session
from coordatt_deploy.targets.qemu_arm64.counts import summarise
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU, Cpu
from coordatt_deploy.targets.qemu_arm64.sysroot import NAME, examine, open_sysroot
from coordatt_deploy.targets.session_client import Session

if TYPE_CHECKING:
    import coordatt_deploy.targets.qemu_arm64.target as this_module
    from coordatt_deploy.targets import Target

    _: Target = this_module

__all__ = ["CPUS", "DEFAULT_CPU", "count_instructions", "setup", "start", "status", "unsupported_reason"]


def setup(cache_dir: Path | None = None, progress: Progress | None = None) -> TargetStatus:
    """Build the box, or find that it is there and whole; see ``targets.Target``."""
    try:
        # Imported here because python-debian comes with an extra of its own: a box that is built does without.
        from coordatt_deploy.targets.qemu_arm64 import build
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "debian":
            raise
        raise not_installed(f"building the box of target {NAME}", "python-debian", NAME) from error
    return build.setup(cache_dir, progress)


def status(cache_dir: Path | None = None) -> TargetStatus:
    """Return whether the box can be used."""
    return examine(cache_dir)


def unsupported_reason(artifact: Artifact) -> str | None:
    """Why *artifact* cannot run here; None if it can."""
    row = FORMATS[artifact.format]
    if row.runs_only_on is not None:
        return f"{row.title} exists on {row.runs_only_on} only; the emulated machine {NAME} runs Linux"
    return None


def start(cpu: str = DEFAULT_CPU, *, counting: bool = False, cache_dir: Path | None = None) -> Session:
    """Start one machine to open several artifacts on; see ``targets.Target``. With *counting*, count instructions.

    Raises:
        UsageError: There is no such CPU.
        MissingDependencyError: The box is not built, damaged, or of other versions; or it cannot count.
    """
    return session.start(open_sysroot(cache_dir), _cpu(cpu), counting=counting)


def count_instructions(
    path: Path, artifact: Artifact, feeds: Mapping[str, NumberArray], *, cpu: str = DEFAULT_CPU,
    inferences: int = 3, warmups: int = 1, cache_dir: Path | None = None,
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
    reason = unsupported_reason(artifact)
    if reason is not None:
        raise UsageError(f"{artifact.path} cannot run on target {NAME}: {reason}")
    if inferences < 1 or warmups < 0:
        raise UsageError(f"got {inferences} inferences and {warmups} warm-ups, expected at least 1 and 0")
    with start(cpu, counting=True, cache_dir=cache_dir) as machine:
        runner = machine.open_artifact(path, artifact)
        for _ in range(warmups):
            runner.infer(feeds)
        for number in range(inferences):
            runner.infer(feeds, mark=number)
        return summarise(session.counted(machine), runner.runtime)


def _cpu(name: str) -> Cpu:
    if name not in CPUS:
        raise UsageError(f"target {NAME} has no cpu {name!r}; {nearest(name, CPUS)}")
    return CPUS[name]
