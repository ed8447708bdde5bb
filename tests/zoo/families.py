"""Small networks of six families, as strangers bring them: written after their papers, with random weights.

Statistics of normalisations are those of what passes through them, so that signals keep their size.
"""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 7


def conv(inputs, outputs, kernel=1, stride=1, groups=1, act=nn.ReLU):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def settled(network):
    """The network in evaluation mode, with the statistics of smooth random images; always the same weights."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(16, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, size=(64, 64), mode="bilinear") + 0.2 * torch.randn(
        16, 3, 64, 64, generator=generator
    )
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.weight.data.uniform_(0.7, 1.3, generator=generator)
        norm.bias.data.normal_(0.0, 0.1, generator=generator)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


class Classifier(nn.Module):
    def __init__(self, *features, channels):
        super().__init__()
        self.features, self.head = nn.Sequential(*features), nn.Linear(channels, CLASSES)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Shuffle(nn.Module):
    """ShuffleNet V2 (Ma et al. 2018): half of the channels pass, then channels are shuffled."""

    def __init__(self, channels, stride):
        super().__init__()
        self.stride, inner = stride, channels // 2
        into = channels if stride == 2 else inner
        self.branch = nn.Sequential(
            conv(into, inner), conv(inner, inner, 3, stride, inner, act=None), conv(inner, inner)
        )
        self.other = (
            nn.Sequential(conv(into, into, 3, 2, into, act=None), conv(into, inner)) if stride == 2 else nn.Identity()
        )

    def forward(self, x):
        kept, taken = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        y = torch.cat([self.other(kept), self.branch(taken)], 1)
        batch, channels, height, width = y.shape
        return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(y.shape)


def shufflenet():
    torch.manual_seed(0)
    return settled(
        Classifier(conv(3, 32, 3, 2), nn.MaxPool2d(3, 2, 1), Shuffle(32, 2), Shuffle(32, 1), conv(32, 48), channels=48)
    )


class Branches(nn.Module):
    """RepVGG (Ding et al. 2021) in its form for training: 3x3, 1x1 and a normalisation alone."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.dense, self.point = conv(inputs, outputs, 3, stride, act=None), conv(inputs, outputs, 1, stride, act=None)
        self.norm = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x):
        return F.relu(self.dense(x) + self.point(x) + (self.norm(x) if self.norm else 0))


def repvgg():
    torch.manual_seed(1)
    return settled(Classifier(Branches(3, 16, 2), Branches(16, 16), Branches(16, 24, 2), Branches(24, 24), channels=24))


class Dense(nn.Module):
    """DenseNet (Huang et al. 2017): normalised before every convolution, everything is kept."""

    def __init__(self, channels, growth=12):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)])
        self.squeeze = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.grow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.grow(F.relu(self.norms[1](self.squeeze(F.relu(self.norms[0](x))))))], 1)


def densenet():
    torch.manual_seed(2)
    transition = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2, 2))
    return settled(
        Classifier(conv(3, 24, 7, 2), nn.MaxPool2d(3, 2, 1), Dense(24), Dense(36), transition, Dense(24), channels=36)
    )


class LayerNorm(nn.LayerNorm):
    """Over the channels of a map."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Next(nn.Module):
    """ConvNeXt (Liu et al. 2022): a wide depthwise convolution, a perceptron with the channels last, a layer scale."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(0.1 * torch.randn(channels))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.widen(y)))).permute(0, 3, 1, 2)


def convnext():
    torch.manual_seed(3)
    down = nn.Sequential(LayerNorm(16), nn.Conv2d(16, 32, 2, 2))
    return settled(Classifier(nn.Conv2d(3, 16, 4, 4), LayerNorm(16), Next(16), down, Next(32), channels=32))


class Transformer(nn.Module):
    """MobileViT (Mehta and Rastegari 2022): attention over the places that patches have in common."""

    def __init__(self, channels, heads=4):
        super().__init__()
        self.local, self.fuse = conv(channels, channels, 3, act=nn.SiLU), conv(2 * channels, channels, 3, act=nn.SiLU)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.qkv, self.proj, self.heads = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels), heads
        self.widen, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x):
        batch, channels, height, width = x.shape
        y = self.local(x).reshape(batch * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = y.reshape(batch, channels, height * width // 4, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
        y = y + self.attend(self.norms[0](y))
        y = y + self.narrow(F.silu(self.widen(self.norms[1](y))))
        y = y.view(batch, 4, -1, channels).transpose(1, 3).reshape(batch * channels * height // 2, width // 2, 2, 2)
        return self.fuse(torch.cat([x, y.transpose(1, 2).reshape(batch, channels, height, width)], 1))

    def attend(self, y):
        images, tokens, channels = y.shape
        q, k, v = (
            self.qkv(y).reshape(images, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, channels))


def mobilevit():
    torch.manual_seed(4)
    return settled(
        Classifier(conv(3, 16, 3, 2, act=nn.SiLU), conv(16, 24, 3, 2, act=nn.SiLU), Transformer(24), channels=24)
    )


class Split(nn.Module):
    """The C2f block of YOLOv8: every stage of one half is kept."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.first, self.last = conv(channels, channels, act=nn.SiLU), conv(3 * half, channels, act=nn.SiLU)
        self.inner = nn.Sequential(conv(half, half, 3, act=nn.SiLU), conv(half, half, 3, act=nn.SiLU))

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        return self.last(torch.cat([*parts, parts[-1] + self.inner(parts[-1])], 1))


class Detector(nn.Module):
    """After YOLOv8: pooled in a row, a pyramid, boxes as the mean of a distribution over bins, decoded to pixels."""

    BINS = 8

    def __init__(self):
        super().__init__()
        self.stem, self.fine = conv(3, 16, 3, 2, act=nn.SiLU), nn.Sequential(conv(16, 32, 3, 2, act=nn.SiLU), Split(32))
        self.coarse, self.pooled = (
            nn.Sequential(conv(32, 48, 3, 2, act=nn.SiLU), Split(48)),
            conv(144, 48, act=nn.SiLU),
        )
        self.merge = conv(80, 32, act=nn.SiLU)
        self.boxes = nn.ModuleList(nn.Conv2d(channels, 4 * self.BINS, 1) for channels in (32, 48))
        self.scores = nn.ModuleList(nn.Conv2d(channels, 3, 1) for channels in (32, 48))

    def forward(self, image):
        fine = self.fine(self.stem(image))
        coarse = self.coarse(fine)
        row = [coarse, F.max_pool2d(coarse, 5, 1, 2)]
        coarse = self.pooled(torch.cat([*row, F.max_pool2d(row[-1], 5, 1, 2)], 1))
        fine = self.merge(torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode="nearest")], 1))
        found = [self.decode(level, x) for level, x in enumerate((fine, coarse))]
        return {"boxes": torch.cat([box for box, _ in found], 2), "scores": torch.cat([score for _, score in found], 2)}

    def decode(self, level, x):
        stride, (height, width) = (4, 8)[level], x.shape[-2:]
        sides = self.boxes[level](x).view(x.shape[0], 4, self.BINS, height * width).softmax(2)
        sides = (sides * torch.arange(self.BINS, dtype=x.dtype)[:, None]).sum(2)
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([columns, rows]).flatten(1)
        boxes = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1) * stride
        return boxes, self.scores[level](x).flatten(2).sigmoid()


def yolo():
    torch.manual_seed(5)
    return settled(Detector())
