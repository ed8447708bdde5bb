"""The warning about int8 ONNX on x86 hosts whose sums saturate; the files are written by onnx itself."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.errors import BundleError
from coordatt_deploy.quantization.saturation import WeightRange, saturation_risk, weight_range

WIDE = WeightRange(tensors=3, wide=2, greatest=127)
SEVEN_BITS = WeightRange(tensors=3, wide=0, greatest=64)


def _model(**weights):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph)


def _range(tmp_path, model):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return weight_range(path)


@pytest.mark.parametrize("features", [("avx", "avx2", "fma"), ("avx512f", "avx512bw"), ()])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_without_vnni_and_eight_bit_weights_is_a_risk(machine, features):
    """
    The text names what was found and the target that settles it.
    """
    reason = saturation_risk(WIDE, machine, features)

    assert "2 of 3 int8 weights" in reason
    assert "127" in reason
    assert "--target qemu-arm64" in reason


@pytest.mark.parametrize(
    ("weights", "machine", "features"),
    [
        (SEVEN_BITS, "x86_64", ("avx2",)),
        (WIDE, "x86_64", ("avx2", "avx512f", "avx512_vnni")),
        (WIDE, "x86_64", ("avx2", "avx_vnni")),
        (WIDE, "aarch64", ("asimd", "asimddp")),
        (WIDE, "arm64", ()),
        (WeightRange(0, 0, 0), "x86_64", ()),
    ],
)
def test_no_risk_where_nothing_can_saturate(weights, machine, features):
    """
    Seven-bit weights, VNNI, an ARM host, or a float file.
    """
    assert saturation_risk(weights, machine, features) is None


def test_the_file_says_how_wide_its_weights_are(tmp_path):
    """
    Convolutions and matrices count; depthwise kernels, zero points, biases and floats do not.
    """
    model = _model(
        dense=np.full((8, 4, 3, 3), -127, np.int8),
        pointwise=np.full((8, 4, 1, 1), 64, np.int8),
        grouped=np.full((8, 2, 3, 3), -65, np.int8),
        matrix=np.full((8, 4), 3, np.int8),
        depthwise=np.full((8, 1, 3, 3), 127, np.int8),
        zero_points=np.full(8, 127, np.int8),
        bias=np.full((8, 8), 1000, np.int32),
        unsigned=np.full((8, 8), 255, np.uint8),
        floats=np.full((8, 8), 1000.0, np.float32),
    )

    assert WeightRange(tensors=4, wide=2, greatest=127) == _range(tmp_path, model)


def test_the_lowest_number_counts_as_128(tmp_path):
    """
    The absolute value of -128 does not wrap around to -128.
    """
    assert _range(tmp_path, _model(w=np.array([[-128, 1]], np.int8))).greatest == 128


def test_weights_may_be_written_as_a_list_of_numbers(tmp_path):
    """
    onnx allows int32_data for int8 tensors; negative numbers take ten bytes there.
    """
    model = _model()
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT8, (2, 2), [-100, 3, 0, 64]))

    assert WeightRange(1, 1, 100) == _range(tmp_path, model)


def test_a_float_file_has_no_int8_weights(tmp_path):
    """
    So no host is a risk for it.
    """
    assert WeightRange(0, 0, 0) == _range(tmp_path, _model(w=np.ones((4, 4, 1, 1), np.float32)))


def test_what_is_no_onnx_file_is_refused(tmp_path):
    """
    Noise, and a file that ends in the middle.
    """
    path = tmp_path / "model.onnx"
    onnx.save(_model(w=np.full((64, 64), 100, np.int8)), path)
    whole = path.read_bytes()
    for content in (whole[:200], b"\xff" * 40, b"PK\x03\x04 not onnx at all"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="cannot be read as an ONNX file"):
            weight_range(path)


def test_weights_in_another_file_are_refused(tmp_path):
    """
    They cannot be judged, and bundles never have them.
    """
    model = _model(w=np.full((64, 64), 100, np.int8))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)

    with pytest.raises(BundleError, match="in another file"):
        weight_range(tmp_path / "model.onnx")
