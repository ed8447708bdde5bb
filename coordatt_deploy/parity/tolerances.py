"""``--tolerance FILE``: other tolerances than the built-in table, in a typed TOML or JSON file.

reason = "phones of the lab"          # optional; shown beside the verdicts

[onnx.fp32]
multiple = 32.0                       # of torch's own rounding error, at the outputs and at every layer

[tflite.static_wi8_ai8]               # a recipe's name, where weights are integers
multiple = 8.0                        # of what rounding to integers costs torch, in every channel of every layer
min_sqnr_db = 18.0                    # at the outputs; in float: at outputs and layers, instead of a multiple
min_top1_agreement = 0.95
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import BundleError, UsageError, nearest
from coordatt_deploy.formats import Format, Precision, Storage

UNIT_ROUNDOFF: Final = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-11}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an artifact may be from the reference, and why.

    Attributes:
        multiple: Of the error of torch rounding to *basis* (and to *weight_bits*) on the same inputs. Where weights are
            integers it is judged at the layers only, in the root of the mean square of each channel.
        basis: ``fp32``: torch computing in float32. ``fp16``: torch rounding every value to float16 and computing in
            float32, as runtimes with float16 storage do. ``int8``: the same for grids of 256 values.
        reason: Shown beside every verdict.
        min_sqnr_db: What outputs must reach instead of staying within the multiple; in float, layers as well.
        min_top1_agreement: Share of the cases in which the first class must be the reference's; asked for besides.
        weight_bits: Of weights that are stored as integers; None in float.
        calibrated: Whether activations are on grids that end where calibration ended, so that real images alone can be
            judged, and no values beyond those.
        value_bits: Of activations that are stored as integers.
        floor_db: What torch's own rounding must keep of an output in every case: a multiple of more proves nothing.
            None where ``min_sqnr_db`` is asked for from the beginning.
        sigmoid_error: What a sigmoid may be off by before the multiple, however small its values are; 0 where the
            runtime keeps their relative error.
        floor_top1: Share of the cases in which torch's own rounding must name the reference's class; None for any.
        untrained: Whether outputs are asked for less because the weights are random; layers never are.
    """

    multiple: float
    basis: Precision
    reason: str
    min_sqnr_db: float | None = None
    min_top1_agreement: float | None = None
    weight_bits: int | None = None
    calibrated: bool = False
    value_bits: int = 8
    floor_db: float | None = None
    floor_top1: float | None = None
    sigmoid_error: float = 0.0
    untrained: bool = False

    @property
    def least_db(self) -> float | None:
        """What outputs must reach besides staying within the multiple: the multiple of what rounding may cost at most.

        None where decibels are asked for anyway.
        """
        if self.floor_db is None or self.min_sqnr_db is not None:
            return None
        return self.floor_db - 20.0 * math.log10(self.multiple)

    @property
    def storage(self) -> Storage:
        """What torch rounds to for comparison."""
        return Storage(self.basis, self.weight_bits, self.value_bits)

    @property
    def layer_sqnr_db(self) -> float | None:
        """What layers must reach instead of staying within the multiple."""
        return self.min_sqnr_db if self.weight_bits is None else None


_FP32_REASON: Final = (
    "another order of float32 sums: torch adds in 32 lanes, XNNPACK one after another; over 1,280 channels that was"
    " measured to cost up to 10 times torch's own rounding"
)
# Ten of float32's 24 bits. Of MobileNetV2 with and without attention torch keeps 93 dB and more in the worst case of
# the golden inputs, with random weights as well (benchmarks/conditioning.py).
FP32_FLOOR_DB: Final = 60.0


