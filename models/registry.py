"""Every attention block, every backbone and every model by name. Standard library only: a listing needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from coordatt_deploy.artifact_specs import OutputKind
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.models.attention_options import (
    Activation,
    AttentionOptions,
    CbamOptions,
    CoordAttnOptions,
    CoordAttOptions,
    EcaOptions,
    EfficientLocalAttnOptions,
    GlobalContextOptions,
    MixedPoolingOptions,
    Place,
    SimpleCoordAttnOptions,
    SqueezeExciteLayers,
    SqueezeExciteOptions,
    StripAttnOptions,
    StripPoolingOptions,
    TripletOptions,
)
from coordatt_deploy.models.cards import DIGITS, IMAGENET, Attention, ModelCard, Task, stretched_to
from coordatt_deploy.models.counts import COUNTS


@dataclass(frozen=True, slots=True)
class Block:
    """An attention block.

    Attributes:
        builder: Where it is; called as builder(channels, options).
        options: Its reference's.
        tag: What stands for it in the names of models; None where no model is named after it.
    """

    builder: str
    options: AttentionOptions
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A backbone, alone or under a head of its own.

    Attributes:
        builder: Where it is; called as builder(width=..., num_classes=..., attention=..., place=...).
        places: Where attention can stand; the first where nothing else is said.
        attention: What its models have: as published, where it was.
        task: What its models are for.
        switches: Further arguments of the builder that are true or false, with what they are otherwise.
        output_kinds: What outputs are, by name, where a graph does not prove it.
    """

    builder: str
    places: tuple[Place, ...]
    attention: tuple[Attention, ...]
    task: Task = "classification"
    switches: Mapping[str, bool] = field(default_factory=dict)
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)


ATTENTION_BLOCKS: Final = {
    "coordatt": Block("coordatt_deploy.models.coordatt:CoordAtt", CoordAttOptions(), "ca"),
    "squeeze_excite": Block("coordatt_deploy.models.squeeze_excite:squeeze_excite", SqueezeExciteOptions(), "se"),
    "cbam": Block("coordatt_deploy.models.cbam:CBAM", CbamOptions(), "cbam"),
    "eca": Block("coordatt_deploy.models.eca:ECA", EcaOptions(), "eca"),
    "triplet": Block("coordatt_deploy.models.triplet:TripletAttention", TripletOptions(), "triplet"),
    "strip_pooling": Block("coordatt_deploy.models.strip_pooling:StripPooling", StripPoolingOptions(), "strip"),
    "mixed_pooling": Block("coordatt_deploy.models.strip_pooling:MixedPooling", MixedPoolingOptions()),
    "global_context": Block("coordatt_deploy.models.global_context:GlobalContext", GlobalContextOptions(), "gc"),
    "timm_coord": Block("coordatt_deploy.models.timm_attention:CoordAttn", CoordAttnOptions()),
    "timm_scoord": Block("coordatt_deploy.models.timm_attention:SimpleCoordAttn", SimpleCoordAttnOptions()),
    "timm_ela": Block("coordatt_deploy.models.timm_attention:EfficientLocalAttn", EfficientLocalAttnOptions()),
    "timm_strip": Block("coordatt_deploy.models.timm_attention:StripAttn", StripAttnOptions()),
}
TAGS: Final = {block.tag: kind for kind, block in ATTENTION_BLOCKS.items() if block.tag is not None}

# As CoordAtt's authors compare: SE and CBAM with a reduction of 24, which gives their 3.89M for MobileNetV2-1.0.
_SE_24: Final = SqueezeExciteOptions(
    reduction=24, activation=Activation.RELU6, layers=SqueezeExciteLayers.CONVOLUTIONS, bias=True
)
_SE_EFFICIENTNET: Final = SqueezeExciteOptions(
    reduction=4, activation=Activation.SILU, layers=SqueezeExciteLayers.EFFICIENTNET, bias=True, of_input=True
)

