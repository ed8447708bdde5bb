"""Train ``lraspp_mobilenetv2_ca_035.scenes``: ``python -m coordatt_deploy.models.train_scenes``.

Needs scikit-learn, which brings digits and photographs. Writes, into the package (or into ``--output``):

    data/scenes_golden.npz                              the golden scenes, see coordatt_deploy.data.scenes
    weights/lraspp_mobilenetv2_ca_035.scenes.safetensors
    weights/lraspp_mobilenetv2_ca_035.scenes.json       the recipe: settings, data, accuracy, checksums, versions

The backbone begins with the weights of ``mobilenetv2_ca_035.digits``, which saw the same digits and none of those that
are held out. The number of epochs is fixed beforehand and the last weights are kept: none is picked by its accuracy on
held-out scenes. The same seed, versions, CPU kind and thread count give the same weights.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from coordatt_deploy.data.images import preprocess
from coordatt_deploy.data.scenes import HELD_OUT, IGNORED, Scene, held_out_scenes, make_scene, write_golden_scenes
from coordatt_deploy.documents import SCHEMA_VERSION
from coordatt_deploy.metrics import intersection_over_union, mask_counts
from coordatt_deploy.models.cards import TrainingRecipe
from coordatt_deploy.models.factory import create_model
from coordatt_deploy.models.registry import model_card
from coordatt_deploy.models.segmentation import OUTPUT
from coordatt_deploy.models.train_digits import learning_rate_factor, parameter_groups, progress_bar

MODEL: Final = "lraspp_mobilenetv2_ca_035.scenes"
BACKBONE: Final = "mobilenetv2_ca_035.digits"
PACKAGE_DIR: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; the defaults made the packaged weights.

    Attributes:
        seed: Of the head's fresh weights and the order of the scenes.
        scenes: Training scenes.
        epochs: Passes over them.
        batch_size: Scenes per step.
        learning_rate: Peak of AdamW's learning rate: linear warm-up, then a half cosine down to 0.
        warmup_share: Part of the steps spent on the warm-up.
        weight_decay: AdamW's; on the weights of convolutions only.
        threads: Of torch; part of the recipe since sums depend on it.
    """

    seed: int = 0
    scenes: int = 3000
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    threads: int = 1


def to_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return images, (N, 3, 96, 96) float32, exactly as inference gets them, and masks, (N, 96, 96) int64."""
    preprocessing = model_card(MODEL).preprocessing
    images = np.stack([preprocess(Image.fromarray(scene.pixels), preprocessing) for scene in scenes])
    return torch.from_numpy(images), torch.from_numpy(np.stack([scene.mask for scene in scenes]).astype(np.int64))


def fresh_network(seed: int) -> nn.Module:
    """Return the network with a fresh head on the packaged classifier's backbone."""
    network = create_model(MODEL, pretrained=False, seed=seed)
    trained = create_model(BACKBONE).state_dict()
    ours = {key: value for key, value in trained.items() if key.startswith("features.")}
    network.get_submodule("backbone").load_state_dict(ours)
    return network


def train(images: Tensor, masks: Tensor, settings: Settings, console: Console) -> nn.Module:
    """Train the network and return it in evaluation mode.

    Args:
        images: (N, 3, H, W) float32, preprocessed.
        masks: (N, H, W) int64.
        settings: How.
        console: Where the progress bar goes.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    network = fresh_network(settings.seed)
    steps_per_epoch = len(images) // settings.batch_size
    steps = settings.epochs * steps_per_epoch
    optimiser = torch.optim.AdamW(parameter_groups(network, settings.weight_decay), lr=settings.learning_rate)
    factor = learning_rate_factor(settings.warmup_share, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)

    network.train()
    with progress_bar(console) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan)
        for _ in range(settings.epochs):
            order = torch.randperm(len(images), generator=generator)[: steps_per_epoch * settings.batch_size]
            for rows in torch.split(order, settings.batch_size):
                scores = network(images[rows])[OUTPUT]
                loss = functional.cross_entropy(scores, masks[rows], ignore_index=IGNORED)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                progress.update(task, advance=1, loss=loss.item())

    # The running statistics trail behind the weights: take them anew. Folding and quantization stand on these numbers.
    update_bn(torch.split(images, settings.batch_size), network)
    return network.eval()


@torch.inference_mode()
def class_ious(network: nn.Module, images: Tensor, masks: Tensor, batch_size: int = 50) -> NDArray[np.float64]:
    """Return the IoU of each class over the pixels of *images*, (N, 3, H, W), that *masks*, (N, H, W), don't ignore."""
    classes = model_card(MODEL).num_classes
    counts = np.zeros((3, classes), np.int64)
    for batch, truth in zip(torch.split(images, batch_size), torch.split(masks, batch_size), strict=True):
        counts += mask_counts(network(batch)[OUTPUT].argmax(1).numpy(), truth.numpy(), classes, IGNORED)
    return intersection_over_union(counts)