_FP16_REASON: Final = (
    "float16 storage at other places than torch's: fused operators round less often, split ones more often;"
    " measured up to 3 times torch's own"
)
_ONNX_FP16_REASON: Final = (
    "float16 storage at other places than torch's: ONNX Runtime's CPU computes most operators in float32 and rounds"
    " between them; measured up to 2 times torch's own, at the layers of two networks"
)
# ONNX Runtime's sigmoid is off by up to 1.7e-7 wherever it is, also where it is 1e-12: three unit roundoffs of 1.
# LiteRT's and torch's keep a relative error there, as softmax does in all three (benchmarks/function_accuracy.py).
SIGMOID_ERROR: Final = 2.0**-24
# Six times what that costs still leaves 8 dB. The embedded default, which is trained, keeps 42 dB in its worst case.
FP16_FLOOR_DB: Final = 24.0
FLOOR_TOP1: Final = 0.9


_LAYERS_REASON: Final = (
    "eighteen healthy files of five networks took up to two thirds of it in the worst channel of the worst layer, half"
    " in nearly all; what adds up in the whole file was up to 3.6 times what rounding to int8 costs torch, of 6 allowed"
)


def _float(multiple: float, basis: Precision, reason: str, floor_db: float) -> Tolerance:
    return Tolerance(multiple, basis, reason, floor_db=floor_db, floor_top1=FLOOR_TOP1)


def _static(least: float) -> Tolerance:
    reason = f"{_LAYERS_REASON}; at the output the embedded network keeps 35 dB"
    return Tolerance(4.0, Precision.INT8, reason, least, 0.9, 8, calibrated=True)


def _weights(values: Precision, bits: int, least: float, what: str, kept: float) -> Tolerance:
    reason = f"{what}: at every layer what rounding the weights costs torch; the embedded network keeps {kept:g} dB"
    return Tolerance(5.0, values, reason, least, 0.9, bits)


def _palette(bits: int, least: float, kept: float) -> Tolerance:
    reason = (
        f"a palette of {2**bits} values serves a whole tensor, where torch's steps are each channel's own: up to 7.2"
        f" times was measured; the embedded network keeps {kept:g} dB"
    )
    return Tolerance(10.0, Precision.FP16, reason, least, 0.9 if bits > 4 else None, bits)


FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


# By format, and recipe or precision.
TOLERANCES: Final[Mapping[tuple[Format, str], Tolerance]] = {
    **{(file_format, "fp32"): _float(16.0, FP32, _FP32_REASON, FP32_FLOOR_DB) for file_format in Format},
    (Format.ONNX, "fp32"): replace(_float(16.0, FP32, _FP32_REASON, FP32_FLOOR_DB), sigmoid_error=SIGMOID_ERROR),
    (Format.COREML, "fp16"): _float(6.0, FP16, _FP16_REASON, FP16_FLOOR_DB),
    (Format.ONNX, "fp16"): _float(6.0, FP16, _ONNX_FP16_REASON, FP16_FLOOR_DB),
    **{(file_format, "static_wi8_ai8"): _static(20.0) for file_format in Format},
    (Format.TFLITE, "static_wi8_ai16"): Tolerance(
        5.0,
        INT8,
        f"{_LAYERS_REASON}; with activations of 16 bits the embedded network keeps 50 dB",
        45.0,
        0.9,
        8,
        calibrated=True,
        value_bits=16,
    ),
    (Format.TFLITE, "dynamic_wi8_afp32"): Tolerance(
        5.0,
        INT8,
        "ranges that the runtime finds as it goes: within what int8 costs torch; the embedded network keeps 44 dB",
        25.0,
        0.9,
        8,
        calibrated=True,
    ),
    (Format.TFLITE, "weight_only_wi8_afp32"): _weights(FP32, 8, 30.0, "int8 weights", 44.0),
    (Format.TFLITE, "weight_only_wfp16_afp32"): _weights(
        FP32, 11, 50.0, "float16 weights, which keep eleven bits", 58.0
    ),
    (Format.ONNX, "weight_only_wi8_afp32"): _weights(FP32, 8, 30.0, "int8 weights", 43.0),
    (Format.COREML, "weight_only_wi8"): _weights(FP16, 8, 30.0, "int8 weights", 45.0),
    (Format.COREML, "palettized_w8"): _palette(8, 25.0, 45.0),
    (Format.COREML, "palettized_w6"): _palette(6, 15.0, 33.0),
    (Format.COREML, "palettized_w4"): _palette(4, 5.0, 18.0),
}


