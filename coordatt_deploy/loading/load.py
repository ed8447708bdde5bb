"""From what the user names (``model_request``) to a module with its weights, and what is known of it.

Importing the user's code runs it, and the reader of ``.pt2`` files can be made to run what is pickled in them: name
only code and programs that you trust. A checkpoint is different: nothing in it is ever run (``checkpoints``).
"""

import copy
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.data.digits import read_split
from coordatt_deploy.data.images import find_images, load_image
from coordatt_deploy.data.labelled import DIGITS, SCENES
from coordatt_deploy.data.photographs import photograph_parts
from coordatt_deploy.data.scenes import golden_scenes
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.graph.capture import check_weights, trial
from coordatt_deploy.graph.fixed_batch import FIXED_BATCH
from coordatt_deploy.graph.graph import tensor_outputs, weights_sha256
from coordatt_deploy.loading.checkpoints import read_checkpoint
from coordatt_deploy.loading.example_inputs import capture_size, example_inputs
from coordatt_deploy.loading.factories import LoadedModule, build_factory, build_timm
from coordatt_deploy.loading.fresh_statistics import initialise_batchnorm_statistics
from coordatt_deploy.loading.io_names import input_names, output_names
from coordatt_deploy.loading.key_matching import head_classes, load_into
from coordatt_deploy.loading.loaded_model import Images, LoadedModel
from coordatt_deploy.loading.model_request import TIMM, ModelRequest, Source
from coordatt_deploy.loading.preprocessing import own_preprocessing
from coordatt_deploy.loading.saved_programs import build_program
from coordatt_deploy.loading.sizes import batch_within, unseen_batches
from coordatt_deploy.models import model_card
from coordatt_deploy.models.factory import build
from coordatt_deploy.models.registry import ARCHITECTURES, chosen_attention, chosen_switches
from coordatt_deploy.plurals import counted, verb
from coordatt_deploy.user_code import first_line

LONGEST_NAME: Final = 100  # letters; file systems take 255 bytes, and precision and CPU come behind
GOLDEN_COUNT: Final = 16  # of the user's own images; each costs a float64 run, and sixteen are as many as the digits


def resolve(request: ModelRequest) -> LoadedModel:
    """Build what the user named, load the weights, and try it once at every size that it has to take.

    Raises:
        UsageError: Anything about the model, its code, its weights or its input that cannot be shipped.
        MissingDependencyError: timm is not installed.
    """
    request.check()
    built = _build(request)
    notes = list(built.notes)
    module = built.module
    state = None
    if request.checkpoint is not None and built.registry is None:
        state = read_checkpoint(request.checkpoint, key=request.checkpoint_key)
        notes += load_into(module, state, allow_unexpected=request.allow_unexpected)
    notes += _to_evaluation(module, built)
    check_weights(module)

    names = input_names(module, built.inputs)
    size = capture_size(request, built, (request.inputs or {}).get(names[0], ()))
    example, returned = example_inputs(names, size, request, built)
    own = own_preprocessing(built.preprocessing, size, example[0].shape)
    preprocessing = request.preprocessing.applied_to(own, size)
    if own is not built.preprocessing and not request.preprocessing:
        what = (
            "ImageNet's (RGB, 0 to 1, its mean and std)" if own.colour == "RGB" else f"that of {own.colour} from 0 to 1"
        )
        notes.append(f"preprocessing is assumed to be {what}; say otherwise with"
                     " --mean --std --input-range --colour, or --preprocessing FILE")  # fmt: skip
    outputs, dropped = output_names(returned)
    if dropped:
        notes.append(f"outputs that are no tensors are left out: {', '.join(dropped)}")
    if request.batch is not None:
        tried = unseen_batches(request.batch, example[0].shape[0])
        beyond = ", and none is tried with more" if tried[-1] < request.batch[1] else ""
        notes.append(
            f"the batch is dynamic: files take from {request.batch[0]} to {request.batch[1]} images at once; golden"
            f" inputs have {', '.join(map(str, tried[:-1]))} and {tried[-1]}{beyond}"
        )
    elif example[0].shape[0] > 1:
        notes.append(
            f"files take {example[0].shape[0]} images at once: golden inputs and latencies are of so many together,"
            " accuracy is of each"
        )
    golden_source, images = _golden(request, built.dataset, preprocessing)
    if preprocessing.takes_images and request.golden is None and built.dataset is None:
        notes.append(f"golden images are {golden_source}; name images of the model's own kind with --golden FOLDER")
    source = LoadedModel(
        module=module,
        spec=ModelSpec(
            name=_name(request.name) or built.name,
            preprocessing=preprocessing,
            labels=_labels(request, built, tensor_outputs(returned)),
            attention=built.attention,
            source_sha256=weights_sha256(module),
            untrained=built.untrained,
            about=request.about,
            input_layout=None if request.input_layout is None else request.input_layout.name,
        ),
        example=example,
        images=images,
        golden_source=golden_source if preprocessing.takes_images else "",
        inputs=names,
        outputs=outputs,
        notes=tuple(notes),
        dynamic=request.dynamic,
        batch=request.batch,
        output_kinds=built.output_kinds,
    )
    _try_unseen(source)
    return source


