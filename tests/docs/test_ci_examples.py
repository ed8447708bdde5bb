"""The workflows under ``examples/ci``: what they run is run here, in their order and as they write it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CI = Path(__file__).parents[2] / "examples/ci"
COMMAND = [sys.executable, "-m", "coordatt_deploy"]
ORDER = ("build", "core-ml", "report")


def github():
    jobs = yaml.safe_load((CI / "github-actions.yml").read_text())["jobs"]
    return {name: [step["run"] for step in jobs[name]["steps"] if "run" in step] for name in ORDER}


def gitlab():
    jobs = yaml.safe_load((CI / "gitlab-ci.yml").read_text())
    return {name: jobs[name]["script"] for name in ORDER}


def commands(jobs):
    """The lines of ours, job by job."""
    return {name: [line for line in lines if line.startswith("coordatt-deploy ")] for name, lines in jobs.items()}


def test_both_run_the_same_commands():
    """
    A gate does not depend on whose runners it has.
    """
    assert commands(github()) == commands(gitlab())
    assert [6, 2, 1] == [len(lines) for lines in commands(github()).values()]


def test_files_that_jobs_hand_on_are_made_before():
    """
    What a job reads, a job before it writes and hands on.
    """
    assert ["parity-mac.json", "profile-mac.json"] == re.findall(r"--output (\S+)", " ".join(github()["core-ml"]))
    assert ["parity-mac.json", "profile-mac.json"] == re.findall(r"--add (\S+)", " ".join(github()["report"]))


@pytest.mark.slow
@pytest.mark.long
def test_the_gate_runs_from_the_build_to_the_page(tmp_path):
    """
    Every command ends well on the embedded default. Off a Mac the Core ML packages are evaluated, and the documents
    are added all the same; the budgets keep what they say of Core ML's figures, and a budget that is too tight fails.
    """
    shutil.copy(CI / "budgets.toml", tmp_path)

    for line in [line for lines in commands(github()).values() for line in lines]:
        done = subprocess.run(
            [*COMMAND, *shlex.split(line)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, f"{line}\n{done.stdout}{done.stderr}"

    page = (tmp_path / "release/reports/report.html").read_text()
    assert "macos-14" in page
    budgets = tmp_path / "budgets.toml"
    budgets.write_text(budgets.read_text().replace('all = "2.5 MB"', 'all = "0.2 MB"'))
    check = [*COMMAND, "check", "release", "--budgets", "budgets.toml"]
    assert 1 == subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode
