"""An emulated machine with one CPU, started in a box to open artifacts on."""

import subprocess
from functools import partial
from pathlib import Path
from typing import IO, Final

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.targets import TargetName
from coordatt_deploy.targets.qemu_arm64.counts import parse_marks, per_inference, rules_text
from coordatt_deploy.targets.qemu_arm64.cpus import Cpu
from coordatt_deploy.targets.qemu_arm64.sysroot import NAME, OURS, SETUP_COMMAND, Sysroot
from coordatt_deploy.targets.session_client import ANSWER_TIMEOUT_S, SERVER_MODULE, Session

# In the session's folder: what the instruction counter writes.
MARKS: Final = "marks"


def start(
    box: Sysroot, cpu: Cpu, *, counting: bool = False, compiling: bool = False, timeout_s: float = ANSWER_TIMEOUT_S
) -> Session:
    """Start the machine.

    Args:
        box: What it runs in.
        cpu: What it runs on.
        counting: Load the instruction counter.
        compiling: Let Python leave its compiled modules in the box, while that is being built.
        timeout_s: Seconds after which an answer is given up.

    Raises:
        MissingDependencyError: *counting* in a box without the instruction counter.
    """
    if counting and box.counting_problem is not None:
        raise MissingDependencyError(
            f"target {NAME} cannot count instructions: {box.counting_problem}; parity works without."
            f" Then run: {SETUP_COMMAND}"
        )
    launch = partial(_launch, box, cpu, counting, compiling)
    return Session(TargetName(NAME, cpu.name), launch, origin=Origin.EMULATED, timeout_s=timeout_s)


def counted(session: Session) -> list[dict[str, int]]:
    """Return the instructions by class of each inference that had a mark."""
    return per_inference(parse_marks((session.folder / MARKS).read_text(encoding="utf-8")))


def _launch(
    box: Sysroot, cpu: Cpu, counting: bool, compiling: bool, folder: Path, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    view, rules = folder / "view", folder / "rules"
    box.make_view(cpu, view)
    rules.write_text(rules_text(), encoding="utf-8")
    command = box.qemu(cpu, view, box.plugin(rules, folder / MARKS) if counting else ())
    env = box.environment(folder)
    # No site module, no user's packages, not the working folder on the path, no compiled files left behind.
    flags = ["-S", "-s", "-P", "-B"]
    if compiling:  # only files that exist are found below the view: new ones need their real paths
        command[command.index("-0") : command.index("-0") + 2] = []
        env["PYTHONPATH"] = f"{view / OURS / 'code'}:{box.root / 'site'}"
        flags.remove("-B")
    return subprocess.Popen(  # noqa: S603 - our own box and module, checked by hash
        [*command, *flags, "-m", SERVER_MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=env,
    )
