"""Write down what timm's own evaluation transform does to images, for every distinct pretrained configuration.

timm is no dependency of this project. Where it is installed (1.0.31, with a torchvision that imports), this script
writes ``tests/loading/timm_configurations.json``: each combination of the fields that say how an image becomes a
tensor, how many of the configurations have it, and, for three images, some places of the tensor that
``create_transform(**resolve_data_config(pretrained_cfg=…))`` makes. The test compares ours with these.

    python -m benchmarks.timm_configurations
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

FIELDS: Final = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
SIZES: Final = ((97, 150), (140, 83), (64, 64))  # (H, W): wide, tall, square; small, so that the test is quick
PLACES: Final = 3  # rows and columns of which the values are kept, at the edges and in the middle
FILE: Final = Path(__file__).parents[1] / "tests" / "loading" / "timm_configurations.json"


def image(size: tuple[int, int]) -> Image.Image:
    """Return a smooth image of (H, W) whose colours differ from place to place; the test makes the same one."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    red, green = rows * 255 // (size[0] - 1), columns * 255 // (size[1] - 1)
    return Image.fromarray(np.stack([red, green, (rows * 3 + columns * 5) % 256], axis=-1).astype(np.uint8))


def places(tensor: np.ndarray) -> list[list[float]]:
    """Return the values of a tensor (C, H, W) at its corners, the middles of its edges and its centre."""
    rows, columns = ([0, side // 2, side - 1] for side in tensor.shape[1:])
    return [[round(float(value), 5) for value in tensor[:, row, column]] for row in rows for column in columns]


def main() -> None:
    """Write the file."""
    define_torchvision_operators()
    from timm import __version__, list_pretrained
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    counts: Counter[str] = Counter()
    fields: dict[str, set[str]] = defaultdict(set)
    for name in list_pretrained():
        config = get_pretrained_cfg(name).to_dict()
        for key, value in config.items():
            fields[key].add(type(value).__name__)
        counts[json.dumps({key: config.get(key) for key in FIELDS})] += 1
    entries = []
    for text, count in sorted(counts.items()):
        config = json.loads(text)
        transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
        tensors = [transform(image(size)).numpy() for size in SIZES]
        entries.append({**config, "count": count, "tensors": [places(tensor) for tensor in tensors]})
    document = {"timm": __version__, "fields": sorted(fields), "configurations": entries}
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    head = json.dumps({key: document[key] for key in ("timm", "fields")})[:-1]
    FILE.write_text(f'{head}, "configurations": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{sum(counts.values())} configurations, {len(entries)} distinct, in {FILE}")


def define_torchvision_operators() -> None:
    """Define the operators that PyPI's torchvision lacks beside the CPU build of torch, so that it imports."""
    library = torch.library.Library("torchvision", "DEF")
    boxes = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(f"roi_align({boxes}, int sampling_ratio, bool aligned) -> Tensor")
    library.define(f"roi_pool({boxes}) -> (Tensor, Tensor)")
    library.define(f"ps_roi_align({boxes}, int sampling_ratio) -> (Tensor, Tensor)")
    library.define(f"ps_roi_pool({boxes}) -> (Tensor, Tensor)")
    define_torchvision_operators.kept = library  # type: ignore[attr-defined]  # definitions go with their library


if __name__ == "__main__":
    main()
