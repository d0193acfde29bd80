"""A training step never makes the host wait for the device.

On the meta device no value exists: whoever asks for one, by item(), bool(), tolist(), nonzero() or a copy to the CPU,
fails. A step that runs there asks for none. On a GPU, PyTorch itself raises where something waits.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlaan import MLAAN, Engine
from mlaan.config import OptimConfig
from mlaan.learning import DGL, EndToEnd, InfoPro, PredSim
from mlaan.models import BACKBONES
from mlaan.observe.state import Meter

METHODS = {
    "mlaan": MLAAN(),
    "mlaan light": MLAAN(preset="light"),
    "dgl": DGL(),
    "predsim": PredSim(),
    "infopro": InfoPro(),
    "end to end": EndToEnd(),
}
NORMALISATION = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


def engine_on(device: str, method="mlaan light", **settings) -> Engine:
    with torch.device(device):
        backbone = BACKBONES["resnet20"](10, 3)
    settings = {"learning_rate": 0.1} | settings if isinstance(settings.get("optim", "sgd"), str) else settings
    return Engine(backbone, METHODS[method], 3, normalisation=NORMALISATION, **settings)


def batch_on(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(8, 3, 32, 32, device=device), torch.zeros(8, dtype=torch.int64, device=device)


def step(engine: Engine, images: torch.Tensor, labels: torch.Tensor) -> None:
    meter = Meter(len(engine.loss_names), engine.device)
    for _ in range(2):
        meter.add(engine.step(images, labels))


@pytest.mark.parametrize("method", METHODS)
def test_no_method_asks_for_a_value_in_a_step(method):
    step(engine_on("meta", method), *batch_on("meta"))


@pytest.mark.parametrize("optim", ["sgd", "lars", "adamw", "lamb"])
@pytest.mark.parametrize("clip", ["off", "global", "module"])
def test_no_optimizer_asks_for_a_value_in_a_step(optim, clip):
    chosen = OptimConfig.make(optim, clip=clip)
    step(engine_on("meta", optim=chosen), *batch_on("meta"))


@pytest.mark.parametrize("recompute", ["once", "each", "fused"])
def test_no_recomputation_asks_for_a_value_in_a_step(recompute):
    step(engine_on("meta", recompute=recompute), *batch_on("meta"))


class Curious(nn.Module):
    """A head that looks at what it gives, once it is told how."""

    def __init__(self) -> None:
        super().__init__()
        self.look = lambda logits: None
        self.linear = nn.Linear(64, 10)

    def forward(self, h):
        logits = self.linear(F.adaptive_avg_pool2d(h, 1).flatten(1))
        self.look(logits)
        return logits


@pytest.mark.parametrize(
    "look",
    [
        lambda logits: logits.sum().item(),
        lambda logits: bool(logits.sum() > 0),
        lambda logits: logits.tolist(),
        lambda logits: logits.nonzero(),
        lambda logits: logits.cpu() + torch.zeros(10),
    ],
)
def test_a_head_that_asks_for_a_value_is_caught(look):
    with torch.device("meta"):
        backbone = BACKBONES["resnet20"](10, 3)
        backbone.classifier = head = Curious()
    engine = Engine(backbone, METHODS["end to end"], 1)
    step(engine, *batch_on("meta"))
    head.look = look
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(engine, *batch_on("meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("executor", ["eager", "streams", "graph"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(method, executor, precision):
    engine, batch = engine_on("cuda", method, executor=executor, precision=precision), batch_on("cuda")
    batch[0].normal_()
    for _ in range(4):  # libraries set themselves up, graphs are captured
        engine.step(*batch)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(engine, *batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)
