"""Quantization recipes: names that say what they do, what each format can express, and files that replay a search.

    static_wi8_ai8          weights int8 per channel, activations int8 with ranges from calibration data
    static_wi8_ai16         weights int8, activations int16; TFLite's built-in kernels run it, XNNPACK does not
    dynamic_wi8_afp32       weights int8; activations are quantized by the runtime, tensor by tensor
    weight_only_wi8_afp32   weights int8 on disk, widened when they are used; computing in float32
    weight_only_wfp16_afp32 weights float16 on disk
    palettized_w4           weights as indices into a table of 2**4 values (Core ML)

A suffix chooses the type that a caller meets at the inputs and outputs: ``_ioi8`` or ``_iofp32``.
"""

import enum
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.documents import SCHEMA_VERSION, member, object_of, write
from coordatt_deploy.documents import parse as parse_document
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.files import write_whole
from coordatt_deploy.formats import FORMATS, Format, IoType, Precision
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import RecipeRecord


class Mode(enum.StrEnum):
    """When activations are quantized: beforehand, by the runtime, or not at all."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"
    PALETTIZED = "palettized"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to quantize and how.

    Attributes:
        mode: When activations are quantized.
        weights: ``int8``, ``fp16``, or for palettized ones ``4``, ``6`` or ``8`` bits.
        activations: ``int8``, ``int16``, ``fp32``, or None: as in the float artifact.
        io: Type of inputs and outputs; None for the format's habit (``FormatFacts.io_types``).
        ranges: How activation ranges are found (static recipes).
        equalise: Even out the ranges of channels that share an activation tensor (static recipes).
        adjust: Round weights so that each layer's output on the calibration data changes least, and shift biases by
            what remains (static recipes); otherwise each weight is rounded to its nearest step.
        float_layers: Layer ids that stay in float.
    """

    mode: Mode
    weights: str
    activations: str | None = None
    io: IoType | None = None
    ranges: RangeMethod = RangeMethod.PERCENTILE
    equalise: bool = True
    adjust: bool = True
    float_layers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name, for files and reports: ``static_wi8_ai8``; ``_float3`` where three layers stay in float."""
        if self.mode is Mode.PALETTIZED:
            return f"palettized_w{self.weights}"
        activations = "" if self.activations is None else f"_a{_short(self.activations)}"
        io = "" if self.io is None else f"_io{'i8' if self.io is IoType.INT8 else 'fp32'}"
        kept = f"_float{len(self.float_layers)}" if self.float_layers else ""
        return f"{self.mode}_w{_short(self.weights)}{activations}{io}{kept}"

    @property
    def base(self) -> str:
        """The name without suffixes, under which formats list what they can express."""
        return replace(self, io=None, float_layers=()).name

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges have to be measured on data."""
        return self.mode is Mode.STATIC

    def record(self) -> RecipeRecord:
        """Return what a recipe file and the manifest hold."""
        return RecipeRecord(
            RecipeRecord.VERSION, self.base, self.io, self.ranges, self.equalise, self.adjust, self.float_layers
        )

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read the document of a recipe file.

        Raises:
            UsageError: Another schema, an unknown key, or a value of the wrong kind.
        """
        if not isinstance(document, Mapping) or document.get("schema_version") != SCHEMA_VERSION:
            found = document.get("schema_version") if isinstance(document, Mapping) else type(document).__name__
            raise UsageError(f"a recipe file has schema_version {SCHEMA_VERSION}, this one has {found!r}")
        known = {"recipe", "io", "ranges", "equalise", "adjust", "float_layers"}
        for key in document:
            if key not in known | {"schema_version"}:
                raise UsageError(f"recipe file: unknown key {key!r}; {nearest(key, known)}")
        if "recipe" not in document:
            raise UsageError(f"recipe file: the key recipe is missing; it holds a name, such as {STATIC_INT8}")
        base = parse(str(document["recipe"]))
        layers = document.get("float_layers", [])
        if not isinstance(layers, list) or not all(isinstance(item, str) for item in layers):
            raise UsageError("recipe file: float_layers must be a list of layer ids")
        for key in ("equalise", "adjust"):
            if not isinstance(document.get(key, True), bool):
                raise UsageError(f"recipe file: {key} is {document[key]!r}; it must be true or false")
        io = document.get("io")
        return cls(
            mode=base.mode,
            weights=base.weights,
            activations=base.activations,
            io=base.io if io is None else member(IoType, str(io), "io type"),
            ranges=member(RangeMethod, str(document.get("ranges", base.ranges.value)), "range method"),
            equalise=document.get("equalise", base.equalise),
            adjust=document.get("adjust", True),
            float_layers=tuple(layers),
        )


STATIC_INT8: Final = "static_wi8_ai8"
SHORT: Final = {"int8": STATIC_INT8}

_PATTERN: Final = re.compile(
    r"(?P<mode>static|dynamic|weight_only)_w(?P<weights>i8|fp16)(_a(?P<activations>i8|i16|fp32))?(_io(?P<io>i8|fp32))?"
)
_PALETTE: Final = re.compile(r"palettized_w(?P<bits>4|6|8)")
_LONG: Final = {"i8": "int8", "i16": "int16"}


def _short(dtype: str) -> str:
    return dtype.replace("int", "i")


def all_recipes() -> tuple[str, ...]:
    """Return the names that some format can express, without suffixes."""
    return tuple(dict.fromkeys(name for row in FORMATS.values() for name in row.recipes))


def parse(name: str) -> Recipe:
    """Return the recipe of that name; ``int8`` stands for ``static_wi8_ai8``, as it does for ``--precision``.

    Raises:
        UsageError: The name does not decode.
    """
    name = SHORT.get(name, name)
    palette = _PALETTE.fullmatch(name)
    if palette is not None:
        return Recipe(Mode.PALETTIZED, palette["bits"])
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UsageError(f"unknown recipe {name!r}; {nearest(name, (*SHORT, *all_recipes()))}")
    activations, io = match["activations"], match["io"]
    fine = activations == "i16"  # 65,536 steps: cutting ranges and evening out channels would only cost
    return Recipe(
        mode=Mode(match["mode"]),
        weights=_LONG.get(match["weights"], match["weights"]),
        activations=None if activations is None else _LONG.get(activations, activations),
        io=None if io is None else (IoType.INT8 if io == "i8" else IoType.FP32),
        ranges=RangeMethod.MIN_MAX if fine else RangeMethod.PERCENTILE,
        equalise=not fine,
    )


def load_recipe(text: str) -> Recipe:
    """Return the recipe of that name, or the one in the JSON file of that name.

    Raises:
        UsageError: Neither a recipe's name nor a readable recipe file.
    """
    path = Path(text)
    if path.suffix != ".json":
        if path.is_file():
            raise UsageError(f"{path} is a file, and recipe files are JSON that ends in .json; rename it if it is that")
        return parse(text)
    try:
        document = parse_document(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON document: {error}") from error
    try:
        return Recipe.from_json(document)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a file that ``load_recipe`` reads."""
    write_whole(path, write(object_of(recipe.record()), indent=2))


