"""Quantize the packaged network to int8, and say what that costs in accuracy.

    python examples/int8.py

Your own network needs photos of the kind that it will meet (``calibration_data="photos"``) and labelled ones to be
evaluated on (``evaluate("validation")``, a folder for each class).
"""

import coordatt_deploy

bundle = coordatt_deploy.export("mobilenetv2_ca_035.digits", output_dir="digits", formats=["tflite"], progress=True)
bundle = bundle.quantize(progress=True)
found = bundle.evaluate("digits", max_drop=0.5, limit=300, progress=True)
for subject in found.subjects:
    print(f"{subject.name}: {subject.share(found.images):.1%} of {found.images} images")
raise SystemExit(found.exit_code)
