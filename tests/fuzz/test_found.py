"""What the fuzzer found and no other test holds: through the command line, on the small bundle."""

import shutil

import onnx
import pytest
from click.testing import CliRunner
from fuzzing import bases

from coordatt_deploy.cli import main
from coordatt_deploy.runtimes import first_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bases.small_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "small")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[]", b"[" * 100_000, b'{"schema_version": 2, "runs": 3}'])
def test_an_earlier_report_that_is_nothing_is_written_anew(bundle, content):
    """
    Also where its bytes are no text; ``report`` itself says what is wrong with it.
    """
    path = bundle / "reports/parity.json"
    path.write_bytes(content)

    told = run("report", bundle)
    again = run("parity", bundle, "--outputs-only")

    assert (2, 1) == (told.exit_code, told.output.count("\n"))
    assert "reports/parity.json cannot be read" in told.output
    assert 0 == again.exit_code, again.output
    assert 0 == run("report", bundle).exit_code


@pytest.mark.parametrize("command", ["parity --outputs-only", "profile", "evaluate"])
def test_a_file_that_ends_its_process_is_one_line_of_every_command(bundle, command, tmp_path, monkeypatch):
    """
    A loop without an end stands for it; the file's hash is true.
    """
    monkeypatch.setenv(first_run.SECONDS_VARIABLE, "1")
    path = bundle / "onnx/small_fp32.onnx"
    model = onnx.load(path)
    turns = onnx.numpy_helper.from_array(bases.np.array(2**62), "turns")
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["on"], ["going"]), onnx.helper.make_node("Abs", ["value"], ["next"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    )
    model.graph.initializer.append(turns)
    model.graph.node.insert(0, onnx.helper.make_node("Loop", ["turns", "", "image"], ["looped"], body=body))
    model.graph.node[1].input[0] = "looped"
    onnx.save(model, path)
    bases.rehash(bundle, "onnx/small_fp32.onnx")
    name, *options = command.split()
    if name == "evaluate":
        options = ["--dataset", str(bases.user_files(tmp_path / "user", (6, 8)) / "labelled"), "--labels-by", "index"]

    result = run(name, bundle, *options)

    told = [line for line in result.output.splitlines() if "small_fp32.onnx is refused" in line]
    assert "it had not ended after 1 s" in result.output, result.output
    assert told
    assert result.exit_code in (1, 2)
