import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.documents import object_of
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import quantizer
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.manifest import RecipeRecord
from coordatt_deploy.quantization.recipes import (
    IoType,
    Mode,
    Recipe,
    all_recipes,
    checked,
    load_recipe,
    needs_preparing,
    parse,
    precision_of,
    recipe_of,
    save_recipe,
    tensors_of,
)

recipes = st.sampled_from(all_recipes()).map(parse)


@pytest.mark.parametrize("name", [*all_recipes(), "static_wi8_ai8_ioi8", "static_wi8_ai8_iofp32"])
def test_a_name_is_what_it_decodes_to(name):
    """
    Parsing a name and naming the recipe gives the name back.
    """
    assert name == parse(name).name
    assert name.partition("_io")[0] == parse(name).base


def test_a_name_says_mode_weights_activations_and_io():
    """
    Every part of the name is a field.
    """
    expected = Recipe(Mode.STATIC, "int8", "int8", IoType.FP32)

    assert expected == parse("static_wi8_ai8_iofp32")


def test_layers_in_float_are_counted_in_the_name():
    """
    The suffixes come off again for what formats list.
    """
    recipe = Recipe(Mode.STATIC, "int8", "int8", IoType.INT8, float_layers=("a", "b"))

    assert "static_wi8_ai8_ioi8_float2" == recipe.name
    assert "static_wi8_ai8" == recipe.base


@pytest.mark.parametrize("name", ["int4", "static", "static_wi4_ai8", "palettized_w5", "", "STATIC_WI8_AI8"])
def test_a_name_that_does_not_decode(name):
    """
    It is answered with what there is.
    """
    with pytest.raises(UsageError, match=r"unknown recipe .*(did you mean|known: )"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "kind", "able"),
    [
        ("palettized_w6", Format.ONNX, "formats that have it: coreml;"),
        ("dynamic_wi8_afp32", Format.COREML, "formats that have it: tflite;"),
        ("weight_only_wi8_afp32", Format.COREML, "formats that have it: tflite, onnx;"),
        ("weight_only_wi8", Format.TFLITE, "formats that have it: coreml;"),
    ],
)
def test_a_recipe_that_the_format_cannot_express_names_those_that_can(name, kind, able):
    """
    And lists what the format itself has.
    """
    with pytest.raises(UsageError) as error:
        checked(parse(name), kind)

    assert able in str(error.value)
    assert all(other in str(error.value) for other in FORMATS[kind].recipes)


@pytest.mark.parametrize("kind", [Format.ONNX, Format.COREML])
def test_sixteen_bit_activations_are_for_tflite(kind):
    """
    The others have no such operators.
    """
    with pytest.raises(UsageError, match="formats that have it: tflite;"):
        checked(parse("static_wi8_ai16"), kind)


def test_sixteen_bit_activations_keep_their_whole_range():
    """
    Nothing is cut and nothing evened out where steps are fine; inputs and outputs stay floats.
    """
    recipe = checked(parse("static_wi8_ai16"), Format.TFLITE)

    assert (RangeMethod.MIN_MAX, False, True) == (recipe.ranges, recipe.equalise, recipe.adjust)
    assert IoType.FP32 is recipe.io
    with pytest.raises(UsageError, match="only static_wi8_ai8"):
        checked(parse("static_wi8_ai16_ioi8"), Format.TFLITE)


def test_only_a_static_recipe_has_int8_inputs():
    """
    Others compute in float at the ends.
    """
    with pytest.raises(UsageError, match="only static_wi8_ai8"):
        checked(parse("dynamic_wi8_afp32_ioi8"), Format.TFLITE)


def test_core_ml_has_no_int8_inputs():
    """
    The formats that have are named.
    """
    with pytest.raises(UsageError, match="formats that have: tflite, onnx"):
        checked(parse("static_wi8_ai8_ioi8"), Format.COREML)


@pytest.mark.parametrize("kind", Format)
def test_the_formats_own_io_type_is_filled_in(kind):
    """
    TFLite means integers, the others floats; what was chosen stays.
    """
    assert FORMATS[kind].io_types[0] is checked(parse("static_wi8_ai8"), kind).io
    assert IoType.FP32 is checked(parse("static_wi8_ai8_iofp32"), kind).io


@given(
    recipe=recipes,
    ranges=st.sampled_from(RangeMethod),
    flags=st.tuples(st.booleans(), st.booleans()),
    layers=st.lists(st.text(min_size=1, max_size=8), max_size=3),
)
def test_a_file_replays_the_recipe(recipe, ranges, flags, layers):
    """
    Every field survives the JSON document.
    """
    made = Recipe(recipe.mode, recipe.weights, recipe.activations, None, ranges, *flags, tuple(layers))

    assert made == Recipe.from_json(json.loads(json.dumps(object_of(made.record()))))


