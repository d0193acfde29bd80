"""A recomputation rebuilds exactly what was, and moves nothing: statistics, counters, buffers, random state."""

import pytest
import torch
from torch import nn

from mlaan import DGL, MLAAN, Backbone, EndToEnd, Engine


class CountingBlock(nn.Module):
    """Convolution, BatchNorm, dropout, and a buffer of its own that every forward moves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout2d(0.4),
            nn.InstanceNorm2d(channels, track_running_stats=True),
        )  # fmt: skip
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trace", torch.zeros(channels))

    def forward(self, x):
        self.calls += 1
        self.trace.mul_(0.5).add_(x.detach().mean((0, 2, 3)))
        return x + self.body(x)


def dropout_net() -> Backbone:
    torch.manual_seed(3)
    stem = nn.Conv2d(3, 6, 3, padding=1)
    blocks = [CountingBlock(6) for _ in range(6)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 10))
    return Backbone(nn.Sequential(stem, *blocks, classifier).double(), stem, blocks, classifier)


def dropout_engine(recompute: str, schedule: str = "lean", method=None) -> Engine:
    backbone = dropout_net()
    method = method or MLAAN(preset="light", reach=2)
    return Engine(backbone, method, 6, input_shape=(3, 8, 8), recompute=recompute, schedule=schedule)


def run(engine: Engine) -> None:
    torch.manual_seed(11)
    engine.gradients(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(10, (4,)))


def dropout_gradients(recompute: str, schedule: str = "lean", method=None) -> list[torch.Tensor]:
    engine = dropout_engine(recompute, schedule, method)
    run(engine)
    parts = (engine.backbone.net, engine.heads)
    return [p.grad for part in parts for p in part.parameters() if p.requires_grad and p.grad is not None]


@pytest.mark.parametrize(
    "method", [MLAAN(preset="light"), MLAAN(preset="light", reach=4), EndToEnd(), DGL(head="light")]
)
@pytest.mark.parametrize("schedule", ["lean", "full"])
@pytest.mark.parametrize("recompute", ["once", "each"])
def test_gradients_and_state_are_those_without_it(recompute, schedule, method):
    plain, rebuilt = dropout_engine("none", schedule, method), dropout_engine(recompute, schedule, method)
    run(plain)
    after_plain = torch.get_rng_state()
    run(rebuilt)
    assert torch.equal(torch.get_rng_state(), after_plain)
    for (name, a), b in zip(plain.backbone.net.named_buffers(), rebuilt.backbone.net.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert len(list(plain.backbone.net.buffers())) == 6 * 8
    for (name, a), b in zip(plain.backbone.net.named_parameters(), rebuilt.backbone.net.parameters(), strict=True):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, rtol=1e-12, atol=0), name


def test_rebuilds_happen():
    engine = dropout_engine("each")
    rebuilds = [engine.plan.rebuilds(m) for m in range(6)]
    assert rebuilds == [1, 1, 1, 1, 1, 0]
    assert engine.plan.window == 1
    full = dropout_engine("once", "full")
    assert [full.plan.rebuilds(m) for m in range(6)] == [1, 1, 1, 1, 1, 0]
    segments = dropout_engine("once", "full", EndToEnd())
    assert [segments.plan.rebuilds(m) for m in range(6)] == [1, 1, 1, 1, 1, 0]
    assert segments.plan.window == 1