def checked(recipe: Recipe, file_format: Format) -> Recipe:
    """Return *recipe* as *file_format* means it: with the format's own input and output type where none was chosen.

    Raises:
        UsageError: The format cannot express it; the text says which can.
    """
    row = FORMATS[file_format]
    if recipe.base not in row.recipes:
        able = [str(other) for other, its in FORMATS.items() if recipe.base in its.recipes]
        others = f"formats that have it: {', '.join(able)}" if able else "no format has it"
        raise UsageError(
            f"{file_format} has no recipe {recipe.base}; {others}; recipes of {file_format}: {', '.join(row.recipes)}"
        )
    if recipe.io is IoType.INT8 and not (recipe.mode is Mode.STATIC and recipe.activations == "int8"):
        raise UsageError(f"{recipe.name}: only {STATIC_INT8} can have int8 inputs and outputs")
    if recipe.io is not None and recipe.io not in row.io_types:
        able = [str(other) for other, its in FORMATS.items() if recipe.io in its.io_types]
        raise UsageError(
            f"{file_format} has no {recipe.io} inputs and outputs here; formats that have: {', '.join(able)}"
        )
    if recipe.io is None and recipe.mode is Mode.STATIC:
        return replace(recipe, io=row.io_types[0] if recipe.activations == "int8" else IoType.FP32)
    return recipe


def recipe_of(precision: Precision, file_format: Format) -> Recipe | None:
    """Return the recipe that ``--precision`` stands for in a format; None where the exporter writes it itself."""
    name = FORMATS[file_format].precision_recipes.get(precision)
    return None if name is None else parse(name)


def needs_preparing(recipe: Recipe) -> bool:
    """Whether the recipe changes weights before they are quantized, so that no float artifact that exists will do."""
    return recipe.needs_calibration and (recipe.equalise or recipe.adjust)


def precision_of(recipe: Recipe, base: Precision) -> Precision:
    """Return what an artifact of this recipe computes in.

    Args:
        recipe: The recipe.
        base: The precision of the float artifact it was made from.
    """
    if recipe.mode in {Mode.STATIC, Mode.DYNAMIC}:
        return Precision.INT8
    return Precision.FP16 if recipe.weights == "fp16" else base


def tensors_of(layer_ids: tuple[str, ...], layers: LayerMap) -> set[str]:
    """Return the tensors that hold the layers.

    Raises:
        UsageError: The map has no such layer, or the artifact does not hold it.
    """
    known = {layer.layer_id for layer in layers.layers}
    found: set[str] = set()
    for layer_id in layer_ids:
        if layer_id not in known:
            raise UsageError(f"the recipe keeps {layer_id} in float, but the model has no such layer")
        layer = layers.resolved(layer_id)
        if layer is not None:
            found |= {part.tensor for part in layer.parts}
    return found


def kept_in_float(
    layer_ids: tuple[str, ...], layers: LayerMap, operations: Sequence[tuple[Collection[str], Collection[str]]]
) -> set[str]:
    """Return the tensors whose operators stay in float: those of the layers, and what only they read.

    Lowering puts operators of its own between the operators of a layer. Where such a one, which is no layer's, is read
    by operators in float alone, it stays in float as well: else a layer kept in float would still be rounded inside.

    Args:
        layer_ids: Of the layers that stay in float.
        layers: Where they are in the file or graph.
        operations: Names of the tensors that each operator reads and makes, in the order of execution.

    Raises:
        UsageError: See ``tensors_of``.
    """
    kept = tensors_of(layer_ids, layers)
    named = {part.tensor for layer in layers.layers for part in layer.parts}
    readers: dict[str, list[Collection[str]]] = {}
    for reads, makes in operations:
        for name in reads:
            readers.setdefault(name, []).append(makes)
    for _, makes in reversed(operations) if kept else ():
        behind = [result for name in makes for result in readers.get(name, ())]
        if behind and all(kept.intersection(result) for result in behind) and named.isdisjoint(makes):
            kept.update(makes)
    return kept
