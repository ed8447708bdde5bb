"""Parity on another machine's kernels."""

from typing import Final

from coordatt_deploy import targets
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.parity.executors import RemoteExecutor
from coordatt_deploy.parity.result import ParityReport
from coordatt_deploy.parity.run import ParityPlan, RemoteTarget, check_parity
from coordatt_deploy.progress import Stages

CASES: Final = 6  # a network of 224 pixels takes 5 to 8 s per inference under QEMU


def check_parity_on(bundle: Bundle, plan: ParityPlan, target: str, stages: Stages) -> ParityReport:
    """Run the artifacts on *target* and judge them on a few inputs; see ``parity.run.check_parity``.

    Args:
        bundle: Opened.
        plan: What to prove.
        target: ``name`` or ``name:cpu``.
        stages: Shows the progress.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up; the text holds the command.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    targets.runnable(bundle.manifest.artifacts, module, plan.formats, str(bundle.root))  # before a guest is started
    with stages.stage(f"start {name}"):
        machine = module.start(name.cpu)
    with machine:
        there = RemoteTarget(str(name), RemoteExecutor(machine.open_artifact), module.unsupported_reason, CASES)
        return check_parity(bundle, plan, stages, target=there)
