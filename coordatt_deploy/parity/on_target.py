"""Parity on another machine's kernels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from coordatt_deploy import targets
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.formats import Format
from coordatt_deploy.parity.executors import RemoteExecutor
from coordatt_deploy.parity.result import ParityReport
from coordatt_deploy.parity.run import RemoteTarget, check_parity
from coordatt_deploy.parity.tolerances import TOLERANCES, Tolerances
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.qemu_arm64.target import guest

CASES: Final = 6  # a network of 224 pixels takes 5 to 8 s per inference under QEMU


def check_parity_on(
    bundle: Bundle,
    target: str,
    stages: Stages,
    *,
    formats: Sequence[Format] = tuple(Format),
    layers: bool = True,
    need_layers: bool = False,
    tolerances: Tolerances = TOLERANCES,
    inputs: Path | None = None,
    save_failing: Path | None = None,
) -> ParityReport:
    """Run the artifacts on *target* and judge them on a few inputs; see ``parity.run.check_parity``.

    Args:
        bundle: Opened.
        target: ``name`` or ``name:cpu``.
        stages: Shows the progress.
        formats: As for ``check_parity``, like all that follow.
        layers: See there.
        need_layers: See there.
        tolerances: See there.
        inputs: See there.
        save_failing: See there.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up; the text holds the command.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    targets.runnable(bundle.manifest.artifacts, module, formats, str(bundle.root))  # before a guest is started
    with stages.stage(f"start {name}"):
        machine = guest(name.cpu)
    with machine:
        there = RemoteTarget(str(name), RemoteExecutor(machine.open_artifact), module.why_not, CASES)
        return check_parity(
            bundle, stages, formats=formats, layers=layers, need_layers=need_layers, tolerances=tolerances,
            inputs=inputs, save_failing=save_failing, target=there,
        )  # fmt: skip
