"""The emulated ARM64 target: its parts as pure functions, and the real box with the real runtimes inside."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing, TensorSpec
from coordatt_deploy.errors import BundleError, ConversionError, MissingDependencyError, UsageError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.macs import Work, count
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.models import create_model
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.targets import TargetName, parse, session_client
from coordatt_deploy.targets import target as target_named
from coordatt_deploy.targets.qemu_arm64 import apt, build, counts, cpus, sysroot, target
from coordatt_deploy.tensors import encode

# Names and syntax ---------------------------------------------------------------------------------------------------


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


# CPUs ---------------------------------------------------------------------------------------------------------------


def test_each_cpu_has_the_part_number_of_its_core():
    """
    As in the kernel's cputype.h; a wrong one picks another core's kernels.
    """
    parts = {name: cpu.part for name, cpu in cpus.CPUS.items()}

    assert parts == {
        "cortex-a53": 0xD03, "cortex-a55": 0xD05, "cortex-a72": 0xD08, "cortex-a76": 0xD0B, "neoverse-n1": 0xD0C,
        "max": 0xD48,
    }  # fmt: skip


def test_max_is_never_plain():
    """
    QEMU 7.2 computes SME's integer products wrongly.
    """
    assert "sme=off" in cpus.CPUS["max"].qemu
    assert not any(feature.startswith(("sme", "sve")) for cpu in cpus.CPUS.values() for feature in cpu.features)


def test_features_promise_what_the_core_has():
    """
    Dot products from the ARMv8.2 cores on, matrix products on max alone.
    """
    with_dot = {name for name, cpu in cpus.CPUS.items() if "asimddp" in cpu.features}

    assert with_dot == {"cortex-a55", "cortex-a76", "neoverse-n1", "max"}
    assert [name for name, cpu in cpus.CPUS.items() if "i8mm" in cpu.features] == ["max"]


def test_the_guest_sees_one_arm_core():
    """
    /proc/cpuinfo in the kernel's form, and a topology of one CPU.
    """
    files = cpus.overlay(cpus.CPUS["cortex-a72"])

    fields = dict(line.split(":") for line in files["proc/cpuinfo"].strip().splitlines())
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    assert fields["processor"] == "0"
    assert fields["CPU implementer"] == "0x41"
    assert fields["CPU part"] == "0xd08"
    assert "asimd" in fields["Features"].split()
    assert files["sys/devices/system/cpu/possible"] == "0\n"
    assert files["sys/devices/system/cpu/cpu0/topology/core_siblings"] == "1\n"


# Instruction classes and marks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        (0x4E22CC20, "fmla"),  # fmla v0.4s, v1.4s, v2.4s
        (0x4F821020, "fmla"),  # fmla v0.4s, v1.4s, v2.s[0]
        (0x4E420C20, "fmla"),  # fmla v0.8h, v1.8h, v2.8h
        (0x4F001020, "fmla"),  # fmla v0.8h, v1.8h, v0.h[0]
        (0x4EA2CC20, "simd"),  # fmls v0.4s, v1.4s, v2.4s
        (0x4E829420, "sdot"),  # sdot v0.4s, v1.16b, v2.16b
        (0x4F82E020, "sdot"),  # sdot v0.4s, v1.16b, v2.4b[0]
        (0x6E829420, "sdot"),  # udot v0.4s, v1.16b, v2.16b
        (0x4E82A420, "smmla"),  # smmla v0.4s, v1.16b, v2.16b
        (0x6E82A420, "smmla"),  # ummla v0.4s, v1.16b, v2.16b
        (0x0E228020, "smlal"),  # smlal v0.8h, v1.8b, v2.8b
        (0x4F422020, "smlal"),  # smlal2 v0.4s, v1.8h, v2.h[0]
        (0x1F020C20, "fmadd"),  # fmadd s0, s1, s2, s3
        (0x6E22DC20, "simd"),  # fmul v0.4s, v1.4s, v2.4s
        (0xF9400020, "memory"),  # ldr x0, [x1]
        (0x3DC00020, "memory"),  # ldr q0, [x1]
        (0xA9BF7BFD, "memory"),  # stp x29, x30, [sp, #-16]!
        (0x14000001, "branch"),  # b
        (0xD65F03C0, "branch"),  # ret
        (0x8B020020, "other"),  # add x0, x1, x2
    ],
)
def test_instructions_have_classes(opcode, expected):
    """
    Encodings as a disassembler reads them.
    """
    assert expected == counts.classify(opcode)


def test_every_rule_can_win():
    """
    No rule is hidden behind an earlier one, and no value has bits outside its mask.
    """
    for position, (name, mask, value) in enumerate(counts.RULES):
        assert value & ~mask == 0, name
        earlier = counts.RULES[:position]
        assert not any(value & m == v and m & mask == m for _, m, v in earlier), (name, hex(value))


def _line(number, **executed):
    return f"mark {number} " + " ".join(f"{name}={executed.get(name, 0)}" for name in counts.CLASSES)


def test_the_difference_of_two_marks_is_one_inference():
    """
    What ran between the pairs is left out.
    """
    text = "\n".join(
        [
            _line(0, fmla=10, other=5),
            _line(1, fmla=110, other=25),
            _line(2, fmla=500, other=99),
            _line(3, fmla=601, other=119),
        ]
    )

    counted = counts.per_inference(counts.parse_marks(text))

    assert [(100, 20), (101, 20)] == [(count["fmla"], count["other"]) for count in counted]


def test_the_median_inference_is_reported():
    """
    Classes add up to the total; the spread is over the median.
    """
    inferences = [dict.fromkeys(counts.CLASSES, 0) | {"fmla": 50, "other": other} for other in (60, 50, 51)]

    count = counts.summarise(inferences, "onnxruntime 1.0 on qemu-arm64:max")

    assert (101, (110, 100, 101)) == (count.total, count.per_inference)
    assert count.total == sum(count.classes.values())
    assert count.spread == 10 / 101
    assert count.origin is Origin.EMULATED


@pytest.mark.parametrize("text", ["mark 0 fmla", "mark x fmla=1", "noise", "mark 0 fmla=one"])
def test_what_the_plugin_did_not_write_is_refused(text):
    """
    The offending line is shown.
    """
    with pytest.raises(ConversionError, match="instruction counter wrote"):
        counts.parse_marks(text)


def test_a_mark_without_its_partner_is_refused():
    """
    A guest that died in the middle gives no count.
    """
    with pytest.raises(ConversionError, match="ended early"):
        counts.per_inference(counts.parse_marks("\n".join(_line(number) for number in (0, 1, 2))))


# apt ----------------------------------------------------------------------------------------------------------------

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_one_line_sources_are_read():
    """
    Options, comments, sources for source code, and lines that are switched off.
    """
    text = (
        "# deb http://off.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # remark\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "\n"
        "deb http://mirror.example/security bookworm-security main\n"
    )

    assert (
        apt.Source(("http://mirror.example/debian",), ("bookworm",), ("main", "contrib"), (("signed-by", "/k.gpg"),)),
        apt.Source(("http://mirror.example/security",), ("bookworm-security",), ("main",)),
    ) == apt.parse_list(text)


def test_deb822_sources_are_read():
    """
    Several suites, an embedded key over several lines, a stanza that is switched off, one for source code.
    """
    text = (
        "Types: deb deb-src\n"
        "# a remark in the middle\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: bookworm bookworm-updates\n"
        "Components: main\n"
        "Architectures: amd64\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
        "\n"
        "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n"
        " \n"
        "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
    )

    (source,) = apt.parse_deb822(text)

    assert source.suites == ("bookworm", "bookworm-updates")
    assert source.options == (("Signed-By", "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF"),)
    assert (source,) == apt.parse_deb822(apt.sources_text((source,), ("amd64", "arm64")))


def test_only_debians_archive_is_taken_and_turned_to_the_release():
    """
    Updates and security stay what they are; other projects, backports and discs are left out.
    """

    def one(uri, *suites, components=("main",), key=""):
        return apt.Source((uri,), suites, components, (("Signed-By", key),) if key else ())

    sources = (
        one("http://mirror.example/debian", "trixie", "trixie-updates", "trixie-backports", key=KEYRING),
        one("http://mirror.example/security", "trixie-security"),
        one("http://old.example/debian-security", "buster/updates", "bullseye/updates"),
        one("http://node.example", "nodistro"),
        one("http://cloud.example", "cloud-sdk-bookworm"),
        one("http://docker.example", "bookworm", components=("stable",)),
        one("http://vendor.example", "bookworm", key="/usr/share/keyrings/vendor.gpg"),
        one("http://ubuntu.example/ubuntu", "noble"),
        one("cdrom:[Debian]/", "bookworm"),
        one("http://flat.example", "./"),
    )

    found = apt.debian_sources(sources, "bookworm")

    assert [(source.uris[0], source.suites) for source in found] == [
        ("http://mirror.example/debian", ("bookworm", "bookworm-updates")),
        ("http://mirror.example/security", ("bookworm-security",)),
        ("http://old.example/debian-security", ("bookworm-security",)),
    ]


def test_the_private_apt_writes_nowhere_else(tmp_path):
    """
    All folders are its own, the system's hooks and pinning stay out, its proxy comes along.
    """
    settings = (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";',
        'APT::Update::Post-Invoke-Success:: "true";',
        'Dir::State "var/lib/apt";',
    )

    lines = apt.config_text(tmp_path, ("amd64", "arm64"), settings).splitlines()

    assert lines[0] == settings[0]
    assert not any("Invoke" in line or "var/lib/apt" in line for line in lines)
    assert f'Dir::State "{tmp_path}";' in lines
    assert 'Dir::Etc::parts "/dev/null";' in lines
    assert 'APT::Architectures { "amd64"; "arm64"; };' in lines


def test_this_systems_sources_or_the_users_own_file_are_found(tmp_path):
    """
    sources.list and both forms below sources.list.d; other files there are left alone.
    """
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/b.list").write_text("deb http://b.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/c.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    (tmp_path / "sources.list.d/d.sources.off").write_text("Types: deb\nURIs: http://d.example\n")

    uris = [source.uris[0] for source in apt.read_sources(tmp_path)]

    assert uris == ["http://a.example/debian", "http://b.example/debian", "http://c.example/debian"]


def test_package_files_tell_their_version():
    """
    apt escapes the epoch's colon.
    """
    assert ("qemu-user", "1:7.2+dfsg-7+deb12u18+b3", "amd64") == apt.deb_version(
        Path("qemu-user_1%3a7.2+dfsg-7+deb12u18+b3_amd64.deb")
    )


# Setup that fails ---------------------------------------------------------------------------------------------------


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


def test_what_the_runtimes_need_is_pinned_to_what_is_here():
    """
    The guest's protobuf is the host's; extras that nobody asked for are left out.
    """
    pinned = build.closure()

    assert {"numpy", "onnxruntime", "ai-edge-litert", "protobuf", "flatbuffers"} <= set(pinned)
    assert "sympy" not in pinned
    assert all(pinned.values())


# A box that cannot be used ------------------------------------------------------------------------------------------


def _fake_box(cache, **changes):
    """Write a folder that passes for a box of this version, with one file in it."""
    root = cache / sysroot.NAME
    (root / "site").mkdir(parents=True)
    (root / "site/module.so").write_bytes(b"machine code")
    document = {
        "schema_version": sysroot.SCHEMA_VERSION,
        "recipe": sysroot.recipe(),
        "runtimes": sysroot.installed_runtimes(),
        "no_counts_because": None,
        "bytes": 12,
        "files": sysroot.hashes(root),
    }
    (root / sysroot.MANIFEST).write_text(json.dumps(document | changes))
    return root


def test_no_box_names_the_command_that_builds_one(tmp_path):
    """
    Exit code 3.
    """
    with pytest.raises(MissingDependencyError, match="run: coordatt-deploy doctor --setup qemu-arm64") as caught:
        target.guest(cache_dir=tmp_path)

    assert caught.value.exit_code == 3
    assert "missing" == target.status(tmp_path).state


def test_a_whole_box_is_ready(tmp_path):
    """
    Nothing but hashes and versions decides.
    """
    _fake_box(tmp_path)

    found = target.status(tmp_path)

    assert ("ready", None, True) == (found.state, found.reason, found.counts)


def test_a_changed_byte_is_damage(tmp_path):
    """
    The file is named, and the command that builds the box again.
    """
    root = _fake_box(tmp_path)
    (root / "site/module.so").write_bytes(b"machine Code")

    with pytest.raises(
        MissingDependencyError, match=r"is damaged: site/module\.so changed .*doctor --setup qemu-arm64"
    ):
        sysroot.open_sysroot(tmp_path)


def test_a_missing_file_is_damage(tmp_path):
    """
    As after a tidy-up of the cache.
    """
    root = _fake_box(tmp_path)
    (root / "site/module.so").unlink()

    assert ("damaged", "site/module.so missing") == (
        target.status(tmp_path).state,
        target.status(tmp_path).reason,
    )


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_box_without_a_proper_manifest_is_damaged(tmp_path, content):
    """
    Missing, empty, of another kind, half, of another schema, without entries.
    """
    root = _fake_box(tmp_path)
    (root / sysroot.MANIFEST).unlink()
    if content is not None:
        (root / sysroot.MANIFEST).write_text(content)

    assert "damaged" == target.status(tmp_path).state


def test_a_box_of_another_runtime_version_is_refused(tmp_path):
    """
    Both versions are named: parity must compare the same runtime.
    """
    here = sysroot.installed_runtimes()
    _fake_box(tmp_path, runtimes=here | {"onnxruntime": "1.0.0"})

    with pytest.raises(MissingDependencyError, match=f"onnxruntime 1.0.0 inside, {here['onnxruntime']} here"):
        sysroot.open_sysroot(tmp_path)
    assert "outdated" == target.status(tmp_path).state


def test_a_box_of_another_recipe_is_refused(tmp_path):
    """
    Other packages, CPUs or another counter.
    """
    _fake_box(tmp_path, recipe="0" * 64)

    with pytest.raises(MissingDependencyError, match="another version of coordatt-deploy"):
        sysroot.open_sysroot(tmp_path)


def test_counting_without_a_counter_says_why_and_parity_goes_on(tmp_path):
    """
    Exit code 3, with the reason that the build left.
    """
    _fake_box(tmp_path, no_counts_because="there was no C compiler when the box was built")

    found = target.status(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"no C compiler .*parity works without"):
        target.guest(counting=True, cache_dir=tmp_path)

    assert ("ready", False) == (found.state, found.counts)


COREML = Artifact(
    "coreml/x.mlpackage", Format.COREML, Precision.FP16, None, None, 0, "",
    (TensorSpec("image", (1, 3, 4, 4), "float32", "NCHW"),), (TensorSpec("logits", (1, 2), "float32", "NC"),), "",
)  # fmt: skip


def test_core_ml_is_not_run_there():
    """
    The reason is given before anything is started, and never a result.
    """
    assert "Apple" in target.why_not(COREML)
    assert target.why_not(replace(COREML, format=Format.ONNX)) is None
    with pytest.raises(UsageError, match="Core ML"):
        target.open_artifact(Path("x.mlpackage"), COREML)
    with pytest.raises(UsageError, match="Core ML"):
        target.count_instructions(Path("x.mlpackage"), COREML, {})


# The real box -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real():
    """The box in the user's cache, built now if it is not there."""
    found = target_named("qemu-arm64").setup()
    assert (found.state, found.no_counts_because) == ("ready", None)
    return sysroot.open_sysroot()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """The embedded default as ONNX and TFLite, and an int8 convolution as ONNX whose exact result is known."""
    folder = tmp_path_factory.mktemp("arm64")
    graph, _ = fold_batchnorms(capture(create_model("mobilenetv2_ca_035.digits"), (torch.zeros(SHAPE),)))
    spec = ModelSpec("digits", Preprocessing(SHAPE[2:]))
    made = {}
    for kind in (Format.ONNX, Format.TFLITE):
        path = folder / f"digits.{kind}"
        exported = exporter(kind).export(graph, ExportRequest(spec, Precision.FP32, path))
        made[kind.value] = path, _artifact(path, kind, Precision.FP32, exported.inputs, exported.outputs)
    path = folder / "int8.onnx"
    onnx.save(_int8_convolution(), path)
    image = TensorSpec("image", (1, 64, 8, 8), "float32", "NCHW")
    made["int8"] = path, _artifact(path, Format.ONNX, Precision.INT8, (image,), (replace(image, name="sums"),))
    return made


