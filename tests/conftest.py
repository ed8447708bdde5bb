"""Small real networks that the tests share."""

import sys
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.models.coordatt import CoordAtt

# Benchmarks are no part of the package: they are found from the root of the repository.
sys.path.append(str(Path(__file__).parents[1]))

# How long an example takes depends on what else the machine does; no test is about that. The same examples each time:
# a change that breaks nothing must not fail by chance.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _no_width_from_outside(monkeypatch):
    """Commands print as wide as COLUMNS says, which distributed runs set to the width of their own terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _no_cache_from_outside(monkeypatch, tmp_path_factory):
    """Builds keep what they make: no test finds what another one, or a user, has made."""
    monkeypatch.setenv("COORDATT_DEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"))


class TinyNet(nn.Module):
    """A stem, a depthwise convolution, coordinate attention, a residual sum and a head: every kind of layer, small."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
            nn.BatchNorm2d(16, eps=1e-3),
            nn.ReLU6(),
            CoordAtt(16),
            nn.Conv2d(16, 16, 1, bias=True),
            nn.BatchNorm2d(16),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, classes)

    def forward(self, image):
        features = self.stem(image)
        features = features + self.block(features)
        return self.head(self.pool(features).flatten(1))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics worth folding: negative and zero gamma, large and small variance."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                layer.running_mean.normal_(generator=generator)
                layer.running_var.uniform_(0.3, 2.0, generator=generator)
                layer.weight.normal_(generator=generator)
                layer.weight[0] = 0.0
                layer.bias.normal_(generator=generator)
    return module.eval()


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return randomise(TinyNet())


@pytest.fixture
def tiny_graph(tiny):
    return capture(tiny, (torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)),))


@pytest.fixture
def tiny_folded(tiny_graph):
    return fold_batchnorms(tiny_graph)[0]


@pytest.fixture(scope="session")
def shared_graph():
    """The small network captured once, for tests that leave it alone."""
    torch.manual_seed(0)
    example = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    return capture(randomise(TinyNet()), (example,))
