"""The table of operators is tested as a whole."""

import runpy
from pathlib import Path

from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS


def test_every_operator_has_a_test():
    """
    An operator that is added to the table is added to the tests: each file names those that it holds against torch.
    """
    others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]

    assert set(OPERATORS) == {name for path in others for name in runpy.run_path(str(path)).get("TESTED", ())}
