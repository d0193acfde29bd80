"""What the tests of the fakes of streams and graphs run on them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlaan import MLAAN, Engine
from mlaan.models import CifarResNet
from mlaan_kernels.library import Implementation
from mlaan_kernels.sgd_update import Twin, sgd_update


@torch.library.custom_op("recording_test::add_and_scale", mutates_args=("total",))
def add_and_scale(total: Tensor, x: Tensor) -> Tensor:
    """Adds x to `total`, and gives 3 x."""
    total.add_(x)
    return 3 * x


def sgd(weight: Tensor, grad: Tensor, momentum: Tensor, twins: Sequence[Twin], implementation: Implementation):
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    sgd_update([weight], [grad], [momentum], twins, learning_rate=0.1, implementation=implementation, **options)


def hand_over(lanes, ordered, first, second):
    """`first` on lane 1, then `second` on lane 0, which waits for it where `ordered`."""
    with lanes:
        lanes.wait(1, lanes.record(0))
        with lanes.on(1):
            made = first()
        event = lanes.record(1)
        if ordered:
            lanes.wait(0, event)
        second(made)
        lanes.wait(0, event)  # the end of the step is in order in any case


def make_engine():
    torch.manual_seed(0)
    return Engine(CifarResNet(20).double(), MLAAN(), 3, input_shape=(3, 8, 8), learning_rate=0.1)
