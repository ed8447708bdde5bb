"""What the user says of a model and its files: the options of ``build`` and ``export``.

``export_plan`` makes a plan of them. Nothing here imports NumPy or a framework, as ``--help`` needs this module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate

import click

from coordatt_deploy.artifact_specs import OutputKind
from coordatt_deploy.commands.options import (
    PATH,
    CalibrationOptions,
    LimitOptions,
    P,
    calibration_options,
    completing,
    dynamic_batch_option,
    dynamic_size_option,
    format_option,
    gathered,
    input_shape_option,
    input_size_option,
    limit_options,
    member_of,
    members,
    model_args_option,
    output_kind,
    strict_option,
    target_cpu_option,
)
from coordatt_deploy.formats import Format, InputLayout, Precision, TargetCpu
from coordatt_deploy.loading.sizes import BatchBounds, Bounds


@dataclass(frozen=True, slots=True)
class AboutOptions:
    """What files say of the model to whoever opens them; see ``artifact_specs.About``."""

    author: str | None = None
    license: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the user says of the model.

    Attributes:
        model: What ``--model`` takes; None for the embedded default.
        model_args: Keyword arguments of the factory.
        name: What the model is called in file names.
        checkpoint: Weights of the user's own.
        checkpoint_key: The entry of the checkpoint that holds them.
        allow_unexpected: Whether the checkpoint may hold tensors that the network does not have.
        input_size: (H, W) in pixels.
        dynamic: Bounds of a dynamic size.
        batch: Bounds of a dynamic batch.
        batch_size: Images of a fixed batch; None for one, or what the shapes say.
        input_layout: Of images, in the files; None for each format's usual one.
        inputs: Name and shape of inputs that are not images.
        outputs: Names of outputs, and what they are.
        labels: A file of class names.
        golden: A folder of images.
        about: Author, licence and description.
    """

    model: str | None = None
    model_args: Mapping[str, object] | None = None
    name: str | None = None
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    allow_unexpected: bool = False
    input_size: tuple[int, int] | None = None
    dynamic: Bounds | None = None
    batch: BatchBounds | None = None
    batch_size: int | None = None
    input_layout: InputLayout | None = None
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    outputs: tuple[tuple[str, OutputKind], ...] = ()
    labels: Path | None = None
    golden: Path | None = None
    about: AboutOptions = field(default_factory=AboutOptions)


@dataclass(frozen=True, slots=True)
class PreprocessingOptions:
    """What the user says of preprocessing, as it was written.

    Attributes:
        mean: Numbers with commas between them, like the next two.
        std: See ``mean``.
        input_range: See ``mean``.
        colour: Order of the channels.
        resize: Name of a filter.
        preprocessing: A file with all of these.
    """

    mean: str | None = None
    std: str | None = None
    input_range: str | None = None
    colour: str | None = None
    resize: str | None = None
    preprocessing: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What ``build`` and ``export`` share; ``export_plan`` says what becomes of it.

    Attributes:
        model: What is exported.
        preprocessing: How images become its input.
        calibration: For int8 files.
        limits: For how old a runtime.
        formats: Empty for all.
        precisions: Empty for every float precision of each format.
        target_cpus: Empty for ARM64.
        bake: Whether normalisation becomes part of the network.
        softmax: Whether the network then gives probabilities.
        reparameterize: Whether sums of linear branches become one convolution each.
        output_dir: The bundle; None for the model's name.
        strict: Whether all files are to be written, or none.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = ()
    target_cpus: tuple[TargetCpu, ...] = ()
    bake: bool = False
    softmax: bool = False
    reparameterize: bool = False
    output_dir: Path | None = None
    strict: bool = False


def export_options(command: Callable[Concatenate[ExportOptions, P], None]) -> Callable[P, None]:
    """Hand the command its ``ExportOptions``."""
    return gathered(
        ExportOptions(),
        click.option(
            "--model",
            help="A backbone (see: coordatt-deploy models), package.module:factory, path/to/file.py:factory, a saved"
            " program.pt2, or timm:NAME. Code and programs that you name are run.",
        ),
        model_args_option,
        click.option("--name", help="What the model is called in file names."),
        click.option("--author", help="Whose model it is; the next two as well go into the metadata of every file."),
        click.option("--license", help="That it is given under: Apache-2.0."),
        click.option("--description", help="What it is for, in a sentence or a few."),
        click.option(
            "--checkpoint",
            type=PATH,
            help="Weights of your own: .safetensors, or a .pth that holds a state dict. No code in it is run.",
        ),
        click.option(
            "--checkpoint-key",
            help="The entry of the checkpoint that holds the weights, or what their names begin with."
            "  [default: found]",
        ),
        click.option(
            "--allow-unexpected",
            is_flag=True,
            help="Leave out what the network does not have, such as auxiliary heads; what it lacks is always an error.",
        ),
        format_option("Repeatable; default: all."),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=member_of(Precision, "precision"),
            metavar=members(Precision),
            shell_complete=completing(Precision),
            help="Repeatable; default: every float precision that the format has.",
        ),
        target_cpu_option("Whose fastest form ONNX is written in; repeatable; default: arm64, as phones have."),
        input_size_option,
        dynamic_size_option("Any size between two: 96:320, or 96:320:32 for multiples of 32. ONNX and Core ML."),
        dynamic_batch_option("Any number of images at once, between two: 1:8. ONNX and Core ML."),
        click.option(
            "--batch-size", type=int, metavar="N", help="So many images at once, always, in every format.  [default: 1]"
        ),
        click.option(
            "--input-layout",
            type=member_of(InputLayout, "layout"),
            metavar=members(InputLayout),
            shell_complete=completing(InputLayout),
            help="In which files take images; ONNX has both.  [default: nhwc for TFLite, nchw for the others]",
        ),
        input_shape_option("Shape of an input that is no image, batch first: prior=1x8x20x20. Repeatable."),
        click.option(
            "--output",
            "outputs",
            multiple=True,
            type=output_kind,
            metavar="NAME=" + members(OutputKind),
            help="What an output is, which decides how parity judges it; default: what the network proves, else other."
            " Repeatable.",
        ),
        click.option("--labels", type=PATH, help="Class names: a line each, or a JSON list."),
        click.option(
            "--bake-preprocessing",
            "bake",
            is_flag=True,
            help="Fold the normalisation into the first convolution: the file takes 8-bit pixels as they are (uint8 in"
            " TFLite, an image in Core ML, 0 to 255 in ONNX).",
        ),
        click.option("--softmax", is_flag=True, help="With --bake-preprocessing: give probabilities, not logits."),
        click.option(
            "--reparameterize",
            is_flag=True,
            help="Merge the branches that RepVGG, MobileOne and their like are trained with into one convolution each.",
        ),
        click.option("--mean", help="Per channel, in units of --input-range: 0.485,0.456,0.406."),
        click.option("--std", help="Per channel, in units of --input-range: 0.229,0.224,0.225."),
        click.option("--input-range", help="What pixel values 0 and 255 become before normalising: 0,1."),
        click.option(
            "--colour", help="RGB or BGR, the order of the channels; GREY for one; OTHER for what no image has."
        ),
        click.option("--resize", help="bilinear, bicubic or nearest."),
        click.option("--preprocessing", type=PATH, help="All of these in a file: preprocessing.json."),
        click.option("--golden", type=PATH, help="A folder of images of your own for the golden inputs."),
        click.option("--output-dir", type=PATH, help="The bundle's folder; default: the model's name."),
        strict_option,
        limit_options,
        calibration_options,
    )(command)