def test_a_recipe_is_read_from_its_file(tmp_path):
    """
    A name that ends in .json is a file.
    """
    recipe = Recipe(Mode.STATIC, "int8", "int8", ranges=RangeMethod.MSE, equalise=False, float_layers=("stem",))
    save_recipe(recipe, tmp_path / "found.json")

    assert recipe == load_recipe(str(tmp_path / "found.json"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON document"),
        ("[]", "schema_version"),
        ('{"schema_version": 99, "recipe": "static_wi8_ai8"}', "99"),
        ('{"schema_version": 1, "recipe": "static_wi8_ai8", "rangs": "mse"}', "did you mean ranges"),
        ('{"schema_version": 1, "recipe": "static_wi8_ai8", "ranges": "mean"}', "unknown range method 'mean'"),
        ('{"schema_version": 1, "recipe": "static_wi8_ai8", "float_layers": "stem"}', "must be a list"),
        ('{"schema_version": 1, "recipe": "static_wi8_ai8", "adjust": 1}', "adjust is 1"),
        ('{"schema_version": 1}', "the key recipe is missing"),
    ],
)
def test_a_damaged_recipe_file(tmp_path, text, said):
    """
    The message says what is wrong with it.
    """
    (tmp_path / "bad.json").write_text(text)

    with pytest.raises(UsageError, match=said):
        load_recipe(str(tmp_path / "bad.json"))


def test_a_missing_recipe_file(tmp_path):
    """
    It is named.
    """
    with pytest.raises(UsageError, match=r"absent\.json"):
        load_recipe(str(tmp_path / "absent.json"))


def test_precisions_stand_for_recipes():
    """
    int8 is static everywhere; fp16 is a recipe where the exporter does not write it.
    """
    assert {"static_wi8_ai8"} == {recipe_of(Precision.INT8, kind).name for kind in Format}
    assert "weight_only_wfp16_afp32" == recipe_of(Precision.FP16, Format.TFLITE).name
    assert recipe_of(Precision.FP32, Format.ONNX) is None
    assert Precision.INT8 is precision_of(parse("dynamic_wi8_afp32"), Precision.FP32)
    assert Precision.FP16 is precision_of(parse("palettized_w4"), Precision.FP16)
    assert Precision.FP16 is precision_of(parse("weight_only_wfp16_afp32"), Precision.FP32)


def test_only_static_recipes_change_weights_beforehand():
    """
    And only while one of the two techniques is on.
    """
    assert needs_preparing(parse("static_wi8_ai8"))
    assert not needs_preparing(Recipe(Mode.STATIC, "int8", "int8", equalise=False, adjust=False))
    assert not needs_preparing(parse("palettized_w6"))


def test_seven_bits_where_x86_adds_in_sixteen():
    """
    For ONNX in the x86-64 form alone; the greatest sum of two products stays below the limit.
    """
    levels = quantizer(Format.ONNX).weight_levels(TargetCpu.X86_64)

    assert 2 * 255 * levels <= 32767 < 2 * 255 * (levels + 1)
    assert {127} == {
        quantizer(Format.ONNX).weight_levels(TargetCpu.ARM64), quantizer(Format.TFLITE).weight_levels(None)
    }  # fmt: skip


def test_layers_are_found_by_their_tensors():
    """
    Through the layer they were fused into; an unknown one is refused.
    """
    layers = LayerMap((
        Layer("conv", "conv2d", (1, 4, 2, 2), seen_through="bn"),
        Layer("bn", "batch_norm", (1, 4, 2, 2), (Part("t1"), Part("t2"))),
        Layer("gone", "relu", (1, 4, 2, 2), absent="dropped"),
    ))  # fmt: skip

    assert {"t1", "t2"} == tensors_of(("conv", "gone"), layers)
    with pytest.raises(UsageError, match="no such layer"):
        tensors_of(("stem",), layers)


def test_int8_stands_for_the_usual_recipe():
    """
    As it does for --precision.
    """
    assert parse("static_wi8_ai8") == load_recipe("int8")
    with pytest.raises(UsageError, match="did you mean int8"):
        load_recipe("int9")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"schema_version": 1}, "the key recipe is missing"),
        ({"schema_version": 1, "recipe": "static_wi8_ai9"}, "unknown recipe 'static_wi8_ai9'; did you mean"),
        ({"schema_version": 1, "recipe": "int8", "rangs": "mse"}, "unknown key 'rangs'; did you mean ranges"),
        ({"schema_version": 1, "recipe": "int8", "ranges": "most"}, "range method"),
        ({"schema_version": 2, "recipe": "int8"}, "schema_version 1, this one has 2"),
    ],
)
def test_a_slip_in_a_recipe_file_names_the_file(tmp_path, document, said):
    """
    Whatever is wrong in it, of several files the user sees which.
    """
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))

    with pytest.raises(UsageError) as caught:
        load_recipe(str(path))

    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_recipe_file_of_another_suffix_is_said_to_be_one(tmp_path):
    """
    Not an unknown recipe of that name.
    """
    path = tmp_path / "mine.toml"
    path.write_text("recipe = 3")

    with pytest.raises(UsageError, match="recipe files are JSON that ends in"):
        load_recipe(str(path))


def test_every_key_of_a_recipe_file_is_documented():
    """
    In the table of docs/quantization.md.
    """
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    table = text[text.index("## Recipe files") :]

    assert [] == [item.name for item in dataclasses.fields(RecipeRecord) if f"| `{item.name}` |" not in table]
    for method in RangeMethod:
        assert f"`{method.value}`" in table
