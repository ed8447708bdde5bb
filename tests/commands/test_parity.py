import pytest


def test_no_bundle_at_all(run):
    """
    Exit 2, and how to make one.
    """
    result = run("parity", "nowhere")

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--outputs-only", "--layers"), "--outputs-only judges no layer"),
        (("--outputs-only", "--save-failing", "failing"), "--outputs-only judges no layer"),
        (("--tolerance", "nowhere.toml"), "there is no tolerance file nowhere.toml"),
        (("--format", "onx"), "did you mean onnx"),
    ],
)
def test_bad_usage_is_told_before_the_bundle_is_opened(run, arguments, said):
    """
    Exit 2 and the reason.
    """
    result = run("parity", "nowhere", *arguments)

    assert 2 == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output
