"""Digits on photographs, with a class for every pixel: what the packaged segmentation net is trained and tested on.

A scene is 96x96 pixels of one of scikit-learn's two photographs (``load_sample_images``: china.jpg by danielbuechele
and flower.jpg by vultilion, both CC BY 2.0), enlarged by chance, with one or two of its handwritten digits
(``coordatt_deploy.data.digits``) in a colour of their own on it. Its mask has a class per pixel:

    0        background
    1 … 10   the digits 0 to 9, where at least half of the pixel is ink
    255      the rim of a digit, a third to a half ink: it counts for nobody

    train      the digits that trained the packaged classifier, on the left three fifths of the photographs
    held_out   the digits that it never saw, on the right two fifths: no stroke and no background was seen in training

A scene is a function of its split, a seed and its number. Making one takes scikit-learn; the golden scenes, the first
eight that are held out, are packaged.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordatt_deploy.data.digits import DigitSplit, read_all, read_split
from coordatt_deploy.errors import MissingDependencyError

SceneSplit = Literal["train", "held_out"]

LABELS: Final = ("background", *"0123456789")
SIZE: Final = 96
IGNORED: Final = 255
INK: Final = 0.5  # of a pixel, from which on it is the digit's
RIM: Final = 1 / 3  # from which on it is not the background's either
TRAIN_SHARE: Final = 0.6  # of the width of a photograph
CROPS: Final = (96, 192)  # sides of what is taken of a photograph, in its pixels
DIGIT_SIDES: Final = (40, 76)  # of the square that a digit is enlarged to
TURN: Final = 15.0  # degrees, either way
CONTRAST: Final = 70.0  # grey levels that a digit differs from what is behind it by, at least
PLACES: Final = 30  # tried for a digit beside another
HELD_OUT: Final = 300
GOLDEN: Final = 8
GOLDEN_FILE: Final = Path(__file__).parent / "scenes_golden.npz"


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A photograph with digits on it.

    Attributes:
        name: ``held_out_017``.
        pixels: (96, 96, 3) uint8.
        mask: (96, 96) uint8, classes as above.
    """

    name: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class SceneSource:
    """What scenes of one split are made of: the digits, and the parts (H, W, 3) of the photographs."""

    digits: DigitSplit
    photographs: tuple[NDArray[np.uint8], ...]


@lru_cache(maxsize=2)
def scene_source(split: SceneSplit) -> SceneSource:
    """Return what the scenes of *split* are made of.

    Raises:
        MissingDependencyError: scikit-learn, which brings photographs and digits, is not installed.
    """
    try:
        # By name: everything else here is for boards, which have no scikit-learn.
        photographs = import_module("sklearn.datasets").load_sample_images().images
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the photographs of digit scenes come with {error.name}, which is not installed;"
            " run: pip install 'coordatt-deploy[all]'"
        ) from error
    held_out = read_split("held_out")
    parts = []
    for photograph in photographs:
        border = round(photograph.shape[1] * TRAIN_SHARE)
        parts.append(photograph[:, :border] if split == "train" else photograph[:, border:])
    if split == "held_out":
        return SceneSource(held_out, tuple(parts))
    everything = read_all()
    return SceneSource(everything.take(np.setdiff1d(everything.indices, held_out.indices)), tuple(parts))


def make_scene(split: SceneSplit, number: int, seed: int = 0) -> Scene:
    """Return scene *number* of *split*; the same arguments give the same scene.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    source = scene_source(split)
    chance = np.random.default_rng((seed, number))
    canvas = _background(source, chance)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(chance.integers(1, 3))):
        _paste(canvas, mask, source.digits, chance)
    return Scene(f"{split}_{number:03d}", np.rint(canvas).astype(np.uint8), mask)


def held_out_scenes() -> tuple[Scene, ...]:
    """Return the 300 scenes that accuracy is stated on.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    return tuple(make_scene("held_out", number) for number in range(HELD_OUT))


def golden_scenes() -> tuple[Scene, ...]:
    """Return the packaged scenes: the first of those that are held out."""
    with np.load(GOLDEN_FILE, allow_pickle=False) as arrays:
        pairs = zip(arrays["pixels"], arrays["masks"], strict=True)
        return tuple(Scene(f"held_out_{number:03d}", pixels, mask) for number, (pixels, mask) in enumerate(pairs))


def write_golden_scenes(path: Path = GOLDEN_FILE) -> None:
    """Write the golden scenes so that ``golden_scenes`` finds them; the same scenes give the same bytes."""
    scenes = [make_scene("held_out", number) for number in range(GOLDEN)]
    np.savez_compressed(
        path,
        allow_pickle=False,
        pixels=np.stack([scene.pixels for scene in scenes]),
        masks=np.stack([scene.mask for scene in scenes]),
    )


def _background(source: SceneSource, chance: np.random.Generator) -> NDArray[np.float64]:
    """A square of a photograph, turned over by chance, (96, 96, 3)."""
    photograph = source.photographs[int(chance.integers(len(source.photographs)))]
    side = int(chance.integers(CROPS[0], CROPS[1] + 1))
    top, left = (int(chance.integers(0, length - side + 1)) for length in photograph.shape[:2])
    part = Image.fromarray(photograph[top : top + side, left : left + side])
    if chance.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64).copy()


def _paste(
    canvas: NDArray[np.float64], mask: NDArray[np.uint8], digits: DigitSplit, chance: np.random.Generator
) -> None:
    """Write a digit into *canvas* (96, 96, 3) and its class into *mask* (96, 96), where one fits beside the others."""
    row, side = int(chance.integers(len(digits))), int(chance.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    image = Image.fromarray(digits.pixels[row]).resize((side, side), Image.Resampling.BILINEAR)
    image = image.rotate(float(chance.uniform(-TURN, TURN)), Image.Resampling.BILINEAR)
    ink = np.asarray(image, np.float64) / 255
    corner = _free(mask, ink >= RIM, chance)
    if corner is None:
        return
    (top, left), (bottom, right) = corner, (corner[0] + side, corner[1] + side)
    canvas, mask = canvas[top:bottom, left:right], mask[top:bottom, left:right]
    behind = canvas.mean()
    colour = chance.uniform(0, 255, 3)
    while abs(colour.mean() - behind) < CONTRAST:
        colour = chance.uniform(0, 255, 3)
    canvas += ink[..., None] * (colour - canvas)
    mask[ink >= RIM] = IGNORED
    mask[ink >= INK] = digits.labels[row] + 1


def _free(mask: NDArray[np.uint8], inked: NDArray[np.bool_], chance: np.random.Generator) -> tuple[int, int] | None:
    """The top and left of a place where nothing of *inked* (side, side) falls on another digit; None without one."""
    side = len(inked)
    for _ in range(PLACES):
        top, left = (int(chance.integers(0, SIZE - side + 1)) for _ in range(2))
        if not mask[top : top + side, left : left + side][inked].any():
            return top, left
    return None
