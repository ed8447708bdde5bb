import pytest

from coordatt_deploy.errors import BundleError, ConversionError, DeployError, UsageError, error_named


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("UsageError", UsageError),
        ("BundleError", BundleError),
        ("nearest", ConversionError),
        ("Iterable", ConversionError),
        ("SystemExit", ConversionError),
        ("", ConversionError),
    ],
)
def test_errors_of_other_processes_keep_their_class(name, expected):
    """
    Only an error of ours can be named; anything else is the default.
    """
    found = error_named(name, ConversionError)

    assert expected is found
    assert issubclass(found, DeployError)
