"""The model that the user asks for, as they name it, and everything that they say of it.

    mobilenetv2_ca_100            a backbone of this package
    package.module:factory        a function or class of the user's, imported as Python imports it
    path/to/file.py:factory       the same from a file
    path/to/program.pt2           a program that torch.export.save wrote
    timm:NAME                     a model of timm, which the user installs

Nothing here needs torch, so that a mistyped name is answered at once.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordatt_deploy.artifact_specs import NOTHING_SAID, About
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import InputLayout, format_of, suffixes
from coordatt_deploy.loading.preprocessing import PreprocessingChanges
from coordatt_deploy.loading.sizes import LARGEST_BATCH, BatchBounds, Bounds, check_size
from coordatt_deploy.models import list_models, model_card

if TYPE_CHECKING:
    from torch import nn

TIMM: Final = "timm:"
WEIGHTS: Final = frozenset({".pth", ".pt", ".ckpt", ".safetensors", ".tar"})
SMALLEST: Final = 32  # pixels: the total stride of the package's backbones; below it the last feature map is empty


class Source(enum.Enum):
    """Where a model comes from."""

    REGISTRY = enum.auto()
    TIMM = enum.auto()
    PROGRAM = enum.auto()
    FACTORY = enum.auto()
    GIVEN = enum.auto()


@dataclass(frozen=True, slots=True, eq=False)
class GivenModule:
    """A module that the caller of the Python interface has built.

    Attributes:
        module: Theirs; whoever changes it takes a copy.
        shapes: Of its inputs, batch first.
    """

    module: "nn.Module"
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the user says of the model; everything but ``model`` may be left out.

    Attributes:
        model: One of the forms at the top of this module.
        checkpoint: Weights of the user's own.
        checkpoint_key: The entry of the checkpoint that holds the state dict; None to find it.
        allow_unexpected: Leave out tensors of the checkpoint that the network does not have.
        model_args: Keyword arguments of the factory (or of timm).
        input_size: (H, W) of the images.
        dynamic: Bounds of a dynamic height and width.
        batch: Bounds of a dynamic batch.
        batch_size: Images that a fixed batch has; None for one, or what the shapes say.
        inputs: Shape of each input by name, batch first, where they are not all images.
        num_classes: Number of logits.
        preprocessing: What differs from the model's own.
        labels: Class names in the order of the logits.
        golden: Folder of images for the golden inputs.
        name: What the model is called in file names; None for what it is called in the code.
        about: Author, licence and description, for the files.
        input_layout: Of images, in the files; None for each format's usual one.
        given: The module itself, where it need not be found; ``model`` is the name of its class then.
    """

    model: str
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    allow_unexpected: bool = False
    model_args: Mapping[str, object] | None = None
    input_size: tuple[int, int] | None = None
    dynamic: Bounds | None = None
    batch: BatchBounds | None = None
    batch_size: int | None = None
    inputs: Mapping[str, tuple[int, ...]] | None = None
    num_classes: int | None = None
    preprocessing: PreprocessingChanges = field(default_factory=PreprocessingChanges)
    labels: tuple[str, ...] | None = None
    golden: Path | None = None
    name: str | None = None
    about: About = NOTHING_SAID
    input_layout: InputLayout | None = None
    given: GivenModule | None = None

    @property
    def source(self) -> Source:
        """Where the model comes from, by the form of its name.

        Raises:
            UsageError: It has no such form, or names something else: an unknown backbone, weights, an artifact.
        """
        path = Path(self.model)
        if self.given is not None:
            return Source.GIVEN
        if self.model in list_models():
            return Source.REGISTRY
        if self.model.startswith(TIMM):
            return Source.TIMM
        if path.suffix == ".pt2":
            return Source.PROGRAM
        if path.suffix in WEIGHTS:
            raise UsageError(
                f"{self.model} is a file of weights; name the network with --model and give it as"
                f" --checkpoint {self.model}"
            )
        if format_of(path) is not None:
            raise UsageError(
                f"{self.model} is an artifact already; export starts from a torch model (inspect takes artifacts)"
            )
        if ":" in self.model or path.suffix == ".py":
            return Source.FACTORY
        if path.exists():
            raise UsageError(
                f"{self.model} is there, and is no model: a model is named by a backbone's name, timm:NAME,"
                " package.module:factory, path/to/file.py:factory, or a .pt2 program; inspect also takes a bundle, or a"
                f" file that ends in {suffixes()}"
            )
        try:
            model_card(self.model)
        except UsageError as error:
            raise UsageError(
                f"{error}; code of your own is named as package.module:factory or path/to/file.py:factory"
            ) from None
        raise AssertionError(self.model)

    def check(self) -> None:
        """Refuse what can be refused without the model; whoever loads torch for it asks first.

        Raises:
            UsageError: An unknown backbone, an impossible size, or an unknown word for preprocessing.
        """
        own = self.source is Source.REGISTRY
        if self.input_size is not None:
            check_size(self.input_size, SMALLEST if own else 1)
        self._check_batch_size()
        self.preprocessing.check_words()

    def _check_batch_size(self) -> None:
        if self.batch_size is None:
            return
        if not 1 <= self.batch_size <= LARGEST_BATCH:
            raise UsageError(f"--batch-size is {self.batch_size}; it must lie between 1 and {LARGEST_BATCH}")
        if self.batch is not None:
            raise UsageError(
                f"--batch-size {self.batch_size} is one number of images, --dynamic-batch any between two; leave one of"
                " them out"
            )
        for name, shape in (self.inputs or {}).items():
            if shape[0] not in (1, self.batch_size):
                raise UsageError(
                    f"--input-shape gives {name} a first axis of {shape[0]}, --batch-size asks for {self.batch_size};"
                    " leave one of them out"
                )