def _artifact(path, kind, precision, inputs, outputs):
    return Artifact(path.name, kind, precision, None, None, 0, "", inputs, outputs, "")


SHAPE = (1, 3, 96, 96)
INT8_WEIGHT = np.random.default_rng(5).integers(-127, 128, (64, 64, 1, 1), np.int8)


def _int8_convolution():
    """A pointwise convolution of u8 activations with 8-bit weights, as the quantizer writes it; all steps are 1."""
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "zero8": np.int8(0), "w": INT8_WEIGHT, "step": np.float32(16384),
        "middle": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero8"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["c", "step", "middle"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "step", "middle"], ["sums"]),
    ]
    shape = [1, 64, 8, 8]
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def _feeds(artifact, image):
    return {artifact.inputs[0].name: encode(image, artifact.inputs[0])}


def _natively(path, artifact, feeds):
    with runtime(artifact.format).open_artifact(path, artifact) as runner:
        return runner.infer(feeds)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", cpus.CPUS)
def test_float_artifacts_compute_the_same_on_every_cpu(real, artifacts, cpu):
    """
    One guest opens both formats; results differ from the host's by rounding, and say where they come from.
    """
    with session_client.Guest(real, cpus.CPUS[cpu]) as guest:
        for kind in ("onnx", "tflite"):
            path, artifact = artifacts[kind]
            feeds = [_feeds(artifact, _image(seed)) for seed in range(2)]
            with guest.open_artifact(path, artifact) as runner:
                results = runner.infer_many(feeds)
                assert runner.origin is Origin.EMULATED
                assert runner.runtime.endswith(f"on qemu-arm64:{cpu}")
                assert (artifact.inputs, artifact.outputs) == (runner.inputs, runner.outputs)
            for given, got in zip(feeds, results, strict=True):
                expected = _natively(path, artifact, given)
                assert set(expected) == set(got)
                for name, value in expected.items():
                    assert (value.shape, value.dtype) == (got[name].shape, got[name].dtype)
                    assert np.abs(got[name] - value).max() <= 1e-5 * np.abs(value).max()


