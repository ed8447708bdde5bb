"""Files of every attention block compute what torch does, and every layer lies where its map says."""

import pytest
import torch
from files_against_torch import Spelled, check, randomised
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.models.factory import create_attention
from coordatt_deploy.models.registry import ATTENTION_BLOCKS


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
