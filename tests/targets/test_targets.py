import pytest

from coordatt_deploy.errors import UsageError
from coordatt_deploy.targets import TargetName, parse


@pytest.mark.parametrize(
    ("text", "cpu"),
    [("qemu-arm64", "neoverse-n1"), ("qemu-arm64:cortex-a53", "cortex-a53"), ("qemu-arm64:max", "max")],
)
def test_a_target_has_a_default_cpu(text, cpu):
    """
    The name alone means neoverse-n1; the written form reads back.
    """
    parsed = parse(text)

    assert TargetName("qemu-arm64", cpu) == parsed
    assert parsed == parse(str(parsed))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("qemu-arm", "qemu-arm64"),
        ("", "qemu-arm64"),
        ("qemu-arm64:cortex-a54", "cortex-a53"),
        ("qemu-arm64:", "neoverse-n1"),
        ("qemu-arm64:max,sme=on", "max"),
    ],
)
def test_an_unknown_target_or_cpu_names_the_nearest(text, hint):
    """
    Bad usage, exit code 2.
    """
    with pytest.raises(UsageError, match=hint) as caught:
        parse(text)
    assert caught.value.exit_code == 2