@pytest.mark.slow
@pytest.mark.parametrize("cpu", cpus.CPUS)
def test_int8_sums_do_not_saturate_on_arm(real, artifacts, cpu):
    """
    Full-range activations and weights: exact integer arithmetic is the only right answer, also on each CPU.
    """
    path, artifact = artifacts["int8"]
    image = np.full((1, 64, 8, 8), 255, np.float32)
    image[:, ::3] = 17
    exact = np.einsum("oi,nihw->nohw", INT8_WEIGHT[:, :, 0, 0].astype(np.int64), image.astype(np.int64))
    expected = np.clip(np.round(exact / 16384), -128, 127) * 16384

    with session_client.Guest(real, cpus.CPUS[cpu]) as guest, guest.open_artifact(path, artifact) as runner:
        got = runner.infer({"image": image})["sums"]

    assert np.array_equal(expected, got)
    assert len(np.unique(got)) > 8


@pytest.mark.slow
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_inner_tensors_come_out_of_the_guest(artifacts, kind):
    """
    A runner opened with a tensor's name gives it, as at home.
    """
    path, artifact = artifacts[kind]
    feeds = _feeds(artifact, _image())
    if kind == "onnx":
        name = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    else:
        from coordatt_deploy.runtimes.tflite.runner import operators

        name = next(item.tensor for item in operators(path).operators if item.name.endswith("CONV_2D"))
    with runtime(artifact.format).open_artifact(path, artifact, tensors=(name,)) as runner:
        expected = runner.infer(feeds)[name]

    with target.open_artifact(path, artifact, cpu="neoverse-n1", tensors=(name,)) as runner:
        got = runner.infer(feeds)[name]

    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_instructions_are_counted_and_repeat(artifacts, kind):
    """
    An fmla multiplies four numbers: their count is that of the multiply-accumulates, and of what channels are padded
    with; two runs agree.
    """
    path, artifact = artifacts[kind]
    counted = count(capture(create_model("mobilenetv2_ca_035.digits"), (torch.zeros(SHAPE),)))
    macs = counted.of(Work.CONVOLUTION, Work.LINEAR)
    feeds = _feeds(artifact, _image())

    first, second = (target.count_instructions(path, artifact, feeds, cpu="neoverse-n1") for _ in range(2))

    assert 1.0 <= 4 * first.classes["fmla"] / macs <= 1.3
    assert (first.classes["fmla"], 0, 0) == (second.classes["fmla"], first.classes["sdot"], first.classes["smmla"])
    assert first.total == sum(first.classes.values())
    assert len(first.per_inference) == 3
    assert abs(first.total / second.total - 1) <= {"tflite": 1e-6, "onnx": 1e-4}[kind]
    assert first.spread <= 3e-3
    assert first.runtime.endswith("on qemu-arm64:neoverse-n1")


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_int8_uses_the_instructions_that_the_cpu_has(artifacts):
    """
    Dot products on neoverse-n1, matrix products on max, widening products on cortex-a53.
    """
    path, artifact = artifacts["int8"]
    feeds = {"image": np.ones((1, 64, 8, 8), np.float32)}
    macs = 64 * 64 * 8 * 8

    used = {
        cpu: target.count_instructions(path, artifact, feeds, cpu=cpu, inferences=1).classes
        for cpu in ("cortex-a53", "neoverse-n1", "max")
    }

    assert 16 * used["neoverse-n1"]["sdot"] >= macs
    assert 32 * used["max"]["smmla"] >= macs
    assert used["neoverse-n1"]["smmla"] == used["cortex-a53"]["sdot"] == used["cortex-a53"]["smmla"] == 0
    assert used["cortex-a53"]["simd"] + used["cortex-a53"]["smlal"] > used["neoverse-n1"]["simd"]


