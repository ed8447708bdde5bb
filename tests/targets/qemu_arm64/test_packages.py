from importlib.metadata import PackageNotFoundError

import pytest

from coordatt_deploy.formats import Format
from coordatt_deploy.targets.qemu_arm64 import packages


def test_what_the_runtimes_need_is_pinned_to_what_is_here():
    """
    The guest's protobuf is the host's; extras that nobody asked for are left out.
    """
    pinned = packages.closure()

    assert {"numpy", "onnxruntime", "ai-edge-litert", "protobuf", "flatbuffers"} <= set(pinned)
    assert "sympy" not in pinned
    assert all(pinned.values())


def test_requirements_are_read_for_the_guest(monkeypatch):
    """
    Markers are those of its system, an extra counts where it is asked for, and what is not installed is left out.
    """
    requirements = {
        "runtime": ["Some_Library[fast]>=1; python_version < '4'", "windows-only; sys_platform == 'win32'", "absent"],
        "some-library": ["runtime", "speedup==2; extra == 'fast'", "docs; extra == 'docs'"],
        "speedup": None,
        "windows-only": None,
        "docs": None,
    }

    def version(name):
        if name not in requirements:
            raise PackageNotFoundError(name)
        return f"{len(name)}.0"

    monkeypatch.setattr(packages, "installed_runtimes", lambda: {"runtime": "7.0"})
    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "requires", requirements.__getitem__)

    assert {"runtime": "7.0", "some-library": "12.0", "speedup": "7.0"} == packages.closure()


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (("numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime"), ("numpy", "onnxruntime", "ai-edge-litert")),
        (("numpy", "msgspec", "tflite-runtime"), ("numpy", "msgspec", "tflite-runtime")),
        (("coremltools",), ()),
    ],
)
def test_the_guest_gets_the_runtimes_that_are_here(monkeypatch, here, expected):
    """
    The first package of a format that is installed; none of a format that Linux cannot run.
    """

    def version(name):
        if name not in here:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(packages, "version", version)

    assert dict.fromkeys(expected, "1.0") == packages.installed_runtimes()


def test_formats_are_known_by_the_packages_that_open_them():
    """
    Either package of TFLite will do; NumPy opens nothing.
    """
    assert [Format.ONNX, Format.TFLITE] == packages.opened_formats(("numpy", "onnxruntime", "tflite-runtime"))
    assert [] == packages.opened_formats(("numpy", "msgspec", "coremltools"))
