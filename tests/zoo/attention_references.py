"""The attention blocks that papers compare, written after each reference's own keys and its own way of computing.

What our blocks do otherwise for the sake of exported files is left here as the references have it: pools of the map's
size, gates that are expanded, permuted copies, in-place activations.
"""

import torch
from torch import nn
from torch.nn import functional


class SqueezeExcite(nn.Module):
    """After moskomule/senet.pytorch."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        batch, channels, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(batch, channels)).view(batch, channels, 1, 1)
        return x * y.expand_as(x)


class MobileSqueezeExcite(nn.Module):
    """After the squeeze-and-excitation that CoordAtt's authors put into MobileNetV2."""

    def __init__(self, channels):
        super().__init__()
        middle = channels // 24
        self.conv = nn.Sequential(nn.Conv2d(channels, middle, 1), nn.ReLU6(True), nn.Conv2d(middle, channels, 1))

    def forward(self, x):
        return x * self.conv(functional.adaptive_avg_pool2d(x, 1)).sigmoid()


class EfficientNetSqueezeExcite(nn.Module):
    """After timm's EfficientNet."""

    def __init__(self, channels, squeezed):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        y = self.conv_expand(functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * y.sigmoid()


class Basic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x):
        return self.bn(self.conv(x))


def greatest_and_mean(x):
    return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


class ChannelGate(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        middle = channels // reduction
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels))

    def forward(self, x):
        size = (x.size(2), x.size(3))
        total = self.mlp(functional.avg_pool2d(x, size, stride=size))
        total = total + self.mlp(functional.max_pool2d(x, size, stride=size))
        return x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = Basic()

    def forward(self, x):
        return x * torch.sigmoid(self.spatial(greatest_and_mean(x)))


class CBAM(nn.Module):
    """After Jongchan/attention-module."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class ECA(nn.Module):
    """After BangguWu/ECANet."""

    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size=size, padding=(size - 1) // 2, bias=False)

    def forward(self, x):
        y = functional.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = Basic()

    def forward(self, x):
        return x * torch.sigmoid_(self.conv(greatest_and_mean(x)))


class Triplet(nn.Module):
    """After landskape-ai/triplet-attention."""

    def __init__(self):
        super().__init__()
        self.cw, self.hc, self.hw = Gate(), Gate(), Gate()

    def forward(self, x):
        first = self.cw(x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3).contiguous()
        second = self.hc(x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1).contiguous()
        return 1 / 3 * (self.hw(x) + first + second)


class SPM(nn.Module):
    """After houqb/SPNet: the block, and the product that its bottleneck forms."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=(3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=(1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, kernel_size=1, bias=True)

    def forward(self, x):
        _, _, h, w = x.size()
        x1 = self.bn1(self.conv1(functional.adaptive_avg_pool2d(x, (None, 1)))).expand(-1, -1, h, w)
        x2 = self.bn2(self.conv2(functional.adaptive_avg_pool2d(x, (1, None)))).expand(-1, -1, h, w)
        return x * self.conv3(functional.relu(x1 + x2)).sigmoid()