# Strip pooling has 7 C² weights and stands on a ResNet bottleneck's narrow channels, global context on its wide ones:
# so they do here, where neither was published. ECA and Triplet stand where the MobileNetV2 of their authors has them.
_MOBILENETV2: Final = Architecture(
    "coordatt_deploy.models.mobilenet_v2:MobileNetV2",
    (Place.AFTER_DEPTHWISE, Place.AFTER_PROJECTION),
    (
        Attention("coordatt", Place.AFTER_DEPTHWISE, CoordAttOptions()),
        Attention("squeeze_excite", Place.AFTER_DEPTHWISE, _SE_24),
        Attention("cbam", Place.AFTER_DEPTHWISE, CbamOptions(reduction=24)),
        Attention("eca", Place.AFTER_PROJECTION, EcaOptions()),
        Attention("triplet", Place.AFTER_PROJECTION, TripletOptions()),
        Attention("strip_pooling", Place.AFTER_PROJECTION, StripPoolingOptions()),
        Attention("global_context", Place.AFTER_DEPTHWISE, GlobalContextOptions()),
    ),
)
_MASKS: Final = {"mask_logits": OutputKind.MASK}
ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "mobilenetv2": _MOBILENETV2,
    "ssdlite320_mobilenetv2": replace(
        _MOBILENETV2,
        builder="coordatt_deploy.models.ssdlite:SSDLite",
        task="detection",
        switches={"decode": False},
        output_kinds={
            "box_offsets": OutputKind.OTHER, "class_logits": OutputKind.SCORES, "boxes": OutputKind.BOXES,
            "scores": OutputKind.SCORES,
        },
    ),
    "deeplabv3_mobilenetv2": replace(
        _MOBILENETV2,
        builder="coordatt_deploy.models.segmentation:DeepLabV3",
        task="segmentation",
        output_kinds=_MASKS,
    ),
    "lraspp_mobilenetv2": replace(
        _MOBILENETV2,
        builder="coordatt_deploy.models.segmentation:LRASPP",
        task="segmentation",
        output_kinds=_MASKS,
    ),
    "mobilenext": Architecture(
        "coordatt_deploy.models.mobilenext:MobileNeXt",
        (Place.AFTER_FIRST_DEPTHWISE, Place.AFTER_REDUCTION, Place.AFTER_LAST_DEPTHWISE),
        (
            Attention("coordatt", Place.AFTER_FIRST_DEPTHWISE, CoordAttOptions()),
            Attention("squeeze_excite", Place.AFTER_FIRST_DEPTHWISE, _SE_24),
            Attention("cbam", Place.AFTER_FIRST_DEPTHWISE, CbamOptions(reduction=24)),
            Attention("eca", Place.AFTER_LAST_DEPTHWISE, EcaOptions()),
            Attention("triplet", Place.AFTER_LAST_DEPTHWISE, TripletOptions()),
            Attention("strip_pooling", Place.AFTER_REDUCTION, StripPoolingOptions()),
            Attention("global_context", Place.AFTER_FIRST_DEPTHWISE, GlobalContextOptions()),
        ),
    ),
    "efficientnet": Architecture(
        "coordatt_deploy.models.efficientnet:EfficientNet",
        (Place.AFTER_DEPTHWISE, Place.AFTER_PROJECTION),
        (
            Attention("coordatt", Place.AFTER_DEPTHWISE, CoordAttOptions()),
            Attention("squeeze_excite", Place.AFTER_DEPTHWISE, _SE_EFFICIENTNET),
            Attention("cbam", Place.AFTER_DEPTHWISE, CbamOptions(reduction=24)),
            Attention("eca", Place.AFTER_DEPTHWISE, EcaOptions()),
            Attention("triplet", Place.AFTER_DEPTHWISE, TripletOptions()),
            Attention("strip_pooling", Place.AFTER_PROJECTION, StripPoolingOptions()),
            Attention("global_context", Place.AFTER_DEPTHWISE, GlobalContextOptions()),
            # What timm.create_model("efficientnet_b0", se_layer="coord") gives: the builder's ratio and activation.
            Attention("timm_coord", Place.AFTER_DEPTHWISE,
                      CoordAttnOptions(reduction=4, activation=Activation.SILU, of_input=True)),
            Attention("timm_scoord", Place.AFTER_DEPTHWISE, SimpleCoordAttnOptions(of_input=True)),
        ),
    ),
}  # fmt: skip


def _card(name: str, architecture: str, width: float, attended: Attention | None) -> ModelCard:
    parameters, macs = COUNTS[name]
    return ModelCard(
        name=name,
        architecture=architecture,
        width=width,
        attended=attended,
        parameters=parameters,
        macs=macs,
        input_size=IMAGENET.size,
        num_classes=1000,
        preprocessing=IMAGENET,
    )


def _family(architecture: str, prefix: str, width: float, suffix: str, plain: str) -> Iterator[ModelCard]:
    """The plain backbone, then one model per attention block that has a tag."""
    yield _card(f"{prefix}{plain}{suffix}", architecture, width, None)
    for attended in ARCHITECTURES[architecture].attention:
        tag = ATTENTION_BLOCKS[attended.kind].tag
        if tag is not None:
            yield _card(f"{prefix}_{tag}{suffix}", architecture, width, attended)


