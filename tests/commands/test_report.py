def test_no_bundle_at_all(run):
    """
    Exit 2, and how to make one.
    """
    result = run("report", "nowhere")

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output
