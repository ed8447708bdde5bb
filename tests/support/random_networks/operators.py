"""What networks are composed of: each operator of the table in its variants, and the patterns that they come in.

``X`` in a text is the value that it works on, ``L0``, ``L1``… are the layers that it makes, ``SEED`` is theirs.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Written = str | tuple[str, ...] | None
"""An expression, and what makes each of its layers; None where the shape does not fit."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What an operator is drawn for.

    Attributes:
        rng: Every choice comes from it.
        shape: Of the value.
        dynamic: Whether height and width may not be numbers.
    """

    rng: random.Random
    shape: tuple[int, ...]
    dynamic: bool = False

    @property
    def batch(self) -> int:
        return self.shape[0]

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def height(self) -> int:
        return self.shape[2]

    @property
    def width(self) -> int:
        return self.shape[3]

    def pick(self, *choices: object) -> object:
        return self.rng.choice(choices)

    def divisor(self, number: int) -> int | None:
        """A divisor above 1; None of a prime and of 1."""
        found = [item for item in range(2, number) if number % item == 0]
        return self.rng.choice(found) if found else None

    def wide(self) -> int:
        """A number of channels."""
        return self.rng.choice((3, 4, 5, 6, 8, 8, 12))


@dataclass(frozen=True, slots=True)
class Operator:
    """One thing that may follow.

    Attributes:
        name: For people, and for counting.
        axes: Of the value that it works on.
        write: Draws it.
        weight: How often it is drawn, relative to others.
        sized: Whether it is written with the numbers of height and width: not for dynamic sizes.
        last: Whether its result can only be returned: numbers without fractions, or yes and no.
    """

    name: str
    axes: int
    write: Callable[[Draw], Written]
    weight: float = 1.0
    sized: bool = False
    last: bool = False


def _plain(axes: int, texts: Sequence[tuple[str, str]], weight: float = 1.0, *, sized: bool = False) -> list[Operator]:
    return [Operator(name, axes, lambda _, text=text: text, weight, sized) for name, text in texts]


# Convolutions ---------------------------------------------------------------------------------------------------------


def _conv(d: Draw) -> Written:
    kernel = d.pick(1, 1, 3, 3, 3, 5, 2, (1, 3), (3, 1), (1, 5), (5, 2))
    tall, broad = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    stride = d.pick(1, 1, 1, 2, (1, 2), (2, 1))
    dilation = d.pick(1, 1, 1, 2)
    padding = d.pick((tall // 2 * dilation, broad // 2 * dilation), 0, "same", 1)
    padding = 0 if padding == 1 and kernel == 1 else padding
    stride = 1 if padding == "same" else stride
    mode = d.pick(*["zeros"] * 8, "reflect", "replicate", "circular")
    mode = mode if min(d.height, d.width) > 6 and isinstance(padding, tuple) else "zeros"
    groups = d.pick(1, 1, 1, d.channels, d.divisor(d.channels) or 1)
    out = groups * d.pick(1, 1, 2) if groups == d.channels else groups * d.pick(1, 2, 3, 4)
    out = d.wide() if groups == 1 else out
    bias = d.pick(True, True, False)
    norm = d.pick("", "", f"nn.BatchNorm2d({out})")
    conv = (
        f"nn.Conv2d({d.channels}, {out}, {kernel}, {stride}, {padding!r}, dilation={dilation}, groups={groups},"
        f" bias={bias}, padding_mode={mode!r})"
    )
    return ("L1(L0(X))", conv, norm) if norm else ("L0(X)", conv)


def _transposed(d: Draw) -> Written:
    if max(d.height, d.width) > 12:
        return None
    kernel, stride = d.pick((2, 2), (3, 2), (4, 2), (3, 1), (2, 3), (3, 3))
    dilation = d.pick(1, 1, 1, 2)
    padding = d.pick(0, 1, 1) if kernel > 2 else 0
    output = d.pick(0, 0, 1) if stride > 1 else 0
    groups = d.pick(1, 1, d.channels, d.divisor(d.channels) or 1)
    out = groups * d.pick(1, 2)
    conv = (
        f"nn.ConvTranspose2d({d.channels}, {out}, {kernel}, {stride}, {padding}, {output}, groups={groups},"
        f" bias={d.pick(True, False)}, dilation={dilation})"
    )
    return d.pick(("L0(X)", conv), ("L1(L0(X))", conv, f"nn.BatchNorm2d({out})"))


def _separable(d: Draw) -> Written:
    activation = d.pick("F.relu6", "F.silu", "F.hardswish", "F.relu", "F.gelu")
    return (
        f"L3(L2({activation}(L1(L0(X)))))",
        f"nn.Conv2d({d.channels}, {d.channels}, 3, 1, 1, groups={d.channels}, bias=False)",
        f"nn.BatchNorm2d({d.channels})",
        f"nn.Conv2d({d.channels}, {d.channels}, 1, bias=False)",
        f"nn.BatchNorm2d({d.channels})",
    )


def _residual(d: Draw) -> Written:
    text, *layers = _separable(d)
    return (f"X + {text}", *layers)


def _preactivation(d: Draw) -> Written:
    out = d.wide()
    return "L1(F.relu(L0(X)))", f"nn.BatchNorm2d({d.channels})", f"nn.Conv2d({d.channels}, {out}, 3, 1, 1)"


def _branches(d: Draw) -> Written:
    c = d.channels
    return (
        "F.relu(L1(L0(X)) + L3(L2(X)) + L4(X))",
        f"nn.Conv2d({c}, {c}, 3, 1, 1, bias=False)", f"nn.BatchNorm2d({c})",
        f"nn.Conv2d({c}, {c}, 1, bias=False)", f"nn.BatchNorm2d({c})", f"nn.BatchNorm2d({c})",
    )  # fmt: skip


def _shared_conv(d: Draw) -> Written:
    return "L0(X) + L0(X.flip(3)).abs()", f"nn.Conv2d({d.channels}, {d.wide()}, 3, 1, 1)"


def _twice(d: Draw) -> Written:
    return "L0(F.relu(L0(X)))", f"nn.Conv2d({d.channels}, {d.channels}, 3, padding=1)"


def _tied(d: Draw) -> Written:
    return "F.conv2d(X, L0.weight * 0.5 + L0.weight.flip(3), L0.bias, padding=1)", f"nn.Conv2d({d.channels}, 6, 3)"


def _coordatt(d: Draw) -> Written:
    return ("L0(X)", f"CoordAtt({d.channels}, CoordAttOptions(reduction=4))") if d.channels >= 4 else None


def _squeeze(d: Draw) -> Written:
    inner, gate = max(1, d.channels // 2), d.pick("torch.sigmoid", "F.hardsigmoid", "torch.tanh")
    pooled = d.pick("X.mean((2, 3), keepdim=True)", "F.adaptive_avg_pool2d(X, 1)", "X.amax((2, 3), keepdim=True)")
    return (
        f"X * {gate}(L1(F.relu(L0({pooled}))))",
        f"nn.Conv2d({d.channels}, {inner}, 1)", f"nn.Conv2d({inner}, {d.channels}, 1)",
    )  # fmt: skip


def _eca(d: Draw) -> Written:
    spread = d.pick("", ".expand_as(X)")
    return (
        f"X * L0(X.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1){spread}",
        "nn.Conv1d(1, 1, 3, padding=1, bias=False)",
    )


def _spatial(d: Draw) -> Written:
    other = d.pick("X.amax(1, keepdim=True)", "X.max(1, keepdim=True)[0]", "X.max(1, keepdim=True).values")
    return f"X * torch.sigmoid(L0(torch.cat([X.mean(1, keepdim=True), {other}], 1)))", "nn.Conv2d(2, 1, 5, padding=2)"


def _strips(d: Draw) -> Written:
    c = d.channels
    return (
        "X * torch.sigmoid(L0(X.mean(3, keepdim=True))) * torch.sigmoid(L1(X.mean(2, keepdim=True)))",
        f"nn.Conv2d({c}, {c}, 1)", f"nn.Conv2d({c}, {c}, 1)",
    )  # fmt: skip


def _scale(d: Draw) -> Written:
    text = d.pick("X * L0 + L1", "X + L0 * X.abs() - L1", "torch.addcmul(L1, X, L0)", "X * L0.exp() - 0.3 * L1")
    return text, f"parameter(SEED, 1, {d.channels}, 1, 1)", f"parameter(SEED, {d.channels}, 1, 1)"


def _linear_last(d: Draw) -> Written:
    out = d.wide()
    norm = d.pick("", f"nn.LayerNorm({out})", f"nn.RMSNorm({out})")
    text = "L0(X.permute(0, 2, 3, 1))"
    text = f"L1({text})" if norm else text
    return (f"{text}.permute(0, 3, 1, 2)", f"nn.Linear({d.channels}, {out})", *([norm] if norm else []))


def _conv3d(_: Draw) -> Written:
    return "L0(X.unsqueeze(1)).flatten(1, 2)", "nn.Conv3d(1, 2, 3, padding=1)"


CONVOLUTIONS = [
    Operator("conv2d", 4, _conv, 14),
    Operator("conv_transpose2d", 4, _transposed, 4),
    Operator("depthwise separable", 4, _separable, 2),
    Operator("residual", 4, _residual, 3),
    Operator("pre-activation", 4, _preactivation, 2),
    Operator("branches", 4, _branches, 1),
    Operator("convolution called on two values", 4, _shared_conv, 1),
    Operator("convolution called twice", 4, _twice, 1),
    Operator("convolution with computed weights", 4, _tied, 0.5),
    Operator("coordinate attention", 4, _coordatt, 3),
    Operator("squeeze and excitation", 4, _squeeze, 3),
    Operator("eca", 4, _eca, 1.5),
    Operator("spatial gate", 4, _spatial, 1.5),
    Operator("strip gates", 4, _strips, 1.5),
    Operator("learnt scale", 4, _scale, 1.5),
    Operator("linear of channels last", 4, _linear_last, 1.5),
    Operator("conv3d", 4, _conv3d, 0.5),
]


# Normalisation --------------------------------------------------------------------------------------------------------


def _groups(d: Draw) -> Written:
    return "L0(X)", f"nn.GroupNorm({d.divisor(d.channels) or 1}, {d.channels}, eps={d.pick(1e-5, 1e-6)})"


def _batchnorm(d: Draw) -> Written:
    extra = d.pick("", "", ", affine=False", ", eps=1e-3", ", track_running_stats=False")
    return "L0(X)", f"nn.BatchNorm2d({d.channels}{extra})"


def _instance(d: Draw) -> Written:
    extra = d.pick("", ", affine=True", ", affine=True, track_running_stats=True")
    return "L0(X)", f"nn.InstanceNorm2d({d.channels}{extra})"


def _layernorm(d: Draw) -> Written:
    if d.rng.random() < 0.3:
        return "L0(X)", f"nn.LayerNorm([{d.channels}, {d.height}, {d.width}])"
    return "L0(X.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", f"nn.LayerNorm({d.channels}, eps=1e-6)"


NORMALISATION = [
    Operator("batch_norm", 4, _batchnorm, 5),
    Operator("group_norm", 4, _groups, 2),
    Operator("instance_norm", 4, _instance, 1),
    Operator("layer_norm", 4, _layernorm, 1, sized=True),
    *_plain(4, [
        ("normalize", "F.normalize(X, dim=1) * 2"),
        ("local response normalisation", "F.local_response_norm(X, 3)"),
        ("standardised", "(X - X.mean((2, 3), keepdim=True)) / (X.var((2, 3), keepdim=True) + 1e-3).sqrt()"),
        ("divided by a deviation", "X / (X.std(1, keepdim=True) + 0.5)"),
        ("norm of channels", "X * X.norm(dim=1, keepdim=True).clamp(max=4)"),
    ], 0.7),
]  # fmt: skip


# Pools and reductions -------------------------------------------------------------------------------------------------


def _pool(d: Draw) -> Written:
    if min(d.height, d.width) < 5:
        return None
    kernel = d.pick(2, 3, 3, (1, 3), (3, 2))
    stride = d.pick(1, 2, 2, 3, (2, 1))
    padding = d.pick(0, 1) if kernel == 3 else 0
    ceil = d.pick(False, False, True)
    if d.rng.random() < 0.5:
        dilation = d.pick(*[1] * 24, 2)
        return f"F.max_pool2d(X, {kernel}, {stride}, {padding}, {dilation}, ceil_mode={ceil})"
    count = d.pick("", "", ", count_include_pad=False", ", divisor_override=5")
    return f"F.avg_pool2d(X, {kernel}, {stride}, {padding}, ceil_mode={ceil}{count})"


def _adaptive(d: Draw) -> Written:
    rows, columns = d.rng.randint(1, 6), d.rng.randint(1, 6)
    size = d.pick((rows, columns), (None, 1), (1, None), rows)
    kind = d.pick("avg", "avg", "max")
    return f"F.adaptive_{kind}_pool2d(X, {size})"


def _pyramid(d: Draw) -> Written:
    side = d.pick(1, 1 if d.dynamic else 2)  # windows of a dynamic size differ from size to size, and are refused
    resized = f"F.interpolate(L0(F.adaptive_avg_pool2d(X, {side})), size=X.shape[2:], mode='bilinear')"
    return f"torch.cat([X, {resized}], 1)", f"nn.Conv2d({d.channels}, 2, 1)"


def _spp(d: Draw) -> Written:
    return "torch.cat([X, F.max_pool2d(X, 3, 1, 1), F.max_pool2d(X, 5, 1, 2)], 1)" if d.channels <= 8 else None


def _kept(d: Draw) -> Written:
    how = d.pick("mean", "amax", "amin", "sum", "mean", "std", "logsumexp")
    axis = d.pick(1, 2, 3, (2, 3), -1, (1, 2), 0 if d.batch > 1 else 1)
    return (
        f"X - 0.3 * X.{how}({axis}, keepdim=True)" if how != "sum" else f"X - 0.1 * X.sum({axis}, keepdim=True).tanh()"
    )


def _fewer(d: Draw) -> Written:
    axis = d.pick(1, 2, 3)
    how = d.pick("mean", "amax", "sum", "std")
    return f"X.{how}({axis})"


POOLS = [
    Operator("pool", 4, _pool, 5),
    Operator("adaptive pool", 4, _adaptive, 3, sized=True),
    Operator("pyramid pool", 4, _pyramid, 1),
    Operator("spp", 4, _spp, 1),
    Operator("reduction kept", 4, _kept, 3),
    Operator("reduction to tokens", 4, _fewer, 1),
    *_plain(4, [
        ("mean to a vector", "X.mean((2, 3))"),
        ("global pool, flattened", "F.adaptive_avg_pool2d(X, 1).flatten(1)"),
        ("greatest to a vector", "X.amax((2, 3))"),
        ("pooled both ways", "torch.cat([X.mean((2, 3)), X.amax((2, 3))], 1)"),
        ("gem", "F.adaptive_avg_pool2d(X.clamp(min=1e-2).pow(3), 1).pow(1 / 3).flatten(1)"),
    ], 0.8),
    *_plain(4, [("cumsum", "X.cumsum(3) / 4"), ("prod", "X.tanh().prod(1, keepdim=True) + X"),
                ("lp_pool2d", "F.lp_pool2d(X.abs() + 0.1, 2, 2)")], 0.4, sized=True),
]  # fmt: skip


# Arithmetic and activations -------------------------------------------------------------------------------------------


def _clamp(d: Draw) -> Written:
    return d.pick("X.clamp(-0.8, 0.9)", "X.clamp_min(-0.2)", "X.clamp_max(0.3)", "(X * 3).clamp(-2, 2)",
                  "X.clamp(min=-1)", "torch.clip(X, -0.7, 1.1)")  # fmt: skip


def _power(d: Draw) -> Written:
    return d.pick("X ** 2", "X.pow(2)", "(X / 2) ** 3", "(X.abs() + 0.1) ** 0.7", "(X.abs() + 1) ** -1.5", "X.square()",
                  "(X.abs() + 0.2).pow(X.sigmoid())", "2.0 ** X.tanh()")  # fmt: skip


def _where(d: Draw) -> Written:
    return d.pick("torch.where(X > 0, X, 0.1 * X)", "torch.where(X < X.mean(1, keepdim=True), X, X.tanh())",
                  "X.masked_fill(X < -0.5, -0.5)", "X * (X > 0).float()", "X * (X > 0)",
                  "torch.where((X > -0.3) & (X < 0.3), X, X.sign() * 0.3)",
                  "torch.where((X > 1) | (X < -1), X.abs(), X * 0.5)", "torch.where(~(X >= 0.2), X, X * 0.7 + 0.06)",
                  "X.where(X > 0, torch.zeros_like(X))", "X * X.gt(0).to(X.dtype) + X.le(0) * 0.2")  # fmt: skip


def _activation(d: Draw) -> Written:
    layer = d.pick(
        "nn.ReLU()", "nn.ReLU6()", "nn.LeakyReLU(0.3)", f"nn.PReLU({d.channels})", "nn.PReLU()", "nn.ELU(0.5)",
        "nn.CELU(0.5)", "nn.SELU()", "nn.GELU()", "nn.GELU('tanh')", "nn.SiLU()", "nn.Mish()", "nn.Sigmoid()",
        "nn.Hardsigmoid()", "nn.Hardswish()", "nn.Hardtanh(-0.5, 0.7)", "nn.Softshrink(0.2)", "nn.Tanhshrink()",
        "nn.Softplus()", "nn.Softplus(2, 5)", "nn.Softsign()", "nn.LogSigmoid()", "nn.Tanh()", "nn.Softmax(1)",
        "nn.LogSoftmax(1)", "nn.Softmax2d()", "nn.Hardtanh(-2, 2)",
    )  # fmt: skip
    return "L0(X)", layer


_STEPS = [
    ("rsub", "1 - X"), ("sqrt", "(X.abs() + 0.1).sqrt()"), ("rsqrt", "(X.abs() + 0.1).rsqrt()"),
    ("exp", "X.tanh().exp()"),
    ("log", "(X.abs() + 0.1).log()"), ("log1p", "X.abs().log1p()"), ("expm1", "X.tanh().expm1()"), ("abs", "X.abs()"),
    ("neg", "-X"), ("reciprocal", "(X.abs() + 0.5).reciprocal()"), ("erf", "X.erf()"), ("sin", "X.sin()"),
    ("cos", "X.cos()"), ("atan", "X.atan()"), ("maximum", "torch.maximum(X, X.mean(1, keepdim=True))"),
    ("minimum", "torch.minimum(X, 0.5 - X)"), ("lerp", "torch.lerp(X, X.abs(), 0.3)"),
    ("addcmul", "torch.addcmul(X, X, X.tanh(), value=0.5)"), ("add alpha", "torch.add(X, X.sigmoid(), alpha=0.3)"),
    ("sub alpha", "torch.sub(X, X.sigmoid(), alpha=2)"), ("softmax of the last axis", "X.softmax(-1) * 5"),
    ("log_softmax", "X.log_softmax(-1)"), ("divided", "X / (1 + X.sigmoid())"),
    ("swish written out", "X * X.sigmoid()"),
    ("hard-swish written out", "X * F.relu6(X + 3) / 6"), ("mish written out", "X * F.softplus(X).tanh()"),
    ("number divided", "1.5 / (X.abs() + 0.5)"), ("float64 and back", "(X.double() * 2).float()"),
    ("addition of itself", "X + X * 2"), ("threshold", "F.threshold(X, 0, 0)"),
]  # fmt: skip

# What jumps: between the jumps it is as good as any other, and the generator leaves out what comes near one.
_JUMPS = [
    ("floor", "X + 0.3 * (X * 2).floor()"), ("ceil", "X - 0.3 * X.ceil()"), ("round", "X + 0.2 * (X * 1.5).round()"),
    ("sign", "X + 0.2 * X.sign()"), ("gt as numbers", "X + 0.5 * (X > 0.1).float()"), ("remainder", "X + X % 0.7"),
    ("floor division", "X + 0.1 * torch.div(X, 0.6, rounding_mode='floor')"),
    ("integers and back", "X + 0.1 * (X * 2).to(torch.int32).float()"), ("hardshrink", "F.hardshrink(X, 0.2)"),
    ("threshold", "F.threshold(X, 0.1, -1.0)"),
]  # fmt: skip

ARITHMETIC = [
    Operator("activation", 4, _activation, 8),
    *(item for axes in (2, 3, 4, 5) for item in (
        Operator("clamp", axes, _clamp, 1), Operator("power", axes, _power, 1.2), Operator("where", axes, _where, 1.5),
        *_plain(axes, _STEPS if axes == 4 else _STEPS[::2], 0.15), *_plain(axes, _JUMPS, 0.04),
    )),
]  # fmt: skip


# Layout ---------------------------------------------------------------------------------------------------------------


def _shuffle(d: Draw) -> Written:
    groups = d.divisor(d.channels)
    if groups is None:
        return None
    shape, each = f"{d.batch}, {groups}, {d.channels // groups}", f"{d.batch}, {d.channels}"
    size = "X.shape[2], X.shape[3]" if d.dynamic else f"{d.height}, {d.width}"
    return d.pick(f"F.channel_shuffle(X, {groups})", f"X.view({shape}, {size}).transpose(1, 2).reshape({each}, {size})",
                  f"X.reshape({shape}, {size}).transpose(1, 2).contiguous().view({each}, {size})")  # fmt: skip


def _pixel(d: Draw) -> Written:
    if d.channels % 4 == 0 and max(d.height, d.width) <= 12:
        return "F.pixel_shuffle(X, 2)"
    return "F.pixel_unshuffle(X, 2)" if d.height % 2 == d.width % 2 == 0 and d.channels <= 4 and not d.dynamic else None


def _focus(d: Draw) -> Written:
    if d.dynamic or d.height % 2 or d.width % 2 or d.channels > 6:
        return None
    return "torch.cat([X[..., ::2, ::2], X[..., 1::2, ::2], X[..., ::2, 1::2], X[..., 1::2, 1::2]], 1)"


def _windows(d: Draw) -> Written:
    rows, columns = d.divisor(d.height), d.divisor(d.width)
    if rows is None or columns is None:
        return None
    n, c, tall, broad = d.batch, d.channels, d.height // rows, d.width // columns
    split = f"X.view({n}, {c}, {tall}, {rows}, {broad}, {columns}).permute(0, 2, 4, 3, 5, 1)"
    tokens = f"L0({split}.reshape({n * tall * broad}, {rows * columns}, {c}))"
    back = f".reshape({n}, {tall}, {broad}, {rows}, {columns}, {c}).permute(0, 5, 1, 3, 2, 4)"
    return f"{tokens}{back}.reshape({n}, {c}, {d.height}, {d.width})", f"nn.Linear({c}, {c})"


def _split(d: Draw) -> Written:
    half = d.channels // 2
    if half < 1:
        return None
    sizes = f"[{half}, {d.channels - half}]"
    even = d.channels % 2 == 0
    return d.pick(
        f"torch.cat(X.split({sizes}, 1)[::-1], 1)",
        f"X.split({sizes}, 1)[1]",
        "torch.cat([X.chunk(2, 1)[1].relu(), X.chunk(2, 1)[0]], 1)",
        "X.chunk(2, 1)[0] * X.chunk(2, 1)[1].sigmoid()" if even else f"X.narrow(1, {half}, {half})",
        "F.glu(X, 1)" if even else f"X[:, :{half}]",
        f"torch.cat([X[:, {half}:], X[:, :{half}]], 1)",
        f"torch.cat([X[:, :{half}], X[:, {half}:].sigmoid()], 1)",
        f"torch.cat(torch.tensor_split(X, {min(3, d.channels)}, 1)[1:], 1)",
    )


def _heads(d: Draw) -> Written:
    groups = d.divisor(d.channels)
    if groups is None:
        return None
    size = "X.shape[2], X.shape[3]" if d.dynamic else f"{d.height}, {d.width}"
    return d.pick(f"X.view({d.batch}, {groups}, {d.channels // groups}, {size})",
                  f"X.unflatten(1, ({groups}, {d.channels // groups}))",
                  f"X.reshape({d.batch}, {groups}, -1, {size}).permute(0, 1, 3, 4, 2)")  # fmt: skip


def _rows(d: Draw) -> Written:
    if min(d.height, d.width) < 4:
        return None
    return d.pick("X[:, :, 1:-1]", "X[..., 1:]", "X[..., :-1, 2:]", "X.narrow(2, 1, 3)", "X[:, :, ::2]", "X[..., -3:]",
                  "X[:, :, :3] + X[:, :, -3:]", "X[..., 1::2]")  # fmt: skip


def _window_mean(d: Draw) -> Written:
    if d.height % 2 or d.width % 2:
        return None
    return f"X.reshape({d.batch}, {d.channels}, {d.height // 2}, 2, {d.width // 2}, 2).mean((3, 5))"


def _picked(d: Draw) -> Written:
    order = list(range(d.channels))
    d.rng.shuffle(order)
    rows = [d.rng.randrange(d.height) for _ in range(3)]
    return d.pick(f"X[:, {order}]", f"X.index_select(1, torch.tensor({order[: max(1, d.channels // 2)]}))",
                  f"X[:, :, {rows}]", f"X[:, {order[0]}].unsqueeze(1) * X", f"X[:, {order[0]}:{order[0] + 1}] + X",
                  f"X.index_select(2, torch.tensor({rows}))")  # fmt: skip


def _assigned(d: Draw) -> Written:
    return f"torch.select_scatter(X, X[:, 0].relu(), 1, {d.channels - 1})"


LAYOUT = [
    Operator("channel shuffle", 4, _shuffle, 2),
    Operator("pixel shuffle", 4, _pixel, 1.5),
    Operator("focus", 4, _focus, 1),
    Operator("windows", 4, _windows, 1, sized=True),
    Operator("split", 4, _split, 3),
    Operator("heads", 4, _heads, 1.5),
    Operator("rows and columns", 4, _rows, 1.5),
    Operator("mean of windows", 4, _window_mean, 0.5, sized=True),
    Operator("picked", 4, _picked, 1, sized=True),
    Operator("assigned", 4, _assigned, 0.5, sized=True),
    *_plain(4, [
        ("permuted and back", "(X.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2)"), ("transposed", "X.transpose(2, 3)"),
        ("channels for rows", "X.transpose(1, 2)"), ("channels for columns", "X.permute(0, 3, 1, 2)"),
        ("flip", "X.flip(3)"), ("flip both", "X.flip((2, 3))"), ("roll", "X.roll((1, 2), (2, 3))"),
        ("roll channels", "X.roll(1, 1)"), ("stack", "torch.stack([X, X.abs()], 2).flatten(1, 2)"),
        ("rows joined", "torch.cat([X, X.flip(2)], 2)"), ("movedim", "X.movedim(1, -1) + 1"),
        ("squeeze", "X.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)"),
        ("reverse and join", "torch.cat([X, X.abs()], 1)[:, 1:]"), ("clone", "X.clone().contiguous() * 1.5"),
    ], 0.5),
    *_plain(4, [
        ("rot90", "X.rot90(1, (2, 3))"), ("unfold", "F.unfold(X, 2, stride=2)"), ("tril", "X.tril() + X"),
        ("gather", "X.gather(1, X.abs().argmax(1, keepdim=True)) + X"),
    ], 0.3, sized=True),
]  # fmt: skip


# Pads, resizes, copies ------------------------------------------------------------------------------------------------


def _pad(d: Draw) -> Written:
    left, right, top, bottom = (d.rng.randint(0, 2) for _ in range(4))
    sides = f"({left}, {right}, {top}, {bottom})"
    if min(d.height, d.width) < 4:
        return f"F.pad(X, {sides})"
    crops = d.pick(f"F.pad(X, {sides})", "F.pad(X, (-1, 0, 0, -1))", "F.pad(X, (0, 1, 0, 1))",
                   "F.pad(X, (1, -1, 0, 0))",
                   "F.pad(X, (0, 0, 0, 0, 1, 2))")  # fmt: skip
    return d.pick(crops, f"F.pad(X, {sides}, value=-1.5)", f"F.pad(X, {sides}, mode='reflect')",
                  f"F.pad(X, {sides}, mode='replicate')", f"F.pad(X, {sides}, mode='circular')")  # fmt: skip


def _resize(d: Draw) -> Written:
    if max(d.height, d.width) > 14:
        return "F.interpolate(X, scale_factor=0.5, mode='bilinear')"
    size = f"({d.rng.randint(3, 19)}, {d.rng.randint(3, 19)})"
    mode = d.pick("nearest", "bilinear", "bilinear", "bicubic", "nearest-exact", "area")
    corners = d.pick("", ", align_corners=True") if mode in ("bilinear", "bicubic") else ""
    if d.dynamic:
        return f"F.interpolate(X, scale_factor=2, mode={mode!r}{corners})" if mode != "area" else None
    if mode == "area":
        return f"F.interpolate(X, size={size}, mode='area')"
    return d.pick(
        f"F.interpolate(X, size={size}, mode={mode!r}{corners})",
        f"F.interpolate(X, scale_factor=2, mode={mode!r}{corners})",
        f"F.interpolate(X, scale_factor={d.pick(1.3, 0.5, 1.5)}, mode={mode!r}{corners})",
        f"F.interpolate(X, size=({d.height * 2}, {d.width}), mode={mode!r}{corners})",
    )


def _antialiased(d: Draw) -> Written:
    return f"F.interpolate(X, size=({d.rng.randint(3, 9)}, {d.rng.randint(3, 9)}), mode='bilinear', antialias=True)"


def _copies(d: Draw) -> Written:
    size = "X.shape[2], X.shape[3]" if d.dynamic else f"{d.height}, {d.width}"
    gate = d.pick("torch.sigmoid(X.mean((2, 3), keepdim=True))", "torch.sigmoid(X.mean(3, keepdim=True))")
    texts = [f"X * {gate}.expand_as(X)", f"torch.cat([X, {gate}.expand(-1, -1, {size})], 1)", f"X * {gate}",
             f"X + {gate}.expand(-1, -1, {size})", "X.mean(1, keepdim=True).expand(-1, 4, -1, -1)"]  # fmt: skip
    if not d.dynamic:
        texts += [f"X * torch.sigmoid(X.mean((2, 3), keepdim=True)).repeat(1, 1, {size})"]
    if d.channels <= 6:
        texts += ["X.repeat(1, 2, 1, 1)", "X.repeat_interleave(2, 1)", "X.tile((1, 2, 1, 1))"]
    return d.rng.choice(texts)


def _constant(d: Draw) -> Written:
    return d.pick("X + L0", "X * L0.sigmoid()"), f"constant(SEED, {d.height}, {d.width})"


SIZES = [
    Operator("pad", 4, _pad, 3),
    Operator("resize", 4, _resize, 4),
    Operator("antialiased resize", 4, _antialiased, 0.4, sized=True),
    Operator("copies", 4, _copies, 3),
    Operator("constant map", 4, _constant, 0.5, sized=True),
    *_plain(4, [("to another's size", "F.interpolate(F.avg_pool2d(X, 2), size=X.shape[-2:], mode='bilinear') + X"),
                ("zeros_like", "torch.cat([X, torch.zeros_like(X)[:, :1]], 1)"),
                ("ones of a size", "X + X.new_ones(X.shape[2], X.shape[3]) * 0.3")], 0.5),
]  # fmt: skip


# Tokens, vectors and five axes ----------------------------------------------------------------------------------------


def _attention(d: Draw) -> Written:
    heads = d.divisor(d.shape[2]) or 1
    return "X + L0(X, X, X, need_weights=False)[0]", f"nn.MultiheadAttention({d.shape[2]}, {heads}, batch_first=True)"


def _self_attention(d: Draw) -> Written:
    width = d.shape[2]
    scores = f"(L0(X) @ L1(X).transpose(1, 2) * {width**-0.5:.4f}).softmax(-1)"
    return f"{scores} @ L2(X)", *(f"nn.Linear({width}, {width})" for _ in range(3))


def _tokens_linear(d: Draw) -> Written:
    out = d.wide()
    return d.pick(
        ("L0(X)", f"nn.Linear({d.shape[2]}, {out})"), ("L0(X)", f"nn.LayerNorm({d.shape[2]})"),
        ("L1(F.gelu(L0(X))) + X", f"nn.Linear({d.shape[2]}, {2 * out})", f"nn.Linear({2 * out}, {d.shape[2]})"),
        ("L0(X.transpose(1, 2)).transpose(1, 2)", f"nn.Conv1d({d.shape[2]}, {out}, 3, padding=1)"),
        ("L0(X)", f"nn.Conv1d({d.shape[1]}, {out}, 3, padding=1)"), ("L0(X)", f"nn.BatchNorm1d({d.shape[1]})"),
        ("L0(X)", f"nn.RMSNorm({d.shape[2]})"),
        ("L0(X)", f"nn.ConvTranspose1d({d.shape[1]}, {out}, 4, 2, 1)"),
        (f"torch.cat([L0.expand({d.batch}, -1, -1), X], 1)", f"parameter(SEED, 1, 1, {d.shape[2]})"),
    )  # fmt: skip


def _to_map(d: Draw) -> Written:
    rows = d.divisor(d.shape[1])
    if rows is None:
        return d.pick("X.unsqueeze(1)", "X.unsqueeze(-1)")
    return d.pick(f"X.transpose(1, 2).reshape({d.batch}, {d.shape[2]}, {rows}, {d.shape[1] // rows})",
                  "X.unsqueeze(-1)",
                  f"X.reshape({d.batch}, {rows}, {d.shape[1] // rows}, {d.shape[2]}).permute(0, 3, 1, 2)")  # fmt: skip


def _vector(d: Draw) -> Written:
    wide, out = d.shape[1], d.wide()
    return d.pick(
        ("L0(X)", f"nn.Linear({wide}, {out})"), ("L1(L0(X))", f"nn.Linear({wide}, {out})", f"nn.BatchNorm1d({out})"),
        ("L0(X)", f"nn.BatchNorm1d({wide})"), ("L0(X)", f"nn.LayerNorm({wide})"), ("X.softmax(1)",),
        ("F.normalize(X)",),
        ("L1(F.relu(L0(X))) + X", f"nn.Linear({wide}, {out})", f"nn.Linear({out}, {wide})"),
        ("X @ L0", f"parameter(SEED, {wide}, {out})"),
        ("L0(L1(X))", f"nn.Linear({wide}, {out})", f"nn.BatchNorm1d({wide})"),
        ("X - X.mean(1, keepdim=True)",), ("torch.cat([X, X.abs().sqrt()], 1)",),
        ("X / X.abs().sum(1, keepdim=True) * 3",),
    )  # fmt: skip


def _vector_to_map(d: Draw) -> Written:
    wide, height = d.shape[1], d.divisor(d.shape[1])
    texts = ["X[:, :, None, None]", f"X.view({d.batch}, {wide}, 1, 1)"]
    texts += [f"X.reshape({d.batch}, 1, {height}, {wide // height})"] * 2 if height else []
    return d.rng.choice(texts)


def _five(d: Draw) -> Written:
    return d.pick("X.flatten(1, 2)", "X.flatten(1, 2)", "X.mean(2)", "X.sum(1)", "X[:, 0]", "X.permute(0, 2, 1, 3, 4)",
                  "X.softmax(2) * 3", "X.amax(1)", "(X * X.softmax(1)).sum(1)", "X.transpose(1, 2).flatten(1, 2)",
                  "(X.sigmoid()[..., :2] * 2) ** 2", "X[:, :, -1]", "torch.cat([X, X.abs()], 2)", "F.pad(X, (1, 1))",
                  "F.avg_pool3d(X, (1, 2, 2))" if min(d.shape[3:]) > 3 else "X.mean(2)")  # fmt: skip


OTHERS = [
    *_plain(4, [("tokens", "X.flatten(2).transpose(1, 2)"), ("flattened", "X.flatten(2)"),
                ("sequence", "X.permute(0, 2, 3, 1).flatten(1, 2)")], 1.5),
    Operator("nn.MultiheadAttention", 3, _attention, 1.5),
    Operator("attention written out", 3, _self_attention, 1.5),
    Operator("tokens", 3, _tokens_linear, 5),
    Operator("tokens to a map", 3, _to_map, 4, sized=True),
    *_plain(3, [
        ("transposed", "X.transpose(1, 2)"), ("mean of tokens", "X.mean(1)"), ("last token", "X[:, -1]"),
        ("softmax", "X.softmax(-1) * 4"), ("gelu", "F.gelu(X)"), ("relu", "F.relu(X)"), ("silu", "F.silu(X)"),
        ("tokens reversed", "X.flip(1)"), ("tokens weighed", "(X * X.softmax(1)).sum(1)"),
        ("gram", "X.transpose(1, 2) @ X / 8"), ("channel gate", "X * X.mean(1, keepdim=True).sigmoid()"),
        ("max_pool1d", "F.max_pool1d(X, 3, 1, 1)"), ("avg_pool1d", "F.avg_pool1d(X, 3, 1, 1)"),
        ("sdpa", "F.scaled_dot_product_attention(X, X, X)"), ("interpolated", "F.interpolate(X, scale_factor=2)"),
    ], 0.6),
    Operator("vector", 2, _vector, 6),
    Operator("vector to a map", 2, _vector_to_map, 2),
    *_plain(2, [("relu", "F.relu(X)"), ("sigmoid", "X.sigmoid()"), ("tanh", "torch.tanh(X)"),
                ("unsqueezed", "X.unsqueeze(1)"),
                ("outer product", "X.unsqueeze(2) * X.tanh().unsqueeze(1)")], 0.6),
    Operator("five axes", 5, _five, 12),
]  # fmt: skip


# What can only be returned --------------------------------------------------------------------------------------------

LAST = [
    Operator(name, axes, lambda _, text=text: text, weight, last=True)
    for axes in (2, 4)
    for name, text, weight in (
        ("argmax", "X.argmax(1)", 2), ("argmax kept", "X.argmax(1, keepdim=True)", 1), ("argmin", "X.argmin(1)", 0.5),
        ("positions", "X.max(1).indices", 1), ("mask", "X > 0.1", 2), ("masks joined", "(X > 0.5) | (X < -0.5)", 1),
        ("counts", "(X > 0.2).sum(1)", 1), ("rounded", "(X * 3).round().to(torch.int32)", 1), ("not", "~(X > 0)", 1),
        ("equal", "X.argmax(1, keepdim=True) == 1", 0.5), ("long", "(X * 2).long()", 0.5),
        ("any", "(X > 1.0).any(1)", 0.5), ("all", "(X > -1.0).all(1)", 0.5),
    )
]  # fmt: skip

# Marked in the table: refused by one format or more, or without proof.
MARKED = [
    *_plain(4, [("median", "X - X.median(1, keepdim=True).values"), ("sort", "X.sort(1).values"),
                ("topk", "X.topk(2, 1).values")], 0.02, sized=True),
]  # fmt: skip

OPERATORS = (
    *CONVOLUTIONS, *NORMALISATION, *POOLS, *ARITHMETIC, *LAYOUT, *SIZES, *OTHERS, *LAST, *MARKED,
)  # fmt: skip


# Two values -----------------------------------------------------------------------------------------------------------

JOINED_ALIKE = ("A + B", "A * B.sigmoid()", "A - B", "torch.maximum(A, B)", "A * B", "torch.cat([A, B], 1)",
                "torch.stack([A, B], 1).mean(1)", "A + 0.5 * B", "torch.where(A > 0, A, B)", "torch.cat([A, B], -1)",
                "A / (B.abs() + 0.5)", "torch.lerp(A, B, 0.4)", "torch.min(A, B)")  # fmt: skip
"""Of two values of one shape."""

JOINED_BROADCAST = ("A + B", "A * B.sigmoid()", "A * B", "B * A", "A - B", "A * B.expand_as(A)", "B + A",
                    "A / (B.abs() + 0.5)")  # fmt: skip
"""Of a value and one that is broadcast to it."""
