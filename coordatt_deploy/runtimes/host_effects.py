"""What this machine's CPU makes otherwise of a file than the CPU that the file is made for.

A file is judged by what the CPU computes that it is made for. Where this one computes something else, and the runtime
has a way to do without, the file is judged that way; one that is made for this CPU is judged as it runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import TargetCpu, facts
from coordatt_deploy.host import Host
from coordatt_deploy.runtimes.reader import reader

FAMILIES: Final = {
    "x86_64": TargetCpu.X86_64,
    "AMD64": TargetCpu.X86_64,
    "aarch64": TargetCpu.ARM64,
    "arm64": TargetCpu.ARM64,
}  # what platform.machine() calls them


@dataclass(frozen=True, slots=True)
class HostEffect:
    """What this CPU makes otherwise.

    Attributes:
        cause: What it is, and how much of the file it can concern.
        made_for: The other CPU family that the file is made for; None where it is made for this one, or for none.
        settled_by_target: Whether files of this kind run on targets, so that one can settle it.
    """

    cause: str
    made_for: TargetCpu | None
    settled_by_target: bool = True

    @property
    def foreign(self) -> bool:
        """Whether the file is made for another CPU, by which it is to be judged."""
        return self.made_for is not None

    def judged(self) -> str:
        """Say how the file was judged, where it is not judged as it runs here."""
        return f"judged without this CPU's saturation, as {self.made_for} computes it; {self.cause}"

    def warning(self, bundle: str) -> str:
        """Say that figures are of the file as it runs here, and what settles it.

        Args:
            bundle: Its folder, for the command.
        """
        if not self.settled_by_target:
            return self.cause
        return (
            f"{self.cause}, so its outputs may be worse here than there;"
            f" coordatt-deploy parity {bundle} --target qemu-arm64 settles it"
        )


def host_effect(path: Path, artifact: Artifact, machine: Host) -> HostEffect | None:
    """Return what *machine* makes otherwise of the artifact at *path*; None where results are those of a device.

    Args:
        path: Of the file; read only where the machine could make something otherwise.
        artifact: Its description.
        machine: Where it is run.
    """
    cause = reader(artifact.format).host_effect(path, machine)
    if cause is None:
        return None
    here = FAMILIES.get(machine.architecture)
    made_for = None if artifact.target_cpu in (None, here) else artifact.target_cpu
    return HostEffect(cause, made_for, facts(artifact.format).runs_only_on is None)
