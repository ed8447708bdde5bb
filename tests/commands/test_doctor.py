import json


def test_doctor_names_versions_and_remedies(run):
    """
    The document holds the host and every package.
    """
    document = json.loads(run("doctor", "--json").output)

    assert {"host", "parts"} <= set(document)
    assert "2.13.0" in next(part["version"] for part in document["parts"] if part["name"] == "torch")


def test_an_unknown_target_is_not_set_up(run):
    """
    Exit 2 and the nearest.
    """
    result = run("doctor", "--setup", "qemu-arm")

    assert 2 == result.exit_code
    assert "did you mean qemu-arm64" in result.output