@pytest.mark.slow
def test_a_file_that_the_runtime_refuses_is_the_users_business(real, artifacts, tmp_path):
    """
    The guest's own error arrives, and the guest goes on working.
    """
    path, artifact = artifacts["onnx"]
    (tmp_path / "noise.onnx").write_bytes(path.read_bytes()[:500])
    with session_client.Guest(real, cpus.CPUS["neoverse-n1"]) as guest:
        with pytest.raises(BundleError, match=r"on qemu-arm64:neoverse-n1: ONNX Runtime cannot open noise\.onnx"):
            guest.open_artifact(tmp_path / "noise.onnx", artifact)

        with guest.open_artifact(path, artifact) as runner:
            with pytest.raises(UsageError, match="has no input 'picture'"):
                runner.infer({"picture": _image()})
            assert runner.infer(_feeds(artifact, _image()))


@pytest.mark.slow
def test_a_guest_that_dies_is_reported(real, artifacts):
    """
    A CPU that promises dot products and has none meets an illegal instruction.
    """
    path, artifact = artifacts["int8"]
    liar = replace(cpus.CPUS["neoverse-n1"], qemu="cortex-a53")

    with (
        session_client.Guest(real, liar) as guest,
        guest.open_artifact(path, artifact) as runner,
        pytest.raises(ConversionError, match=r"was ended by SIGILL during 'infer'; its log is ") as caught,
    ):
        runner.infer({"image": np.ones((1, 64, 8, 8), np.float32)})

    assert Path(str(caught.value).rpartition("its log is ")[2]).is_file()