class MPM(nn.Module):
    """After houqb/SPNet."""

    def __init__(self, channels):
        super().__init__()
        inner = channels // 4

        def block(inputs, outputs, kernel, act=True):
            sides = (kernel, kernel) if isinstance(kernel, int) else kernel
            conv = nn.Conv2d(inputs, outputs, sides, 1, tuple(side // 2 for side in sides), bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(True)] if act else []))

        self.conv1_1, self.conv1_2 = block(channels, inner, 1), block(channels, inner, 1)
        self.conv2_0, self.conv2_1 = block(inner, inner, 3, False), block(inner, inner, 3, False)
        self.conv2_2 = block(inner, inner, 3, False)
        self.conv2_3, self.conv2_4 = block(inner, inner, (1, 3), False), block(inner, inner, (3, 1), False)
        self.conv2_5, self.conv2_6 = block(inner, inner, 3), block(inner, inner, 3)
        self.conv3 = block(inner * 2, channels, 1, False)

    def forward(self, x):
        def up(pooled):
            return functional.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True)

        x1, x2 = self.conv1_1(x), self.conv1_2(x)
        second = up(self.conv2_1(functional.adaptive_avg_pool2d(x1, (20, 20))))
        third = up(self.conv2_2(functional.adaptive_avg_pool2d(x1, (12, 12))))
        fourth = up(self.conv2_3(functional.adaptive_avg_pool2d(x2, (1, None))))
        fifth = up(self.conv2_4(functional.adaptive_avg_pool2d(x2, (None, 1))))
        x1 = self.conv2_5(functional.relu_(self.conv2_0(x1) + second + third))
        x2 = self.conv2_6(functional.relu_(fifth + fourth))
        return functional.relu_(x + self.conv3(torch.cat([x1, x2], dim=1)))


class GlobalContext(nn.Module):
    """After xvjiarui/GCNet."""

    def __init__(self, channels, fusions=("channel_add",)):
        super().__init__()
        planes = int(channels * (1 / 16))
        self.conv_mask = nn.Conv2d(channels, 1, kernel_size=1)
        for fusion in fusions:
            layers = (nn.Conv2d(channels, planes, 1), nn.LayerNorm([planes, 1, 1]), nn.ReLU(inplace=True))
            name = {"channel_add": "channel_add_conv", "channel_mul": "channel_mul_conv"}[fusion]
            self.add_module(name, nn.Sequential(*layers, nn.Conv2d(planes, channels, 1)))

    def forward(self, x):
        batch, channels, height, width = x.size()
        mask = torch.softmax(self.conv_mask(x).view(batch, 1, height * width), dim=2).unsqueeze(3)
        context = torch.matmul(x.view(batch, channels, height * width).unsqueeze(1), mask)
        context = context.view(batch, channels, 1, 1)
        out = x
        if hasattr(self, "channel_mul_conv"):
            out = out * torch.sigmoid(self.channel_mul_conv(context))
        return out + self.channel_add_conv(context) if hasattr(self, "channel_add_conv") else out


class TimmCoord(nn.Module):
    """After timm's CoordAttn."""

    def __init__(self, channels, middle):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv_h = nn.Conv2d(middle, channels, 1, bias=False)
        self.conv_w = nn.Conv2d(middle, channels, 1, bias=False)

    def forward(self, x):
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(-1, -2)], dim=2)
        y = functional.hardswish(self.bn1(self.conv1(y)))
        h, w = torch.split(y, list(x.shape[2:]), dim=2)
        return x * torch.sigmoid(self.conv_w(w.transpose(-1, -2))) * torch.sigmoid(self.conv_h(h))


class TimmSimpleCoord(nn.Module):
    """After timm's SimpleCoordAttn."""

    def __init__(self, channels, middle):
        super().__init__()
        self.fc1 = nn.Linear(channels, middle)
        self.fc_h, self.fc_w = nn.Linear(middle, channels), nn.Linear(middle, channels)

    def forward(self, x):
        h = functional.silu(self.fc1(x.mean(dim=3).transpose(1, 2)))
        w = functional.silu(self.fc1(x.mean(dim=2).transpose(1, 2)))
        gate = self.fc_h(h).transpose(1, 2).unsqueeze(-1) + self.fc_w(w).transpose(1, 2).unsqueeze(-2)
        return x * torch.sigmoid(gate)


class TimmLocal(nn.Module):
    """After timm's EfficientLocalAttn."""

    def __init__(self, channels):
        super().__init__()
        self.conv_h = nn.Conv2d(channels, channels, (7, 1), padding=(3, 0), groups=channels, bias=False)
        self.conv_w = nn.Conv2d(channels, channels, (1, 7), padding=(0, 3), groups=channels, bias=False)
        self.norm_h, self.norm_w = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)

    def forward(self, x):
        h = functional.silu(self.norm_h(self.conv_h(x.mean(dim=3, keepdim=True))))
        w = functional.silu(self.norm_w(self.conv_w(x.mean(dim=2, keepdim=True))))
        return x * torch.sigmoid(h) * torch.sigmoid(w)


class TimmStrip(nn.Module):
    """After timm's StripAttn."""

    def __init__(self, channels):
        super().__init__()
        self.conv_h = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels, bias=False)
        self.conv_w = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels, bias=False)

    def forward(self, x):
        h, w = self.conv_h(x.mean(dim=3, keepdim=True)), self.conv_w(x.mean(dim=2, keepdim=True))
        return x * torch.sigmoid(h + w)
