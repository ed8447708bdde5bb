"""Setup that fails, and a real build without a compiler."""

import json
from pathlib import Path

import pytest

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.targets.qemu_arm64 import apt, build, sysroot, target


def test_a_system_without_debians_sources_is_told_where_to_write_them(tmp_path):
    """
    Exit code 3, the step, the reason, the log, and no half box.
    """
    (tmp_path / "etc").mkdir()

    with pytest.raises(MissingDependencyError, match=r"step 'Debian packages' failed: no source of Debian") as caught:
        build.setup(tmp_path / "cache", etc=tmp_path / "etc")

    assert caught.value.exit_code == 3
    assert str(tmp_path / "cache" / "debian.sources") in str(caught.value)
    assert "qemu-arm64-setup.log" in str(caught.value)
    assert [] == [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_mirror_that_does_not_answer_is_named(tmp_path):
    """
    The reason is apt's own, the log holds the rest.
    """
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/sources.list").write_text(f"deb [trusted=yes] file:{tmp_path}/nothing bookworm main\n")

    with pytest.raises(MissingDependencyError, match=r"step 'Debian packages' failed: apt-get ended") as caught:
        build.setup(tmp_path / "cache", etc=tmp_path / "etc")

    text = str(caught.value)
    log = Path(text.partition("the log is ")[2].partition(";")[0])
    assert "E:" in text
    assert "nothing" in log.read_text()


def test_a_wheel_that_pip_cannot_find_is_named(tmp_path, monkeypatch):
    """
    Here because pip may not ask any index.
    """
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "box").mkdir()
    with (tmp_path / "log").open("w+b") as log:
        builder = build._Builder(tmp_path / "box", tmp_path, log, apt.ETC_APT, tmp_path / "none")

        with pytest.raises(build._StepFailedError, match="No matching distribution found"):
            builder.wheels()


def test_a_counter_that_does_not_compile_is_no_reason_to_fail(tmp_path, monkeypatch):
    """
    Parity needs none: the reason is kept instead.
    """
    monkeypatch.setattr(build, "PLUGIN_SOURCE", tmp_path / "broken.c")
    (tmp_path / "broken.c").write_text("this is no C;\n")
    with (tmp_path / "log").open("w+b") as log:
        reason = build._Builder(tmp_path, tmp_path, log, apt.ETC_APT, tmp_path / "none").plugin()

    assert "could not be compiled" in reason
    assert "gcc libc6-dev" in reason


def test_the_counter_compiles_without_a_warning(tmp_path):
    """
    The C source that ships in the package.
    """
    with (tmp_path / "log").open("w+b") as log:
        reason = build._Builder(tmp_path, tmp_path, log, apt.ETC_APT, tmp_path / "none").plugin()

    assert reason is None
    assert (tmp_path / sysroot.PLUGIN).is_file()
    assert "warning" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_build_without_a_compiler_is_parity_only_and_a_second_one_is_reused(
    artifacts, tmp_path, monkeypatch, feeds_of
):
    """
    A real build on a PATH without gcc; running works, counting says why it does not.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if not any(word in program.name for word in ("gcc", "cc", "clang")) and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tools))
    cache = tmp_path / "cache"

    built = target.setup(cache)
    manifest = Path(built.path) / sysroot.MANIFEST
    before = manifest.stat().st_mtime_ns
    again = target.setup(cache)

    assert ("ready", False) == (built.state, built.counts)
    assert "no C compiler" in built.counting_problem
    assert (before, built) == (manifest.stat().st_mtime_ns, again)
    path, artifact = artifacts["onnx"]
    feeds = feeds_of(artifact)
    with target.start("neoverse-n1", cache_dir=cache) as guest, guest.open_artifact(path, artifact) as runner:
        assert runner.infer(feeds)
    with pytest.raises(MissingDependencyError, match="no C compiler"):
        target.count_instructions(path, artifact, feeds, cpu="neoverse-n1", cache_dir=cache)
    downloads = json.loads(manifest.read_text())["downloads"]
    assert {"qemu-user", "libc6"} <= {item.get("package") for item in downloads}
    assert {"numpy", "onnxruntime"} <= {item.get("wheel") for item in downloads}
    assert all(len(item["sha256"]) == 64 for item in downloads)
    assert not [path for path in cache.iterdir() if "partial" in path.name]