def _name(given: str | None) -> str | None:
    """The user's name for the model, which becomes part of files and of the bundle's folder.

    Raises:
        UsageError: It cannot.
    """
    if given and not re.fullmatch(r"\w[\w.-]*", given[: LONGEST_NAME + 1]):
        raise UsageError(
            f"the name {given[:LONGEST_NAME]!r} cannot be part of a file name; use letters, digits, '-', '_' and '.',"
            " a letter or digit first"
        )
    if given and len(given) > LONGEST_NAME:
        raise UsageError(f"the name has {len(given)} letters; at most {LONGEST_NAME} fit into the names of files")
    return given


def _build(request: ModelRequest) -> LoadedModule:
    arguments = request.model_args or {}
    match request.source:
        case Source.REGISTRY:
            return _build_registered(request)
        case Source.TIMM:
            name, loaded = request.model.removeprefix(TIMM), request.checkpoint is not None
            return build_timm(name, arguments, request.num_classes, loaded=loaded, input_size=request.input_size)
        case Source.PROGRAM:
            _no_arguments(request, "a saved program is already built")
            batch = request.batch_size if request.batch is None else batch_within(request.batch)
            return build_program(Path(request.model), request.input_size, batch)
        case Source.FACTORY:
            return build_factory(request.model, arguments, request.num_classes)
        case Source.GIVEN:
            return _copied(request)


def _copied(request: ModelRequest) -> LoadedModule:
    """Take a copy of the caller's own module, which is to stay as it is."""
    assert request.given is not None  # noqa: S101 - that is what the source says
    try:
        module = copy.deepcopy(request.given.module)
    except Exception as error:
        raise UsageError(
            f"{request.model} cannot be copied ({first_line(error)}); name a function that builds it: FILE.py:FUNCTION"
        ) from error
    return LoadedModule(module=module, name=request.model, shapes=request.given.shapes, input_size=request.input_size)


def _no_arguments(request: ModelRequest, why: str) -> None:
    for option, value in (("--model-args", request.model_args), ("num_classes", request.num_classes)):
        if value:
            raise UsageError(f"{option} means nothing for {request.model}: {why}; leave it out")


def _build_registered(request: ModelRequest) -> LoadedModule:
    """Build one of the package's own models; the checkpoint says how many classes it has."""
    card = model_card(request.model)
    arguments = dict(request.model_args or {})
    checkpoint = None
    if request.checkpoint is not None:
        checkpoint = read_checkpoint(request.checkpoint, key=request.checkpoint_key)
    classes = request.num_classes or _whole(arguments, "num_classes")
    classes = classes or (None if checkpoint is None else head_classes(checkpoint.state))
    keeps = checkpoint is None and classes in (None, card.num_classes) and not arguments
    switches, arguments = chosen_switches(card, arguments)
    attended = chosen_attention(card, arguments)
    module = build(card, attended, num_classes=classes, pretrained=None if keeps else False, switches=switches)
    notes: tuple[str, ...] = ()
    untrained = checkpoint is None and not (card.trained and keeps)
    if checkpoint is not None:
        notes = tuple(load_into(module, checkpoint, allow_unexpected=request.allow_unexpected))
    elif untrained:
        initialise_batchnorm_statistics(module)
        notes = ("the weights are random: good for speed and parity, not for accuracy; give a --checkpoint",)
    return LoadedModule(
        module=module,
        name=request.model,
        notes=notes,
        input_size=card.input_size,
        preprocessing=card.preprocessing,
        labels=card.labels if keeps else None,
        attention=None if attended is None else attended.kind,
        inputs=("image",),
        registry=card.name,
        output_kinds=ARCHITECTURES[card.architecture].output_kinds,
        dataset=card.dataset if keeps else None,
        untrained=untrained,
    )


