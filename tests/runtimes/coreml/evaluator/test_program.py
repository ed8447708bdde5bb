"""A program as a whole: fp16 storage, inner tensors, pieces that are cut out, and what is kept."""

import numpy as np
import pytest
from mil_programs import IOS17, evaluate, mb, noise, save, types

from coordatt_deploy.runtimes.coreml.evaluator.package import load


def test_fp16_overflows_to_infinity():
    """
    A value above 65504 is infinite as soon as an operator gives it out, and what follows sees infinity.
    """
    x = np.array([300.0, 200.0], dtype=np.float16)

    squared, back = evaluate(lambda a: (mb.square(x=a), mb.sqrt(x=mb.square(x=a))), x)

    assert [np.inf, 40000.0] == squared.tolist()
    assert [np.inf, 200.0] == back.tolist()


def test_fp16_sums_accumulate_in_float32():
    """
    4096 ones add up to 4096, though counting in fp16 stops at 2048.
    """
    ones = np.ones((1, 4096), dtype=np.float16)

    product, mean = evaluate(
        lambda a: (mb.linear(x=a, weight=np.ones((1, 4096), np.float16)), mb.reduce_sum(x=a, axes=[1])), ones
    )

    assert 4096.0 == product.item() == mean.item()


def test_fp16_rounds_after_every_operator():
    """
    (1 + 2^-11) - 1 is 0 in fp16 and 2^-11 in fp32.
    """

    def build(a):
        kind = np.float16 if a.dtype == types.fp16 else np.float32
        return mb.sub(x=mb.add(x=a, y=kind(2**-11)), y=kind(1))

    assert 0.0 == evaluate(build, np.ones(1, np.float16)).item()
    assert 2**-11 == evaluate(build, np.ones(1, np.float32)).item()


def test_inner_tensors_can_be_asked_for(package):
    """
    Every tensor can be had by its name, and asking for it does not change the outputs.
    """
    program, x = load(package), noise(1, 3, 6, 6)

    plain = program.evaluate({"a": x}, ["logits"])
    more = program.evaluate({"a": x}, ["logits", "first", "active"])

    np.testing.assert_array_equal(plain["logits"], more["logits"])
    np.testing.assert_array_equal(np.maximum(more["first"], 0), more["active"])
    assert {"a", "first", "active", "second", "logits"} <= program.names


def test_inner_tensors_on_a_grid_can_be_dequantized(tmp_path):
    """
    An integer tensor inside is given out as the floats that it stands for.
    """

    def build(a):
        grid = mb.quantize(
            input=a,
            scale=np.array([0.5, 0.25], np.float32),
            zero_point=np.array([3, -4], np.int8),
            output_dtype="int8",
            axis=1,
            name="grid",
        )
        back = mb.dequantize(
            input=grid, scale=np.array([0.5, 0.25], np.float32), zero_point=np.array([3, -4], np.int8), axis=1, name="b"
        )
        return mb.relu(x=back, name="c")

    program = load(save(tmp_path, build, [noise(1, 2, 5)], opset=IOS17))
    values = program.evaluate({"a": noise(1, 2, 5)}, ["grid", "b"])

    assert np.int8 == values["grid"].dtype
    np.testing.assert_array_equal(values["b"], program.dequantized("grid", values["grid"]))
    assert values["b"] is program.dequantized("b", values["b"])


def test_a_piece_can_be_cut_out(package):
    """
    Feeding an inner tensor computes only what follows from it.
    """
    program, x = load(package), noise(1, 3, 6, 6)
    inner = program.evaluate({"a": x}, ["active", "logits"])

    again = program.evaluate({"active": inner["active"]}, ["logits"])
    other = program.evaluate({"active": inner["active"] + 1}, ["logits"])

    np.testing.assert_array_equal(inner["logits"], again["logits"])
    assert not np.array_equal(inner["logits"], other["logits"])


def test_what_is_fed_is_not_computed_again(tmp_path):
    """
    Of two results of one operator, one can be fed and the other computed.
    """

    def build(a):
        left, right = mb.split(x=a, num_splits=2, axis=0, name="half")
        return mb.sub(x=left, y=right, name="difference")

    program = load(save(tmp_path, build, [noise(2, 3)]))
    left, right = (port.name for port in program.steps[0].outputs)
    x, fed = noise(2, 3), noise(1, 3, seed=9)

    values = program.evaluate({"a": x, left: fed}, ["difference", left])

    np.testing.assert_array_equal(fed - x[1:], values["difference"])
    np.testing.assert_array_equal(fed, values[left])
    assert right not in values


def test_results_are_the_callers(package):
    """
    Writing into a result changes neither the program nor the feeds.
    """
    program, x = load(package), noise(1, 3, 6, 6)
    first = program.evaluate({"a": x}, ["a", "logits"])
    expected = first["logits"].copy()
    first["a"][:] = 0
    first["logits"][:] = 0

    np.testing.assert_array_equal(expected, program.evaluate({"a": x}, ["logits"])["logits"])


@pytest.mark.parametrize(
    ("feeds", "wanted", "message"),
    [({}, ["logits"], "a was not fed"), ({"a": noise(1, 3, 6, 6)}, ["logit"], "logit is not in the program")],
)
def test_what_is_missing_is_named(package, feeds, wanted, message):
    """
    A value that was not fed and a name that does not exist are told apart.
    """
    with pytest.raises(KeyError, match=message):
        load(package).evaluate(feeds, wanted)


def test_values_are_let_go_when_nobody_reads_them(package):
    """
    After each step, what no later step reads is dropped, but for what was asked for.
    """
    plan = load(package)._plan(frozenset({"a"}), ("logits", "first"))

    assert [("conv", []), ("relu", []), ("conv", ["active"]), ("reduce_mean", ["second"])] == [
        (step.operator, dead) for step, dead in plan
    ]


def test_a_changed_weight_changes_the_result(package):
    """
    The weights come from the file: one changed bit of it shows.
    """
    x = noise(1, 3, 6, 6)
    before = load(package).evaluate({"a": x}, ["logits"])["logits"]
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    weight = noise(4, 8, 1, 1, low=-1, high=1, seed=1)
    data, old = file.read_bytes(), weight.tobytes()
    assert 1 == data.count(old)
    weight[0, 0] += 0.5
    file.write_bytes(data.replace(old, weight.tobytes()))

    after = load(package).evaluate({"a": x}, ["logits"])["logits"]

    assert not np.array_equal(before[:, 0], after[:, 0])
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])
