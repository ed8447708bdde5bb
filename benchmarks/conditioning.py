"""How much of a network's outputs torch's own float32 and float16 storage keep: what the floors of parity stand on.

    python -m benchmarks.conditioning [MODEL@SIZE ...]

For each model (a name of ``coordatt-deploy models`` or a factory) the SQNR of torch's rounding against float64 over the
golden inputs, that of the worst case (see ``parity.conditioning``), and the share of classes that stay.
"""

import sys
from collections.abc import Sequence

import torch

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.conversion.golden import golden_inputs
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import prepare_in_float16
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.metrics import sqnr_db
from coordatt_deploy.parity.conditioning import case_decibels, classes_kept

MODELS = ("mobilenetv2_ca_035.digits@", "mobilenetv2_ca_035@64", "mobilenetv2_035@64", "mobilenetv2_ca_100@96")


def measure(name: str, size: int | None) -> None:
    """Print a line for each output and precision."""
    source = resolve(ModelRequest(name, input_size=None if size is None else (size, size)))
    graph = capture_source(source)
    golden = golden_inputs(graph.inputs, source.spec.preprocessing, source.images)
    runs = {
        "float64": prepare(graph),
        "float32": prepare(graph, dtype=torch.float32),
        "float16": prepare_in_float16(graph),
    }
    found: dict[tuple[str, str], list[NumberArray]] = {}
    for index in range(len(golden.cases)):
        feeds = {name: values[index] for name, values in golden.feeds.items()}
        for kind, run in runs.items():
            for output, value in run(feeds).items():
                found.setdefault((output, kind), []).append(value)
    for output in graph.outputs:
        for kind in ("float32", "float16"):
            print(f"{name:28} {output:10} {kind}  {_kept(found[output, kind], found[output, 'float64'])}", flush=True)


def _kept(rounding: Sequence[NumberArray], exact: Sequence[NumberArray]) -> str:
    classes = classes_kept(rounding, exact)
    told = "" if classes is None else f", {classes:.0%} of the classes"
    return f"{sqnr_db(rounding, exact):6.1f} dB, worst case {min(case_decibels(exact, rounding)):6.1f} dB{told}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for item in sys.argv[1:] or MODELS:
        model, _, side = item.partition("@")
        measure(model, int(side) if side else None)
