"""Int8 of an image classifier, whose last operator gives classes and no tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, prepare, write
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation
from coordatt_deploy.loading.bake_preprocessing import bake
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes import runtime
