"""The plan that the options of ``build`` and ``export`` stand for."""

import sys

from coordatt_deploy.artifact_specs import About
from coordatt_deploy.commands.export_options import ExportOptions, ModelOptions, PreprocessingOptions
from coordatt_deploy.conversion.plan import DEFAULT_MODEL, ExportPlan
from coordatt_deploy.data.calibration import COUNT
from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.host import command_line
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import (
    PreprocessingChanges,
    changes_from,
    parse_numbers,
    read_labels,
    read_preprocessing,
)


def plan_export(options: ExportOptions) -> ExportPlan:
    """Return what to export, checked.

    Raises:
        UsageError: A file that is named cannot be read, or a value is impossible.
        MissingDependencyError: A converter is not installed.
    """
    calibration = options.calibration
    plan = ExportPlan(
        model=_request(options.model, options.preprocessing),
        formats=options.formats,
        precisions=options.precisions or None,
        target_cpus=options.target_cpus or (TargetCpu.ARM64,),
        bake=options.bake,
        softmax=options.softmax,
        reparameterize=options.reparameterize,
        output_dir=options.output_dir,
        strict=options.strict,
        output_kinds=dict(options.model.outputs),
        calibration=calibration.data,
        calibration_count=COUNT if calibration.count is None else calibration.count,
        seed=calibration.seed,
        ranges=calibration.ranges,
        command=command_line(sys.argv[1:]),
        limits=options.limits.limits(),
    )
    plan.check()
    return plan


def _request(options: ModelOptions, preprocessing: PreprocessingOptions) -> ModelRequest:
    changes = _changes(preprocessing)
    return ModelRequest(
        model=options.model or DEFAULT_MODEL,
        checkpoint=options.checkpoint,
        checkpoint_key=options.checkpoint_key,
        allow_unexpected=options.allow_unexpected,
        model_args=options.model_args,
        input_size=options.input_size,
        dynamic=options.dynamic,
        batch=options.batch,
        batch_size=options.batch_size,
        input_layout=options.input_layout,
        inputs=dict(options.inputs) or None,
        preprocessing=changes,
        labels=None if options.labels is None else read_labels(options.labels),
        golden=options.golden,
        name=options.name,
        about=About(options.about.author, options.about.license, options.about.description),
    )


def _changes(options: PreprocessingOptions) -> PreprocessingChanges:
    """What is said of preprocessing; options win over the file."""
    in_file = PreprocessingChanges()
    if options.preprocessing is not None:
        in_file = read_preprocessing(options.preprocessing)
    values: dict[str, object] = {}
    for key, text in (("mean", options.mean), ("std", options.std), ("input_range", options.input_range)):
        if text is not None:
            values[key] = parse_numbers(text, f"--{key.replace('_', '-')}")
    values |= {key: word for key, word in (("colour", options.colour), ("resize", options.resize)) if word is not None}
    return in_file.overridden_by(changes_from(values))
