"""A box that cannot be used is refused, with the command that builds it."""

import os
import shutil
from pathlib import Path

import pytest

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.targets.qemu_arm64 import packages, sysroot, target


def test_no_box_names_the_command_that_builds_one(tmp_path):
    """
    Exit code 3.
    """
    with pytest.raises(MissingDependencyError, match="run: coordatt-deploy doctor --setup qemu-arm64") as caught:
        target.start(cache_dir=tmp_path)

    assert caught.value.exit_code == 3
    assert "missing" == target.status(tmp_path).state


def test_a_whole_box_is_ready(tmp_path, fake_box):
    """
    Nothing but hashes and versions decides.
    """
    fake_box(tmp_path)

    found = target.status(tmp_path)

    assert ("ready", None, True) == (found.state, found.reason, found.counts)


def test_a_changed_byte_is_damage(tmp_path, fake_box):
    """
    The file is named, and the command that builds the box again.
    """
    root = fake_box(tmp_path)
    (root / "site/module.so").write_bytes(b"machine Code")

    with pytest.raises(
        MissingDependencyError, match=r"is damaged: site/module\.so changed .*doctor --setup qemu-arm64"
    ):
        sysroot.open_sysroot(tmp_path)


def test_a_missing_file_is_damage(tmp_path, fake_box):
    """
    As after a tidy-up of the cache.
    """
    root = fake_box(tmp_path)
    (root / "site/module.so").unlink()

    assert ("damaged", "site/module.so missing") == (
        target.status(tmp_path).state,
        target.status(tmp_path).reason,
    )


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_box_without_a_proper_manifest_is_damaged(tmp_path, content, fake_box):
    """
    Missing, empty, of another kind, half, of another schema, without entries.
    """
    root = fake_box(tmp_path)
    (root / sysroot.MANIFEST).unlink()
    if content is not None:
        (root / sysroot.MANIFEST).write_text(content)

    assert "damaged" == target.status(tmp_path).state


def test_a_box_of_another_runtime_version_is_refused(tmp_path, fake_box):
    """
    Both versions are named: parity must compare the same runtime.
    """
    here = packages.installed_runtimes()
    fake_box(tmp_path, runtimes=here | {"onnxruntime": "1.0.0"})

    with pytest.raises(MissingDependencyError, match=f"onnxruntime 1.0.0 inside, {here['onnxruntime']} here"):
        sysroot.open_sysroot(tmp_path)
    assert "outdated" == target.status(tmp_path).state


def test_a_box_of_another_recipe_is_refused(tmp_path, fake_box):
    """
    Other packages, CPUs or another counter.
    """
    fake_box(tmp_path, recipe="0" * 64)

    with pytest.raises(MissingDependencyError, match="another version of coordatt-deploy"):
        sysroot.open_sysroot(tmp_path)


def _linked_copy(real, cache):
    """Copy the box without its bytes, where the file system can."""

    def link(source, destination, *, follow_symlinks=True):  # noqa: ARG001
        try:
            os.link(source, destination)
        except OSError:
            shutil.copy2(source, destination)
        return destination

    return Path(shutil.copytree(real.root, cache / sysroot.NAME, symlinks=True, copy_function=link))


def _change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the original shares the old file's bytes
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "site/onnxruntime/capi/*.so",
        "host/usr/bin/qemu-aarch64",
        "arm64/**/libc.so.6",
        "cpus/*/proc/cpuinfo",
        sysroot.PLUGIN,
    ],
)
def test_the_real_box_with_one_byte_changed_is_refused(real, tmp_path, pattern):
    """
    A runtime's library, the emulator, the guest's C library, a CPU's description, the counter.
    """
    root = _linked_copy(real, tmp_path)
    assert "ready" == target.status(tmp_path).state
    victim = next(path for path in sorted(root.glob(pattern)) if not path.is_symlink())
    _change_a_byte(victim)

    with pytest.raises(MissingDependencyError, match=r"is damaged: .* changed since it was built") as caught:
        target.start("neoverse-n1", cache_dir=tmp_path)

    assert victim.relative_to(root).as_posix() in str(caught.value)
