"""Whether ONNX Runtime was asked for exact sums of integers."""

import onnxruntime as ort

from coordatt_deploy.runtimes.onnx.runner import EXACT_SUMS


def exact_sums_of(options: ort.SessionOptions) -> bool:
    """Whether a session with *options* computes in float between the grids."""
    key, value = EXACT_SUMS
    try:
        return bool(options.get_session_config_entry(key) == value)
    except RuntimeError:  # there is no such entry
        return False
