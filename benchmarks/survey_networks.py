"""The strangers' networks of the survey: who publishes them, at which size they are taken, and how they are built.

Their weights are random and repeat to the last bit. As libraries draw them, whole branches are dead (BatchNorms that
begin at zero, layer scales of 1e-6) and values shrink from layer to layer, so that nothing that is measured on them
means anything. ``build`` stirs scales that are all alike and settles the statistics of every BatchNorm on images that
have the spectrum of photographs and on extremes, which leaves values of the size that trained networks have.

None of the libraries is a dependency of this project. The survey takes those that are importable here.
"""

import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# With 8, and none of one colour, EfficientNet-B0 gave 8,400 on noise and 0.7 on grey, and torch itself lost 90 dB of
# float32 there: no trained network is like that. The same networks give 0.4 to 20 with these.
IMAGES: Final = 32
LEAST_STANDARD_DEVIATION: Final = 0.05  # of a scale; below it all channels are alike, as they are drawn
LEAST_VARIANCE: Final = 0.01  # of a channel, relative to the mean of its layer's
MEAN: Final = np.array([0.485, 0.456, 0.406])
STD: Final = np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True, slots=True)
class Network:
    """A published network.

    Attributes:
        library: That builds it, as it is imported.
        name: As the library calls it.
        side: Height and width of the square images that it is taken with, in pixels.
        arguments: For the library's factory.
    """

    library: str
    name: str
    side: int = 64
    arguments: Mapping[str, object] | None = None

    @property
    def key(self) -> str:
        """Its name in documents and on the command line."""
        return f"{self.library}:{self.name}"


def _timm(names: str, side: int = 64, **arguments: object) -> tuple[Network, ...]:
    return tuple(Network("timm", name, side, arguments) for name in names.split())


def _of(library: str, names: str, side: int = 64) -> tuple[Network, ...]:
    return tuple(Network(library, name, side) for name in names.split())


# 64 pixels leave two by two places at the usual total stride of 32: the smallest size at which a wrong place shows.
NETWORKS: Final = (
    *_timm(
        "mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small_050"
        " mobilenetv4_hybrid_medium_075 efficientnet_b0 efficientnet_lite0 tf_efficientnet_b0 tf_efficientnetv2_b0"
        " ghostnet_050 ghostnetv2_100 ghostnetv3_100 repvit_m0_9 fastvit_t8 fastvit_sa12 mobileone_s0 mnasnet_small"
        " hardcorenas_a tinynet_e lcnet_035 rexnet_100 regnetx_002 regnety_002 regnetz_005 densenet121 resnet10t"
        " resnet18 resnet26d seresnet18 convnext_atto convnextv2_atto convnext_zepto_rms edgenext_xx_small"
        " mobilevit_xxs starnet_s050 repghostnet_050 semnasnet_050 spnasnet_100 fbnetc_100 fbnetv3_b"
        " mixnet_s mobilenet_edgetpu_v2_xs hgnetv2_b0 ese_vovnet19b_slim_dw dla46_c res2net50_14w_8s selecsls42"
        " cspdarknet53 repvgg_a0 inception_next_atto poolformerv2_s12 efficientvit_b0 gernet_s eca_resnet33ts"
        " fasternet_t0 swiftformer_xs shvit_s1"
    ),
    # Attention among patches of two by two places: at 64 pixels its last stage has one patch and nothing to attend to.
    *_timm("mobilevitv2_050", 128),
    *_timm("visformer_tiny", img_size=64),
    # Built for one size; their stages end at two by two places as well.
    *_timm("efficientformerv2_s0 levit_128s levit_conv_128s efficientvit_m0 deit_tiny_patch16_224", 128, img_size=128),
    *_of(
        "torchvision",
        "alexnet squeezenet1_1 vgg11_bn resnet18 resnext50_32x4d mobilenet_v2 mobilenet_v3_small mobilenet_v3_large"
        " mnasnet0_5 shufflenet_v2_x0_5 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s regnet_x_400mf"
        " regnet_y_400mf densenet121 googlenet convnext_tiny lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large"
        " ssdlite320_mobilenet_v3_large",
    ),
    Network("torchvision", "inception_v3", 96),
    Network("torchvision", "swin_t"),
    Network("torchvision", "vit_b_16", 64, {"image_size": 64}),
    *_of("ultralytics", "yolov8n yolov8n-pose yolov8n-seg yolov8n-cls yolo11n yolo11n-pose yolo11n-seg yolo11n-cls"),
)
BY_KEY: Final = {network.key: network for network in NETWORKS}
# Of ten families, for planted faults.
FAULTED: Final = (
    "timm:mobilenetv3_small_050", "timm:ghostnet_050", "timm:lcnet_035", "timm:tinynet_e", "timm:regnetx_002",
    "timm:starnet_s050", "timm:convnext_zepto_rms", "timm:edgenext_xx_small", "torchvision:shufflenet_v2_x0_5",
    "ultralytics:yolov8n-cls",
)  # fmt: skip
LIBRARIES: Final = tuple(dict.fromkeys(network.library for network in NETWORKS))


