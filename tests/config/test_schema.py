"""The rules of the program's own sections: each refusal names the key and the fix."""

import dataclasses

import pytest

from mlaan.config import MemoryConfig, PartitionConfig, RunConfig, SGDConfig, TrainConfig, describe, schema
from mlaan.errors import UserError


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (PartitionConfig, {"modules": 0}, "partition.modules = 0 must be at least 1"),
        (MemoryConfig, {"window": 3}, "memory.window = 3 does not fit memory.schedule = 'lean': "),
        (
            MemoryConfig,
            {"schedule": "windowed"},
            "memory.window = 0 does not fit memory.schedule = 'windowed': ",
        ),
        (SGDConfig, {"learning_rate": -0.1}, "optim.learning_rate = -0.1 must not be negative"),
        (SGDConfig, {"momentum": 1.0}, "optim.momentum = 1.0 must be from 0 to below 1"),
        (SGDConfig, {"momentum": 0.0}, "optim.nesterov = true needs optim.momentum > 0"),
        (SGDConfig, {"weight_decay": -1e-4}, "optim.weight_decay = -0.0001 must not be negative"),
        (SGDConfig, {"warmup_epochs": -1}, "optim.warmup_epochs = -1 must not be negative"),
        (TrainConfig, {"epochs": 0}, "train.epochs = 0 must be at least 1"),
        (RunConfig, {"checkpoint_minutes": 0.0}, "run.checkpoint_minutes = 0.0 must be above 0"),
    ],
)
def test_refusals(section, values, message):
    with pytest.raises(UserError) as caught:
        section(**values)
    assert str(caught.value).startswith(message)


def test_every_setting_has_help():
    sections = [kind for kind in vars(schema).values() if dataclasses.is_dataclass(kind)]
    sections.remove(schema.Config)
    assert len(sections) == 6
    for section in sections:
        assert [row.key for row in describe(section) if not row.help] == []
