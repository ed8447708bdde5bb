"""The sandglass bottleneck with its identity added in place to a slice, as its authors' repository does."""

from torch import nn


class Sandglass(nn.Module):
    def __init__(self, channels, kept):
        super().__init__()
        self.kept = kept
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        out = self.conv(x)
        out[:, : self.kept, :, :] = out[:, : self.kept, :, :] + x[:, : self.kept, :, :]
        return out


class Net(nn.Module):
    def __init__(self, kept=8):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.block = Sandglass(16, kept)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x):
        return self.classifier(self.block(self.stem(x)).mean((2, 3)))
