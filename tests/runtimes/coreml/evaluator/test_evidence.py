"""The table of evidence: whole, in the documentation, and true of coremltools' own tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import coremltools
import pytest
from mil_programs import mb, noise, save

from benchmarks.evaluator_evidence import PAGE, rows
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.host import describe
from coordatt_deploy.runtimes.coreml.evaluator.evidence import EVIDENCE, TORCH_TESTS, without
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.reader import host_effect
from coordatt_deploy.runtimes.host_effects import host_effect as effect_of_host

ROOT = Path(__file__).parents[4]
PACKAGE = Path(coremltools.__file__).parent


def test_every_operator_says_what_is_known_of_it():
    """
    An operator is not added without its evidence, if only to say that there is none.
    """
    assert set(OPERATORS) == set(EVIDENCE)


@pytest.mark.parametrize("operator", [name for name, evidence in EVIDENCE.items() if evidence.independent])
def test_the_tests_that_are_named_exist(operator):
    """
    coremltools has the class in the file that the table names.
    """
    evidence = EVIDENCE[operator]

    text = (PACKAGE.parent / evidence.file).read_text(encoding="utf-8")

    assert f"class {evidence.test}" in text


def test_the_page_is_the_table():
    """
    The documentation holds a row per operator, as the table has it, and the counts.
    """
    page = PAGE.read_text(encoding="utf-8")
    independent = sum(evidence.independent for evidence in EVIDENCE.values())

    assert [row for row in page.splitlines() if row.startswith("| `")] == rows()
    assert f"{independent} of the {len(OPERATORS)} operators" in page


def test_a_result_says_which_operators_nobody_is_known_to_have_run(tmp_path):
    """
    A package with ceil is judged with a note that names it; one without such operators has none.
    """
    unknown = save(tmp_path, lambda a: mb.relu(x=mb.ceil(x=a)), [noise(1, 2)])
    known = save(tmp_path, lambda a: mb.relu(x=a), [noise(1, 2)])

    assert "no independent evidence is known for ceil" in host_effect(unknown, describe())
    assert host_effect(known, describe()) is None
    assert ("ceil", "logical_not") == without(["relu", "logical_not", "ceil", "ceil"])
    artifact = Artifact("net.mlpackage", Format.COREML, Precision.FP32, None, None, 1, "", (), (), "")
    effect = effect_of_host(unknown, artifact, describe())
    assert not effect.foreign
    assert "qemu" not in effect.warning("net")  # no target of ours runs Core ML


@pytest.mark.slow
def test_coremltools_own_tests_pass_with_the_evaluator(tmp_path):
    """
    Two cases of every test of coremltools' operators that the evaluator has give what they expect of Core ML in
    float32; each class that the table names compared something.
    """
    named = sorted({evidence.file for evidence in EVIDENCE.values() if evidence.independent} - {TORCH_TESTS})
    log = tmp_path / "log.jsonl"
    environment = os.environ | {
        "EVALUATED": str(log), "EVALUATED_CASES": "2", "PYMIL_TEST_TARGETS": "mlprogram",
        "INCLUDE_MIL_FP32_UNIT_TESTS": "1", "COMPUTE_UNITS": "CPU_ONLY", "PYTHONPATH": str(ROOT / "tests/support"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    # the last two look at passes, which are not run here
    chosen = "fp32 and not float16 and not fp16 and (not Fill or FillLike) and not Range1d"

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "coremltools_suite",
         f"--rootdir={tmp_path}", "-k", chosen, *(str(PACKAGE.parent / file) for file in named)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    wrong = [line for line in lines if line["verdict"] in ("AssertionError", "InferenceError")]
    assert [] == wrong, done.stdout[-3000:]
    passed = {line["test"].split("::")[1] for line in lines if line["verdict"] == "passed" and line["operators"]}
    named = {evidence.test for evidence in EVIDENCE.values() if evidence.file and evidence.file != TORCH_TESTS}
    assert {"TestFill", "TestRange1d"} == named - passed