@pytest.mark.slow
def test_a_guest_that_does_not_answer_is_given_up(real):
    """
    A tenth of a second is not enough to start Python.
    """
    with (
        session_client.Guest(real, cpus.CPUS["neoverse-n1"], timeout_s=0.1) as guest,
        pytest.raises(ConversionError, match=r"gave no answer within 0\.1 s"),
    ):
        guest.versions((), ())


@pytest.mark.slow
def test_guests_run_side_by_side_and_leave_nothing(real):
    """
    Each has a folder of its own, which goes with it.
    """
    with (
        session_client.Guest(real, cpus.CPUS["max"]) as one,
        session_client.Guest(real, cpus.CPUS["cortex-a53"]) as other,
    ):
        folders = {one._scratch, other._scratch}
        answers = []
        threads = [
            threading.Thread(target=lambda guest=guest: answers.append(guest.versions(("numpy",), ())))
            for guest in (one, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        processes = [one._process, other._process]

    assert len(folders) == 2
    assert [{"numpy": np.__version__}] * 2 == answers
    assert not any(folder.exists() for folder in folders)
    assert all(process.poll() is not None for process in processes)


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
def test_the_real_box_with_one_byte_changed_is_refused(real, artifacts, tmp_path, pattern):
    """
    A runtime's library, the emulator, the guest's C library, a CPU's description, the counter.
    """
    root = _linked_copy(real, tmp_path)
    assert "ready" == target.status(tmp_path).state
    victim = next(path for path in sorted(root.glob(pattern)) if not path.is_symlink())
    _change_a_byte(victim)

    with pytest.raises(MissingDependencyError, match=r"is damaged: .* changed since it was built") as caught:
        target.open_artifact(*artifacts["onnx"], cpu="neoverse-n1", cache_dir=tmp_path)

    assert victim.relative_to(root).as_posix() in str(caught.value)


@pytest.mark.slow
def test_a_build_without_a_compiler_is_parity_only_and_a_second_one_is_reused(artifacts, tmp_path, monkeypatch):
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
    assert "no C compiler" in built.no_counts_because
    assert (before, built) == (manifest.stat().st_mtime_ns, again)
    path, artifact = artifacts["onnx"]
    feeds = _feeds(artifact, _image())
    with target.open_artifact(path, artifact, cpu="neoverse-n1", cache_dir=cache) as runner:
        assert runner.infer(feeds)
    with pytest.raises(MissingDependencyError, match="no C compiler"):
        target.count_instructions(path, artifact, feeds, cpu="neoverse-n1", cache_dir=cache)
    downloads = json.loads(manifest.read_text())["downloads"]
    assert {"qemu-user", "libc6"} <= {item.get("package") for item in downloads}
    assert {"numpy", "onnxruntime"} <= {item.get("wheel") for item in downloads}
    assert all(len(item["sha256"]) == 64 for item in downloads)
    assert not [path for path in cache.iterdir() if "partial" in path.name]