WIDTHS: Final = (1.0, 0.75, 0.5, 0.35)
_DEFAULT: Final = ModelCard(
    name="mobilenetv2_ca_035.digits",
    architecture="mobilenetv2",
    width=0.35,
    attended=ARCHITECTURES["mobilenetv2"].attention[0],
    parameters=482_780,
    macs=11_174_960,
    input_size=(96, 96),
    num_classes=10,
    preprocessing=DIGITS,
    labels=tuple("0123456789"),
    trained=True,
    dataset="digits",
)
# COCO's 91 classes, with which SSDLite has the 4.8M parameters that CoordAtt's authors report, and Pascal VOC's 21,
# with which DeepLabV3 has their 5.0M; 513 is DeepLab's size for Pascal VOC, 520 that of torchvision's LR-ASPP.
_DENSE: Final = tuple(
    ModelCard(
        name=f"{architecture}_ca_100",
        architecture=architecture,
        width=1.0,
        attended=_MOBILENETV2.attention[0],
        parameters=COUNTS[f"{architecture}_ca_100"][0],
        macs=COUNTS[f"{architecture}_ca_100"][1],
        input_size=(size, size),
        num_classes=classes,
        preprocessing=stretched_to((size, size)),
        task=ARCHITECTURES[architecture].task,
    )
    for architecture, size, classes in (
        ("ssdlite320_mobilenetv2", 320, 91),
        ("deeplabv3_mobilenetv2", 513, 21),
        ("lraspp_mobilenetv2", 520, 21),
    )
)
_DIGIT_SCENES: Final = ModelCard(
    name="lraspp_mobilenetv2_ca_035.scenes",
    architecture="lraspp_mobilenetv2",
    width=0.35,
    attended=_MOBILENETV2.attention[0],
    parameters=354_584,
    macs=14_907_968,
    input_size=(96, 96),
    num_classes=11,
    preprocessing=DIGITS,
    labels=("background", *"0123456789"),
    trained=True,
    dataset="scenes",
    task="segmentation",
)
_CARDS: Final = (
    _DEFAULT,
    *(card for family in ("mobilenetv2", "mobilenext") for width in WIDTHS
      for card in _family(family, family, width, f"_{round(width * 100):03}", "")),
    *_family("efficientnet", "efficientnet_b0", 1.0, "", "_plain"),
    *_DENSE,
    _DIGIT_SCENES,
)  # fmt: skip
MODELS: Final = {card.name: card for card in _CARDS}


def list_models() -> tuple[str, ...]:
    """Return the name of every model that ``create_model`` builds, the embedded default first."""
    return tuple(MODELS)


def trained_models() -> tuple[str, ...]:
    """Return the names of the models whose trained weights ship with the package."""
    return tuple(name for name, card in MODELS.items() if card.trained)


def model_card(name: str) -> ModelCard:
    """Return the card of the model called *name*.

    Raises:
        UsageError: There is no such model; the message holds the nearest names.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise UsageError(f"unknown model {name!r}; {nearest(name, MODELS)}") from None


def attention_kind(word: str) -> str:
    """Return the kind of attention block that *word* names: a kind, or its tag in the names of models.

    Raises:
        UsageError: There is no such block.
    """
    kind = TAGS.get(word, word)
    if kind not in ATTENTION_BLOCKS:
        raise UsageError(f"unknown attention block {word!r}; {nearest(word, {*ATTENTION_BLOCKS, *TAGS})}")
    return kind


def chosen_switches(card: ModelCard, choices: Mapping[str, object]) -> tuple[dict[str, bool], dict[str, object]]:
    """Return the switches of the card's architecture that a user chose, and the other choices.

    Raises:
        UsageError: A switch is neither true nor false.
    """
    known = ARCHITECTURES[card.architecture].switches
    chosen: dict[str, bool] = {}
    for name in known.keys() & choices.keys():
        value = choices[name]
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; it must be true or false")
        chosen[name] = value
    return chosen, {name: value for name, value in choices.items() if name not in known}


def chosen_attention(card: ModelCard, choices: Mapping[str, object]) -> Attention | None:
    """Return the attention of *card* with what a user chose instead.

    Args:
        card: Of the model.
        choices: ``attention`` (a kind or a tag), ``place``, and options of the block, by name.

    Raises:
        UsageError: There is no such block, place or option, or an option without a block.
    """
    given = dict(choices)
    word, place = given.pop("attention", None), given.pop("place", None)
    architecture = ARCHITECTURES[card.architecture]
    attended = card.attended
    if word is not None:
        kind = attention_kind(str(word))
        usual = Attention(kind, architecture.places[0], ATTENTION_BLOCKS[kind].options)
        attended = next((item for item in architecture.attention if item.kind == kind), usual)
    _check_names(card, attended, given)
    if attended is None:
        if place is not None or given:
            name, value = next(iter(given.items()), ("place", place))
            raise UsageError(
                f"{card.name} has no attention block, so {name}={value} means nothing; leave it out,"
                " or choose a block with the argument 'attention'"
            )
        return None
    places = [str(item) for item in architecture.places]
    if place is not None and place not in places:
        raise UsageError(f"{card.architecture} has no place {place!r} for attention; known: {', '.join(places)}")
    where = attended.place if place is None else Place(str(place))
    return Attention(attended.kind, where, attended.options.changed(given))


def _check_names(card: ModelCard, attended: Attention | None, given: Mapping[str, object]) -> None:
    """Refuse what no block takes, or not the one that is there."""
    blocks = [block.options for block in ATTENTION_BLOCKS.values()] if attended is None else [attended.options]
    known = {name for options in blocks for name in options.names()}
    for name in given:
        if name not in known:
            own = () if attended is None else attended.options.names()
            taken = ", ".join(("num_classes", *ARCHITECTURES[card.architecture].switches, *own, "attention", "place"))
            raise UsageError(f"{card.name} takes no argument {name!r}; it takes {taken}")
