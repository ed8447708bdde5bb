"""Shell completion: Click's own, asked as a shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("coordatt-deploy")


def _asked(**environment):
    return subprocess.run(
        [COMMAND],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell):
    """
    What the README has users put into their shell's start-up file is printed; it calls the command back.
    """
    found = _asked(_COORDATT_DEPLOY_COMPLETE=f"{shell}_source")

    assert 0 == found.returncode
    assert "_COORDATT_DEPLOY_COMPLETE" in found.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("coordatt-deploy qu", {"quantize"}),
        ("coordatt-deploy export --min", {"--min-runtime"}),
        ("coordatt-deploy export --format t", {"tflite"}),
        ("coordatt-deploy evaluate my_net --mark", {"--markdown"}),
        ("coordatt-deploy export --precision fp", {"fp32", "fp16"}),
    ],
)
def test_commands_options_and_values_are_offered(words, offered):
    """
    Those that begin with what was typed, and no others.
    """
    found = _asked(_COORDATT_DEPLOY_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))

    assert offered == {line.partition(",")[2] for line in found.stdout.splitlines()}


def test_completion_loads_no_framework():
    """
    Each press of the tab key starts the command: neither NumPy nor torch is imported for it.
    """
    code = (
        "import os, sys; os.environ |= {'_COORDATT_DEPLOY_COMPLETE': 'bash_complete', 'COMP_CWORD': '2',"
        " 'COMP_WORDS': 'coordatt-deploy export --f'}\n"
        "from coordatt_deploy.cli import main\n"
        "try: main(prog_name='coordatt-deploy')\n"
        "except SystemExit: print({'numpy', 'torch', 'rich'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=True)

    assert "set()" == found.stdout.splitlines()[-1]
    assert "plain,--format" in found.stdout
