"""What a runner is given, held against what its file takes."""

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import UsageError
from coordatt_deploy.runtimes import argument_checks


def test_a_dynamic_axis_takes_any_size():
    """
    Where the artifact has no fixed size, every size fits; the other axes still count.
    """
    spec = TensorSpec("image", (1, 3, None, None), "float32", "NCHW")

    assert ["image"] == list(argument_checks.checked({"image": np.zeros((1, 3, 5, 9), np.float32)}, [spec]))
    with pytest.raises(UsageError, match=r"takes \(1, 3, \?, \?\)"):
        argument_checks.checked({"image": np.zeros((1, 4, 5, 9), np.float32)}, [spec])
