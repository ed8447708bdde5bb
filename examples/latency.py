"""Measure a bundle's files on this machine's CPU, with intervals that say how far to trust each figure.

python examples/latency.py
"""

import coordatt_deploy

bundle = coordatt_deploy.export("mobilenetv2_ca_035.digits", output_dir="digits", formats=["onnx", "tflite"])
measured = bundle.measure_latency(threads=[1], samples=200, progress=True)
for item in measured.results:
    low, high = item.ci95_ms
    print(f"{item.path}: {item.median_ms:.3f} ms ({low:.3f} to {high:.3f}), {item.verdict}")
print(bundle.write_report())
