"""Feed an artifact as an app does: from the golden PNG files, through the description that the artifact carries.

A file whose weights are right and whose description is wrong gives wrong answers in every app that believes it. So the
golden images are not taken from ``golden/inputs.npz`` but made again, and must come out as the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.data.images import load_image, preprocess
from coordatt_deploy.errors import BundleError
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.runtimes.provenance import embedded_preprocessing


@dataclass(frozen=True, slots=True)
class GoldenImage:
    """A golden case that comes from an image.

    Attributes:
        index: Of the case.
        name: Path in the bundle, as the manifest gives it.
        path: Where it lies.
    """

    index: int
    name: str
    path: Path


def image_feeds(candidate: Candidate, images: Sequence[GoldenImage], name: str) -> tuple[list[NumberArray], int]:
    """Return the golden tensors of one input, those of images made from the PNG files, and how many those are.

    Args:
        candidate: Its own description of preprocessing is applied.
        images: Golden cases that come from images.
        name: Of the input that takes images.

    Raises:
        BundleError: The artifact has no description, or it makes another tensor of an image than the golden one.
    """
    golden = candidate.cases.inputs[name]
    feeds: list[NumberArray] = list(golden)
    if not images:
        return feeds, 0
    preprocessing = embedded_preprocessing(candidate.path, candidate.artifact.format)
    for image in images:
        tensor = preprocess(load_image(image.path, follow_link=False), preprocessing)[None]
        first, others = golden[image.index][:1], golden[image.index][1:]
        if tensor.shape != first.shape or not np.array_equal(tensor, first):
            raise BundleError(
                f"its description of preprocessing makes another tensor of {image.name} than golden/inputs.npz holds:"
                " an app that follows it gives the network something else; export it again"
            )
        feeds[image.index] = np.concatenate([tensor, others])
    return feeds, len(images)
