"""Score a segmentation network's files by a metric of your own, and allow a drop of so much.

    python examples/own_metric.py
"""

from pathlib import Path

import coordatt_deploy

METRIC = '''
"""Share of the pixels whose class is right."""

import numpy as np

higher_is_better = True


def pixel_accuracy(outputs, label):
    """One image's: the scores of each class at each pixel, and the class of each pixel."""
    scores = next(iter(outputs.values()))
    return float(np.mean(scores.argmax(0) == label))
'''

Path("pixels.py").write_text(METRIC, encoding="utf-8")
bundle = coordatt_deploy.export("lraspp_mobilenetv2_ca_035.scenes", output_dir="scenes", formats=["onnx"])
bundle = bundle.quantize(progress=True)
found = bundle.evaluate("scenes", metric="pixels.py:pixel_accuracy", max_drop=0.02, limit=20, progress=True)
for subject in found.subjects:
    record = subject.record(found.images, found.metric)
    print(f"{record.path or record.name}: {record.score:.4f}")
raise SystemExit(found.exit_code)
