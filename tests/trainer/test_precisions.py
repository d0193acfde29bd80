"""Runs in every precision: they end alike, and go on bit for bit after a stop."""

import statistics

import pytest
import torch

from mlaan import Engine
from mlaan.build import build
from mlaan.cli.settings import load_config
from mlaan.errors import UserError
from mlaan.models import CifarResNet
from mlaan.optim.schedule import learning_rate
from trainer.test_trainer import stop_at
from trainer.tiny import STEPS, final_state, one_thread, resume, same, start  # noqa: F401

SETTINGS = [
    {"train__precision": "float16"},
    {"train__precision": "bfloat16", "train__weights": "bfloat16", "optim__name": "adamw"},
    {"optim__name": "lamb", "optim__clip": "global"},
    {"optim__name": "lars", "optim__clip": "module"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, settings):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(whole, **settings) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        assert start(parts, **settings) == 143
    assert resume(parts) == 0
    assert same(final_state(whole), final_state(parts))


def train(precision, seed):
    """Held-out accuracy in per cent after four epochs on 2,048 images."""
    words = {
        "train.precision": precision,
        "train.seed": str(seed),
        "data.train_images": "2048",
        "data.batch": "64",
        "train.epochs": "4",
    }
    try:
        config = load_config("configs/quick/fashion_mnist.toml", list(words.items()))
        parts = build(config)
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(seed)
    engine = Engine(
        CifarResNet(8, in_channels=1), "mlaan", 3, preset="light", input_shape=(1, 28, 28), precision=precision
    )
    for epoch in range(config.train.epochs):
        engine.learning_rate = learning_rate(config.optim, epoch, config.train.epochs)
        for batch in parts.train_batches:
            engine.step(*batch)
    return 100 * engine.evaluate(parts.test_batches).top1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fashion_mnist_ends_within_the_seeds_spread(precision):
    """Means of three seeds: no further from float32's than three standard errors of the difference."""
    wanted, found = ([train(one, seed) for seed in range(3)] for one in ("float32", precision))
    error = ((statistics.variance(wanted) + statistics.variance(found)) / 3) ** 0.5
    print(precision, found, "float32", wanted)
    assert abs(statistics.mean(found) - statistics.mean(wanted)) < 3 * error
    assert min(found) > 50
