"""What `build` makes of the settings of a run."""

import torch

from mlaan.build import build
from trainer.tiny import config


def test_order_and_mixing_of_the_images_depend_on_the_seed():
    one, other, one_again = (build(config(train__seed=seed, train__mixup="0.2")).train_batches for seed in "343")
    assert torch.equal(one.order(0), one_again.order(0))
    assert not torch.equal(one.order(0), other.order(0))
    assert one.change.mix(0, 0, 8, 8) == one_again.change.mix(0, 0, 8, 8)
    assert one.change.mix(0, 0, 8, 8) != other.change.mix(0, 0, 8, 8)


def test_a_run_on_the_cpu_has_deterministic_algorithms(monkeypatch):
    filling = torch.utils.deterministic
    monkeypatch.setattr(filling, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        build(config())
        assert torch.are_deterministic_algorithms_enabled()
        assert not filling.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before)
