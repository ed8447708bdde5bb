"""Natural images for networks of the user's own: parts of the two photographs that scikit-learn brings.

A network that has never seen a handwritten digit says nothing much of one. Parts of photographs have the colours, edges
and textures that networks are trained on, whatever their classes. China.jpg is by danielbuechele, flower.jpg by
vultilion, both CC BY 2.0 (``sklearn.datasets.load_sample_images``). Which parts is a function of their number alone.
"""

from importlib import import_module
from typing import Final

import numpy as np
from PIL import Image

from coordatt_deploy.errors import MissingDependencyError

SIDES: Final = (112, 240)  # of a part, in the photograph's pixels: shrunk or enlarged by little for most networks
NAMES: Final = ("china", "flower")
SEED: Final = 20_250_101  # of the choice; any does


def photograph_parts(count: int) -> tuple[tuple[str, Image.Image], ...]:
    """Return *count* square parts of the photographs, by turns, with a name each.

    Raises:
        MissingDependencyError: scikit-learn, which brings the photographs, is not installed.
    """
    try:
        photographs = import_module("sklearn.datasets").load_sample_images().images
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the photographs come with {error.name}, which is not installed; run: pip install 'coordatt-deploy[all]'"
        ) from error
    chance = np.random.default_rng(SEED)
    parts = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(chance.integers(*SIDES))
        top, left = (int(chance.integers(0, length - side + 1)) for length in photograph.shape[:2])
        part = np.ascontiguousarray(photograph[top : top + side, left : left + side])
        parts.append((f"{NAMES[index % len(photographs)]}_{index:02d}", Image.fromarray(part)))
    return tuple(parts)
