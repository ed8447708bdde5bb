"""Normalisations against torch, inside a package that was saved and read back."""

import torch.nn.functional as F
from mil_programs import BOTH, check_sum, double, evaluate, mb, noise


@BOTH
def test_normalisations(dtype):
    """
    Batch, instance and layer norm are torch's, with and without scale and shift; l2_norm is what its name says.
    """
    x = noise(2, 4, 5, 3, dtype=dtype)
    mean, beta = noise(4, dtype=dtype, seed=1), noise(4, dtype=dtype, seed=3)
    variance, gamma = noise(4, low=0.5, high=2, dtype=dtype, seed=2), noise(4, low=-1, high=1, dtype=dtype, seed=4)
    scale, shift = noise(5, 3, low=-1, high=1, dtype=dtype, seed=5), noise(5, 3, dtype=dtype, seed=6)
    epsilon = dtype(1e-3)

    def build(a):
        per_channel = {"gamma": gamma, "beta": beta, "epsilon": epsilon}
        return (
            mb.batch_norm(x=a, mean=mean, variance=variance, **per_channel),
            mb.batch_norm(x=a, mean=mean, variance=variance, epsilon=epsilon),
            mb.instance_norm(x=a, **per_channel),
            mb.instance_norm(x=a, epsilon=epsilon),
            mb.layer_norm(x=a, axes=[2, -1], gamma=scale, beta=shift, epsilon=epsilon),
            mb.layer_norm(x=a, axes=[1], epsilon=epsilon),
            mb.l2_norm(x=a, epsilon=epsilon),
        )

    actual = evaluate(build, x)
    wide, eps = double(x), float(epsilon)
    moments = double(mean), double(variance)
    expected = (
        F.batch_norm(wide, *moments, double(gamma), double(beta), eps=eps),
        F.batch_norm(wide, *moments, eps=eps),
        F.instance_norm(wide, weight=double(gamma), bias=double(beta), eps=eps),
        F.instance_norm(wide, eps=eps),
        F.layer_norm(wide, (5, 3), double(scale), double(shift), eps=eps),
        F.layer_norm(wide.movedim(1, -1), (4,), eps=eps).movedim(-1, 1),
        wide / (wide.square().sum((1, 2, 3), keepdim=True) + eps).sqrt(),
    )
    for want, have in zip(expected, actual, strict=True):
        check_sum(want, have)


TESTED = {"batch_norm", "instance_norm", "layer_norm", "l2_norm"}
