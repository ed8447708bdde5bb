"""Pieces of an ONNX file."""

import numpy as np
from small_network import RNG, frozen, reference

from coordatt_deploy.runtimes.onnx import submodels


def test_pieces_but_for_one_that_is_refused(tmp_path):
    """
    It is left out, and the others are run on what they are given.
    """
    path = tmp_path / "frozen.onnx"
    image = RNG.normal(size=(1, 3, 6, 5)).astype(np.float32)
    features, logits = reference(image)
    given = {"clip": features, "pooled": features.mean(3, keepdims=True)}
    with submodels.open_pieces(path, frozen(path), ("clip", "pooled", "logits")) as pieces:
        made = pieces.infer({"image": image}, given)

    assert {"clip", "logits"} == made.keys()
    np.testing.assert_allclose(made["clip"], features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made["logits"], logits, rtol=1e-5, atol=1e-5)
