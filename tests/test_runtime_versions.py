"""For how old a runtime files are written: what is asked for, what files need, and what is refused."""

import pytest

from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtime_versions import (
    NO_LIMITS,
    RuntimeLimits,
    RuntimeNeeds,
    check_needs,
    in_order,
    opens,
    parse_min_runtime,
)
from coordatt_deploy.runtimes.coreml import needs as coreml
from coordatt_deploy.runtimes.onnx import needs as onnx


def test_versions_are_compared_by_their_numbers():
    """
    1.9 is older than 1.15, and 1.15 is 1.15.0.
    """
    assert in_order("1.9") < in_order("1.15") == in_order("1.15.0") < in_order("1.15.1") < in_order("2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("onnxrutime=1.15", "did you mean onnxruntime"),
        ("onnxruntime", "write onnxruntime=VERSION"),
        ("tflite=new", "write tflite=VERSION"),
        ("ios=", "write ios=VERSION"),
        ("ios=1.2.3.4", "write ios=VERSION"),
    ],
)
def test_what_is_no_runtime_is_refused(text, says):
    """
    With what to write instead.
    """
    with pytest.raises(UsageError, match=says):
        parse_min_runtime(text)


def test_a_file_that_is_too_new_is_refused_with_what_is_too_new_in_it():
    """
    The text has what asks for it, what was asked for, and what to say instead; a file that is old enough passes.
    """
    needs = RuntimeNeeds({"tflite": "2.17"}, "FULLY_CONNECTED version 12 in head")

    check_needs(needs, Format.TFLITE, RuntimeLimits({"tflite": "2.17"}), "")
    check_needs(needs, Format.TFLITE, RuntimeLimits({"ios": "15"}), "")
    check_needs(needs, Format.TFLITE, NO_LIMITS, "")
    with pytest.raises(ConversionError, match=r"tflite 2\.17 because of FULLY_CONNECTED version 12 in head.*2\.14"):
        check_needs(needs, Format.TFLITE, RuntimeLimits({"tflite": "2.14"}), "")


def test_a_file_that_no_table_knows_is_not_said_to_open():
    """
    What is not known is refused where an old runtime is asked for.
    """
    unknown = RuntimeNeeds({}, "FULLY_CONNECTED version 99 in head")

    assert not opens(unknown, "tflite", "9.9")
    with pytest.raises(ConversionError, match="no table knows"):
        check_needs(unknown, Format.TFLITE, RuntimeLimits({"tflite": "9.9"}), "")


def test_limits_of_formats_that_are_not_written_are_refused():
    """
    They would do nothing.
    """
    RuntimeLimits({"ios": "15"}, 17).check((Format.COREML, Format.ONNX))
    with pytest.raises(UsageError, match="--min-runtime ios=15 is about Core ML"):
        RuntimeLimits({"ios": "15"}).check((Format.ONNX,))
    with pytest.raises(UsageError, match="--opset 17 is about ONNX"):
        RuntimeLimits(opset=17).check((Format.TFLITE,))


def test_limits_of_an_earlier_export_stay_with_its_format():
    """
    What is exported now has the limits of now.
    """
    earlier = RuntimeLimits({"ios": "15", "tflite": "2.14"}, 17)

    assert RuntimeLimits({"ios": "15"}, 17) == NO_LIMITS.beside(earlier, {Format.TFLITE})
    assert RuntimeLimits({"ios": "15", "tflite": "2.14"}, None) == NO_LIMITS.beside(earlier, {Format.ONNX})


@pytest.mark.parametrize(
    ("ir_version", "opset", "least"),
    [
        (8, 18, "1.14"),
        (8, 17, "1.12"),
        (7, 14, "1.8"),
        (10, 18, "1.18"),
        (9, 19, "1.16"),
        (8, 99, None),
        (99, 18, None),
    ],
)
def test_onnx_files_need_what_knows_opset_and_ir_version(ir_version, opset, least):
    """
    The newer of the two decides; what the table lacks is not known.
    """
    found = onnx.runtime_needs(ir_version, [("", opset), ("com.microsoft", 1)])

    assert least == found.least.get("onnxruntime")
    assert {"ir": ir_version, "opset": opset} == found.versions


@pytest.mark.parametrize(("runtime", "opset"), [("1.15", 18), ("1.12.1", 17), ("1.8", 14), ("0.0.1", None)])
def test_the_newest_opset_of_a_runtime(runtime, opset):
    """
    Of ONNX Runtime 1.15 that is 18: its Reshape of opset 19 is missing, whatever is published.
    """
    assert opset == onnx.newest_opset(runtime)


@pytest.mark.parametrize(("specification", "ios"), [(6, "15"), (7, "16"), (8, "17"), (9, "18"), (99, None)])
def test_core_ml_packages_need_what_reads_their_specification(specification, ios):
    """
    By the version of the specification alone.
    """
    assert ios == coreml.runtime_needs(specification).least.get("ios")