def _whole(arguments: dict[str, object], name: str) -> int | None:
    """Take a number out of the factory's arguments; None where it is not among them."""
    value = arguments.pop(name, None)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return value


def _to_evaluation(module: nn.Module, built: LoadedModule) -> list[str]:
    """Set the module to evaluation; fresh modules of torch are in training mode, so that alone is no mistake."""
    notes: list[str] = []
    if built.is_program:  # its mode is in its operators; ``build_program`` has looked
        for layer in module.modules():
            layer.training = False
        return notes
    if module.training:
        module.eval()
        notes.append("the model came in training mode and was set to evaluation with eval()")
    left = [name or "the model" for name, layer in module.named_modules() if layer.training]
    if left:
        raise UsageError(
            f"{', '.join(left[:5])} stay{'s' if len(left) == 1 else ''} in training mode after model.eval();"
            " its train() is overridden: let it follow its argument"
        )
    return notes


def _labels(request: ModelRequest, built: LoadedModule, outputs: list[torch.Tensor]) -> tuple[str, ...] | None:
    """Class names, if there are any and there is an output that they name."""
    labels = request.labels or built.labels
    classes = {int(output.shape[1]) for output in outputs if output.ndim == 2}
    if request.labels and len(request.labels) not in classes:
        have = ", ".join(map(str, sorted(classes))) or "none"
        raise UsageError(
            f"{counted(len(request.labels), 'label')} {verb(len(request.labels), 'was')} given, but the"
            f" model's outputs have {have} classes"
        )
    return labels


def _images(folder: Path) -> Images:
    paths = find_images(folder)
    chosen = [paths[round(index * (len(paths) - 1) / (GOLDEN_COUNT - 1))] for index in range(GOLDEN_COUNT)]
    return tuple(
        (f"{index:02d}_{path.stem}", load_image(path), None) for index, path in enumerate(dict.fromkeys(chosen))
    )


def golden_images(dataset: str | None, preprocessing: Preprocessing) -> tuple[str, Images]:
    """Return images for the golden inputs of a model that was trained on *dataset*, and what they are.

    Of an embedded model what it knows, with its classes where they are the model's; of any other natural photographs,
    or digits where there are none to be had or the network is not given colours.
    """
    if dataset == SCENES:
        scenes = tuple((scene.name, Image.fromarray(scene.pixels), None) for scene in golden_scenes())
        return f"{counted(len(scenes), 'held-out scene')} of digits on photographs", scenes
    split = read_split("golden")
    digits = tuple(
        (f"digit_{label}_{index:02d}", image, int(label) if dataset == DIGITS else None)
        for index, (label, image) in enumerate(zip(split.labels, split.images(), strict=True))
    )
    if dataset is None and preprocessing.takes_images and len(preprocessing.mean) == 3:
        with suppress(MissingDependencyError):
            parts = photograph_parts(len(digits))
            text = f"{counted(len(parts), 'part')} of the two photographs that scikit-learn brings"
            return text, tuple((name, image, None) for name, image in parts)
    return f"{len(digits)} of scikit-learn's handwritten digits", digits


def _golden(request: ModelRequest, dataset: str | None, preprocessing: Preprocessing) -> tuple[str, Images]:
    """The images of the golden inputs, and what they are; the user's own where a folder is named."""
    if request.golden is None:
        return golden_images(dataset, preprocessing)
    images = _images(request.golden)
    return f"{counted(len(images), 'image')} of {request.golden.name}", images


def _try_unseen(source: LoadedModel) -> None:
    """Refuse a size or batch that the user's own module does not take: torch.export does not always notice."""
    for at, inputs in source.unseen():
        try:
            trial(source.module, inputs)
        except UsageError as error:
            if not at.startswith("a batch"):
                raise
            raise UsageError(f"the model does not take {at}: {error}; {FIXED_BATCH}") from error
