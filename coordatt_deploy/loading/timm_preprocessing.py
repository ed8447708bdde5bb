"""What a configuration of timm says of its weights: every field is honoured, named, or known to say nothing.

timm's ``resolve_data_config`` and ``create_transform`` turn the same fields into transforms of torchvision; what
``data.images.preprocess`` makes of an image with the result of this module is what those make of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.artifact_specs import Preprocessing, colour_of
from coordatt_deploy.errors import UsageError

Config = Mapping[str, object]

USUAL: Final = 224  # pixels, and what follows: timm's defaults where a configuration leaves a field out
USUAL_CROP: Final = 0.875
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
FILTERS: Final = ("bilinear", "bicubic", "nearest")
CROPS: Final = ("center", "squash", "border")

HONOURED: Final = frozenset({
    "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names",
})  # fmt: skip
NAMED: Final = frozenset({
    "test_input_size", "test_crop_pct", "min_input_size", "num_classes", "license", "label_offset",
})  # fmt: skip
# Where the weights come from and who made them; how timm loads them; names of layers that fine-tuning replaces; the
# feature map at the usual size. Nothing of it changes what the built module computes or is given.
SAYS_NOTHING: Final = frozenset({
    "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load",
    "first_conv", "classifier", "pool_size", "origin_url", "paper_name", "paper_ids", "notes", "description",
    "label_descriptions",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TimmConfig:
    """What becomes of a configuration.

    Attributes:
        preprocessing: As timm evaluates at the size of training.
        labels: Class names; None where the configuration has none.
        notes: What the user should know of the rest.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_config(config: Config, *, pretrained: bool = True) -> TimmConfig:
    """Read a ``pretrained_cfg``.

    Args:
        config: As a module of timm has it.
        pretrained: Whether the weights that it speaks of are in the module.
    """
    channels, *size = _numbers(config, "input_size") or (3, USUAL, USUAL)
    mean, std = _numbers(config, "mean") or MEAN, _numbers(config, "std") or STD
    interpolation, crop = config.get("interpolation") or "bicubic", config.get("crop_mode") or "center"
    preprocessing = Preprocessing(
        size=(int(size[0]), int(size[1])),
        mean=mean,
        std=std,
        colour=colour_of(int(channels)),
        resize=str(interpolation) if interpolation in FILTERS else "bicubic",
        crop=str(crop) if crop in CROPS else "center",
        crop_ratio=_number(config, "crop_pct") or USUAL_CROP,
    )
    names = config.get("label_names")
    labels = tuple(map(str, names)) if isinstance(names, list | tuple) and names else None
    return TimmConfig(preprocessing, labels, tuple(_notes(config, preprocessing, pretrained=pretrained)))


def check_size(name: str, config: Config, asked: tuple[int, int] | None, arguments: Mapping[str, object]) -> None:
    """Refuse another size than the one that a module of fixed size is built for.

    Raises:
        UsageError: The text says how to build it for that size.
    """
    size = tuple(map(int, _numbers(config, "input_size")[1:])) or (USUAL, USUAL)
    if asked is None or asked == size or not config.get("fixed_input_size") or "img_size" in arguments:
        return
    raise UsageError(
        f"timm:{name} is built for images of {size[0]}x{size[1]} and takes no others; beside --input-size"
        f" {asked[0]}x{asked[1]} give --model-args '{{\"img_size\": [{asked[0]}, {asked[1]}]}}'"
    )


def _notes(config: Config, preprocessing: Preprocessing, *, pretrained: bool) -> Iterator[str]:
    height, width = preprocessing.size
    for key, taken in (("interpolation", preprocessing.resize), ("crop_mode", preprocessing.crop)):
        if config.get(key) not in (None, "", taken):
            yield f"timm's {key} {config[key]!r} cannot be expressed; {taken} is taken instead"
    test_size, test_crop = _numbers(config, "test_input_size"), _number(config, "test_crop_pct")
    if test_size or test_crop:
        test = tuple(map(int, test_size[1:])) or preprocessing.size
        ratio = test_crop or preprocessing.crop_ratio
        yield (
            f"timm tests these weights at {test[0]}x{test[1]} with a crop ratio of {ratio:g}; this is their size of"
            f" training, {height}x{width} with {preprocessing.crop_ratio:g}. For the former give --input-size"
            f' {test[0]}x{test[1]} and --preprocessing FILE with {{"crop_ratio": {ratio:g}}}'
        )
    least = tuple(map(int, _numbers(config, "min_input_size")[1:]))
    if least:
        yield f"timm gives {least[0]}x{least[1]} as the least size of an image for this model"
    if pretrained and config.get("num_classes") == 0:
        yield "these weights have no classifier: the output holds features, not classes"
    if pretrained and config.get("label_offset"):
        yield f"timm's class numbers begin {config['label_offset']} later than those of the data set (label_offset)"
    if pretrained and config.get("license"):
        yield f"timm names {config['license']} as the licence of these weights"
    unknown = sorted(key for key in config if key not in HONOURED | NAMED | SAYS_NOTHING and config[key])
    if unknown:
        yield f"this version of timm says {', '.join(unknown)} of these weights, which is not looked at"


def _numbers(config: Config, key: str) -> tuple[float, ...]:
    values = config.get(key)
    return tuple(map(float, values)) if isinstance(values, list | tuple) else ()


def _number(config: Config, key: str) -> float | None:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) else None