# Random weights magnify every error, and between the classes that they name there is no margin: of MobileNetV2-1.0 int8
# leaves 15 to 18 dB and half of the classes, while every layer is within what rounding costs. Layers tell a wrong file.
UNTRAINED_DB: Final = 10.0
# Of three networks with random weights float16 storage keeps 20 to 28 dB in the worst case, and 88 to 100 % of the
# classes (benchmarks/conditioning.py).
UNTRAINED_FP16_DB: Final = 12.0


def for_untrained(table: Mapping[tuple[Format, str], Tolerance]) -> Mapping[tuple[Format, str], Tolerance]:
    """Return *table* with what artifacts of a network with random weights are asked for at the outputs.

    Integers and float16 storage are asked for less. What somebody chose instead of the built-in tolerance stays. Layers
    are judged as ever.
    """
    why = f"the weights are random, so outputs need {UNTRAINED_DB:g} dB and no class; train it before int8 says more"
    found = {}
    for key, tolerance in table.items():
        ours = tolerance.weight_bits is not None and tolerance == TOLERANCES.get(key)
        least = min(UNTRAINED_DB, tolerance.min_sqnr_db or UNTRAINED_DB)
        changed = replace(
            tolerance,
            min_sqnr_db=least,
            min_top1_agreement=None,
            untrained=True,
            reason=f"{tolerance.reason}; {why}",
        )
        found[key] = changed if ours else tolerance
        if tolerance.basis is FP16 and tolerance == TOLERANCES.get(key) and tolerance.floor_db is not None:
            found[key] = replace(tolerance, floor_db=UNTRAINED_FP16_DB, floor_top1=None)
    return found


def tolerance_of_graphs(table: Mapping[tuple[Format, str], Tolerance]) -> Tolerance:
    """Return what holds for torch's own graphs between the captured one and the files, which are computed in float32.

    They stand where the ONNX exporter begins, whose float32 files are held to the same.
    """
    return table[Format.ONNX, FP32]


def tolerance_of(artifact: Artifact, table: Mapping[tuple[Format, str], Tolerance]) -> Tolerance:
    """Return what holds for *artifact*: by its recipe, whatever its suffixes say of inputs and layers left in float.

    Raises:
        BundleError: Of a recipe that this version does not know.
    """
    name = artifact.recipe or artifact.precision.value
    known = [label for file_format, label in table if file_format is artifact.format and name.startswith(label)]
    label = max(known, key=len, default=artifact.precision.value)
    if (artifact.format, label) not in table:
        raise BundleError(f"{artifact.path} is of the recipe {name}, for which this version has no tolerance")
    return table[artifact.format, label]


LARGEST: Final = 1e9  # NaN is not below it either
# Share of the elements of an output of classes that a file may have otherwise, over all cases. In float no more than
# 1 of 239,616 was measured in four networks with an arg-max of 2 to 100 classes; in float16 0.27 %, as much as torch.
# Of the images that it classifies an integer file may name one in ten otherwise, so of pixels as well.
OTHERWISE: Final = 1e-4
OTHERWISE_INTEGERS: Final = 0.1
# Of random weights the classes lie closer together than the noise of integers: half of them is left of MobileNetV2.
OTHERWISE_UNTRAINED: Final = 0.6


def allowed_otherwise(tolerance: Tolerance, rounding: float) -> float:
    """Return the share of the classes, positions or yes and no of an output that a file may have otherwise.

    Args:
        tolerance: Of the file.
        rounding: The share that torch itself has otherwise in the precision of ``tolerance.basis``.
    """
    integers = OTHERWISE_UNTRAINED if tolerance.untrained else OTHERWISE_INTEGERS
    return max(tolerance.multiple * rounding, OTHERWISE if tolerance.weight_bits is None else integers)


