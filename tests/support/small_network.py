"""One small network as an ONNX file, as a module, and what it computes."""

from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.formats import Format, Precision

RNG = np.random.default_rng(11)
KERNEL = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
HEAD = RNG.normal(size=(4, 5)).astype(np.float32)


def reference(image):
    """What both files of this module compute, in float64: (N, 3, H, W) to the clip's result and the logits."""
    features = np.einsum("oc,nchw->nohw", KERNEL[:, :, 0, 0].astype(np.float64), image).clip(0, 6)
    return features, features.mean((2, 3)) @ HEAD


def onnx_model():
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolution"]),
        helper.make_node("Clip", ["convolution", "low", "high"], ["clip"]),
        helper.make_node("ReduceMean", ["clip", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    weights = {
        "kernel": KERNEL, "head": HEAD, "low": np.float32(0), "high": np.float32(6), "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.convolution.weight.data = torch.from_numpy(KERNEL)
        self.head.weight.data = torch.from_numpy(HEAD.T.copy())

    def forward(self, image):
        return self.head(nn.functional.relu6(self.convolution(image)).mean((2, 3)))


def artifact(kind, inputs, outputs, precision=Precision.FP32):
    return Artifact(f"small.{kind}", kind, precision, None, None, 0, "", inputs, outputs, "")


LOGITS = TensorSpec("logits", (1, 5), "float32", "NC")
ONNX = artifact(Format.ONNX, (TensorSpec("image", (1, 3, 6, 8), "float32", "NCHW"),), (LOGITS,))
TFLITE = artifact(Format.TFLITE, (TensorSpec("image", (1, 6, 8, 3), "float32", "NHWC"),), (LOGITS,))


def feeds_for(description, image):
    spec = description.inputs[0]
    return {"image": np.ascontiguousarray(image if spec.layout == "NCHW" else image.transpose(0, 2, 3, 1))}


def image_of(seed):
    return np.random.default_rng(seed).normal(0, 3, (1, 3, 6, 8)).astype(np.float32)


def frozen(path, window=8):
    """The small network for any width, its mean over columns frozen to a pool with a *window*."""
    model = onnx_model()
    (mean,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    pool = helper.make_node("AveragePool", ["clip"], ["pooled"], kernel_shape=[1, window])
    mean.input[0] = "pooled"
    model.graph.node.insert(2, pool)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(model, path)
    return replace(ONNX, inputs=(TensorSpec("image", (1, 3, 6, None), "float32", "NCHW"),))
