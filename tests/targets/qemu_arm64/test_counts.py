"""Instruction classes and marks."""

import pytest

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.targets.qemu_arm64 import counts


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