def describe(
    settings: Settings, splits: dict[str, Sequence[Scene]], ious: dict[str, NDArray[np.float64]], weights: bytes
) -> TrainingRecipe:
    """Return the recipe: everything that tells a reader where the weights come from and what they reach."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": MODEL,
        "command": "python -m coordatt_deploy.models.train_scenes",
        "optimiser": "AdamW, linear warm-up, half cosine to 0",
        "settings": dataclasses.asdict(settings),
        "data": {
            "source": "scikit-learn load_digits (E. Alpaydin and C. Kaynak, CC BY 4.0) on load_sample_images"
            " (danielbuechele and vultilion, CC BY 2.0); see coordatt_deploy.data.scenes",
            "backbone": BACKBONE,
            **{name: {"images": len(scenes), "sha256": fingerprint(scenes)} for name, scenes in splits.items()},
        },
        "accuracy": {
            name: {"images": len(splits[name][:HELD_OUT]), "miou": float(found.mean()), "background": float(found[0])}
            for name, found in ious.items()
        },
        "weights": {"bytes": len(weights), "dtype": "float32", "sha256": hashlib.sha256(weights).hexdigest()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "Pillow", "safetensors", "scikit-learn")},
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make scenes, train, measure, write."""
    settings, output = _parse(arguments)
    console = Console(stderr=True)
    torch.set_num_threads(settings.threads)

    splits: dict[str, Sequence[Scene]] = {
        "train": tuple(make_scene("train", number) for number in range(settings.scenes)),
        "held_out": held_out_scenes(),
    }
    network = train(*to_tensors(splits["train"]), settings, console)
    ious = {}
    for name, scenes in splits.items():
        ious[name] = class_ious(network, *to_tensors(scenes[:HELD_OUT]))
        console.print(f"{name}: mIoU {ious[name].mean():.2%} on the first {HELD_OUT} scenes")

    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    recipe = describe(settings, splits, ious, weights)
    for folder in (output / "data", output / "weights"):
        folder.mkdir(parents=True, exist_ok=True)
    write_golden_scenes(output / "data" / "scenes_golden.npz")
    (output / "weights" / f"{MODEL}.safetensors").write_bytes(weights)
    (output / "weights" / f"{MODEL}.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {len(weights):,} bytes of weights and their recipe to {output / 'weights'}")


def fingerprint(scenes: Sequence[Scene]) -> str:
    """Return the SHA-256 of pixels and mask of each scene, in their order."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.pixels.tobytes() + scene.mask.tobytes())
    return digest.hexdigest()


def _parse(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
    parser = argparse.ArgumentParser(
        prog="python -m coordatt_deploy.models.train_scenes",
        description=f"Train {MODEL} on scikit-learn's digits and photographs.",
    )
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, help="(%(default)s)"
        )
    parser.add_argument("--output", type=Path, default=PACKAGE_DIR, help="folder to write into (the package itself)")
    values = vars(parser.parse_args(arguments))
    output = values.pop("output")
    return Settings(**values), output


if __name__ == "__main__":
    main()
