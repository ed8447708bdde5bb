"""A pytest plugin: coremltools' own tests, with the ML Program evaluator in the place of Core ML.

coremltools ships the tests of its operators. On macOS they hold Core ML to values that are written into them, or that
torch gives. Off macOS they convert and compare nothing; with this plugin they compare the evaluator. What they compared
goes to the file that ``EVALUATED`` names: a line of JSON per test, with its verdict and its operators.

    EVALUATED=log.jsonl PYMIL_TEST_TARGETS=mlprogram INCLUDE_MIL_FP32_UNIT_TESTS=1 COMPUTE_UNITS=CPU_ONLY \
        python -m pytest -p coremltools_suite SITE_PACKAGES/coremltools/converters/mil/mil/ops/tests -k fp32
"""

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from coordatt_deploy.exporters.coreml.export import write_package
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator.package import UnknownOperatorError, block_of, load, read_model
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

from coremltools.converters.mil import testing_utils  # isort: skip - after the quiet import
from coremltools.converters.mil.backend.mil.load import load as to_proto  # isort: skip
from coremltools.converters.mil.mil.ops.tests import testing_utils as operator_tests  # isort: skip

LIMIT = int(os.environ.get("EVALUATED_CASES", "0"))  # of each test function; 0: all
compared: dict[str, object] = {}


def predict(model, data, state=None):
    """Evaluate the package of *model*; a test that uses what the evaluator does not have is skipped."""
    if not model.is_package or state is not None:
        pytest.skip("no ML Program without state")
    package = Path(model.package_path)
    try:
        program = load(package)
        feeds = {
            port.name: np.asarray(data[port.name]).astype(port.dtype).reshape(
                () if port.shape == () else np.shape(data[port.name]))
            for port in program.inputs
        }  # fmt: skip
        values = program.evaluate(feeds, [port.name for port in program.outputs])
    except (UnknownOperatorError, UnsupportedFormError) as error:
        pytest.skip(str(error))
    compared["operators"] = sorted({operation.type for operation in block_of(read_model(package)[0]).operations})
    return {name: np.atleast_1d(value) for name, value in values.items()}


class Unoptimised:
    """A program as it was built: without the passes, which would take far longer than everything else."""

    is_package, compute_unit = True, ct.ComputeUnit.CPU_ONLY

    def __init__(self, program, target):
        self._folder = tempfile.TemporaryDirectory()
        weights = Path(self._folder.name) / "weights"
        weights.mkdir()
        self._mil_program, self._spec = program, to_proto(program, str(weights), False, target.value)
        self.package_path = str(Path(self._folder.name) / "net.mlpackage")
        stored = weights / "weight.bin"
        write_package(
            Path(self.package_path), self._spec.SerializeToString(), stored.read_bytes() if stored.exists() else None
        )

    def get_spec(self):
        return self._spec

    def _is_stateful(self):
        return False

    _is_multifunction = _is_stateful

    def predict(self, data, state=None):
        return predict(self, data, state)


convert = operator_tests.ct_convert


def unoptimised(program, *, convert_to, minimum_deployment_target, inputs=None, **options):
    if inputs is None and convert_to[0] == "mlprogram":
        try:
            return Unoptimised(program, minimum_deployment_target)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            compared["unoptimised"] = False  # it needs the passes
    target = {"convert_to": convert_to, "minimum_deployment_target": minimum_deployment_target, "inputs": inputs}
    return convert(program, **target, **options)


operator_tests.ct_convert = unoptimised
ct.models.MLModel.predict = predict
testing_utils._IS_MACOS = True
ct.models.utils._macos_version = ct.utils._macos_version = lambda: (26, 0)


@pytest.hookimpl(trylast=True)  # of what -k has chosen
def pytest_collection_modifyitems(items):
    """Keep LIMIT cases of each function, as far apart as there are."""
    functions = defaultdict(list)
    for item in items:
        functions[item.nodeid.partition("[")[0]].append(item)
    items[:] = [
        cases[place]
        for cases in functions.values()
        for place in sorted({number * len(cases) // (LIMIT or len(cases)) for number in range(LIMIT or len(cases))})
    ]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    compared.clear()
    outcome = yield
    failed = outcome.excinfo
    line = {
        "test": f"{item.path.parent.name}/{item.path.name}::{item.nodeid.partition('::')[2]}",
        "verdict": "passed" if failed is None else failed[0].__name__,
        "text": "" if failed is None else str(failed[1])[:300],
        "operators": compared.get("operators", []),
    }
    with Path(os.environ["EVALUATED"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
