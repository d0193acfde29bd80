"""Live leap networks read the blocks as they were before the step, in every schedule, and in training mode."""

import pytest
import torch
from torch import nn

from exact.compare import gap
from mlaan import MLAAN, Engine
from mlaan.models import CifarResNet, borrowed

BATCH = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6)


def trained(schedule: str, **memory) -> Engine:
    torch.manual_seed(0)
    engine = Engine(
        CifarResNet(20).double(),
        MLAAN(leap="live", twins="first"),
        9,
        input_shape=(3, 8, 8),
        schedule=schedule,
        **memory,
    )
    for _ in range(2):
        engine.step(*BATCH)
    return engine


@pytest.mark.parametrize("memory", [{"schedule": "full"}, {"schedule": "windowed", "window": 4}], ids=str)
def test_two_steps_are_the_same_in_every_schedule(memory):
    lean, other = trained("lean"), trained(**memory)
    ours = other.backbone.net.state_dict()
    for name, value in lean.backbone.net.state_dict().items():
        assert gap(ours[name], value) < 1e-12, name


def test_an_update_waits_for_the_heads_that_borrow_its_blocks():
    engine = trained("full")
    tasks = [str(task) for step in engine.plan.steps for task in step.tasks]
    last = max(i for i, task in enumerate(tasks) if task.startswith("Head(0"))
    assert last < tasks.index("Update(8)")


def test_borrowed_blocks_are_in_training_mode():
    net = CifarResNet(20)
    net.layer3[1] = nn.Sequential(net.layer3[1], nn.Dropout(0.5))
    engine = Engine(net.eval(), MLAAN(leap="live", twins="none"), 9, input_shape=(3, 8, 8))
    blocks = [block for head in engine.heads for block in borrowed(head)]
    assert any(isinstance(m, nn.Dropout) for block in blocks for m in block.modules())
    assert all(m.training for block in blocks for m in block.modules())
    engine.evaluate([(BATCH[0].float(), BATCH[1])])
    assert all(m.training for block in blocks for m in block.modules())
