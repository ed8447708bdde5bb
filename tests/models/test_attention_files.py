"""Files of every attention block compute what torch does, and every layer lies where its map says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from files_against_torch import Spelled, captured, check, randomised
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion import quantized_artifact as quantizing
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.formats import Format
from coordatt_deploy.models.factory import create_attention
from coordatt_deploy.models.registry import ATTENTION_BLOCKS
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes.tflite import runner

CHANNELS = 32


@pytest.mark.parametrize("kind", ATTENTION_BLOCKS)
def test_onnx_file_of_a_block_is_torchs_function(kind):
    """
    In ONNX Runtime, on an oblong map, outputs and layers.
    """
    torch.manual_seed(0)
    block = create_attention(kind, 32)
    # A few layers around it: nine tenths of a file's layers are to be mapped, and two of timm's blocks are fused there.
    around = [layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 1), nn.ReLU6())]
    module = randomised(nn.Sequential(Spelled(nn.Identity(), channels=32), *around, block))

    check(module, formats=(Format.ONNX,))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTENTION_BLOCKS)
def test_tflite_file_of_a_block_is_torchs_function(kind):
    """
    In LiteRT, on an oblong map, outputs and layers; global context, which litert-torch refuses as its authors wrote it,
    as well.
    """
    torch.manual_seed(0)
    block = create_attention(kind, CHANNELS)

    module = randomised(nn.Sequential(Spelled(nn.Identity(), channels=CHANNELS), block))
    check(module, formats=(Format.TFLITE,), mapped=0.8)


def int8_operators(block, folder):
    """How LiteRT runs the int8 file of a small network around *block*."""
    layers = (Spelled(nn.Identity(), channels=CHANNELS), block, nn.Conv2d(CHANNELS, 4, 1))
    graph, spec = captured(randomised(nn.Sequential(*layers))), ModelSpec("small", Preprocessing((16, 24)))
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 24)).astype(np.float32)
    data = CalibrationSet("noise", {"image": images}, tuple("abcdefgh"), 0)
    recipe, path = replace(parse("static_wi8_ai8"), adjust=False), folder / "small_int8.tflite"
    prepared = quantizing.prepare(graph, recipe, Format.TFLITE, spec, folder, data=data)
    quantizing.write(prepared, recipe, quantizing.measure_ranges(prepared, recipe, data), path, spec)
    return path, runner.operators(path)


ONE_PIECE = [
    "coordatt", "squeeze_excite", "eca", "cbam", "triplet", "strip_pooling", "timm_coord", "timm_scoord", "timm_strip",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_PIECE)
def test_xnnpack_runs_the_int8_file_of_a_block_in_one_piece(kind, tmp_path):
    """
    One partition, nothing left to the built-in kernels, and no value that goes through float on the way.
    """
    torch.manual_seed(0)

    _, found = int8_operators(create_attention(kind, CHANNELS), tmp_path)

    assert (1, []) == (found.partitions, [item.name for item in found.operators if not item.delegated])
    assert "DEQUANTIZE" not in {item.name for item in found.operators}


@pytest.mark.slow
def test_global_context_is_one_partition_in_int8(tmp_path):
    """
    Its softmax, its product of matrices and what LayerNorm is made of stay in float there, where XNNPACK has kernels.
    """
    torch.manual_seed(0)

    _, found = int8_operators(create_attention("global_context", CHANNELS), tmp_path)

    assert (1, set()) == (found.partitions, {item.name for item in found.operators if not item.delegated})
