import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "mobilenetv2_ca_10"), "did you mean mobilenetv2_ca_100"),
        (("--format", "onx"), "did you mean onnx"),
        (("--softmax",), "--bake-preprocessing as well"),
    ],
)
def test_a_mistake_is_told_before_anything_is_built(run, tmp_path, arguments, said):
    """
    Exit 2, what is possible, and no folder.
    """
    result = run("build", *arguments)

    assert 2 == result.exit_code
    assert said in result.output
    assert [] == list(tmp_path.iterdir())
