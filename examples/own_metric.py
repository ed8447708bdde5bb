"""Score a segmentation network's files by a metric of your own, and allow a drop of so much.

python examples/own_metric.py
"""

from pathlib import Path

import coordatt_deploy

METRIC = """
import numpy as np


def pixel_accuracy(outputs, label):
    (scores,) = outputs.values()  # (1, classes, H, W)
    return float(np.mean(scores[0].argmax(0) == label))


pixel_accuracy.higher_is_better = True
"""

Path("pixels.py").write_text(METRIC, encoding="utf-8")
bundle = coordatt_deploy.export("lraspp_mobilenetv2_ca_035.scenes", output_dir="scenes", formats=["onnx"])
bundle = bundle.quantize(progress=True)
found = bundle.evaluate("scenes", metric="pixels.py:pixel_accuracy", max_drop=0.02, limit=20, progress=True)
for subject in found.subjects:
    print(f"{subject.name}: {subject.score:.1%} of the pixels")
raise SystemExit(found.exit_code)