# From an IoU of 0.5 on benchmarks of detectors count a box as the same object (Pascal VOC). Decibels over all boxes do
# not notice small ones: 20 dB of boxes up to 640 pixels wide leave 30 pixels. In float each number is judged.
BOX_IOU: Final = 0.5


def least_box_iou(tolerance: Tolerance) -> float | None:
    """Return the mean IoU that boxes must have with the reference's; None where each of their numbers is judged."""
    return None if tolerance.weight_bits is None or tolerance.min_sqnr_db is None else BOX_IOU


KEYS: Final = ("multiple", "min_sqnr_db", "min_top1_agreement")
Tolerances = Mapping[tuple[Format, str], Tolerance]
BUILT_IN: Final[Tolerances] = TOLERANCES


def read_tolerances(path: Path, table: Tolerances = BUILT_IN) -> Tolerances:
    """Return *table* with what the file at *path* says put in its place.

    Raises:
        UsageError: It cannot be read, a name is unknown (the text holds the nearest), or a value is out of range.
    """
    document = _read(path)
    reason = document.pop("reason", f"from {path.name}")
    if not isinstance(reason, str):
        raise UsageError(f"{path.name}: reason is {reason!r}, expected a text")
    known = {file_format.value for file_format, _ in table}
    changed = dict(table)
    for name, precisions in document.items():
        if name not in known:
            raise UsageError(f"{path.name}: unknown format {name!r}; {nearest(name, [*known, 'reason'])}")
        file_format = Format(name)
        if not isinstance(precisions, dict):
            raise UsageError(
                f"{path.name}: {name} is {precisions!r}, expected a table for each precision: [{name}.fp32]"
            )
        for label, values in precisions.items():
            where = f"{path.name}, [{name}.{label}]"
            if (file_format, label) not in table:
                labels = [str(other) for of, other in table if of is file_format]
                raise UsageError(
                    f"{where}: {name} files have no precision or recipe {label!r}; {nearest(label, labels)}"
                )
            changed[file_format, label] = _changed(table[file_format, label], values, where, reason)
    return changed


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        document: object = parse(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no tolerance file {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # both parsers raise kinds of ValueError
        raise UsageError(f"{path} cannot be read as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path.name} must hold a table for each format, such as [onnx.fp32]")
    return document


def _changed(tolerance: Tolerance, values: object, where: str, reason: str) -> Tolerance:
    if not isinstance(values, dict):
        raise UsageError(f"{where} is {values!r}, expected a table with {', '.join(KEYS)}")
    for key, value in values.items():
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, KEYS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:
            raise UsageError(f"{where}: {key} is {value!r}, expected a number")
    if "multiple" in values and "min_sqnr_db" in values and tolerance.weight_bits is None:
        raise UsageError(f"{where}: give multiple or min_sqnr_db; one takes the place of the other")
    if values.get("multiple", 1.0) <= 0:
        raise UsageError(f"{where}: multiple is {values['multiple']}, expected a number above 0")
    if not 0 <= values.get("min_top1_agreement", 0.0) <= 1:
        raise UsageError(f"{where}: min_top1_agreement is {values['min_top1_agreement']}, expected a share from 0 to 1")
    numbers = {key: float(value) for key, value in values.items()}
    keeps = "multiple" not in numbers or tolerance.weight_bits is not None
    return replace(
        tolerance,
        reason=reason,
        multiple=numbers.get("multiple", tolerance.multiple),
        min_sqnr_db=numbers.get("min_sqnr_db", tolerance.min_sqnr_db if keeps else None),
        min_top1_agreement=numbers.get("min_top1_agreement", tolerance.min_top1_agreement),
    )
