"""The wheel is what we think it is: its content, its types, its layers."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel_names(wheel):
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]


def _modules_in_checkout():
    folders = {"coordatt_deploy": "coordatt_deploy", "exporters": "coordatt_deploy/exporters"}
    folders["models"] = "coordatt_deploy/models"
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in folders.items()
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }


def test_one_top_level_package(wheel_names):
    """
    Nothing but coordatt_deploy reaches site-packages.
    """
    assert {"coordatt_deploy"} == {name.split("/")[0] for name in wheel_names}


def test_every_module_ships(wheel_names):
    """
    No module of the three folders is forgotten in `packages`.
    """
    assert _modules_in_checkout() == {name for name in wheel_names if name.endswith(".py")}


def test_weights_and_images_ship(wheel_names):
    """
    The trained models, their recipes and their images are in the wheel.
    """
    expected = {
        "coordatt_deploy/models/weights/mobilenetv2_ca_035.digits.safetensors",
        "coordatt_deploy/models/weights/mobilenetv2_ca_035.digits.json",
        "coordatt_deploy/models/weights/lraspp_mobilenetv2_ca_035.scenes.safetensors",
        "coordatt_deploy/models/weights/lraspp_mobilenetv2_ca_035.scenes.json",
        "coordatt_deploy/data/scenes_golden.npz",
        "coordatt_deploy/data/digits_held_out.npz",
        "coordatt_deploy/data/digits_calibration.npz",
        "coordatt_deploy/py.typed",
    }

    assert expected <= set(wheel_names)


def test_what_the_page_is_made_of_ships(wheel_names):
    """
    Templates and style of the HTML report are in the wheel, each of them.
    """
    folder = ROOT / "coordatt_deploy/report/page"
    expected = {
        f"coordatt_deploy/report/page/{path.name}" for path in folder.iterdir() if path.suffix in (".html", ".css")
    }

    assert len(expected) > 2
    assert expected <= set(wheel_names)


def test_types_hold_on_the_wheel(installed, tmp_path):
    """
    mypy --strict finds nothing in the wheel, looked at from elsewhere.
    """
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "coordatt_deploy"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    environment = {"MYPYPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


def test_layers_hold_on_the_wheel(installed, tmp_path):
    """
    import-linter keeps every contract on the wheel.
    """
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--config",
        str(ROOT / "pyproject.toml"),
        "--no-cache",
    ]
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["exporters", "models"])
def test_the_folders_refuse_a_second_import(name):
    """
    Importing a folder under its place in the checkout is refused: it would make a second copy of its tables.
    """
    result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 1
    assert f"import coordatt_deploy.{name}" in result.stderr
