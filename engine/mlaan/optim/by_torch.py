"""SGD and AdamW by torch.optim's fused functions, and what a rule from outside needs around it."""

from typing import cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from mlaan.config import AdamWConfig, OptimConfig, SGDConfig
from mlaan.optim.rules import Moving
from mlaan.optim.twins import move_twins


class TorchRule:
    """torch.optim's SGD and AdamW, without their objects: all state is the caller's."""

    on_device = True

    def __init__(self, config: OptimConfig) -> None:
        assert isinstance(config, SGDConfig | AdamWConfig), config
        self.config = config

    def __call__(self, moving: Moving) -> None:
        """See `mlaan.optim.rules.Rule`."""
        twins_first(moving)
        weights, grads = list(moving.targets), ready_grads(moving)
        found = None if moving.finite is None else (~moving.finite).float()
        rate = cast(float, moving.learning_rate)  # the fused functions take a tensor too, though SGD's hint has none
        if isinstance(self.config, SGDConfig):
            sgd(
                weights,
                grads,
                list(moving.states[0]) if self.config.momentum else [None] * len(weights),
                fused=True,
                found_inf=found,
                weight_decay=self.config.weight_decay,
                momentum=self.config.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=self.config.nesterov,
                maximize=False,
            )
        else:
            assert moving.step is not None
            first, second = moving.states
            # The function adds 1 to a count for each weight, and takes it off where it skips: copies serve.
            before = moving.step - 1
            adamw(
                weights,
                grads,
                list(first),
                list(second),
                [],
                list(before.expand(len(weights)).clone().unbind()),
                capturable=True,
                fused=True,
                found_inf=found,
                amsgrad=False,
                beta1=self.config.betas[0],
                beta2=self.config.betas[1],
                lr=rate,
                weight_decay=self.config.weight_decay,
                eps=self.config.epsilon,
                maximize=False,
            )
        round_masters(moving)


def twins_first(moving: Moving) -> None:
    """Move the twins of a call, as the operators of this package do by themselves."""
    move_twins([(moving.targets[twin.param], twin.tensor, twin.keep) for twin in moving.twins], moving.finite)


def ready_grads(moving: Moving) -> list[Tensor]:
    """The gradients as rules from outside take them: clipped, in dtype and strides of what they move.

    Copies where they are not so already: `.grad` itself may be shared with others.
    """
    grads = [
        grad
        if grad.dtype == target.dtype and grad.stride() == target.stride()
        else torch.empty_like(target).copy_(grad)
        for grad, target in zip(moving.grads, moving.targets, strict=True)
    ]
    if moving.scale is not None:
        grads = list(torch._foreach_mul(grads, moving.scale.to(grads[0].dtype)))  # type: ignore[attr-defined]
    return grads


def round_masters(moving: Moving) -> None:
    """The bfloat16 weights become their masters, rounded."""
    if moving.masters:
        torch._foreach_copy_(list(moving.weights), list(moving.masters))  # type: ignore[attr-defined]
