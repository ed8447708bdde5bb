import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option '--dataset'"),
        (("--dataset", "digits"), "coordatt-deploy build"),
        (("--dataset", "digits", "--labels-by", "nam"), "unknown --labels-by 'nam'; did you mean name?"),
        (("--dataset", "digits", "--limit", "0"), "--limit is 0; it must be a whole number of at least 1"),
        (("--dataset", "digits", "--max-drop", "200"), "--max-drop is 200.0"),
    ],
)
def test_bad_usage_is_told_before_anything_is_run(run, arguments, said):
    """
    Exit 2 and the reason.
    """
    result = run("evaluate", "nowhere", *arguments)

    assert 2 == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output
