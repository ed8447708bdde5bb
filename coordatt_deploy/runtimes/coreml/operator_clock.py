"""Time per operator in Core ML: its Python interface tells none, and Xcode is where it can be seen."""

from collections.abc import Mapping
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import UsageError
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.operator_times import OperatorClock


def open_clock(
    path: Path,
    artifact: Artifact,  # noqa: ARG001 - a protocol's
    tensors: frozenset[str],  # noqa: ARG001
    feeds: Mapping[str, NumberArray],  # noqa: ARG001
    threads: int,  # noqa: ARG001
) -> OperatorClock:
    """See ``OperatorTimer.open_clock``.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        f"coremltools {ct.__version__} tells no time per operator; open {path.name} in Xcode on a Mac, which has"
        " a performance report of it"
    )