def missing_libraries() -> dict[str, str]:
    """Return the libraries that cannot be imported here, each with the reason; torchvision's operators are defined."""
    if find_spec("torchvision") is not None:
        from benchmarks.timm_configurations import define_torchvision_operators  # not twice in one process

        if not hasattr(define_torchvision_operators, "kept"):
            define_torchvision_operators()
    reasons = {}
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except (ImportError, RuntimeError) as error:  # torchvision says RuntimeError beside another build of torch
            reasons[library] = f"{type(error).__name__}: {error}"
    return reasons


def build(network: str) -> nn.Module:
    """Build a network of the survey with random weights and settled statistics; the same at every call.

    Args:
        network: Its key, e.g. ``timm:ghostnet_050``.

    Returns:
        In evaluation mode, for one image (1, 3, side, side).
    """
    row = BY_KEY[network]
    missing_libraries()
    torch.manual_seed(zlib.crc32(network.encode()))
    module = _BUILDERS[row.library](row).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(network.encode()))
    stir(module, generator)
    images = np.concatenate([photographs(IMAGES, row.side, seed=1), extremes(row.side)])
    settle(module, torch.from_numpy(normalised(images)))
    return module


class Raw(nn.Module):
    """A detector without its last step: an app decodes boxes and suppresses doubles itself."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.get_submodule("backbone"), detector.get_submodule("head")

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take (1, 3, H, W); give the box regression (1, anchors, 4) and the logits (1, anchors, classes)."""
        found: dict[str, torch.Tensor] = self.head(list(self.backbone(image).values()))
        return found


def _build_timm(row: Network) -> nn.Module:
    module: nn.Module = importlib.import_module("timm").create_model(row.name, **(row.arguments or {}))
    return module


def _build_torchvision(row: Network) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    keywords = {"weights": None} | dict(row.arguments or {})
    if row.name.startswith(("lraspp", "deeplabv3", "ssdlite")):
        keywords["weights_backbone"] = None
    if row.name in ("googlenet", "inception_v3"):
        keywords["init_weights"] = False  # its own initialisation takes half a minute
    module: nn.Module = models.get_model(row.name, **keywords)
    return Raw(module) if row.name.startswith("ssdlite") else module


def _build_ultralytics(row: Network) -> nn.Module:
    model: nn.Module = importlib.import_module("ultralytics").YOLO(f"{row.name}.yaml").model
    head = model.get_submodule("model")[-1]  # type: ignore[index]
    head.export, head.format = True, "onnx"  # as its own exporter sets it: one tensor of boxes and scores
    return model


_BUILDERS: Final[Mapping[str, Callable[[Network], nn.Module]]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
    "ultralytics": _build_ultralytics,
}


def photographs(count: int, side: int, seed: int) -> np.ndarray:
    """Return random images with the spectrum of photographs, (count, side, side, 3) of 8 bits.

    Amplitudes fall with the frequency (Field 1987, "Relations between the statistics of natural images"), colours go
    mostly together.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]
    amplitude = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / side)
    amplitude[0, 0] = 0.0
    noise = np.fft.fft2(generator.normal(size=(count, 4, side, side)))
    fields = np.fft.ifft2(noise * amplitude).real
    fields /= fields.std(axis=(2, 3), keepdims=True)
    colours = 0.8 * fields[:, :1] + 0.6 * fields[:, 1:]
    pixels = 255.0 * (MEAN[:, None, None] + STD[:, None, None] * colours)
    images: np.ndarray = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return images


def extremes(side: int) -> np.ndarray:
    """Return what parity judges on besides photographs, (4, side, side, 3) of 8 bits: black, grey, white and noise."""
    flat = [np.full((side, side, 3), level, np.uint8) for level in (0, 128, 255)]
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.stack([*flat, noise])


def normalised(images: np.ndarray) -> np.ndarray:
    """Return the input tensor of 8-bit images: (N, 3, H, W) float32, ImageNet's mean and std."""
    tensor: np.ndarray = ((images / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    return tensor


def stir(module: nn.Module, generator: torch.Generator) -> None:
    """Give parameters that are all alike, as scales and shifts are drawn, values as trained ones have.

    Scales lie around 1 (a few are negative, as after training), shifts around 0.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            apart = float(parameter.std()) if parameter.numel() > 1 else 0.0
            if apart > LEAST_STANDARD_DEVIATION * abs(float(parameter.mean())):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            shift = name.rpartition(".")[2] in ("bias", "beta") or "bias" in name.rpartition(".")[2]
            parameter.copy_(0.1 * noise if shift else 0.7 + 0.3 * noise)


def settle(module: nn.Module, images: torch.Tensor) -> None:
    """Set every BatchNorm's running mean and variance to those of what passes through it, computed in float64.

    Args:
        module: In evaluation mode; it is changed in place.
        images: (N, 3, H, W).
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.double()
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become the batch's
        norm.train()
    with torch.no_grad():
        module(images.double())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        assert norm.running_var is not None  # noqa: S101 - what has no statistics has no momentum to settle
        # a channel that hardly moves on these images would be blown up on others
        norm.running_var.clamp_(min=max(LEAST_VARIANCE * float(norm.running_var.mean()), norm.eps))
    module.float()
