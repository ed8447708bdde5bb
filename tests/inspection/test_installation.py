"""What doctor finds."""

from dataclasses import replace

import pytest

from coordatt_deploy.host import ANDROID_PROOT, ANDROID_TERMUX, describe
from coordatt_deploy.inspection import installation
from coordatt_deploy.report.terminal.doctor import show_doctor


@pytest.mark.parametrize(
    ("container", "told"),
    [(ANDROID_PROOT, "termux-wake-lock"), (ANDROID_TERMUX, "proot-distro"), ("docker", None), (None, None)],
)
def test_a_phone_is_told_from_a_board(monkeypatch, capsys, container, told):
    """
    What the process runs in stands behind the system, with what to do there on a phone.
    """
    host = replace(describe(), container=container)
    monkeypatch.setattr(installation, "describe", lambda: host)

    show_doctor(installation.examine())

    shown = " ".join(capsys.readouterr().out.split())
    assert (container is not None) is (f", in {container}" in shown)
    assert all((word == told) is (word in shown) for word in ("termux-wake-lock", "proot-distro"))
