"""Feed an artifact as an app does: from the golden PNG files, through the description that the artifact carries.

A file whose weights are right and whose description is wrong gives wrong answers in every app that believes it. So the
golden images are not taken from ``golden/inputs.npz`` but made again, and must come out as the same numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.images import load_image, preprocess
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.provenance import embedded_preprocessing


def image_feeds(bundle: Bundle, artifact: Artifact, golden: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], int]:
    """Return the first input's golden tensors, those of images made from the PNG files, and how many those are.

    Args:
        bundle: Holds the images.
        artifact: Its own description of preprocessing is applied.
        golden: The first input's tensors in ``golden/inputs.npz``, one per case.

    Raises:
        BundleError: The artifact has no description, or it makes another tensor of an image than the golden one.
    """
    feeds, made = list(golden), 0
    cases = [(index, case) for index, case in enumerate(bundle.manifest.golden) if case.image is not None]
    if not cases:
        return feeds, 0
    preprocessing = embedded_preprocessing(bundle.path(artifact.path), artifact.format)
    for index, case in cases:
        tensor = preprocess(load_image(bundle.path(str(case.image))), preprocessing)[None]
        first, others = golden[index][:1], golden[index][1:]
        if tensor.shape != first.shape or not np.array_equal(tensor, first):
            raise BundleError(
                f"its description of preprocessing makes another tensor of {case.image} than golden/inputs.npz holds:"
                " an app that follows it gives the network something else; export it again"
            )
        feeds[index], made = np.concatenate([tensor, others]), made + 1
    return feeds, made
